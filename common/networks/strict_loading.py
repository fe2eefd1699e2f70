from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from ..preparation import check_preparation, preparation_record
from ..weights.settings import differing_settings
from .architecture import network_architecture

__all__ = ["fill_shared", "forget_notes", "note_record", "refuse_settings", "require_strict"]

NOTES = ("preparation", "architecture")
"""Entries of a state dict's metadata, which torch saves and loads, and of the file's record."""

THEIR_CONFIG = (
    "use the config that they were trained with: for MONAI Label, pack the bundle with those files "
    "(python -m common.pack BUNDLE --config_file ...)"
)


def note_record(state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Note in a state dict how images were prepared and what the network is, for readers without the file's record."""
    notes = {name: dict(record[name]) for name in NOTES if record.get(name)}
    state._metadata[""].update(notes)  # type: ignore[attr-defined]


def forget_notes(state: Mapping[str, Any]) -> None:
    """Remove the notes, if the file's record was already compared."""
    for name in NOTES:
        getattr(state, "_metadata", {}).get("", {}).pop(name, None)


def refuse_settings(path: Any, made: Mapping[str, Any] | None, used: Mapping[str, Any] | None, what_to_do: str) -> None:
    """Refuse weights that fit a network by all names and shapes, but were trained in one that computes something else.

    Args:
        path: of the file, or what messages call the weights.
        made, used: architectures of the network that was trained, and of the one to fill.
        what_to_do: end of the sentence.

    Raises:
        ValueError: settings differ that both state.
    """
    differing = differing_settings(made, used)
    differing = [key for key in differing if not key.startswith("all_") or key[4:] not in differing]  # not twice
    if differing and made and used:
        settings = ", ".join(f"{key} {made[key]} and not {used[key]}" for key in differing)
        raise ValueError(f"{path} belongs to another network, which no tensor shows: it has {settings}; {what_to_do}.")


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
            note of another preparation (``note_record``) is refused here.
        accept_preparation: accept differences, with a line in the log for each.
        task: task whose classes it predicts, compared likewise.

    Returns:
        the network. Its ``load_state_dict`` now raises a RuntimeError if names are missing or left over, and a
        ValueError if the weights were trained on images prepared in another way, or in a network with other settings.
    """
    if preprocessing is not None:
        guard = _PreparationGuard(preparation_record(preprocessing, task=task), accept_preparation)
        network.register_load_state_dict_pre_hook(guard)
    network.register_load_state_dict_pre_hook(_refuse_other_settings)
    network.register_load_state_dict_pre_hook(_fill)
    network.register_load_state_dict_post_hook(_refuse_others)
    return network


class _PreparationGuard:
    """A hook of ``load_state_dict``."""

    def __init__(self, used: Mapping[str, Any], accepted: bool) -> None:
        self.used, self.accepted = used, accepted

    def __call__(self, module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Mapping, *_: Any) -> None:
        if NOTES[0] in metadata:
            check_preparation("the model", metadata, self.used, self.accepted)


def _refuse_other_settings(
    module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Mapping, *_: Any
) -> None:
    refuse_settings("the model", metadata.get(NOTES[1]), network_architecture(module), THEIR_CONFIG)


def _fill(module: nn.Module, state: MutableMapping[str, Any], *_: Any) -> None:
    state.update(fill_shared(state, module.state_dict()))


def _refuse_others(network: nn.Module, keys: Any) -> None:
    missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
    if missing or unexpected:
        own = len(network.state_dict())
        raise RuntimeError(
            f"these weights belong to another network: {own - len(missing)} of {own} tensors of this "
            f"{type(network).__name__} are among them (not, for example, {(missing + unexpected)[0]}); {THEIR_CONFIG}."
        )
