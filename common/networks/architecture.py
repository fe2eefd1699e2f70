"""The encoder inside of a whole network, and the settings that weights of the network must have been made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.networks.nets import UNETR, DynUNet, MedNeXt, SegResNet, SwinUNETR
from torch import nn

from ..weights.settings import plain
from .layer_kinds import layer_kinds
from .primus import Primus, PrimusEncoder
from .published_unets import GenesisEncoder, GenesisUNet, STUNet, STUNetEncoder
from .residual_encoder_unet import ResidualEncoderUNet
from .swin_encoder import SwinEncoder
from .unet_encoders import DynUNetEncoder, MedNeXtEncoder, ResidualUNetEncoder, SegResNetEncoder
from .vit_encoder import ViTEncoder

__all__ = ["encoder_in", "network_architecture"]

VIEWS: tuple[tuple[type[nn.Module], Callable[[Any], nn.Module]], ...] = (
    (DynUNet, DynUNetEncoder),
    (SegResNet, SegResNetEncoder),
    (MedNeXt, MedNeXtEncoder),
    (ResidualEncoderUNet, ResidualUNetEncoder),
    (STUNet, STUNetEncoder),
    (GenesisUNet, GenesisEncoder),
    (Primus, PrimusEncoder),
    (SwinUNETR, lambda network: SwinEncoder(network.swinViT)),
    (UNETR, lambda network: ViTEncoder(network.vit)),
)
"""Networks that do not hold their encoder as one module, and the view on it."""

FURTHER = ("img_size", "skip_blocks", "normalize", "maps")
"""Settings of whole networks, by their attributes, that neither a tensor nor the encoder shows."""


def encoder_in(network: nn.Module) -> nn.Module | None:
    """The encoder of a whole network: a view on it, or the part of it that states its architecture; None without one.

    Args:
        network: not wrapped by DDP.
    """
    view = next((view for kind, view in VIEWS if isinstance(network, kind)), None)
    if view is not None:
        try:
            return view(network)
        except (AttributeError, ValueError):  # of two axes, or a variant that no view reads
            return None
    return next((part for part in network.modules() if callable(getattr(part, "architecture", None))), None)


def network_architecture(network: nn.Module) -> dict[str, Any]:
    """The architecture of a network's encoder, if it is known, and settings of the whole network, as JSON values.

    ``all_norms`` and ``all_activations`` are the kinds of these layers (``layer_kinds``) in all of it.
    """
    found: dict[str, Any] = {f"all_{key}": kinds for key, kinds in layer_kinds(network.modules()).items()}
    encoder: Any = encoder_in(network)
    if encoder is not None:
        found |= {**encoder.architecture(), "out_blocks": getattr(encoder, "out_blocks", None)}
        found |= {name: getattr(network, name, None) for name in FURTHER}
    return {name: plain(value) for name, value in found.items() if value is not None}
