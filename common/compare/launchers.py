"""Launchers of a comparison's runs: on this machine, on several of its GPUs, or as jobs of a cluster."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from .child import do_run, read_outcome, stop_children
from .run import Run
from .settings import CompareError, Settings

__all__ = ["Cluster", "Here", "Launcher", "make_launcher"]

Work = tuple[Run, str, Settings, dict[str, Any], str]
"""Arguments of ``do_run``: the run, its title, the settings, its outcome when the comparison began, the time left."""


class Launcher(Protocol):
    """A place for runs: it takes ``slots`` at a time; jobs have ``done()``."""

    slots: int

    def start(self, works: Sequence[Work], say: Callable[[str], None]) -> list[Any]:
        """Start some runs, one job each."""

    def wait(self, jobs: Collection[Any]) -> None:
        """Wait until a job ends, but at most about a second: runs of other processes end, too."""

    def ended(self, job: Any, say: Callable[[str], None], title: str) -> str | None:
        """The result of ``do_run`` in a finished job."""

    def stop(self) -> None:
        """End all running jobs, for example when the user stops the comparison."""


class Here:
    """This machine: one run at a time, or one on each of several GPUs."""

    def __init__(self, settings: Settings) -> None:
        self.slots = len(settings.devices)
        self.devices: queue.Queue[str] = queue.Queue()
        for device in settings.devices:
            self.devices.put(device)
        self.pool = ThreadPoolExecutor(self.slots)
        self.jobs: list[Future] = []
        self.stopping = threading.Event()

    def start(self, works: Sequence[Work], say: Callable[[str], None]) -> list[Future]:
        jobs = [self.pool.submit(self._work, *work, say) for work in works]
        self.jobs = [job for job in self.jobs if not job.done()] + jobs
        return jobs

    def _work(self, run: Run, title: str, settings: Settings, seen: dict[str, Any], left: str, say: Any) -> str | None:
        device = self.devices.get()
        try:
            return do_run(run, title, settings, seen, left, say, device, self.stopping)
        finally:
            self.devices.put(device)

    def wait(self, jobs: Collection[Future]) -> None:
        if jobs:
            wait(jobs, timeout=1.0, return_when=FIRST_COMPLETED)
        else:
            time.sleep(0.25)

    def ended(self, job: Future, say: Callable[[str], None], title: str) -> str | None:
        return job.result()

    def stop(self) -> None:
        self.stopping.set()
        self.pool.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in self.jobs):  # a thread may be about to start its child
            stop_children()
            time.sleep(0.1)


class Cluster:
    """Jobs of a cluster through ``submitit``; runs that are ready together form one array.

    ``settings.launcher`` has ``cluster`` (``slurm``; submitit's ``local`` and ``debug`` are for tests), ``jobs``, the
    largest number at a time (100), and parameters of ``submitit.AutoExecutor``. If the cluster ends a job, its run
    stays unfinished, and the next call resumes it.

    Raises:
        CompareError: submitit is not installed, or does not know a parameter.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            import submitit
        except ImportError:
            raise CompareError(
                "--launcher needs submitit: pip install 'monai-transfer-bundles[cluster]', or pip install submitit."
            ) from None
        options = dict(settings.launcher)
        cluster, self.slots = options.pop("cluster"), options.pop("jobs", 100)
        # The jobs find the `common` that this process runs.
        root = str(Path(__file__).resolve().parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            self.executor = submitit.AutoExecutor(settings.output / ".jobs", cluster=cluster)
            self.executor.update_parameters(**{"name": "compare", **options})
        except Exception as error:  # submitit raises what its plugins do
            raise CompareError(f"--launcher {cluster}: {error}") from error
        self.working: dict[str, tuple[Any, Run]] = {}

    def start(self, works: Sequence[Work], say: Callable[[str], None]) -> list[Any]:
        if not works:
            return []
        with self.executor.batch():
            jobs = [self.executor.submit(do_run, *work) for work in works]
        for job, work in zip(jobs, works, strict=True):
            self.working[job.job_id] = job, work[0]
            say(f"{work[1]}: job {job.job_id}")
        return jobs

    def wait(self, jobs: Collection[Any]) -> None:
        time.sleep(1.0)

    def ended(self, job: Any, say: Callable[[str], None], title: str) -> str | None:
        _, run = self.working.pop(job.job_id)
        try:
            found = job.result()
        except Exception as error:  # the job was ended, or failed before its run began
            last = str(error).strip().splitlines()[-1:]
            say(f"{title}: job {job.job_id} was lost ({', '.join(last)}); call the comparison again to resume")
            return None
        if found is None:
            outcome = read_outcome(run)
            reason = f", {outcome['reason']}" if "reason" in outcome else ""
            say(f"{title}: {outcome.get('status')}{reason}")
        return found

    def stop(self) -> None:
        for job, _ in self.working.values():
            job.cancel(check=False)


def make_launcher(settings: Settings) -> Launcher:
    return Cluster(settings) if settings.launcher else Here(settings)
