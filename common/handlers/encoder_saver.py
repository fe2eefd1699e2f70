from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from ..checks import config_digest
from ..data.seen import SeenScans
from ..preparation import preparation_record
from ..weights.encoder_file import read_record, save_encoder
from .best_model_saver import best_metric, discount_nan, is_new_best
from .scans_record import start_scans_record

__all__ = ["EncoderSaver"]

logger = logging.getLogger(__name__)


class EncoderSaver:
    """Write the encoder file when pre-training completes.

    With an evaluator, it writes the encoder of the best validation (Zhang et al., BIBM 2023, section IV-C: the model
    with the best reconstruction), kept until then in a file beside ``path``. Without one, it writes the encoder of the
    last epoch.

    Args:
        path: such as ``models/encoder.safetensors``.
        encoder: the encoder inside the pretext.
        preprocessing: transforms of the images. Their effect goes into the record, which
            ``common.weights.load_encoder`` compares.
        method: name of the pretext.
        data: one line about the training data.
        evaluator: MONAI evaluator; its key metric chooses the epoch.
        scans: items by the name of their list. ``training``, and with an evaluator ``validation``, go into the record
            (``common.data.seen``); fine-tuning and evaluation compare their scans with them.
        spatial_size: size of one input of the encoder, for its token grid.
        task: task whose classes the network predicts, recorded if the file includes the last layers (``heads``).
        earlier: encoder file that the training starts from; its scans are added to the record. None for none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        encoder: nn.Module,
        preprocessing: Any,
        method: str,
        data: str,
        evaluator: Engine | None = None,
        scans: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        spatial_size: Sequence[int] | None = None,
        earlier: str | os.PathLike | None = None,
        task: str | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.best = self.path.with_name(f".{self.path.stem}.best{self.path.suffix}")
        self.encoder = encoder
        preparation = preparation_record(preprocessing, task=task if getattr(encoder, "heads", False) else None)
        self.record: dict[str, Any] = {"preparation": preparation, "method": method, "data": data}
        if spatial_size is not None:
            self.record["spatial_size"] = list(spatial_size)
        self.evaluator = evaluator
        self.scans, self.earlier = scans, earlier
        self.seen: SeenScans | None = None

    def attach(self, engine: Engine) -> None:
        used = ("training",) if self.evaluator is None else ("training", "validation")
        self.seen = start_scans_record(self.scans, used, self.earlier)
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.discard)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self.keep_best)

    def discard(self) -> None:
        """Delete files that an earlier run left in this folder."""
        if idist.get_rank() == 0:
            self.best.unlink(missing_ok=True)

    def keep_best(self, evaluator: Engine) -> None:
        if is_new_best(evaluator) and idist.get_rank() == 0:
            name, value = best_metric(evaluator)
            self.save(self.best, {"epochs": evaluator.state.epoch, name: value})
        discount_nan(evaluator)

    def finish(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        validation: Any = self.evaluator.state if self.evaluator is not None else None
        if self.best.exists():
            epoch = read_record(self.best).get("epochs")
            os.replace(self.best, self.path)
        elif validation is None or validation.best_metric_epoch == -1:  # never validated
            epoch = engine.state.epoch
            self.save(self.path, {"epochs": epoch})
        else:
            return  # a finished run was resumed; its best encoder is already in place
        # MONAI logs "Got new best metric" of every validation, whether it chooses or not.
        chosen = validation is not None and validation.best_metric_epoch != -1
        which = "the best in validation" if chosen else "the last; validation did not choose it"
        logger.info("encoder of epoch %s (%s) written to %s.", epoch, which, self.path)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        scans = {} if self.seen is None else {"scans": self.seen.record()}
        save_encoder(self.encoder, path, {**self.record, **facts, "config_digest": config_digest(), **scans})
