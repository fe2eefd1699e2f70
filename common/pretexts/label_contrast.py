from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..losses.label_contrast import LEFT_OUT
from .synthetic_segmentation import normalize_each

__all__ = ["LabelContrast"]


class LabelContrast(nn.Module):
    """Draw two images of different contrast from a label map, and make the features of a label alike in both.

    The pretext of Anatomix (Dey et al., ICLR 2025): the labels need no meaning, so maps of random shapes will do.
    Features are the output channels of the whole network, at each stage of a network with deep supervision. A
    projector, shared by the stages, turns them into vectors at random voxels, the same in both images.

    Args:
        network: a segmentation network; its output channels are the features.
        contrast: draws images from label maps, such as ``common.transforms.SyntheticContrast``.
        features: number of those channels.
        shapes: draws the label maps (``common.transforms.RandomShapes``): only the size of the batch counts then. None
            uses the batch as label maps.
        deformation: moves a batch of label maps; None leaves them.
        normalize: as for ``SyntheticSegmentation``.
        points: voxels of each map and stage.
        size: length of a vector.

    ``forward(image or label map (B, 1, *spatial))`` returns ``vectors`` (B, stages, 2, points, size), ``labels`` (B,
    stages, points), and for pictures ``shapes`` (B, 1, *spatial), ``drawn`` and ``second``, the drawn images.
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
        size: int = 128,
    ) -> None:
        super().__init__()
        self.network, self.contrast, self.shapes = network, contrast, shapes
        self.deformation, self.normalize, self.points = deformation, normalize, points
        self.projector = nn.Sequential(
            nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, size)
        )

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
        made = self.network(torch.cat((first, second)))
        stages = made if isinstance(made, list | tuple) else [made]
        vectors, chosen = [], []
        for stage in stages:
            # Of a coarser stage a voxel has the label in its middle.
            near = F.interpolate(labels.float(), stage.shape[2:], mode="nearest-exact").flatten(1).long()
            # Without replacement, as in the published code: a voxel is no other of itself.
            order = torch.rand(near.shape, device=near.device).argsort(1)[:, : self.points]
            place = F.pad(order, (0, self.points - order.shape[1]))
            index = place.repeat(2, 1)[:, None].expand(-1, stage.shape[1], -1)
            features = stage.flatten(2).gather(2, index).transpose(1, 2)
            vectors.append(torch.stack(self.projector(features).chunk(2), 1))
            label = near.gather(1, order)
            chosen.append(F.pad(label, (0, self.points - label.shape[1]), value=LEFT_OUT))
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
