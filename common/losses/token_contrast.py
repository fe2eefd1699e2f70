from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast

__all__ = ["TokenContrastiveLoss"]


class TokenContrastiveLoss(nn.Module):
    """Contrastive loss of tokens, with a weight on tokens at the same position in other volumes.

    Each view has N = B * T tokens, so there are 2N unit vectors ``u``. Let ``p(a)`` be the token at the same volume and
    position in the other view. The loss is the mean over all ``a`` of ``-s(a, p(a)) + log(sum over b != a of
    e(a, b))`` with ``s = u.u / temperature``. ``e(a, b)`` is ``exp(s(a, b))``, except for pairs at the same position of
    two volumes (in either view). For these it is ``exp((1 + weight) s(a, b))``, or with ``weight_form="sum"`` ``weight
    exp(s(a, b))``. With no weight (0, or 1 in the sum) it is NT-Xent over all tokens. With one volume the weight has no
    effect. With one token per volume (pooled features) and no weight it is SimCLR's loss.

    Source: Hu et al., "Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
    Learning", equations (1) and (3). The index sets of (3) are garbled in print; as the text says, its weight
    multiplies the terms ``z_m^i . z_m^j`` in the sum. The published code multiplies the similarities themselves,
    ``exp((1 + w) s)``. For w = 5 that is a temperature of 0.083 for these pairs, and it finds only some of them. The
    two forms reward different things. At a temperature of 0.5, the sum barely distinguishes a code of the position
    alone from a code of the content: with 2 volumes of 64 tokens, the loss of an ideal position code is only 0.21
    larger, and tokens collapse to such codes. With the exponent it is 7.1 larger, so the exponent is the default.

    Similarities are computed one block of rows at a time and not kept. The gradient is accumulated along with the
    value, so memory grows with ``rows * 2N`` instead of ``(2N)^2``. The arithmetic is in float32 (float64 for float64
    input), also under autocast. The negatives come from the given batch (``WholeBatchLoss`` gathers those of other
    processes).

    Args:
        temperature: divisor of the cosine similarities, larger than 0.
        weight: w; 0 in the exponent and 1 in the sum have no effect. The effect of the paper's value, 5, in the sum
            depends on the number of tokens: pairs at the same position make up 3.8 % of the denominator with 2 volumes
            of 64 tokens, but 0.5 % with 512 tokens (at equal similarities). ``"auto"``, for the sum only, picks the
            weight that gives these pairs ``target_share``.
        target_share: see ``weight``.
        rows: vectors per block.
        weight_form: ``"exponent"``, ``exp((1 + w) s)`` as in the published code, here for all pairs of the same
            position, or ``"sum"``, ``w exp(s)`` as in the equation.

    ``forward(prediction, image)`` reads ``view1`` and ``view2`` (B, T, C) of the prediction, which need not be
    normalised, and returns a scalar; ``image`` is there because MONAI's trainer passes it.

    Raises:
        ValueError: an argument is out of its range; in ``forward``, the views are not both (B, T, C) with B, T >= 1.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        weight: float | str = 5.0,
        target_share: float = 0.038,
        rows: int = 2048,
        weight_form: str = "exponent",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be larger than 0, got {temperature}.")
        if weight_form not in ("exponent", "sum"):
            raise ValueError(f'weight_form must be "exponent" or "sum", not {weight_form!r}.')
        if weight_form == "exponent" and weight == "auto":
            raise ValueError('weight "auto" is for the sum: also set weight_form to "sum", or give a number.')
        if weight_form == "exponent" and not (isinstance(weight, (int, float)) and weight >= 0):
            raise ValueError(f'With weight_form "exponent" weight is a number, 0 or larger, got {weight!r}.')
        if weight_form == "sum" and weight != "auto" and not (isinstance(weight, (int, float)) and weight > 0):
            raise ValueError(f'With weight_form "sum" weight is a number larger than 0 or "auto", got {weight!r}.')
        if not 0 < target_share < 1 or rows < 1:
            raise ValueError(f"target_share must be between 0 and 1 and rows 1 or more, not {target_share} and {rows}.")
        self.temperature, self.weight, self.target_share, self.rows = temperature, weight, target_share, rows
        self.weight_form = weight_form

    def weight_for(self, volumes: int, tokens: int) -> float:
        """The weight for a batch of ``volumes`` volumes with ``tokens`` tokens each."""
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
        with without_autocast(view1.device):
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
    """The loss of 2N unit vectors, ordered by view, volume and position; the same pass computes the gradient."""

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
