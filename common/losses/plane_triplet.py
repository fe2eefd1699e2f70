from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PlaneTripletLoss"]


class PlaneTripletLoss(nn.Module):
    """Triplet loss of each plane, averaged over the planes (Jun et al., Medical Transformer, equation 1).

    In each plane, the vector of a volume should be nearer to the vector of its transformed version than to that of
    another volume, by a margin in Euclidean distance. The negative is the anchor of the batch's next sample (the first
    one for the last sample), since anchors are encoded anyway. Vectors grow until they meet the margin, and brains that
    clearly differ meet it soon. ``normalise`` with a smaller margin and ``negative="hardest"`` make the task harder.

    Args:
        margin: 1 in the published code.
        plane: number of a single plane to use; None uses all.
        normalise: whether vectors are first scaled to length 1, so distances lie in 0..2; not in the paper.
        negative: ``"rolled"``, the next sample as in the published code, or ``"hardest"``, the nearest anchor of
            another sample in each plane.

    ``forward(prediction, image)`` takes ``anchor`` and ``positive`` (B, planes, d) of ``PlaneExemplar`` and returns a
    scalar, in float32.

    Raises:
        ValueError: the batch has one sample, or ``negative`` is unknown.
    """

    def __init__(
        self, margin: float = 1.0, plane: int | None = None, normalise: bool = False, negative: str = "rolled"
    ) -> None:
        super().__init__()
        if negative not in ("rolled", "hardest"):
            raise ValueError(f"negative must be 'rolled' or 'hardest', not {negative!r}.")
        self.margin, self.plane, self.normalise, self.negative = margin, plane, normalise, negative

    def forward(self, prediction: dict[str, torch.Tensor], image: Any = None) -> torch.Tensor:
        anchor, positive = (prediction[name].float() for name in ("anchor", "positive"))
        if len(anchor) < 2:
            raise ValueError(
                "the triplet loss needs another sample of the batch as a negative, but this batch has one "
                "sample: set batch_size to 2 or more."
            )
        if self.plane is not None:
            anchor, positive = anchor[:, self.plane], positive[:, self.plane]
        if self.normalise:
            anchor, positive = F.normalize(anchor, dim=-1), F.normalize(positive, dim=-1)
        negative = _nearest_other(anchor) if self.negative == "hardest" else anchor.roll(1, dims=0)
        return F.triplet_margin_loss(anchor, positive, negative, margin=self.margin)


def _nearest_other(vectors: torch.Tensor) -> torch.Tensor:
    """For each sample and plane (B, planes, d) or (B, d) the nearest vector of another sample, with its gradient."""
    planes = vectors.reshape(len(vectors), -1, vectors.shape[-1]).transpose(0, 1)
    with torch.no_grad():
        distance = torch.cdist(planes, planes)
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        nearest = distance.argmin(2, keepdim=True).expand_as(planes)
    return planes.gather(1, nearest).transpose(0, 1).reshape(vectors.shape)
