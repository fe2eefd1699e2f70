"""Shared parts of pretexts with one vector per image: means over the octants of an encoder's deepest map."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["OCTANTS", "check_encoder_alone", "octants"]

OCTANTS = 8
"""Number of means that ``octants`` takes from each channel."""


def octants(encoder: Any, image: torch.Tensor) -> torch.Tensor:
    """Means of an encoder's deepest map over the octants of each image (B, C, *spatial): (B, 8 C'), float32 or higher.

    A mean of the whole map would carry almost no information in networks that end in an instance norm, which makes it 0
    before the activation. Octants also say where, like the whole map that Taleb et al. flatten, but they fit any size.
    """
    deepest = encoder(image)[-1]
    # Autocast leaves a mean in the precision of its input.
    deepest = deepest.to(torch.promote_types(deepest.dtype, torch.float32))
    return F.adaptive_avg_pool3d(deepest, 2).flatten(1)


def check_encoder_alone(encoder: Any, pretext: str) -> None:
    """Refuse an encoder whose file would hold a decoder that the pretext does not train.

    Args:
        encoder: view on a network.
        pretext: its name, for the sentence.

    Raises:
        ValueError: the encoder has a decoder or last layers.
    """
    decoder = getattr(encoder, "spare_weights", {}).get("decoder")
    if decoder and any(re.search(decoder, name) for name, _ in encoder.named_parameters()):
        raise ValueError(
            f"{pretext} trains the encoder alone, and the encoder file would hold an untrained decoder: set "
            "encoder#decoder to false; name a file of networks/ before that of pretexts/."
        )
    if getattr(encoder, "heads", False):
        raise ValueError(
            f"{pretext} trains the encoder alone, and the encoder file would hold untrained last layers: "
            "leave out presets/whole_net.json (encoder#heads)."
        )
