from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..checkpoint_file import read_checkpoint, save_checkpoint

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)


class Checkpoint:
    """Save everything a run needs to go on, after each epoch and atomically, and load it to resume.

    It stands last in the trainer's handlers, so that what it saves includes the epoch's scheduler step and validation.
    With ``EpochSeed``, a run that is killed at any point and resumed has the bits of the uninterrupted one.

    Args:
        path: the checkpoint file. Rank 0 writes it, every rank reads it.
        save_dict: objects with ``state_dict`` and ``load_state_dict`` by name: network (not wrapped by DDP; a teacher
            inside it goes along), optimizer, lr_scheduler. The trainer's counters and scaler are added.
        resume: load ``path`` when the run starts. Where there is no such file yet, the run starts at epoch 1, so one
            command both starts and resumes.
        interval: epochs between saves; the last epoch is always saved.
        evaluator: its best metric and that metric's epoch are kept.
        outputs: what else the run writes, such as ``models/model.pt``; named in the warning when a run starts anew
            where an earlier one wrote.

    Raises:
        ValueError: on resume, a file that cannot be read or belongs to another run (other objects, network,
            ``max_epochs`` or epoch length).
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

    def start(self, engine: Engine) -> None:
        there = [path for path in (self.path, *self.outputs) if path.exists()]
        if self.resume and self.path.exists():
            self.load(engine)
        elif self.resume:
            logger.info("nothing to resume: no checkpoint %s, starting at epoch 1.", self.path)
        elif there:
            advice = "resume it with --resume True, or keep" if self.path in there else "keep"
            logger.warning(
                "starting anew: %s of an earlier run will be overwritten (%s them with another --output_dir).",
                " and ".join(map(str, there)),
                advice,
            )

    def after_epoch(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if idist.get_rank() == 0 and (epoch % self.interval == 0 or epoch == engine.state.max_epochs):
            self.save(engine)

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
            raise ValueError(f"{error}; delete it to start anew.") from error
        if not isinstance(content, dict) or set(content.get("objects", ())) != set(self.save_dict):
            raise ValueError(
                f"{self.path} is no checkpoint of this run (it does not hold {', '.join(self.save_dict)}); "
                "give another output_dir, or delete it."
            )
        for key in ("max_epochs", "epoch_length"):
            if content[key] != getattr(engine.state, key):
                reason = {
                    "max_epochs": "the learning-rate schedule was made for that length, so a run cannot be extended",
                    "epoch_length": "the data, the batch size or the number of processes changed",
                }[key]
                raise ValueError(
                    f"{self.path} was written with {key} {content[key]}, this run has {getattr(engine.state, key)}: "
                    f"{reason}; start a new run in another output_dir."
                )
        for name, item in self.save_dict.items():
            try:
                item.load_state_dict(content["objects"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                first = str(error).strip().splitlines()[0]
                raise ValueError(
                    f"{self.path}: the state of {name} does not fit ({first}); resume with the configuration of the "
                    "first run."
                ) from error
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
                "nothing is left to train: the run of %s is finished; train anew in another --output_dir.", self.path
            )
