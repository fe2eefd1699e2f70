from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["BranchDecoder", "MultiBranchNet"]


class BranchDecoder(nn.Module):
    """One 1 x 1 x 1 convolution a domain on the encoder's last map, and trilinear upsampling to the image's size.

    The decoder of Med3D's pre-training (Chen et al., section 3.2), with one branch that of its coarse liver net
    (section 3.3). Only the branch that is asked for is computed, so that the others have no gradient.

    Args:
        channels: those of the encoder's maps.
        classes: number of classes of each branch.

    ``forward(maps, size, branch)`` returns logits (B, ``classes[branch]``, *size) in float32. With one branch its
    number need not be given.

    Raises:
        ValueError: no branch, or a number of a branch that is missing or does not exist.
    """

    def __init__(self, channels: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        if not classes:
            raise ValueError("A decoder needs a branch at least: give the number of classes of each domain.")
        self.branches = nn.ModuleList(nn.Conv3d(channels[-1], number, 1) for number in classes)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int], branch: int | None = None) -> torch.Tensor:
        if branch is None and len(self.branches) == 1:
            branch = 0
        if branch is None or not 0 <= branch < len(self.branches):
            raise ValueError(
                f"The decoder has branches 0 to {len(self.branches) - 1} and was asked for {branch}: every item needs "
                "the `branch` of its domain (common.data.load_domains gives it)."
            )
        return upsample(self.branches[branch](maps[-1]), size)


class MultiBranchNet(nn.Module):
    """Med3D's pre-training net: one encoder, one branch of a ``BranchDecoder`` a domain.

    Args:
        encoder: returns a list of maps, finest first, and states their ``channels``.
        classes: number of classes of each domain.

    ``forward(image (B, C, D, H, W), branch)`` returns the logits (B, ``classes[branch]``, D, H, W) of one branch; a
    batch is of one domain.
    """

    def __init__(self, encoder: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = BranchDecoder(encoder.channels, classes)  # type: ignore[arg-type]

    def forward(self, image: torch.Tensor, branch: int | None = None) -> torch.Tensor:
        return self.decoder(self.encoder(image), image.shape[2:], branch)


def upsample(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Logits on another grid, trilinearly and in float32, whatever the precision of the net."""
    return F.interpolate(logits.float(), tuple(size), mode="trilinear", align_corners=False)
