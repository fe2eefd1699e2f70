from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast

__all__ = ["LEFT_OUT", "LabelContrastLoss"]

LEFT_OUT = -1
"""Label of places that do not count."""


class LabelContrastLoss(nn.Module):
    """InfoNCE with several positives, the voxels of the same label; float32 under autocast.

    Let ``u`` be the unit vectors of points of a label map in both images, from one map of features, and ``P(a)`` the
    other points with the label of ``a``. The loss is the mean over ``a`` of ``-mean over p in P(a) of log(exp(u_a.u_p /
    t) / sum over b != a of exp(u_a.u_b / t))``, averaged over maps of features and label maps. Negatives are the other
    labels of the same label map, since another one has other shapes. Sources: Khosla et al., "Supervised Contrastive
    Learning", NeurIPS 2020, ``L_out``; Anatomix (Dey et al., ICLR 2025).

    Args:
        temperature: ``t``, larger than 0; 0.33 in the published script of pre-training.

    ``forward(prediction, image)`` reads ``vectors`` (B, maps, 2, P, C) and ``labels`` (B, maps, P), -1 for places
    that do not count; they fill up coarse maps.

    Raises:
        ValueError: the temperature is not larger than 0.
    """

    def __init__(self, temperature: float = 0.33) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be larger than 0, got {temperature}.")
        self.temperature = temperature

    def forward(self, prediction: Mapping[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        vectors, labels = prediction["vectors"], prediction["labels"]
        with without_autocast(vectors.device):
            unit = F.normalize(vectors.float().flatten(2, 3).flatten(0, 1), dim=-1)
            labels = labels.flatten(0, 1).repeat(1, 2)
            counts = labels != LEFT_OUT
            others = ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device) & counts[:, None]
            similarity = torch.bmm(unit, unit.transpose(1, 2)) / self.temperature
            chance = similarity - similarity.masked_fill(~others, float("-inf")).logsumexp(2, keepdim=True)
            # The other image's voxel at the same place makes one positive at least.
            positive = (labels[:, :, None] == labels[:, None]) & others
            each = (chance * positive).sum(2) / positive.sum(2).clamp(min=1)
            return -((each * counts).sum(1) / counts.sum(1)).mean()
