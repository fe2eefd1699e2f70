from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from ..transforms import rot90_batch
from .octants import OCTANTS, check_encoder_alone, octants

__all__ = ["Rotation"]

PLANES = ((-3, -2), (-2, -1), (-3, -1))
CLASSES = ((0, 0), *itertools.product(range(3), (1, 2, 3)))  # plane and quarter turns; the first turns nothing


class Rotation(nn.Module):
    """In which of ten ways is the image turned? 3-D rotation prediction (Taleb et al., NeurIPS 2020).

    Each image is turned by 0, or by 90, 180 or 270 degrees about one of the three axes; a linear layer predicts the
    turn from the octants of the encoder's deepest map.

    Args:
        encoder: any encoder of images of three axes; its file must hold no decoder.

    ``forward(image (B, C, N, N, N))`` returns ``logits`` (B, 10), ``labels`` (B,), and ``turned``, the encoder's input.
    Class 0 turns nothing; 1 to 3 are that many quarter turns in the plane of the first two axes (``torch.rot90``), 4 to
    6 in that of the last two, 7 to 9 in that of the first and the last.

    Raises:
        ValueError: the encoder has a decoder; when called, the image is not a cube.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        check_encoder_alone(encoder, "Rotation")
        self.encoder = encoder
        self.head = nn.Linear(OCTANTS * encoder.channels[-1], len(CLASSES))

    def turn(self, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Turn each image (B, C, N, N, N) as its label (B,) says."""
        size = image.shape[2:]
        if len(size) != 3 or len(set(size)) > 1:
            # To turn only what keeps its shape would tell the class by what is turned, and to pad by the border.
            raise ValueError(
                f"Images of {list(size)} voxels change their shape when turned: give rotation cubes, such as "
                f"--crop_size {[min(size)] * 3}."
            )
        plane, turns = torch.tensor(CLASSES, device=image.device)[labels].unbind(1)
        for number, axes in enumerate(PLANES):
            image = rot90_batch(image, turns * (plane == number), axes)
        return image

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = torch.randint(len(CLASSES), (len(image),), device=image.device)
        turned = self.turn(image, labels)
        return {"logits": self.head(octants(self.encoder, turned)), "labels": labels, "turned": turned}
