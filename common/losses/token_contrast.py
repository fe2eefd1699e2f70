from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["TokenContrastiveLoss"]


class TokenContrastiveLoss(nn.Module):
    """Contrast of tokens, with a weight on tokens at the same position of other volumes.

    With N = B * T tokens a view and the 2N unit vectors ``u`` of both views, ``p(a)`` the token of the same volume and
    position in the other view, the loss is the mean over all ``a`` of ``-s(a, p(a)) + log(sum over b != a of w(a, b)
    exp(s(a, b)))`` with ``s = u.u / temperature``; ``w(a, b)`` is ``weight`` where ``b`` is at the same position of
    another volume (in either view), else 1. With a weight of 1 it is NT-Xent over all tokens; with one volume the
    weight has nothing to act on; with one token per volume (pooled features) and a weight of 1 it is SimCLR's loss.

    Source: Hu et al., "Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
    Learning", equations (1) and (3). The index sets of (3) are garbled in print; this is the reading in which the
    weight multiplies the terms ``z_m^i . z_m^j``, as the text says. The published code multiplies the similarities
    themselves, ``exp((1 + w) s)``, which for w = 5 is a temperature of 0.083 for these pairs, and finds only some of
    them. The forms differ in what they reward. At the temperature of 0.5 the first hardly tells a code of the position
    alone from one of the content: with 2 volumes of 64 tokens the loss of an ideal code of the position is larger by
    0.21, and by 7.1 with the second.

    The similarities are made a block of rows at a time and never kept: the gradient is accumulated along with the
    value, so memory grows with ``rows * 2N`` instead of ``(2N)^2``. The arithmetic is in float32 (float64 for float64
    input), also under autocast. The negatives are those of the batch it is given
    (``WholeBatchLoss`` gathers those of other processes).

    Args:
        temperature: divisor of the cosine similarities, larger than 0.
        weight: w; 1 in the sum and 0 in the exponent weigh nothing. How much 5, the paper's, changes in the sum depends
            on the number of tokens: pairs of the same position have 3.8 % of the denominator at 2 volumes of 64 tokens,
            but 0.5 % at 512 tokens (taken at equal similarities). ``"auto"``, of the sum alone, is the weight that
            gives them ``target_share``.
        target_share: see ``weight``.
        rows: vectors a block.
        weight_form: ``"sum"``, ``w exp(s)`` as in the equation, or ``"exponent"``, ``exp((1 + w) s)`` as in the
            published code, here for all pairs of the same position.

    ``forward(prediction, image)`` reads ``view1`` and ``view2`` (B, T, C) of the prediction, which need not be
    normalised, and returns a scalar; ``image`` is there because MONAI's trainer passes it.

    Raises:
        ValueError: an argument out of its range; in ``forward``, views that are not both (B, T, C) with B, T >= 1.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        weight: float | str = 5.0,
        target_share: float = 0.038,
        rows: int = 2048,
        weight_form: str = "sum",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be larger than 0, got {temperature}.")
        if weight_form not in ("sum", "exponent"):
            raise ValueError(f'weight_form is "sum" or "exponent", got {weight_form!r}.')
        if weight_form == "exponent" and not (isinstance(weight, (int, float)) and weight >= 0):
            raise ValueError(f'With weight_form "exponent" weight is a number, 0 or larger, got {weight!r}.')
        if weight_form == "sum" and weight != "auto" and not (isinstance(weight, (int, float)) and weight > 0):
            raise ValueError(f'weight is a number larger than 0 or "auto", got {weight!r}.')
        if not 0 < target_share < 1 or rows < 1:
            raise ValueError(f"target_share lies between 0 and 1 and rows is 1 or more, got {target_share} and {rows}.")
        self.temperature, self.weight, self.target_share, self.rows = temperature, weight, target_share, rows
        self.weight_form = weight_form

    def weight_for(self, volumes: int, tokens: int) -> float:
        """The weight for a batch of that many volumes with that many tokens each."""
        if self.weight != "auto":
            return float(self.weight)
        weighted = 2 * (volumes - 1)
        others = 2 * volumes * tokens - 1 - weighted
        return self.target_share / (1 - self.target_share) * others / weighted if weighted else 1.0

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        view1, view2 = prediction["view1"], prediction["view2"]
        if view1.ndim != 3 or view1.shape != view2.shape or 0 in view1.shape:
            raise ValueError(
                "The token contrast takes two views of one shape (B, T, C) with at least one token, got "
                f"{tuple(view1.shape)} and {tuple(view2.shape)}."
            )
        volumes, tokens = view1.shape[:2]
        with torch.autocast(view1.device.type, enabled=False):
            vectors = torch.cat((view1, view2)).flatten(0, 1)
            vectors = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
            weight = self.weight_for(volumes, tokens)
            # What is added to, and what multiplies, the similarity of a pair at the same position of two volumes.
            shift, scale = (0.0, 1 + weight) if self.weight_form == "exponent" else (math.log(weight), 1.0)
            return _RowwiseContrast.apply(vectors, tokens, shift, scale, self.temperature, self.rows)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, weight={self.weight}, weight_form={self.weight_form!r}, "
            f"target_share={self.target_share}"
        )


class _RowwiseContrast(torch.autograd.Function):
    """The loss of 2N unit vectors, ordered by view, volume and position, with its gradient made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, vectors: torch.Tensor, tokens: int, shift: float, scale: float, temperature: float, rows: int
    ) -> torch.Tensor:
        count = len(vectors)
        index = torch.arange(count, device=vectors.device)
        position, volume = index % tokens, index // tokens % (count // 2 // tokens)
        positive = index.roll(count // 2)
        total = vectors.new_zeros(())
        gradient = torch.zeros_like(vectors)
        for start in range(0, count, rows):
            block = slice(start, start + rows)
            similarity = (vectors[block] / temperature) @ vectors.T
            here = index[: len(similarity)]
            total -= similarity[here, positive[block]].sum()
            same = (position[block, None] == position) & (volume[block, None] != volume)
            if shift:
                similarity += same * shift
            if scale != 1:
                similarity *= 1 + same * (scale - 1)
            similarity[here, index[block]] = float("-inf")
            normaliser = similarity.logsumexp(dim=1, keepdim=True)
            total += normaliser.sum()
            if ctx.needs_input_grad[0]:
                share = similarity.sub_(normaliser).exp_()  # of each term in the denominator
                if scale != 1:
                    share *= 1 + same * (scale - 1)
                share[here, positive[block]] -= 1
                gradient[block] += share @ vectors
                gradient += share.T @ vectors[block]
        ctx.save_for_backward(gradient.div_(count * temperature))
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None, None
