from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy between two views of a batch.

    With the 2B unit vectors ``u`` of both views and ``p(a)`` the other view of the same sample, the loss is the mean
    over ``a`` of ``-u_a.u_p(a) / t + log(sum over b != a of exp(u_a.u_b / t))``. The value equals
    :class:`monai.losses.ContrastiveLoss`, but the similarities are one matrix product of normalised vectors
    (no ``(2B, 2B, C)`` tensor) and the sum of exponentials is a log-sum-exp, which stays finite at small temperatures.
    The arithmetic is in float32 (float64 for float64 input), also under autocast. With one sample the only other
    vector is the positive, and the loss is 0.

    Negatives are the other samples of the given batch; ``WholeBatchLoss`` gathers those of other processes.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. (1).

    Args:
        temperature: divisor of the cosine similarities, larger than 0.

    Raises:
        ValueError: when ``temperature`` is not larger than 0.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be larger than 0, got {temperature}.")
        self.temperature = temperature

    def forward(self, view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
        """Loss of two views, a scalar.

        Args:
            view1: vectors (B, C) of the first view; they need not be normalised.
            view2: vectors (B, C) of the second view, in the same order of samples.

        Raises:
            ValueError: when the views are not both (B, C) with the same B and C, or B is 0.
        """
        if view1.ndim != 2 or view1.shape != view2.shape or view1.shape[0] == 0:
            raise ValueError(
                "The contrastive loss takes two views of one shape (B, C) with at least one sample, "
                f"got {tuple(view1.shape)} and {tuple(view2.shape)}."
            )
        with without_autocast(view1.device):
            vectors = torch.cat([view1, view2])
            vectors = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
            # Scaling the (2B, C) factor is cheaper than scaling the (2B, 2B) product.
            logits = (vectors / self.temperature) @ vectors.T
            count = len(vectors)
            index = torch.arange(count, device=vectors.device)
            logits = logits.masked_fill(index[:, None] == index, float("-inf"))
            return F.cross_entropy(logits, index.roll(count // 2))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
