from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from ..preparation import check_preparation, preparation_record

__all__ = ["fill_shared", "forget_preparation", "mark_preparation", "require_strict"]

KEY = "preparation"
"""Entry of a state dict's metadata; torch saves and loads it."""


def mark_preparation(state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Note in a state dict how the images were prepared, for readers without the file's record."""
    state._metadata[""][KEY] = dict(record)  # type: ignore[attr-defined]


def forget_preparation(state: Mapping[str, Any]) -> None:
    """Remove the note, if the file's record was already compared."""
    getattr(state, "_metadata", {}).get("", {}).pop(KEY, None)


def fill_shared(state: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> OrderedDict[str, Any]:
    """Complete a state dict for a network with state dict ``own`` that holds some tensors under several names.

    MONAI's ``DynUNet`` names each layer twice; a file with one of the names still holds the whole network.
    """
    names: dict[Any, str] = {}
    for name, tensor in own.items():
        if name in state:
            names.setdefault((tensor.data_ptr(), tensor.shape), name)
    filled: Any = OrderedDict(state)
    if hasattr(state, "_metadata"):  # versions of the layers
        filled._metadata = state._metadata
    for name, tensor in own.items():
        other = names.get((tensor.data_ptr(), tensor.shape))
        if name not in state and other is not None and tensor.numel():
            filled[name] = state[other]
    return filled


def require_strict(
    network: nn.Module, preprocessing: Any = None, accept_preparation: bool = False, task: str | None = None
) -> nn.Module:
    """Make a network refuse a state dict that does not fit it, even if the caller asks for a tolerant load.

    MONAI Label loads ``models/model.pt`` with ``strict=False``, for inference and before training, and only logs which
    names did not fit (https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/tasks/infer/basic_infer.py,
    ``_get_network``). A net without any loaded weights then predicts a mask of noise. Copies of the network refuse,
    too; parts that are loaded separately, such as an encoder, do not.

    Args:
        network: network to guard.
        preprocessing: transforms of the images that it will see. MONAI Label runs no handlers, so a state dict with a
            note of another preparation (``mark_preparation``) is refused here.
        accept_preparation: accept differences, with a line in the log for each.
        task: task whose classes it predicts, compared likewise.

    Returns:
        the network. Its ``load_state_dict`` now raises a RuntimeError if names are missing or left over, and a
        ValueError if the weights were trained on images prepared in another way.
    """
    if preprocessing is not None:
        guard = _PreparationGuard(preparation_record(preprocessing, task=task), accept_preparation)
        network.register_load_state_dict_pre_hook(guard)
    network.register_load_state_dict_pre_hook(_fill)
    network.register_load_state_dict_post_hook(_refuse_others)
    return network


class _PreparationGuard:
    """A hook of ``load_state_dict``."""

    def __init__(self, used: Mapping[str, Any], accepted: bool) -> None:
        self.used, self.accepted = used, accepted

    def __call__(self, module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Mapping, *_: Any) -> None:
        if KEY in metadata:
            check_preparation("the model", metadata, self.used, self.accepted)


def _fill(module: nn.Module, state: MutableMapping[str, Any], *_: Any) -> None:
    state.update(fill_shared(state, module.state_dict()))


def _refuse_others(network: nn.Module, keys: Any) -> None:
    missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
    if missing or unexpected:
        own = len(network.state_dict())
        raise RuntimeError(
            f"these weights belong to another network: {own - len(missing)} of {own} tensors of this "
            f"{type(network).__name__} are among them (not, for example, {(missing + unexpected)[0]}); use the config "
            "that they were trained with: for MONAI Label, pack the bundle with those files "
            "(python -m common.pack BUNDLE --config_file ...)."
        )
