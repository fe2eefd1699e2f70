from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

__all__ = ["SyntheticSegmentation"]


class SyntheticSegmentation(nn.Module):
    """Segment images that are drawn from label maps, with a new contrast and shape each time.

    A network that must find the same anatomy in any contrast learns shapes, not a scanner (SynthSeg: Billot et al.,
    Medical Image Analysis 2023). It needs no real image, and no patient data if the label maps come from a template.

    Args:
        network: a segmentation network with a class for each target.
        deformation: moves a batch of label maps, such as ``common.transforms.RandomDeformation``; None leaves them.
        changes: further changes of the moved maps, in order, such as ``common.transforms.RandomFolds`` and
            ``RandomStrip``; None entries are skipped.
        contrast: draws images from label maps, such as ``common.transforms.SyntheticContrast``.
        normalize: the transform that normalises the ``image`` (C, *spatial) of an item in fine-tuning, such as
            ``common.transforms.NormalizeForegroundd``; None leaves images in 0..1.
        targets: the class of each label, from label 0 on, if the maps hold labels that are drawn but not segmented
            (skull, scalp); None uses the labels as classes.

    ``forward(label map (B, 1, *spatial))`` returns ``logits`` (B, K, *spatial), or a list of them from a network with
    deep supervision, the target ``labels`` (B, 1, *spatial), and the ``drawn`` image.

    Raises:
        ValueError: when called: a label is beyond ``targets``, or the maps have no voxels. A crop that one label fills
            is drawn, too; ``CheckVolumed`` refuses files with only one label on loading.
    """

    def __init__(
        self,
        network: nn.Module,
        contrast: Callable[[torch.Tensor], torch.Tensor],
        deformation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        normalize: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
        targets: Sequence[int] | None = None,
        changes: Sequence[Callable[[torch.Tensor], torch.Tensor] | None] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.contrast, self.deformation, self.normalize = contrast, deformation, normalize
        self.changes = [change for change in changes if change is not None]
        self.targets = torch.as_tensor(targets, dtype=torch.long) if targets is not None else None

    @torch.no_grad()
    def draw(self, label_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, *spatial) and the classes (B, 1, *spatial) of their voxels."""
        label_map = label_map.round().long()
        if not label_map.numel():
            raise ValueError("A label map has no voxels to draw an image from: change the crop.")
        highest = int(label_map.max())
        if self.targets is not None and highest >= len(self.targets):
            raise ValueError(
                f"A label map holds the label {highest}, but the largest label of its label scheme is "
                f"{len(self.targets) - 1}: set map_label_scheme to the numbering of the maps (config id)."
            )
        if self.deformation is not None:
            label_map = self.deformation(label_map)
        for change in self.changes:
            label_map = change(label_map)
        image = self.contrast(label_map)
        if self.normalize is not None:
            image = normalize_each(self.normalize, image)
        if self.targets is not None:
            label_map = self.targets.to(label_map.device)[label_map]
        return image, label_map

    def forward(self, label_map: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(label_map.device.type, enabled=False):
            image, labels = self.draw(label_map)
        return {"logits": self.network(image), "labels": labels, "drawn": image}

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Classes, the image drawn from them, and the classes found in it, each (B, 1, *spatial) in 0..1.

        ``prediction`` is what ``forward`` returned for the label maps ``image``.
        """
        logits = prediction["logits"]
        logits = logits[0] if isinstance(logits, list | tuple) else logits
        found = logits.argmax(1, keepdim=True)
        scale = max(logits.shape[1] - 1, 1)
        return prediction["labels"] / scale, prediction["drawn"][:, :1], found / scale


def normalize_each(
    normalize: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]], images: torch.Tensor
) -> torch.Tensor:
    """Apply a transform of items to each of the images (B, C, *spatial), as to scans."""
    return torch.stack([torch.as_tensor(normalize({"image": one})["image"]) for one in images])
