"""Fill a whole network from the state dict that training writes, or from an encoder file that includes all of it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint_file import read_checkpoint, save_checkpoint
from ..networks.architecture import network_architecture
from ..networks.strict_loading import fill_shared, forget_notes, note_record, refuse_settings
from .encoder_file import read_encoder
from .shipped import shipped_encoders
from .soundness import refuse_unsound

__all__ = ["load_model", "save_model"]

GET_ONE = "train one with configs/train.json, or set model_path (or output_dir)"
FIT_IT = "use the networks/, tasks/, datasets/ and presets/ files it was trained with"


def load_model(
    network: nn.Module,
    path: str | os.PathLike,
    get_one: str = GET_ONE,
    fit_it: str = FIT_IT,
    judge: Callable[[Mapping[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Fill ``network`` from the state dict in ``path``.

    Args:
        network: filled in place.
        path: a state dict, plain or under ``model``, or an encoder file (.safetensors) of the whole network.
        get_one, fit_it: advice in the error if there is no such file, and if it belongs to another network.
        judge: called with the file's record before the network is filled; its errors are passed on.

    Returns:
        the file's record, empty if it has none.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not a readable checkpoint or belongs to another
            network, by its tensors or by settings in its record that no tensor shows, or values are NaN, infinite or
            not floats.
    """
    path = Path(path)
    if not path.is_file():
        # Of a path with an ending nobody meant a name.
        names = "" if path.suffix else ", ".join(shipped_encoders())
        by_name = f", or name an included one ({names})" if names else ""
        raise FileNotFoundError(f"no model {path}: {get_one}{by_name}.")
    state, record = read_encoder(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no state dict: give a model.pt written by configs/train.json.")
    own = network.state_dict()
    state = fill_shared(state, own)
    fits = [name for name, tensor in own.items() if getattr(state.get(name), "shape", None) == tensor.shape]
    if len(fits) < len(own) or len(state) > len(own):
        example = next(name for name in [*own, *state] if name not in fits)
        if example in own and hasattr(state.get(example), "shape"):
            example += f", {tuple(state[example].shape)} in the file and {tuple(own[example].shape)} here"
        raise ValueError(
            f"{path} belongs to another network: {len(fits)} of {len(own)} tensors of this "
            f"{type(network).__name__} are in "
            f"it with the right shape (not, for example, {example}); {fit_it}."
        )
    refuse_settings(path, record.get("architecture"), network_architecture(network), fit_it)
    refuse_unsound(path, state, own)
    if judge is not None:
        judge(record)
    forget_notes(state)
    network.load_state_dict(state)
    return record


def save_model(state: Mapping[str, Any], path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write a ``model.pt``: a state dict and its record, also noted in the state dict for readers that ignore records.

    Args:
        state: state dict of a network, or one without torch's note of versions; written unchanged.
        path: path of the file; its folders are made.
        record: JSON values; ``preparation`` and ``architecture`` are also noted in the state dict (``note_record``).
    """
    weights: Any = state
    if not hasattr(weights, "_metadata"):
        weights = OrderedDict(state)
        weights._metadata = OrderedDict({"": {}})
    note_record(weights, record)
    save_checkpoint(weights, path, record)
