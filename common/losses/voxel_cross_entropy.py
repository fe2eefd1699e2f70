from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["VoxelCrossEntropy"]


class VoxelCrossEntropy(nn.Module):
    """Mean cross-entropy of the voxels, in float32, from label images in MONAI's layout.

    The loss of Med3D's pre-training and of MedicalNet's demonstration (Chen et al., section 3.2; ``train.py`` of the
    published code, which ignores -1). For coarser logits, labels are resampled to their grid by nearest neighbour.

    Args:
        ignore_index: label of voxels that do not count. If no voxel counts, the loss is 0.

    ``forward(logits (B, K, *grid), label (B, 1, *spatial))`` returns a scalar.
    """

    def __init__(self, ignore_index: int = -1) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if label.shape[2:] != logits.shape[2:]:
            label = F.interpolate(label.float(), logits.shape[2:], mode="nearest-exact")
        label = label[:, 0].long()
        total = F.cross_entropy(logits.float(), label, ignore_index=self.ignore_index, reduction="sum")
        return total / (label != self.ignore_index).sum().clamp_min(1)  # not NaN where no voxel counts
