from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..evaluation_mode import evaluation_mode
from ..losses.label_contrast import LEFT_OUT
from .synthetic_segmentation import normalize_each

__all__ = ["LabelContrast"]


class LabelContrast(nn.Module):
    """Draw two images of different contrast from a label map, and make the features of a label alike in both.

    The pretext of Anatomix (Dey et al., ICLR 2025): the labels need no meaning, so maps of random shapes will do. Its
    code contrasts maps of bottleneck and decoder and the output; so does this class where the encoder names them
    (``deep_maps``: DynUNet, SegResNet, MedNeXt). Else it contrasts the outputs, one for each stage if the network has
    deep supervision. Projectors turn features into vectors at random voxels, the same in both images: the published
    code's three layers with batch norms, which keep the vectors from becoming all alike.

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
        encoder: the encoder of ``network``, to find more maps.

    ``forward(image or label map (B, 1, *spatial))`` returns ``vectors`` (B, maps, 2, points, size), ``labels`` (B,
    maps, points), and for pictures ``shapes`` (B, 1, *spatial), ``drawn`` and ``second``, the drawn images.
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
        found = getattr(encoder, "deep_maps", None)
        self.inner = [name for name, _ in network.named_modules() if found and re.fullmatch(found, name)]
        self.projector = projector(features, size)  # of the outputs
        self.projectors = nn.ModuleList(projector(width, size) for width in self._widths(encoder))

    def _widths(self, encoder: Any) -> list[int]:
        """Channels of the inner maps, as a small image shows them."""
        if not self.inner:
            return []
        place = next(self.network.parameters()).device
        image = torch.zeros(1, encoder.in_channels, *(2 * stride for stride in encoder.strides[-1]), device=place)
        with evaluation_mode(self.network):
            return [one.shape[1] for one in self.maps(image)[1]]

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
            # Of a coarser map a voxel has the label in its middle.
            near = F.interpolate(labels.float(), found.shape[2:], mode="nearest-exact").flatten(1).long()
            # Without replacement, as in the published code: a voxel is no other of itself.
            order = torch.rand(near.shape, device=near.device).argsort(1)[:, : self.points]
            index = order.repeat(2, 1)[:, None].expand(-1, found.shape[1], -1)
            made = project(found.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1))
            rest = self.points - order.shape[1]
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


def projector(features: int, size: int) -> nn.Sequential:
    """Three linear layers with batch norms of the rows at hand, the last one without weights."""

    def norm(affine: bool = True) -> nn.Module:
        return nn.BatchNorm1d(size, affine=affine, track_running_stats=False)

    def linear(width: int) -> nn.Module:
        return nn.Linear(width, size, bias=False)

    first, second = [[linear(width), norm(), nn.ReLU()] for width in (features, size)]
    return nn.Sequential(*first, *second, linear(size), norm(affine=False))
