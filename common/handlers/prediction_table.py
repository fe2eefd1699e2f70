from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import evenly_divisible_all_gather, string_list_all_gather

from ..files import atomic_write

__all__ = ["PredictionTable"]


class PredictionTable:
    """Write a net's predictions, one row per scan: ``filename``, ``label``, ``prediction``, and probabilities.

    A single predicted number is written as it is. Several numbers are class probabilities: the prediction is the most
    probable class, and each class gets a column ``probability_K``. An empty label means that the scan has none. Rank 0
    writes the table for all ranks when the evaluation ends.

    Args:
        path: CSV file.
        label: key of the truth in the engine's output; None if there is none, as in inference.
        prediction: key of the prediction.
    """

    def __init__(self, path: str | os.PathLike, label: str | None = "label", prediction: str = "pred") -> None:
        self.path = Path(path).absolute()
        self.label, self.prediction = label, prediction
        self._files: list[str] = []
        self._values: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def _forget(self) -> None:
        self._files, self._values = [], []

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        for item, result in zip(batch, output, strict=True):
            predicted = torch.as_tensor(result[self.prediction]).detach().float().reshape(-1).cpu()
            truth = torch.full((1,), torch.nan)
            if self.label is not None and result.get(self.label) is not None:  # MONAI gives None where there is none
                truth = torch.as_tensor(result[self.label]).float().reshape(-1)[:1].cpu()
            self._files.append(str(item["image"].meta["filename_or_obj"]))
            self._values.append(torch.cat((truth, predicted)))

    def write(self, engine: Engine) -> None:
        width = self._values[0].numel() if self._values else 0
        if idist.get_world_size() > 1:  # a process may have had no scan
            width = int(idist.all_reduce(width, op="MAX"))
        files, values = self._files, torch.stack(self._values) if self._values else torch.empty(0, width)
        if idist.get_world_size() > 1:
            files = [name for name in string_list_all_gather(files) if name]  # gathers no names as an empty one
            values = evenly_divisible_all_gather(values.to(idist.device()), concat=True).cpu()
        if idist.get_rank() != 0:
            return
        classes = values.shape[1] - 1
        probabilities = [f"probability_{number}" for number in range(classes)] if classes > 1 else []
        with atomic_write(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["filename", "label", "prediction", *probabilities])
            for name, (truth, *predicted) in zip(files, values.tolist(), strict=True):
                best = predicted.index(max(predicted)) if probabilities else predicted[0]
                shown = [f"{value:.6g}" for value in predicted] if probabilities else []
                known = "" if truth != truth else f"{truth:.6g}"
                writer.writerow([name, known, f"{best:.6g}", *shown])
