from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from ..checkpoint_file import read_checkpoint
from ..weights.soundness import refuse_unsound

__all__ = ["ModelLoader", "load_model"]

logger = logging.getLogger(__name__)


class ModelLoader:
    """Load a whole network when an engine starts; everything must fit.

    It runs as a handler, not in ``initialize``, so that a packed bundle works from any folder.

    Args:
        path: a state dict, plain or under ``model``, such as ``models/model.pt``.
        network: filled in place; not wrapped by DDP.
    """

    def __init__(self, path: str | os.PathLike, network: nn.Module) -> None:
        self.path, self.network = Path(path).absolute(), network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_model(self.network, self.path)
        if idist.get_rank() == 0:
            logger.info("network read from %s.", self.path)


GET_ONE = "train one with configs/train.json, or set model_path (or output_dir)"
FIT_IT = "use the networks/, tasks/, datasets/ and presets/ files it was trained with"


def load_model(network: nn.Module, path: str | os.PathLike, get_one: str = GET_ONE, fit_it: str = FIT_IT) -> None:
    """Fill ``network`` from the state dict in ``path``.

    Args:
        network: filled in place.
        path: a state dict, plain or under ``model``.
        get_one, fit_it: what the sentence says to do where there is no such file, and where it is of another network.

    Raises:
        FileNotFoundError, ValueError: no such file, no readable checkpoint, one of another network, or values that are
            NaN, infinite or no floats.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model {path}: {get_one}.")
    state, _ = read_checkpoint(path)
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no state dict: give a model.pt written by configs/train.json.")
    own = network.state_dict()
    fits = [name for name, tensor in own.items() if getattr(state.get(name), "shape", None) == tensor.shape]
    if len(fits) < len(own) or len(state) > len(own):
        example = next(name for name in [*own, *state] if name not in fits)
        if example in own and hasattr(state.get(example), "shape"):
            example += f", {tuple(state[example].shape)} in the file and {tuple(own[example].shape)} here"
        raise ValueError(
            f"{path} is of another network: {len(fits)} of {len(own)} tensors of this {type(network).__name__} are in "
            f"it with the right shape (not, for example, {example}); {fit_it}."
        )
    refuse_unsound(path, state, own)
    network.load_state_dict(state)
