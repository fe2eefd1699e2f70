from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet, SwinUNETR
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from ..precision import bfloat16_pays
from .architecture import encoder_in
from .dense_skips import keep_gradients_dense
from .float_layer_norm import float_layer_norms
from .memory_format import to_channels_last
from .padded_convolution import pad_small_images
from .published_unets import GenesisUNet, STUNet
from .stages import check_size
from .window_attention import speed_up_windows

__all__ = ["place"]

logger = logging.getLogger(__name__)


BLOCK = ("attn", "attention")
"""Names of the attention in a transformer block."""

UNETS = (DynUNet, SegResNet, MedNeXt, SwinUNETR, STUNet, GenesisUNet)
"""Networks that do not check the size of an image themselves."""


def place(
    network: nn.Module,
    device: torch.device | str,
    amp: bool = False,
    checkpointing: bool = False,
    compile: bool | str = False,
) -> nn.Module:
    """Move a network to its device, in place, in the fastest memory format and precision.

    The format is that of ``to_channels_last``; on a CPU, ``pad_small_images`` keeps gradients right, attention of
    MONAI's transformers is computed by ``speed_up_windows``, and ``keep_gradients_dense`` acts on decoders. With
    ``amp`` every forward pass runs under ``torch.autocast`` in bfloat16, on any device (MONAI's engines open one for
    CUDA alone), and the outputs are float32 again: losses, metrics and optimisers compute in float32, and weights and
    their gradients are float32. bfloat16 needs no scaled loss. The engine's own ``amp`` stays off.

    Inside, with ``amp``: convolutions and products read and return bfloat16. Norms read the bfloat16 maps of the layer
    before, and compute statistics, their sums, and the gradients of weight and bias in float32; the running statistics
    of batch norms are float32, too. What a norm returns is rounded to bfloat16, and so is the gradient of its input. So
    a norm equals the float32 norm of the same bfloat16 map, but for this rounding (relative, at most 2^-8). On a CPU
    ``float_layer_norms`` sees to this for layer norms, since torch's own would add up gradients in bfloat16. On CUDA
    autocast computes layer norms in float32, and returns that. Attention by ``speed_up_windows`` has scores and
    softmaxes of float32. On a device without instructions for bfloat16, which imitates it slowly, a warning says so.

    With ``checkpointing``, training keeps only the input of each transformer block and recomputes its inside for the
    gradient: less memory, more time, the same values and gradients. ``compile`` is ``torch.compile``, in place (a
    string names its backend).

    Returns:
        the network. A U-Net whose upsampled maps have to meet those of its encoder refuses images of other sizes.

    Raises:
        ValueError: ``checkpointing`` is set for a network without transformer blocks.
    """
    to_channels_last(network, device)
    kind = torch.device(device).type
    if kind == "cpu":
        pad_small_images(network)
        speed_up_windows(network)
        keep_gradients_dense(network)
    if checkpointing and not _checkpoint_blocks(network):
        raise ValueError(
            f"network#checkpointing works on transformer blocks, but {type(network).__name__} has none: leave it out."
        )
    if amp:
        if kind == "cpu":
            float_layer_norms(network)
        if kind in ("cpu", "cuda") and not bfloat16_pays(device):
            logger.warning(
                "amp is on, but torch reports no instructions for bfloat16 on %s. Imitating them can take many times "
                "as long as float32: leave amp out, or set it to false.",
                device,
            )
        autocast = _Autocast(kind)
        network.register_forward_pre_hook(autocast.enter)
        network.register_forward_hook(autocast.leave, always_call=True)
    # After autocast, whose end is called with the error, too.
    encoder: Any = encoder_in(network) if isinstance(network, UNETS) else None
    if encoder is not None:
        network.register_forward_pre_hook(_SizeCheck(encoder.strides[-1]))
    if compile:
        network.compile(backend=compile if isinstance(compile, str) else "inductor")
    logger.info("the network computes on %s, in %s.", device, "bfloat16 (amp)" if amp else "float32")
    return network


def _checkpoint_blocks(network: nn.Module) -> int:
    """Make blocks recompute their inside for the gradient, without nesting; returns their number."""
    found = 0
    for child in network.children():
        if any(isinstance(getattr(child, name, None), nn.Module) for name in BLOCK):
            child.forward = functools.partial(_checkpointed, child)
            found += 1
        else:
            found += _checkpoint_blocks(child)
    return found


def _checkpointed(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(type(block).forward, block, *inputs, use_reentrant=False, **named)
    return type(block).forward(block, *inputs, **named)


class _SizeCheck:
    """A hook ahead of a forward pass: torch would only say that two of the maps inside differ."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        self.stride = stride

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if inputs:
            check_size(inputs[0].shape[2:], self.stride)


class _Autocast:
    """Hooks around a forward pass; a stack, since a network may be called within itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.opened: list[torch.autocast] = []

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.opened.append(torch.autocast(self.kind, torch.bfloat16))
        self.opened[-1].__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.opened.pop().__exit__(None, None, None)
        return tree_map(_to_float, output)


def _to_float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
