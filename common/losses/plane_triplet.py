from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PlaneTripletLoss"]


class PlaneTripletLoss(nn.Module):
    """Triplet loss of each plane, averaged over the planes (Jun et al., Medical Transformer, equation 1).

    A volume's vector of a plane is to be nearer to that of its own transformed version than to that of another volume,
    by a margin, in Euclidean distance. The negative is the anchor of the batch's next sample, the last one's that of
    the first: anchors are encoded anyway.

    Args:
        margin: 1 in the published code.
        plane: number of the one plane to take, None for all.

    ``forward(prediction, image)`` takes ``anchor`` and ``positive`` (B, planes, d) of ``PlaneExemplar`` and returns a
    scalar, in float32.

    Raises:
        ValueError: the batch has one sample.
    """

    def __init__(self, margin: float = 1.0, plane: int | None = None) -> None:
        super().__init__()
        self.margin, self.plane = margin, plane

    def forward(self, prediction: dict[str, torch.Tensor], image: Any = None) -> torch.Tensor:
        anchor, positive = (prediction[name].float() for name in ("anchor", "positive"))
        if len(anchor) < 2:
            raise ValueError(
                "the triplet loss takes its negatives from the other samples of a batch, and this one has a single "
                "sample: set batch_size to 2 or more."
            )
        if self.plane is not None:
            anchor, positive = anchor[:, self.plane], positive[:, self.plane]
        return F.triplet_margin_loss(anchor, positive, anchor.roll(1, dims=0), margin=self.margin)
