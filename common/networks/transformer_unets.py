"""UNETR and Swin UNETR as encoders that may hold their convolutions, too.

The files that they fill and read are those of ``ViTEncoder`` and ``SwinEncoder``, with the decoder beside them: the
convolutions that join the transformer's maps. A file without it fits, and so does one with it an encoder without.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from .swin_encoder import SwinEncoder
from .vit_encoder import ViTEncoder

__all__ = ["SwinUNETREncoder", "UNETREncoder"]


class UNETREncoder(ViTEncoder):
    """The transformer of a UNETR; it returns the maps of the blocks that the network joins.

    Args:
        network: the segmentation network, such as ``common.networks.UNETR``.
        decoder: whether the convolutions on image and maps belong to the encoder file.
        heads: whether the last layer does, too. A file without it, or for another task, is then refused.
    """

    def __init__(self, network: Any, decoder: bool = True, heads: bool = False) -> None:
        super().__init__(network.vit, getattr(network, "skip_blocks", None))
        self.heads = heads
        _hold(self, network, decoder, heads)


class SwinUNETREncoder(SwinEncoder):
    """The transformer of a Swin UNETR; arguments as of :class:`UNETREncoder`."""

    def __init__(self, network: Any, decoder: bool = True, heads: bool = False) -> None:
        super().__init__(network.swinViT, network.normalize)
        self.heads = heads
        _hold(self, network, decoder, heads)


def _hold(encoder: nn.Module, network: nn.Module, decoder: bool, heads: bool) -> None:
    """Give the encoder the network's modules under their own names."""
    for name, module in network.named_children():
        if (decoder and re.fullmatch(r"(en|de)coder\d+", name)) or (heads and name == "out"):
            setattr(encoder, name, module)
