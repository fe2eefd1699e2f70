from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast
from .plane_encoder import PlaneEncoder
from .planes import PLANES, from_slices, to_slices
from .resize import resize_linear
from .slice_transformer import SliceTransformer

__all__ = ["MultiViewClassifier", "MultiViewEncoder", "MultiViewRegressor", "MultiViewSegmenter"]

MAPS = 3
"""Stages of the plane encoders whose maps the segmentation head takes (blocks 2 to 4 of the paper's figure 3)."""

POOLED = 16
"""Stride at which ``MultiViewEncoder`` returns the map of combined vectors."""


class MultiViewEncoder(nn.Module):
    """Backbone of Medical Transformer [1, section 3.2]: slices of three planes, one encoder per plane, one transformer.

    The combination of the planes, F[x, y, z] = (s_x, c_y, a_z) with the vectors of sagittal, coronal and axial slices
    (section 3.3.2), is never built: every linear function of it is a sum of functions of the three sequences. The heads
    below use that.

    Args:
        in_channels: channels of the image.
        embed_dim: length d of a slice's vector.
        widths: channels of the plane encoders' stages.
        num_heads, dim_head, mlp_dim, num_layers: sizes of the transformer; 0 layers leave it out, as in the paper's
            table 5.
        dropout: in the transformer.
        norm_scope: "volume" or "slice", see ``PlaneEncoder``.

    ``forward(image (B, C, X, Y, Z))`` returns ten maps. The first nine are those of the first three stages of the
    sagittal, coronal and axial encoder, in the volume's axes. The last is F, averaged over blocks of 16 voxels per
    axis. Interpolated to the volume, they are the features of the paper's segmentation head. The image may have any
    size.

    Raises:
        ValueError: in ``forward``, the image does not have ``in_channels`` channels and three axes.

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    spare_weights: ClassVar[dict[str, str]] = {"transformer": r"^transformer\."}  # the paper's table 5
    layer_names: ClassVar[tuple[str, ...]] = (
        r"planes\.\w+\.stem\.",
        r"planes\.\w+\.stages\.(\d+)\.",
        r"planes\.\w+\.project\.",
        r"transformer\.segments\.",
        r"transformer\.layers\.(\d+)\.",
        r"transformer\.norm\.",
    )

    def __init__(
        self,
        in_channels: int = 1,
        embed_dim: int = 64,
        widths: Sequence[int] = (16, 32, 64, 128),
        num_heads: int = 4,
        dim_head: int = 256,
        mlp_dim: int = 128,
        num_layers: int = 1,
        dropout: float = 0.1,
        norm_scope: str = "volume",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.widths = tuple(widths)
        self.planes = nn.ModuleDict(
            {plane: PlaneEncoder(in_channels, embed_dim, widths, norm_scope) for plane in PLANES}
        )
        self.transformer = (
            SliceTransformer(embed_dim, num_heads, dim_head, mlp_dim, num_layers, dropout) if num_layers else None
        )
        self._transformer = {"num_heads": num_heads, "dim_head": dim_head, "mlp_dim": mlp_dim}
        self._transformer |= {"num_layers": num_layers}
        self.norm_scope = norm_scope
        self.channels = (*(width for width in self.widths[:MAPS] for _ in PLANES), len(PLANES) * embed_dim)
        across = [
            tuple(1 if a == axis else 2 ** (2 + stage) for a in range(3)) for stage in range(MAPS) for axis in range(3)
        ]
        self.strides = (*across, (POOLED,) * 3)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        vectors, maps = self.encode(image)
        features = [from_slices(maps[p][stage], plane) for stage in range(MAPS) for p, plane in enumerate(PLANES)]
        pooled = [F.avg_pool1d(v.transpose(1, 2), POOLED, ceil_mode=True, count_include_pad=False) for v in vectors]
        grid = [x.shape[2] for x in pooled]
        lines = [_along(x, axis).expand(-1, -1, *grid) for axis, x in enumerate(pooled)]
        return [*features, torch.cat(lines, dim=1)]

    def encode(self, image: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Vectors of each plane's slices (B, N, d) after the transformer, and maps of first stages (B, C, N, H, W)."""
        vectors, maps = self._encode_planes(image)
        return [self.mix(v, plane) for v, plane in zip(vectors, PLANES, strict=True)], maps

    def encode_planes(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Vectors of the slices of each plane (B, N, d), before the transformer."""
        return self._encode_planes(image)[0]

    def mix(self, vectors: torch.Tensor, plane: str) -> torch.Tensor:
        """Vectors of one plane after the transformer; unchanged if there is none."""
        return vectors if self.transformer is None else self.transformer(vectors, plane)

    def _encode_planes(self, image: torch.Tensor) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        if image.ndim != 5 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"Medical Transformer takes images (batch, {self.in_channels} channels, X, Y, Z), not the shape "
                f"{tuple(image.shape)}: set in_channels to the channels of the images."
            )
        vectors, maps = [], []
        for plane, encoder in self.planes.items():
            v, m = encoder(to_slices(image, plane))
            vectors.append(v)
            maps.append(m[:MAPS])
        return vectors, maps

    def architecture(self) -> dict:
        """Name and arguments of the network, for the record of an encoder file."""
        return {
            "name": "MultiViewEncoder",
            "in_channels": self.in_channels,
            "embed_dim": self.embed_dim,
            "widths": list(self.widths),
            **self._transformer,
            "norm_scope": self.norm_scope,
        }


class MultiViewClassifier(nn.Module):
    """Mean over the volume of a linear classifier on the combined vectors [1, section 3.3.2], in closed form.

    A linear layer and a mean commute, so the layer is applied to (mean of s, mean of c, mean of a), in float32.

    Args:
        encoder: a ``MultiViewEncoder``.
        num_classes: number of logits.

    ``forward(image (B, C, X, Y, Z))`` returns logits (B, num_classes).

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(self, encoder: MultiViewEncoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(len(PLANES) * encoder.embed_dim, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        vectors, _ = self.encoder.encode(image)
        # In float32 under autocast too: half precision has 8 bits for an age, and the layer is too small to matter.
        with without_autocast(image.device):
            return self.head(torch.cat([v.mean(dim=1, dtype=self.head.weight.dtype) for v in vectors], dim=1))


class MultiViewRegressor(MultiViewClassifier):
    """The same for one number, in the target's unit.

    The head's output is computed and scaled to the target's unit in float32, as in ``EncoderRegressor``. So an
    untrained net starts near the mean of the training set. The paper does not say how ages were scaled.

    Args:
        encoder: a ``MultiViewEncoder``.
        mean, std: of the target over the training set, in its unit. A state dict carries them.

    ``forward(image (B, C, X, Y, Z))`` returns (B, 1).

    Raises:
        ValueError: ``std`` is not larger than 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: MultiViewEncoder, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(encoder, 1)
        if not std > 0:
            raise ValueError(f"The standard deviation of the target must be larger than 0, got {std}.")
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * self.std + self.mean


class MultiViewSegmenter(nn.Module):
    """A linear classifier of each voxel on the combined vectors and the plane encoders' maps [1, section 3.3.2].

    The paper's features of a voxel are F (3 d channels) and the maps of the first three stages of each plane,
    interpolated to the volume (3 x 112 channels at the published widths). Neither is built. The layer's part for s is
    applied to the sagittal sequence and laid along x, and likewise for the others. Its part for a map is applied before
    the interpolation, since the two commute.

    Args:
        encoder: a ``MultiViewEncoder``.
        num_classes: number of logits, background included.

    ``forward(image (B, C, X, Y, Z))`` returns logits (B, num_classes, X, Y, Z).

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(self, encoder: MultiViewEncoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_channels, self.out_channels = encoder.in_channels, num_classes
        # In the order of the features: s, c, a, then the maps of the sagittal, the coronal and the axial encoder.
        self.parts = [encoder.embed_dim] * len(PLANES) + list(encoder.widths[:MAPS]) * len(PLANES)
        self.head = nn.Linear(sum(self.parts), num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        vectors, maps = self.encoder.encode(image)
        weights = self.head.weight.split(self.parts, dim=1)
        logits = self.head.bias.view(1, -1, 1, 1, 1)
        for axis, plane in enumerate(PLANES):
            logits = logits + _along(F.linear(vectors[axis], weights[axis]).transpose(1, 2), axis)
            size = to_slices(image, plane).shape[2:]
            for stage in range(MAPS):
                weight = weights[len(PLANES) + MAPS * axis + stage]
                low = F.conv3d(maps[axis][stage], weight[..., None, None, None])
                logits = logits + from_slices(resize_linear(low, size), plane)
        return logits


def _along(line: torch.Tensor, axis: int) -> torch.Tensor:
    """Reshape a sequence (B, C, N) to a volume (B, C, ...) with N voxels along one axis and one along the others."""
    shape = [1, 1, 1]
    shape[axis] = line.shape[2]
    return line.reshape(*line.shape[:2], *shape)
