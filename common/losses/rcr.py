from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast
from .contrastive import NTXentLoss

__all__ = ["RCRLoss"]


class RCRLoss(nn.Module):
    """Rotation (cross-entropy), contrast (NT-Xent) and reconstruction (L1) losses, summed with weights.

    Source: Tang et al., CVPR 2022, equations 1 to 4; Zhang et al., BIBM 2023, section III-A.

    Args:
        rotation, contrast, reconstruction: weights, all 1 in the published code.
        temperature: of the contrastive loss.

    ``forward(prediction, image)`` reads what ``common.pretexts.RCR`` returns; ``image`` is not used.
    """

    def __init__(
        self, rotation: float = 1.0, contrast: float = 1.0, reconstruction: float = 1.0, temperature: float = 0.5
    ) -> None:
        super().__init__()
        self.weights = (rotation, contrast, reconstruction)
        self.contrast = NTXentLoss(temperature)

    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
        with without_autocast(prediction["target"].device):
            rotation = F.cross_entropy(prediction["rotation_logits"].float(), prediction["rotation"])
            contrast = self.contrast(prediction["contrast1"], prediction["contrast2"])
            reconstruction = F.l1_loss(prediction["reconstruction"].float(), prediction["target"].float())
            parts = zip(self.weights, (rotation, contrast, reconstruction), strict=True)
            return sum((weight * part for weight, part in parts), torch.zeros((), device=rotation.device))
