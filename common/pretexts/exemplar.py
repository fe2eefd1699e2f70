from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..transforms import RandomBezier, RandomDeformation
from .octants import OCTANTS, check_encoder_alone, octants

__all__ = ["Exemplar"]


class Exemplar(nn.Module):
    """Which image does this changed version come from? 3-D exemplar networks (Taleb et al., NeurIPS 2020).

    The encoder sees each image and a version of it that is turned, scaled, mirrored and changed in intensity. A layer
    turns both into codes. The triplet loss pulls the code of the version towards that of its own image and away from
    that of another image.

    Args:
        encoder: any encoder of images of three axes; its file must hold no decoder.
        deformation: moves a batch; takes label maps and images and returns both.
        curve: changes intensities in 0..1 of a batch.
        size: length of a code; 1024 in the published code, which also ends in a sigmoid.

    ``forward(image (B, C, *spatial))`` returns ``anchor``, the codes of the changed images, and ``positive``, those of
    the images (B, 1, size), and ``changed``. Negatives are other rows of ``anchor``: the loss is
    ``common.losses.PlaneTripletLoss``, which reads the 1 as one plane.

    Raises:
        ValueError: the encoder has a decoder.
    """

    def __init__(
        self,
        encoder: Any,
        deformation: Callable[..., Any] | None = None,
        curve: Callable[[torch.Tensor], torch.Tensor] | None = None,
        size: int = 1024,
    ) -> None:
        super().__init__()
        check_encoder_alone(encoder, "Exemplar")
        self.encoder = encoder
        self.deformation = deformation or RandomDeformation(rotation=45.0, velocity=0.0, flip_axis=0)
        self.curve = curve or RandomBezier(falling=0.0, strength=0.5)
        self.head = nn.Linear(OCTANTS * encoder.channels[-1], size)

    def change(self, image: torch.Tensor) -> torch.Tensor:
        """Another version of each image (B, C, *spatial), with intensities in its own range."""
        flat = image.flatten(1)
        shape = (-1, *[1] * (image.ndim - 1))
        low, span = flat.amin(1).view(shape), (flat.amax(1) - flat.amin(1)).clamp(min=1e-6).view(shape)
        unit = (image - low) / span  # what moves in from outside is 0, which is the least
        _, moved = self.deformation(torch.zeros_like(unit[:, :1]), unit)
        return self.curve(moved.clamp(0, 1)) * span + low

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            changed = self.change(image)
        codes = self.head(octants(self.encoder, torch.cat((changed, image)))).float().sigmoid()[:, None]
        anchor, positive = codes.chunk(2)
        return {"anchor": anchor, "positive": positive, "changed": changed}
