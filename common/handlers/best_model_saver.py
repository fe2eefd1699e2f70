from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..data.seen import SeenScans
from ..fingerprint import FingerprintInTheMaking
from ..networks.architecture import network_architecture
from ..preparation import preparation_record
from ..weights.model_file import save_model
from .engine_items import output_items
from .scans_record import start_scans_record

__all__ = ["BestModelSaver", "best_metric", "discount_nan", "is_new_best"]

logger = logging.getLogger(__name__)


class BestModelSaver:
    """Write a network's state dict, atomically, whenever its evaluator reaches a new best metric.

    While the metric is NaN, such as an area under the ROC curve for a validation list of one class, no epoch is the
    best. The latest epoch is then kept, with a warning. The same holds if no label of the validation list has any
    foreground: a Dice that can only be 0 or NaN cannot rank epochs.

    Args:
        path: such as ``models/model.pt``; a plain state dict, which MONAI's tools and MONAI Label can load.
        network: the network, not wrapped by DDP. Rank 0 writes. Its architecture goes into the file's record, which
            ``load_model`` compares, and into the state dict's metadata.
        preprocessing: transforms of the images. Their effect goes into the file's record, which ``ModelLoader``
            compares, and into the state dict's metadata, which ``require_strict`` compares.
        task: task whose classes the network predicts, for the record.
        scans: items by the name of their list. ``training`` and ``validation`` go into the record
            (``common.data.seen``); an evaluation compares its scans with them. The fingerprint of ``training``
            (``common.fingerprint``) is recorded for inference, which compares its scans with it.
        encoder: encoder file that the training starts from; its scans are added to the record. None for none.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        preprocessing: Any = None,
        scans: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        encoder: str | os.PathLike | None = None,
        task: str | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.network = network
        self.record = {"preparation": preparation_record(preprocessing, task=task)} if preprocessing is not None else {}
        architecture = network_architecture(network)
        if architecture:
            self.record["architecture"] = architecture
        self.scans, self.encoder = scans, encoder
        self._seen: SeenScans | None = None
        self._fingerprint: FingerprintInTheMaking | None = None
        self._labels, self._with_foreground = 0, 0

    def attach(self, engine: Engine) -> None:
        self._seen = start_scans_record(self.scans, ("training", "validation"), self.encoder)
        if self.scans is not None and idist.get_rank() == 0:
            self._fingerprint = FingerprintInTheMaking(self.scans.get("training", ()))
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._watch)
        engine.add_event_handler(Events.COMPLETED, self)

    def _forget(self) -> None:
        self._labels, self._with_foreground = 0, 0

    def _watch(self, engine: Engine) -> None:
        """Count the one-hot labels (C, *spatial), and those with any foreground."""
        state: Any = engine.state
        for item in output_items(state.output):
            label = item.get("label")
            if isinstance(label, torch.Tensor) and label.ndim > 2 and len(label) > 1:
                self._labels += 1
                self._with_foreground += int(label[1:].any())

    def __call__(self, engine: Engine) -> None:
        if is_new_best(engine) and idist.get_rank() == 0:
            record = self.record | ({} if self._seen is None else {"scans": self._seen.record()})
            record |= {} if self._fingerprint is None else self._fingerprint.record()
            save_model(self.network.state_dict(), self.path, record)
            logger.info("model of epoch %d written to %s.", engine.state.epoch, self.path)
        labels, with_foreground = self._labels, self._with_foreground
        if idist.get_world_size() > 1:
            labels, with_foreground = (int(idist.all_reduce(count)) for count in (labels, with_foreground))
        if labels and not with_foreground:
            state: Any = engine.state
            state.best_metric_epoch = -1  # as for NaN: the next one is a new best
            if idist.get_rank() == 0:
                logger.warning(
                    "None of the %d labels of the validation list (config id `data`) has any foreground, so %s "
                    "cannot choose a best epoch and the latest is kept: put scans with labelled structures on it.",
                    labels,
                    best_metric(engine)[0],
                )
        else:
            discount_nan(engine)


def is_new_best(engine: Engine) -> bool:
    """Whether the last evaluation gave a MONAI evaluator's best key metric so far."""
    state: Any = engine.state  # MONAI adds attributes to ignite's state
    return state.best_metric_epoch == state.epoch


def discount_nan(engine: Engine) -> None:
    """Discard a best key metric of NaN, with a warning, so that the next evaluation gives a new best.

    No number compares as better than NaN, so MONAI would keep the first epoch for ever. Call it after each evaluation,
    on every rank, after all uses of ``is_new_best``.
    """
    name, value = best_metric(engine)
    if not math.isnan(value):
        return
    state: Any = engine.state
    if idist.get_rank() == 0:
        logger.warning(
            "%s of epoch %d is NaN, so no epoch is the best and the latest is kept: the validation list "
            "(config id `data`) may be too small (an area under the ROC curve needs items of two classes); "
            "give it more items in the datalist, or choose another `key_metric`.",
            name,
            state.epoch,
        )
    state.best_metric_epoch = -1


def best_metric(engine: Engine) -> tuple[str, float]:
    """Name and best value so far of a MONAI evaluator's key metric."""
    state: Any = engine.state
    return state.key_metric_name, float(state.best_metric)
