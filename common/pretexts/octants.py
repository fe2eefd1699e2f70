"""What pretexts share that ask for one vector per image: the means of the octants of an encoder's deepest map."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["OCTANTS", "check_encoder_alone", "octants"]

OCTANTS = 8
"""Means that ``octants`` takes of each channel."""


def octants(encoder: Any, image: torch.Tensor) -> torch.Tensor:
    """Means of an encoder's deepest map over the octants of each image (B, C, *spatial): (B, 8 C'), not below float32.

    One mean of the whole would tell next to nothing of networks that end in an instance norm, which makes it 0 before
    the activation. Octants also tell where, as the whole map does that Taleb et al. flatten, and leave the size free.
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
        ValueError: it has a decoder, or last layers.
    """
    decoder = getattr(encoder, "spare_weights", {}).get("decoder")
    if decoder and any(re.search(decoder, name) for name, _ in encoder.named_parameters()):
        raise ValueError(
            f"{pretext} trains the encoder alone, and the encoder file would hold the decoder as it was drawn: set "
            "encoder#decoder to false; name a file of networks/ before that of pretexts/."
        )
    if getattr(encoder, "heads", False):
        raise ValueError(
            f"{pretext} trains the encoder alone, and the encoder file would hold last layers as they were drawn: "
            "leave out presets/whole_net.json (encoder#heads)."
        )
