from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["DiceCrossEntropy"]


class DiceCrossEntropy(nn.Module):
    """MONAI's ``DiceCELoss`` with softmax, on label images; voxels of one label, such as padding, can be ignored.

    Dice and cross-entropy use the other voxels only; no gradient reaches the ignored ones. The probabilities and the
    one-hot truth of the whole batch are never in memory: both are made piece by piece, and again for the gradient. So
    with many classes the loss takes a fraction of the time and memory (``benchmarks``).

    Args:
        include_background: whether the background counts in Dice.
        squared_pred: whether the denominator of Dice uses squared probabilities (Milletari et al., 3DV 2016).
        batch: whether Dice is computed over the whole batch, not averaged over its images.
        smooth_nr: added to the numerator of Dice.
        smooth_dr: added to the denominator of Dice.
        ignore_index: label of voxels that do not count.

    ``forward(logits (B, K, *spatial), label (B, 1, *spatial))`` returns a scalar, in float32 for half
    precision, also under autocast.

    Raises:
        ValueError: shapes do not fit, or a label is not a class.
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
        logits, label = (
            part.as_subclass(torch.Tensor) for part in (logits, label)
        )  # MetaTensors are slow by the piece
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
    """Sums over voxels of labels below K: probabilities of the true class and of all (B, K), and the entropy."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, label: torch.Tensor, squared: bool) -> tuple[torch.Tensor, ...]:
        precision, device = torch.promote_types(logits.dtype, torch.float32), logits.device
        overlap, chances = torch.zeros(2, *logits.shape[:2], dtype=precision, device=device)
        entropy = torch.zeros((), dtype=precision, device=device)
        for image, scores, truth in _pieces(logits, label, precision):
            counted = truth.sum(0)
            chance = scores.exp()
            total = chance.sum(0)
            entropy += (total.log() * counted).sum() - scores.mul_(truth).sum()
            chance *= counted / total
            overlap[image] += (chance * truth).sum(1)
            chances[image] += (chance.square_() if squared else chance).sum(1)
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
        if gradient.flatten(2).data_ptr() != gradient.data_ptr():  # axes in another order: no view of the voxels
            gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        targets = (part for image in gradient for part in _split(image.flatten(1)))
        for target, (image, scores, truth) in zip(targets, _pieces(logits, label, by_overlap.dtype), strict=True):
            chance = scores.exp_()
            chance /= chance.sum(0)
            change = truth * by_overlap[image, :, None]  # by each chance
            if ctx.squared:
                change.addcmul_(chance, 2 * by_chances[image, :, None])
            else:
                change += by_chances[image, :, None]
            counted = truth.sum(0)
            change -= (change * chance).sum(0) - by_entropy  # by each score, with the next two lines
            change *= chance
            change -= truth.mul_(by_entropy)
            target.copy_(change.mul_(counted))
        return gradient, None, None


def _split(voxels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split (K, voxels) into parts that stay in a core's cache."""
    size = max(4096, 2**18 // len(voxels)) if voxels.device.type == "cpu" else voxels.shape[1]
    return voxels.split(size, dim=1)


def _pieces(
    logits: torch.Tensor, label: torch.Tensor, precision: torch.dtype
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For a part of the voxels: the image's number, scores minus their maximum, and one-hot truth, both (K, voxels)."""
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None]
    for number, (image, truth) in enumerate(zip(logits, label, strict=True)):
        start = 0
        for part in _split(image.flatten(1)):
            scores = part.contiguous().to(precision)
            end = start + scores.shape[1]
            yield number, scores - scores.amax(0), (truth[start:end] == classes).to(precision)
            start = end
