from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..losses.label_contrast import LEFT_OUT
from .synthetic_segmentation import normalize_each

__all__ = ["LabelContrast"]


class LabelContrast(nn.Module):
    """Draw two images of different contrast from a label map, and make the features of a label alike in both.

    The pretext of Anatomix (Dey et al., ICLR 2025): the labels need no meaning, so maps of random shapes will do. Its
    code contrasts the output, maps of the decoder's coarser stages and of the encoder's last two. Here these are the
    output, at each stage if the network has deep supervision, and what the encoder lists as ``deep_maps``: bottleneck
    and decoder without the finest stage, which the output is made from. Projectors turn features into vectors at random
    voxels, the same in both images: the published code's three layers with batch norms, which keep the vectors from
    becoming all alike.

    Args:
        network: a segmentation network; its output channels are features, too.
        contrast: draws images from label maps, such as ``common.transforms.SyntheticContrast``.
        features: number of those channels.
        shapes: draws the label maps (``common.transforms.RandomShapes``): only the size of the batch counts then. None
            uses the batch as label maps.
        deformation: moves a batch of label maps; None leaves them.
        normalize: as for ``SyntheticSegmentation``.
        points: voxels of each map.
        size: length of a vector, and of the projectors' layers.
        encoder: the encoder of ``network``, which may list more maps; None contrasts the output alone.

    ``forward(image or label map (B, 1, *spatial))`` returns ``vectors`` (B, maps, 2, points, size), ``labels`` (B,
    maps, points), and for pictures ``shapes`` (B, 1, *spatial), ``drawn`` and ``second``, the drawn images.

    Raises:
        ValueError: the encoder lists maps that the network does not have; ``forward``, if a map has a single voxel.
    """

    def __init__(
        self,
        network: nn.Module,
        contrast: Callable[[torch.Tensor], torch.Tensor],
        features: int,
        shapes: Callable[[torch.Tensor], torch.Tensor] | None = None,
        deformation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        normalize: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
        points: int = 512,
        size: int = 256,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network, self.contrast, self.shapes = network, contrast, shapes
        self.deformation, self.normalize, self.points = deformation, normalize, points
        self.inner, widths = inner_maps(network, encoder)
        self.projector = projector(features, size)  # of the outputs
        self.projectors = nn.ModuleList(projector(width, size) for width in widths)

    def maps(self, image: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Outputs (B, features, *grid) of the network, and its inner maps (B, C_i, *grid_i)."""
        seen: list[torch.Tensor] = []
        parts = [self.network.get_submodule(name) for name in self.inner]
        handles = [part.register_forward_hook(lambda _part, _given, made: seen.append(made)) for part in parts]
        try:
            made = self.network(image)
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(made, torch.Tensor):
            # With deep supervision, MONAI's DynUNet stacks its outputs in training.
            made = made.unbind(1) if made.ndim > image.ndim else [made]
        return list(made), seen

    @torch.no_grad()
    def draw(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw label maps (B, 1, *spatial) and two images (B, C, *spatial) of them."""
        labels = image.round().long() if self.shapes is None else self.shapes(image)
        if self.deformation is not None:
            labels = self.deformation(labels)
        both = [self.contrast(labels) for _ in range(2)]
        if self.normalize is not None:
            both = [normalize_each(self.normalize, view) for view in both]
        return labels, both[0], both[1]

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            labels, first, second = self.draw(image)
        outputs, inner = self.maps(torch.cat((first, second)))
        vectors, chosen = [], []
        projectors = [self.projector] * len(outputs) + list(self.projectors)
        for found, project in zip((*outputs, *inner), projectors, strict=True):
            # Strided convolutions put the first voxel of a coarser map onto the image's first, not between voxels.
            near = F.interpolate(labels.float(), found.shape[2:], mode="nearest").flatten(1).long()
            if near.shape[1] == 1:
                raise ValueError(
                    f"images of {' x '.join(map(str, image.shape[2:]))} voxels leave one voxel at the bottleneck, "
                    "with no other to differ from: use larger crops (`roi_size`)."
                )
            # Without replacement, as in the published code: a voxel is no other of itself.
            drawn = min(self.points, near.shape[1])
            order = torch.rand(near.shape, device=near.device).topk(drawn, sorted=False).indices
            index = order.repeat(2, 1)[:, None].expand(-1, found.shape[1], -1)
            made = project(found.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1))
            rest = self.points - drawn
            made = F.pad(made.unflatten(0, (2 * len(labels), -1)), (0, 0, 0, rest))
            vectors.append(torch.stack(made.chunk(2), 1))
            chosen.append(F.pad(near.gather(1, order), (0, rest), value=LEFT_OUT))
        return {
            "vectors": torch.stack(vectors, 1),
            "labels": torch.stack(chosen, 1),
            "shapes": labels,
            "drawn": first,
            "second": second,
        }

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The label map and the two images from the result of ``forward``, each (B, 1, *spatial)."""
        shapes = prediction["shapes"].float()
        return shapes / shapes.amax().clamp(min=1), prediction["drawn"][:, :1], prediction["second"][:, :1]


def inner_maps(network: nn.Module, encoder: Any) -> tuple[list[str], list[int]]:
    """Names of the modules whose maps are contrasted beside the output, coarsest first, and the maps' channels."""
    pattern = getattr(encoder, "deep_maps", None)
    if pattern is None:
        return [], []
    names = [name for name, _ in network.named_modules() if re.fullmatch(pattern, name)]
    if not names:
        raise ValueError(
            f"{type(network).__name__} has none of the maps that its encoder lists ({pattern}): give another `encoder`."
        )
    widths = list(reversed(encoder.channels))[-len(names) :]
    return names[:-1], widths[:-1]  # the output is made from the finest


def projector(features: int, size: int) -> nn.Sequential:
    """Three linear layers with batch norms of the rows at hand, the last one without weights."""

    def norm(affine: bool = True) -> nn.Module:
        return nn.BatchNorm1d(size, affine=affine, track_running_stats=False)

    def linear(width: int) -> nn.Module:
        return nn.Linear(width, size, bias=False)

    first, second = [[linear(width), norm(), nn.ReLU()] for width in (features, size)]
    return nn.Sequential(*first, *second, linear(size), norm(affine=False))
