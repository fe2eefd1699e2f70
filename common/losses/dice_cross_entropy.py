from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn

from .voxel_cross_entropy import VoxelCrossEntropy

__all__ = ["DiceCrossEntropy"]


class DiceCrossEntropy(nn.Module):
    """MONAI's ``DiceCELoss`` with softmax, that leaves out the voxels of one label, such as padding.

    Dice and cross-entropy are what they are of the other voxels alone; no gradient reaches those that are left out.

    Args:
        include_background: whether the background has a Dice.
        ignore_index: label of voxels that do not count.

    ``forward(logits (B, K, *spatial), label (B, 1, *spatial))`` returns a scalar; float32 under autocast.
    """

    def __init__(self, include_background: bool = False, ignore_index: int = -1) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background=include_background, to_onehot_y=False)
        self.cross_entropy = VoxelCrossEntropy(ignore_index)
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            counted = label != self.ignore_index
            classes = torch.where(counted, label, 0)[:, 0].long()
            truth = nn.functional.one_hot(classes, logits.shape[1]).movedim(-1, 1).float()
            # 0 in prediction and truth adds nothing to overlap and sums
            dice = self.dice(logits.float().softmax(1) * counted, truth * counted)
            return dice + self.cross_entropy(logits, label)
