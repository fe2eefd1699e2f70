"""Norms and activations of a network: what it computes between its tensors, which no name or shape shows."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .norms import FrozenBatchNorm

__all__ = ["layer_kinds"]

ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.PReLU: (),
    nn.ELU: ("alpha",),
    nn.SELU: (),
    nn.CELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.SiLU: (),
    nn.Mish: (),
    nn.Softplus: ("beta",),
    nn.Tanh: (),
}
"""Activations, and the arguments that change what they compute."""


def layer_kinds(parts: Iterable[nn.Module]) -> dict[str, list[str]]:
    """Kinds of norms and of activations in some modules, each kind once, sorted; a key without any is left out.

    Faster variants of a norm, and those that share statistics between processes or freeze them, are of its kind.

    Returns:
        ``norms``, such as ``["group of 8"]``, and ``activations``, such as ``["LeakyReLU 0.01"]``.
    """
    found: dict[str, set[str]] = {"norms": set(), "activations": set()}
    for part in parts:
        for module in part.modules():
            norm = _norm(module)
            if norm:
                found["norms"].add(norm)
            for kind, names in ACTIVATIONS.items():
                if isinstance(module, kind):
                    settings = [str(getattr(module, name)) for name in names]
                    found["activations"].add(" ".join([kind.__name__, *settings]))
                    break
    return {key: sorted(kinds) for key, kinds in found.items() if kinds}


def _norm(module: nn.Module) -> str | None:
    if isinstance(module, _InstanceNorm):
        return "instance"
    if isinstance(module, _BatchNorm | FrozenBatchNorm):
        return "batch"
    if isinstance(module, nn.GroupNorm):
        return f"group of {module.num_groups}"
    return "layer" if isinstance(module, nn.LayerNorm) else None
