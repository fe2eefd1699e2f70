from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from ..checkpoint_file import read_checkpoint, save_checkpoint
from ..volumes import first_line

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)


class Checkpoint:
    """Save all that a run needs to go on, atomically after each epoch, and load it to resume.

    Put it last among the trainer's handlers, so the checkpoint includes the epoch's scheduler step and validation. With
    ``EpochSeed``, a run that is killed at any point and resumed is bit for bit the same as an uninterrupted one.

    Args:
        path: the checkpoint file. Rank 0 writes it, every rank reads it.
        save_dict: objects with ``state_dict`` and ``load_state_dict`` by name: network (not wrapped by DDP; includes a
            teacher inside it), optimizer, lr_scheduler. The trainer's counters and scaler are added.
        resume: load ``path`` when the run starts. Without such a file the run starts at epoch 1, so one command both
            starts and resumes.
        interval: epochs between saves; the last epoch is always saved.
        evaluator: its best metric and that metric's epoch are kept.
        outputs: other files of the run, such as ``models/model.pt``. The warning names them if a new run would
            overwrite an earlier one.

    Raises:
        ValueError: on resume, the file cannot be read, belongs to another run (other objects, network, ``max_epochs``
            or epoch length), lacks a part, contradicts itself or holds numbers that are not finite.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        save_dict: Mapping[str, Any],
        resume: bool = False,
        interval: int = 1,
        evaluator: Engine | None = None,
        outputs: Sequence[str | os.PathLike] = (),
    ) -> None:
        self.path = Path(path).absolute()
        self.outputs = [Path(output).absolute() for output in outputs]
        self.save_dict = dict(save_dict)
        self.resume = resume
        self.interval = interval
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.after_epoch)
        engine.add_event_handler(Events.COMPLETED, self.end)

    def start(self, engine: Engine) -> None:
        there = [path for path in (self.path, *self.outputs) if path.exists()]
        if self.resume and self.path.exists():
            self.load(engine)
        elif self.resume:
            logger.info("nothing to resume: no checkpoint %s, starting at epoch 1.", self.path)
        elif there:
            advice = "resume it with --resume True, or keep" if self.path in there else "keep"
            logger.warning(
                "starting from epoch 1: %s of an earlier run will be overwritten (%s them with another --output_dir).",
                " and ".join(map(str, there)),
                advice,
            )

    def after_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if idist.get_rank() == 0 and (
            epoch % self.interval == 0 or epoch == engine.state.max_epochs or engine.should_terminate  # early stopping
        ):
            self.save(engine)

    def end(self) -> None:
        if idist.get_rank() == 0:
            logger.info("finished; the files of this run are in %s.", self.path.parent)

    def save(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)
        best = {}
        if self.evaluator is not None:
            best = {key: getattr(self.evaluator.state, key) for key in ("best_metric", "best_metric_epoch")}
        content = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "epoch_length": engine.state.epoch_length,
            "best": best,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "objects": {name: item.state_dict() for name, item in self.save_dict.items()},
        }
        save_checkpoint(content, self.path)

    def load(self, engine: Engine) -> None:
        try:
            content, _ = read_checkpoint(self.path)
        except ValueError as error:
            raise ValueError(f"{error}; delete it to start from epoch 1.") from error
        # All is looked at before anything is loaded: a network of one run with an optimizer of another helps nobody.
        self.check(content, engine)
        for name, item in self.save_dict.items():
            try:
                item.load_state_dict(content["objects"][name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise self.unfit(name, first_line(error)) from error
        scaler = getattr(engine, "scaler", None)
        if content["scaler"] is not None and scaler is not None:
            scaler.load_state_dict(content["scaler"])
        if self.evaluator is not None:
            for key, value in content["best"].items():
                setattr(self.evaluator.state, key, value)
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        logger.info("resumed from %s after epoch %d of %d.", self.path, content["epoch"], content["max_epochs"])
        if content["epoch"] >= content["max_epochs"]:
            logger.warning(
                "nothing is left to train: the run of %s is finished; start a new run in another --output_dir.",
                self.path,
            )

    def check(self, content: Any, engine: Engine) -> None:
        """Compare the content of a checkpoint with this run.

        Raises:
            ValueError: naming the file and the key that is missing or wrong.
        """
        objects = content.get("objects") if isinstance(content, dict) else None
        if not isinstance(objects, Mapping) or set(objects) != set(self.save_dict):
            raise ValueError(
                f"{self.path} is not a checkpoint of this run (it does not hold {', '.join(self.save_dict)}); "
                "give another output_dir, or delete it."
            )
        for key in ("epoch", "iteration", "max_epochs", "epoch_length", "best", "scaler"):
            if key not in content:
                raise self.damaged(key, "is missing")
        for key in ("max_epochs", "epoch_length"):
            if content[key] != getattr(engine.state, key):
                reason = {
                    "max_epochs": "the learning-rate schedule was made for that length, so a run cannot be extended",
                    "epoch_length": "the data, the batch size or the number of processes changed",
                }[key]
                raise ValueError(
                    f"{self.path} was written with {key} {content[key]}, but this run has "
                    f"{getattr(engine.state, key)}: {reason}; start a new run in another output_dir."
                )
        epoch, iteration = content["epoch"], content["iteration"]
        if type(epoch) is not int or not 1 <= epoch <= content["max_epochs"]:
            raise self.damaged("epoch", f"is {epoch!r} but must be between 1 and {content['max_epochs']}")
        if type(iteration) is not int or iteration != epoch * content["epoch_length"]:
            expected = f"{epoch * content['epoch_length']}, {epoch} epochs of {content['epoch_length']} iterations"
            raise self.damaged("iteration", f"is {iteration!r} but must be {expected}")
        best = content["best"]
        if not isinstance(best, Mapping):
            raise self.damaged("best", "is no mapping")
        if self.evaluator is not None:
            for key in ("best_metric", "best_metric_epoch"):
                if key not in best:
                    raise self.damaged(f"best/{key}", "is missing")
        if content["scaler"] is not None and not isinstance(content["scaler"], Mapping):
            raise self.damaged("scaler", "is no mapping")
        for name, item in self.save_dict.items():
            state, where = objects[name], f"objects/{name}"
            if not isinstance(state, Mapping):
                raise self.damaged(where, "is no mapping")
            if isinstance(item, torch.nn.Module):
                self.check_network(item, state, name)
            elif isinstance(item, torch.optim.Optimizer):
                self.check_optimizer(item, state, where)
            elif "last_epoch" in item.state_dict() and type(state.get("last_epoch")) is not int:
                raise self.damaged(f"{where}/last_epoch", "is missing or not a whole number")

    def check_network(self, net: torch.nn.Module, state: Mapping[str, Any], name: str) -> None:
        own = net.state_dict()
        for key in [*own, *state]:
            if key not in state or key not in own:
                raise self.unfit(name, f"{key} is only in {'this run' if key in own else 'the file'}")
            there, here = state[key], own[key]
            if not isinstance(here, torch.Tensor):
                continue
            if not isinstance(there, torch.Tensor) or there.shape != here.shape:
                shape = list(there.shape) if isinstance(there, torch.Tensor) else "none"
                raise self.unfit(name, f"{key} has the shape {shape}, this run's {list(here.shape)}")
            # A buffer may be infinite on purpose; then it is so in this run too.
            if not _finite(there) and _finite(here):
                raise self.damaged(f"objects/{name}/{key}", "holds numbers that are not finite")

    def check_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], where: str) -> None:
        """Compare moments with parameters: torch does not, and its fused steps read past the end of a small moment."""
        for key, kind in (("param_groups", list), ("state", dict)):
            if not isinstance(state.get(key), kind):
                raise self.damaged(f"{where}/{key}", "is missing or of another kind")
        name = where.rpartition("/")[2]
        groups, own = state["param_groups"], optimizer.param_groups
        if len(groups) != len(own):
            raise self.unfit(name, f"param_groups are {len(groups)}, this run's {len(own)}")
        parameters: dict[Any, torch.Tensor] = {}
        for number, (there, here) in enumerate(zip(groups, own, strict=True)):
            place = f"{where}/param_groups/{number}"
            for key in ("params", "lr"):
                if not isinstance(there, Mapping) or key not in there:
                    raise self.damaged(f"{place}/{key}", "is missing")
            for key, value in there.items():
                if isinstance(value, (float, torch.Tensor)) and not _finite(torch.as_tensor(value)):
                    raise self.damaged(f"{place}/{key}", f"is {value}, which is not finite")
            if len(there["params"]) != len(here["params"]):
                counts = f"{len(there['params'])} parameters, this run's {len(here['params'])}"
                raise self.unfit(name, f"group {number} has {counts}")
            parameters |= dict(zip(there["params"], here["params"], strict=True))
        needed = _moments(optimizer)
        if needed and not state["state"]:
            raise self.damaged(f"{where}/state", f"is empty but must hold {', '.join(needed)} of each parameter")
        for number, moments in state["state"].items():
            place = f"{where}/state/{number}"
            if number not in parameters:
                raise self.damaged(place, "belongs to no parameter")
            if not isinstance(moments, Mapping):
                raise self.damaged(place, "is no mapping")
            for key in needed:
                if key not in moments:
                    raise self.damaged(f"{place}/{key}", "is missing")
            for key, value in moments.items():
                if isinstance(value, (float, torch.Tensor)) and not _finite(torch.as_tensor(value)):
                    raise self.damaged(f"{place}/{key}", "holds numbers that are not finite")
                shape = () if key == "step" else tuple(parameters[number].shape)
                if key in needed and (
                    tuple(value.shape) != shape if isinstance(value, torch.Tensor) else key != "step"
                ):
                    found = list(value.shape) if isinstance(value, torch.Tensor) else value
                    raise self.damaged(f"{place}/{key}", f"has the shape {found} but must have {list(shape)}")

    def damaged(self, key: str, what: str) -> ValueError:
        return ValueError(
            f"{self.path}: {key} {what}, so the run cannot be resumed from it; give another output_dir, or delete it."
        )

    def unfit(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}: the state of {name} does not fit ({reason}); resume with the configuration of the first run."
        )


def _finite(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Entries that this kind of optimizer keeps for each parameter with a gradient; none if unknown."""
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        amsgrad = any(group["amsgrad"] for group in optimizer.param_groups)
        return ("step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
    if isinstance(optimizer, torch.optim.SGD) and all(group["momentum"] for group in optimizer.param_groups):
        return ("momentum_buffer",)
    return ()
