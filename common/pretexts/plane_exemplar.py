from __future__ import annotations

import torch
from torch import nn

from ..networks import MultiViewEncoder
from ..networks.planes import to_slices
from ..transforms import RandomBezier

__all__ = ["PlaneExemplar"]


class PlaneExemplar(nn.Module):
    """Exemplar pre-training of the plane encoders, stage 1 of Medical Transformer [1, section 3.3.1].

    Each plane encoder sees a volume and a version of it with other intensities (a new Bezier map for each sample and
    plane). The vector of a volume is the mean vector of its slices. The transformer is not used.

    Args:
        encoder: a ``MultiViewEncoder``.
        intensity: changes the intensities of a batch.

    ``forward(image (B, C, X, Y, Z))`` returns ``anchor`` and ``positive`` (B, 3, d), planes in the order sagittal,
    coronal, axial. Negatives are other rows of ``anchor`` (``common.losses.PlaneTripletLoss``), so a step takes two
    passes of each encoder, not three.

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(self, encoder: MultiViewEncoder, intensity: RandomBezier | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.intensity = intensity or RandomBezier()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        anchors, positives = [], []
        for plane, encoder in self.encoder.planes.items():
            both = torch.cat((image, self.intensity(image)))
            # Autocast leaves a mean in the precision of its input.
            anchor, positive = encoder(to_slices(both, plane))[0].float().mean(dim=1).chunk(2)
            anchors.append(anchor)
            positives.append(positive)
        return {"anchor": torch.stack(anchors, dim=1), "positive": torch.stack(positives, dim=1)}

    def pooled(self, image: torch.Tensor) -> torch.Tensor:
        """What is learnt of each volume, (B, 3 d): the vectors of its planes."""
        return torch.cat([vectors.float().mean(dim=1) for vectors in self.encoder.encode_planes(image)], dim=1)
