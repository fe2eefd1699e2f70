from __future__ import annotations

import sys
import time
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from tqdm import tqdm

__all__ = ["ProgressBar"]

QUIET = 60.0
"""Least seconds between two lines within an epoch."""


class ProgressBar:
    """One progress bar for the whole run of an engine: epoch, mean loss of the epoch so far, and time left.

    Only rank 0 shows it, on stderr. If stderr is not a terminal (a log file), nothing is written, or with ``lines`` one
    line per epoch and one per minute within long epochs.

    Args:
        desc: name of the run, such as ``"pre-train"``.
        lines: whether to write lines if stderr is not a terminal.
        interval: seconds between two reads of the loss; each read waits for the device.
    """

    def __init__(self, desc: str = "train", lines: bool = False, interval: float = 0.5) -> None:
        self.desc = desc
        self.lines = lines
        self.interval = interval
        self._bar: tqdm | None = None
        self._losses = 0
        self._total: float | torch.Tensor = 0.0
        self._steps = self._steps_of_run = 0
        self._run_began = self._epoch_began = self._looked = self._wrote = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or an evaluator."""
        if idist.get_rank() > 0 or not (sys.stderr.isatty() or self.lines):
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        if sys.stderr.isatty():
            # Not EXCEPTION_RAISED: ignite lets only the first handler of that event act, and savers need it.
            engine.add_event_handler(Events.STARTED | Events.TERMINATE | Events.COMPLETED, self._close)
        else:
            engine.add_event_handler(Events.STARTED, self._start_run)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_line)

    def _start_run(self) -> None:
        self._run_began = self._wrote = time.monotonic()
        self._steps_of_run = 0

    def _start_epoch(self, engine: Engine) -> None:
        state = engine.state
        self._losses, self._total = 0, 0.0
        self._steps = 0
        self._epoch_began = time.monotonic()
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            # Only here are the counters of a resumed run in place; an evaluator counts iterations from 0, epochs not.
            length = state.epoch_length
            total = length and state.iteration + length * ((state.max_epochs or state.epoch) - state.epoch + 1)
            self._bar = tqdm(total=total, initial=state.iteration, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_description(self._title(engine), refresh=False)

    def _advance(self, engine: Engine) -> None:
        loss = _loss(engine.state.output)
        if loss is not None:
            self._losses += 1
            self._total = self._total + loss
        self._steps += 1
        self._steps_of_run += 1
        now = time.monotonic()
        if self._bar is None:
            # Not at the last step, which the epoch's own line follows.
            if not sys.stderr.isatty() and now - self._wrote >= QUIET and self._steps != engine.state.epoch_length:
                self._write_step(engine, now)
            return
        if self._losses and now - self._looked >= self.interval:
            self._looked = now
            self._bar.set_postfix_str(self._mean_loss(), refresh=False)
        self._bar.update(engine.state.iteration - self._bar.n)

    def _write_step(self, engine: Engine, now: float) -> None:
        state, parts = engine.state, [f"step {self._steps}"]
        if self._losses:
            parts.append(self._mean_loss())
        if state.epoch_length:
            parts[0] += f" of {state.epoch_length}"
        self._write(engine, parts + self._time_left(engine, now))

    def _write_line(self, engine: Engine) -> None:
        now = time.monotonic()
        parts = [self._mean_loss()] if self._losses else []
        self._write(engine, [*parts, f"{now - self._epoch_began:.1f} s", *self._time_left(engine, now)])

    def _time_left(self, engine: Engine, now: float) -> list[str]:
        state = engine.state
        epochs = (state.max_epochs or state.epoch) - state.epoch + 1
        left = epochs * (state.epoch_length or 0) - self._steps
        if left <= 0 or not self._steps_of_run:
            return []
        # Of the whole run, with what is between the epochs so far.
        seconds = left * (now - self._run_began) / self._steps_of_run
        return [f"about {tqdm.format_interval(seconds)} left"]

    def _write(self, engine: Engine, parts: list[str]) -> None:
        self._wrote = time.monotonic()
        print(f"{self._title(engine)}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            if self._losses:
                self._bar.set_postfix_str(self._mean_loss())
            self._bar.close()
        self._bar = None

    def _title(self, engine: Engine) -> str:
        return f"{self.desc} epoch {engine.state.epoch}/{engine.state.max_epochs}"

    def _mean_loss(self) -> str:
        return f"loss {float(self._total) / self._losses:.4f}"


def _loss(output: Any) -> torch.Tensor | float | None:
    """The loss in an engine's output (a number, a dict, or a list of dicts), without waiting for the device."""
    if isinstance(output, list):
        output = output[0] if output else None
    if isinstance(output, dict):
        output = output.get(CommonKeys.LOSS)
    if isinstance(output, torch.Tensor):
        return output.detach() if output.numel() == 1 else None
    return output if isinstance(output, float) else None
