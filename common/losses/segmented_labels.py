from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["SegmentedLabelsLoss"]


class SegmentedLabelsLoss(nn.Module):
    """A segmentation loss as the loss of a pretext that makes its own labels.

    Args:
        loss: takes logits (B, K, *spatial) and labels (B, 1, *spatial), such as MONAI's ``DiceCELoss``.

    ``forward(prediction, image)`` returns a scalar from ``logits`` and ``labels`` of the prediction, in float32 under
    autocast; of a list of logits (deep supervision) it is that of the first, which are the finest, plus half of the
    second's and so on, divided by the sum of the weights, as in nnU-Net.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Mapping[str, Any], image: torch.Tensor) -> torch.Tensor:
        labels, logits = prediction["labels"], prediction["logits"]
        levels = logits if isinstance(logits, list | tuple) else [logits]
        with torch.autocast(labels.device.type, enabled=False):
            total = labels.new_zeros((), dtype=torch.float32)
            for number, level in enumerate(levels):
                seen = labels
                if level.shape[2:] != labels.shape[2:]:
                    seen = nn.functional.interpolate(labels.float(), level.shape[2:], mode="nearest-exact").long()
                total = total + self.loss(level.float(), seen) / 2**number
            return total / sum(0.5**number for number in range(len(levels)))
