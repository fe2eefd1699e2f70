from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["DiceCrossEntropy"]

# Voxels at a time on a CPU: the chances of 8,192 voxels and 34 classes stay in a core's cache.
CHUNK = 8192


class DiceCrossEntropy(nn.Module):
    """MONAI's ``DiceCELoss`` with softmax, on label images; voxels of one label, such as padding, can be left out.

    Dice and cross-entropy are what they are of the other voxels alone; no gradient reaches those that are left out.
    Neither chances nor a one-hot truth of the whole batch are ever in memory: both are made piece by piece, and once
    more for the gradient. So the loss of many classes takes a fraction of the time and memory (``benchmarks``).

    Args:
        include_background: whether the background has a Dice.
        squared_pred: whether the denominator of Dice has squared chances (Milletari et al., 3DV 2016).
        batch: whether Dice is of the whole batch, not the mean of those of its images.
        smooth_nr: added to the numerator of Dice.
        smooth_dr: added to the denominator of Dice.
        ignore_index: label of voxels that do not count.

    ``forward(logits (B, K, *spatial), label (B, 1, *spatial))`` returns a scalar, in float32 for half
    precision, also under autocast.

    Raises:
        ValueError: for shapes that do not fit, and for a label that is no class.
    """

    def __init__(
        self,
        include_background: bool = False,
        squared_pred: bool = False,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        ignore_index: int = -1,
    ) -> None:
        super().__init__()
        self.first = 0 if include_background else 1
        self.squared_pred = squared_pred
        self.batch = batch
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits, label = convert_to_tensor(logits), convert_to_tensor(label)  # MetaTensors are slow, piece by piece
        batch, classes = logits.shape[:2]
        if label.shape != (batch, 1, *logits.shape[2:]):
            raise ValueError(f"logits of shape {tuple(logits.shape)} and a label of shape {tuple(label.shape)}.")
        label = label.flatten(1).long()  # the voxels of each image
        left_out = label == self.ignore_index
        if not (left_out | ((label >= 0) & (label < classes))).all():
            raise ValueError(
                f"labels from {int(label.min())} to {int(label.max())} for {classes} classes: each must be a class "
                f"from 0 to {classes - 1}, or {self.ignore_index}, which does not count."
            )
        label = torch.where(left_out, classes, label)
        overlap, chances, entropy = _Sums.apply(logits, label, self.squared_pred)
        truth = torch.stack([voxels.bincount(minlength=classes + 1) for voxels in label])[:, :-1]
        both = chances + truth
        if self.batch:
            overlap, both = overlap.sum(0, keepdim=True), both.sum(0, keepdim=True)
        dice = 1 - ((2 * overlap + self.smooth_nr) / (both + self.smooth_dr))[:, self.first :]
        return dice.mean() + entropy / truth.sum().clamp_min(1)  # not NaN where no voxel counts


class _Sums(torch.autograd.Function):
    """Sums over the voxels whose label is below K: of the truth's chances and of all (B, K), and of the entropy."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, label: torch.Tensor, squared: bool) -> tuple[torch.Tensor, ...]:
        precision, device = torch.promote_types(logits.dtype, torch.float32), logits.device
        overlap, chances = torch.zeros(2, *logits.shape[:2], dtype=precision, device=device)
        entropy = torch.zeros((), dtype=precision, device=device)
        for image, scores, truth in _pieces(logits, label):
            counted = truth.any(1, keepdim=True)
            logs = scores.to(precision).log_softmax(1)
            entropy -= logs.masked_fill(~truth, 0).sum()
            chance = logs.exp_().mul_(counted)
            overlap[image] += (chance * truth).sum(0)
            chances[image] += (chance.square_() if squared else chance).sum(0)
        ctx.save_for_backward(logits, label)
        ctx.squared = squared
        return overlap, chances, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_overlap: torch.Tensor, by_chances: torch.Tensor, by_entropy: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        logits, label = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for (image, scores, truth), (_, target, _) in zip(
            _pieces(logits, label), _pieces(gradient, label), strict=True
        ):
            counted = truth.any(1, keepdim=True)
            chance = scores.to(by_overlap.dtype).softmax(1)
            change = truth * by_overlap[image]  # by each chance
            change += chance * (2 * by_chances[image]) if ctx.squared else by_chances[image]
            change -= (change * chance).sum(1, keepdim=True) - by_entropy  # by each score, with the next line
            change *= chance
            change -= truth * by_entropy
            target.copy_(change.mul_(counted))
        return gradient, None, None


def _pieces(logits: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Number of the image, scores (voxels, K) as a view, and one-hot truth (voxels, K) of a part of its voxels."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    for image in range(len(logits)):
        voxels = logits[image].flatten(1).T
        size = CHUNK if logits.device.type == "cpu" else len(voxels)
        for start in range(0, len(voxels), size):
            piece = slice(start, start + size)
            yield image, voxels[piece], label[image, piece, None] == classes
