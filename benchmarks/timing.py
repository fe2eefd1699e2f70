"""Time two ways to do the same thing, in turns."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One line of the table: medians, in seconds unless ``unit`` says otherwise."""

    name: str
    baseline: float
    ours: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.baseline / self.ours


def compare(name: str, baseline: Callable[[], object], ours: Callable[[], object], repeats: int) -> Row:
    """Time both in turns within one run, so that other work of the machine affects both alike.

    Each is first called once without timing. On CUDA a call ends when the device has finished.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, taken in zip((baseline, ours), times, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                taken.append(time.perf_counter() - start)
    return Row(name, *(statistics.median(taken) for taken in times))


def assert_close(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> None:
    """Check that both sides compute the same; otherwise the ratio means nothing."""
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)


class Side:
    """A separate process for one side, since the memory allocator's settings hold for a whole process.

    Args:
        work: called in the process as ``work(pipe, threads, *arguments)``. It answers each word from the pipe until
            "stop".
    """

    def __init__(self, work: Callable[..., None], *arguments) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, torch.get_num_threads(), *arguments), daemon=True)
        self.process.start()

    def ask(self, what: str):
        self.pipe.send(what)
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send("stop")
        self.process.join()
