from __future__ import annotations

import torch
from monai.losses import DiceLoss, FocalLoss
from monai.networks import one_hot
from torch import nn

__all__ = ["SoftmaxDiceFocalLoss"]


class SoftmaxDiceFocalLoss(nn.Module):
    """Dice of the softmax and focal loss of the softmax, added (Zhang et al., TransSeg, table 6: "DiceFocal").

    MONAI's ``DiceFocalLoss`` has this meaning up to the weekly build before 0.6 that the published code pins; since
    then its focal part takes each class for a sigmoid of its own. Dice is of each sample and class, background
    included; the focal loss is ``-(1 - p)^gamma log p`` of the true class and 0 of the others, the mean over pixels and
    classes, so that it weighs the less against Dice the more classes there are. Pixels of one label, such as padding,
    count in neither.

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
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            counted = label != self.ignore_index
            label = label.where(counted, 0)
            # One channel is that of the true class, the others are 0; they count in the mean, as in that build.
            focal = (self.focal(logits, label) * counted).sum() / (counted.sum().clamp_min(1) * logits.shape[1])
            truth = one_hot(label, logits.shape[1])
            dice = self.dice(logits.softmax(1) * counted, truth * counted)
            return self.lambda_dice * dice + self.lambda_focal * focal
