from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from ..checkpoint_file import checked_record
from ..data.seen import refuse_seen
from ..files import atomic_write
from ..fingerprint import fingerprint_in, scan_facts, spread
from ..networks.onnx_net import OnnxNet
from ..preparation import check_images
from ..volumes import VolumeError
from ..weights.model_file import load_model
from ..weights.shipped import find_encoder, shipped_encoders

__all__ = ["ModelLoader"]

logger = logging.getLogger(__name__)

MOST_COMPARED = 20
"""Scans of an evaluation that are compared with those of the training."""


class ModelLoader:
    """Load a whole network when an engine starts; everything must fit.

    It runs as a handler, not in ``initialize``, so that a packed bundle works from any folder.

    Args:
        path: a state dict, plain or under ``model``, such as ``models/model.pt``; or an encoder file that includes the
            last layers, or the name of an included one (``common.weights.find_encoder``).
        network: filled in place; not wrapped by DDP. Exported nets bring their weights (``OnnxNet``, and the result of
            ``torch.jit.load``), so only the record in ``path`` is read for them (``common.exported``).
        preprocessing: transforms of the images that the network will see. They must match the file's record of the
            training images; files without a record are accepted, with a line in the log.
        accept_preparation: accept differences, with a line in the log for each.
        task: task whose classes the network predicts; a network trained for another task is refused, too.
        scans, judged_by: items that the network is evaluated on, and the name of their list. A file trained on these
            scans or subjects is refused (``common.data.seen.refuse_seen``). Up to 20 of them are compared with the
            training scans (``common.fingerprint``); the log warns of those that differ, and the scores tell the rest.
        transductive: accept such a file, with a warning.
        note: text file beside the scores that says so; it is removed if there is nothing to say.

    Raises:
        ValueError: as ``load_model``; the images are prepared in another way than the training images; evaluated scans
            were used in training.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        preprocessing: Any = None,
        accept_preparation: bool = False,
        scans: Sequence[Mapping[str, Any]] | None = None,
        judged_by: str = "test",
        transductive: bool = False,
        note: str | os.PathLike | None = None,
        task: str | None = None,
    ) -> None:
        self.path = (find_encoder(path) if str(path) in shipped_encoders() else Path(path)).absolute()
        self.network = network
        self.preprocessing, self.accept_preparation = preprocessing, accept_preparation
        self.task = task
        self.scans, self.judged_by, self.transductive = scans, judged_by, transductive
        self.note = None if note is None else Path(note).absolute()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if isinstance(self.network, OnnxNet):
            record = self.network.record
            self.compare(record)
        elif isinstance(self.network, torch.jit.ScriptModule):
            record = checked_record(self.path)
            self.compare(record)
        else:
            record = load_model(self.network, self.path, judge=self.compare)
        if self.scans is not None:
            self.look_for_scans(record, self.scans)
            self.look_for_differences(record, self.scans)
        if idist.get_rank() == 0:
            logger.info("network read from %s.", self.path)

    def look_for_scans(self, record: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> None:
        found = refuse_seen(
            self.path, record.get("scans"), {self.judged_by: scans}, (self.judged_by,), self.transductive
        )
        if self.note is None or idist.get_rank() != 0:
            return
        self.note.unlink(missing_ok=True)
        if found:
            with atomic_write(self.note) as temporary:
                lines = [f"Transductive: {self.path} {phrase}." for phrase in found]
                temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def look_for_differences(self, record: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> None:
        fingerprint = fingerprint_in(record)
        if fingerprint is None or idist.get_rank() != 0:
            return
        found: dict[str, list[str]] = {}
        looked_at = spread(scans, MOST_COMPARED)
        for item in looked_at:
            try:
                facts = scan_facts(item["image"])
            except VolumeError:  # loading says what is wrong with it
                continue
            for difference in fingerprint.differences(facts):
                found.setdefault(difference.what, []).append(f"{facts.file}: {difference.sentence}")
        for what, sentences in found.items():
            logger.warning(
                "%d of %d checked scans of the %s list are unlike those that %s was trained on (%s), such as %s.",
                len(sentences),
                len(looked_at),
                self.judged_by,
                self.path,
                what,
                sentences[0],
            )

    def compare(self, record: Mapping[str, Any]) -> None:
        check_images(self.path, record, self.preprocessing, self.accept_preparation, self.task)
