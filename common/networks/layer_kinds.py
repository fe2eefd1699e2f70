"""Norms and activations of a network that are modules: most kinds have the same tensors, or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from monai.networks import blocks
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .norms import FrozenBatchNorm

__all__ = ["layer_kinds"]

ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: ("ReLU",),
    nn.ReLU6: ("ReLU6",),
    nn.LeakyReLU: ("LeakyReLU", "negative_slope"),
    nn.PReLU: ("PReLU",),
    nn.ELU: ("ELU", "alpha"),
    nn.SELU: ("SELU",),
    nn.CELU: ("CELU", "alpha"),
    nn.GELU: ("GELU", "approximate"),
    blocks.GEGLU: ("GEGLU",),
    nn.SiLU: ("SiLU",),
    blocks.MemoryEfficientSwish: ("SiLU",),
    nn.Mish: ("Mish",),
    blocks.Mish: ("Mish",),
    nn.Softplus: ("Softplus", "beta"),
    nn.Tanh: ("Tanh",),
    nn.Sigmoid: ("Sigmoid",),
}
"""The name of an activation, and its arguments that change what it computes."""


def layer_kinds(modules: Iterable[nn.Module]) -> dict[str, list[str]]:
    """Kinds of norms and of activations among modules, each kind once, sorted; a key without any is left out.

    Faster variants of a norm or activation, and norms that share statistics between processes or freeze them, are of
    its kind.

    Returns:
        ``norms``, such as ``["group (8 groups)"]``, and ``activations``, such as ``["LeakyReLU 0.01"]``.
    """
    modules = list(modules)
    found = {"norms": set(map(_norm, modules)), "activations": set(map(_activation, modules))}
    return {key: sorted(kinds - {""}) for key, kinds in found.items() if kinds - {""}}


def _norm(module: nn.Module) -> str:
    if isinstance(module, _InstanceNorm) or type(module).__name__ == "InstanceNorm3dNVFuser":  # of apex
        return "instance"
    if isinstance(module, _BatchNorm | FrozenBatchNorm):
        return "batch"
    if isinstance(module, nn.GroupNorm):
        return f"group ({module.num_groups} groups)"
    return "layer" if isinstance(module, nn.LayerNorm) else ""


def _activation(module: nn.Module) -> str:
    if isinstance(module, blocks.Swish):
        return "SiLU" if module.alpha == 1 else f"Swish {float(module.alpha)}"
    for kind, (name, *settings) in ACTIVATIONS.items():
        if isinstance(module, kind):
            return " ".join([name, *(_text(getattr(module, setting)) for setting in settings)])
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(float(value))
