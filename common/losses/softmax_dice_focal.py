from __future__ import annotations

import torch
from monai.losses import DiceLoss, FocalLoss
from monai.networks import one_hot
from torch import nn

from ..precision import without_autocast

__all__ = ["SoftmaxDiceFocalLoss"]


class SoftmaxDiceFocalLoss(nn.Module):
    """Sum of Dice and focal loss, both of the softmax (Zhang et al., TransSeg, table 6: "DiceFocal").

    MONAI's ``DiceFocalLoss`` had this meaning in the weekly build before 0.6 that the published code pins. In later
    versions its focal part applies a separate sigmoid to each class. Dice is computed for each sample and class,
    including background. The focal loss is ``-(1 - p)^gamma log p`` for the true class and 0 for the others, averaged
    over pixels and classes, so its weight relative to Dice falls as the number of classes grows. Pixels of one label,
    such as padding, can be ignored in both.

    Args:
        gamma: exponent of the focal loss.
        lambda_dice, lambda_focal: weights.
        ignore_index: label of pixels that do not count.

    ``forward(logits (B, classes, *spatial), label (B, 1, *spatial))`` returns a scalar; float32 under autocast.
    """

    def __init__(
        self, gamma: float = 2.0, lambda_dice: float = 1.0, lambda_focal: float = 1.0, ignore_index: int = -1
    ) -> None:
        super().__init__()
        self.dice = DiceLoss()
        self.focal = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, reduction="none")
        self.lambda_dice, self.lambda_focal = lambda_dice, lambda_focal
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with without_autocast(logits.device):
            logits = logits.float()
            counted = label != self.ignore_index
            label = label.where(counted, 0)
            # One channel is that of the true class, the others are 0; they count in the mean, as in that build.
            focal = (self.focal(logits, label) * counted).sum() / (counted.sum().clamp_min(1) * logits.shape[1])
            truth = one_hot(label, logits.shape[1])
            dice = self.dice(logits.softmax(1) * counted, truth * counted)
            return self.lambda_dice * dice + self.lambda_focal * focal
