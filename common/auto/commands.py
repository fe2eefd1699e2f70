"""The commands that a plan comes down to, and running them: each once, to be taken up again where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..child_process import child_environment, failure_reason
from ..durations import format_duration
from ..files import common_folder
from ..json_files import read_json, write_json
from ..warm_start import start_child
from .errors import RunError
from .plan import RATE, Plan, Speed

__all__ = ["Command", "execute", "parse_trial", "scan_root", "training_commands", "trial_command"]

PROGRESS = re.compile(r"^(fine-tuning|inference) epoch .*$")
TRAINER_EPOCH = re.compile(r"^fine-tuning epoch (\d+)/\d+: loss (\S+), (\S+) s\b", re.MULTILINE)
EVALUATOR_EPOCH = re.compile(r"SupervisedEvaluator - INFO - Epoch\[\d+\] Complete\. Time taken: (\d+):(\d+):([\d.]+)")
BEST_DICE = re.compile(r"Epoch\[\d+\] Metrics -- .*?val_mean_dice: (\S+)")


@dataclass(frozen=True)
class Command:
    """One run of ``monai.bundle``.

    Attributes:
        name: of the step, and of its log.
        config_files: in order.
        options: values by id.
        folder: its ``output_dir``.
        makes: file or folder that it leaves behind.
        inputs: files that it reads; a change of one makes the step run again.
        resumes: whether ``resume`` goes on with a checkpoint.
    """

    name: str
    bundle: Path
    config_files: tuple[Path, ...]
    options: Mapping[str, Any]
    folder: Path
    makes: Path
    inputs: tuple[Path, ...] = ()
    resumes: bool = False

    def words(self, python: str = "python", resume: bool = False) -> list[str]:
        configs = self.bundle / "configs"
        options = {"bundle_root": self.bundle, **self.options, "output_dir": self.folder}
        if resume:
            options["resume"] = True
        words = [python, "-m", "monai.bundle", "run"]
        words += ["--meta_file", str(configs / "metadata.json"), "--logging_file", str(configs / "logging.conf")]
        words += ["--config_file", str([str(path) for path in self.config_files])]
        for name, value in options.items():
            words += [f"--{name}", value if isinstance(value, str) else _text(value)]
        return words

    def scans(self) -> str:
        """SHA-256 of which scans and masks its lists name, with their sizes and times; a corrected mask changes it."""
        from ..data.cache_key import file_stamps  # with torch

        lists = [read_json(path) for path in self.inputs if path.suffix == ".json" and path.is_file()]
        return hashlib.sha256(json.dumps(file_stamps(lists)).encode()).hexdigest()

    def digest(self) -> str:
        state = hashlib.sha256(json.dumps(self.words()).encode())
        for path in (*self.config_files, *self.inputs):
            state.update(path.read_bytes() if path.is_file() else b"")
        return state.hexdigest()


def _text(value: Any) -> str:
    return str(value) if isinstance(value, bool | Path) else json.dumps(value)


def trial_command(bundle: Path, output: Path, start: str, rate: float, batches: int) -> Command:
    """A few steps on a few scans: what they take, and that all of it runs."""
    options: dict[str, Any] = {
        "dataset_dir": output,
        "datalist": output / "datalist.json",
        "max_epochs": 3,
        "val_interval": 3,
        "batches_per_epoch": batches,
        "learning_rate": rate,
        "train#dataset#data": "$@data['training'][:8]",
        "validate#dataset#data": "$@data['validation'][:3]",
    }
    if start != "scratch":
        options["pretrained_encoder"] = start
    configs, name = bundle / "configs", Path(start).stem
    return Command(
        f"trial_{name}",
        bundle,
        (configs / "train.json", output / "plan.json"),
        options,
        output / "trial" / name,
        output / "trial" / name / "model.pt",
        (output / "datalist.json", Path(start)),
    )


def training_commands(plan: Plan, bundle: Path, output: Path, control: bool, pool: bool) -> list[Command]:
    """Training, evaluation on the test part and label maps of the scans without one, as a user would type them."""
    configs, plan_file, datalist = bundle / "configs", output / "plan.json", output / "datalist.json"
    data = {"dataset_dir": output, "datalist": datalist}
    commands = []
    arms = {"training": plan.start} | ({"control": "scratch"} if control and plan.start != "scratch" else {})
    for name, start in arms.items():
        folder = output / name
        extra: dict[str, Any] = {"pretrained_encoder": start} if start != "scratch" else {}
        if name == "control":
            extra["learning_rate"] = RATE["scratch"]
        commands.append(
            Command(
                name,
                bundle,
                (configs / "train.json", plan_file),
                data | extra,
                folder,
                folder / "model.pt",
                (datalist, Path(start)),
                True,
            )
        )
        files = (configs / "train.json", configs / "evaluate.json", plan_file)
        commands.append(
            Command(
                f"evaluate_{name}",
                bundle,
                files,
                data,
                folder,
                folder / "eval" / "scores.csv",
                (datalist, folder / "model.pt"),
            )
        )
    model = output / "training" / "model.pt"
    predicted = {"predict_test": (datalist, output / "test_predictions")}
    if pool:
        predicted["predict_unlabelled"] = (output / "to_predict.json", output / "predictions")
    for name, (listed, folder) in predicted.items():
        # One scan unlike the others is warned of; it ends no run of hours.
        options = {"dataset_dir": scan_root(listed), "model_path": model, "accept_scans": True, "datalist": listed}
        inference = (configs / "inference.json", plan_file)
        commands.append(Command(name, bundle, inference, options, folder, folder, (listed, model)))
    return commands


def scan_root(datalist: Path) -> Path:
    """The folder of all scans of a list to label, below which label maps have the scans' own paths."""
    items = read_json(datalist, {}).get("test", [])
    images = [item["image"] if isinstance(item["image"], str) else item["image"][0] for item in items]
    files = [os.path.abspath(datalist.parent / image) for image in images]
    return Path(common_folder(files)) if files else datalist.parent


def execute(command: Command, output: Path, say: Callable[[str], None], title: str) -> float:
    """Run a command unless it is done; its output goes to ``logs/NAME.log``, its progress to ``say``.

    Returns:
        seconds that it took, before and now.

    Raises:
        RunError: it failed.
    """
    state_file = output / "state.json"
    state: dict[str, Any] = read_json(state_file, {})
    digest, scans = command.digest(), command.scans()
    before = state.get(command.name, {})
    # folders of earlier versions do not know what their scans were
    same = before.get("digest") == digest and before.get("scans", scans) == scans
    if same and before.get("status") == "done" and command.makes.exists():
        say(f"{title}: done before ({format_duration(before['seconds'])})")
        return float(before["seconds"])
    resume = command.resumes and same and (command.folder / "train.ckpt").is_file()
    earlier = float(before.get("seconds", 0.0)) if resume else 0.0
    log = output / "logs" / f"{command.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{title} ...")
    started = time.monotonic()

    def record(status: str) -> float:
        seconds = earlier + time.monotonic() - started
        # Read again: the state holds what other steps wrote.
        write_json(
            state_file,
            read_json(state_file, {})
            | {command.name: {"digest": digest, "scans": scans, "status": status, "seconds": seconds}},
        )
        return seconds

    record("started")
    with log.open("ab") as file:
        file.write(f"\n$ {shlex.join(command.words(resume=resume))}\n".encode())
        file.flush()
        begin = file.tell()
        code, ended = 0, False
        try:
            for line in _lines(command.words(sys.executable, resume), file):
                if PROGRESS.match(line):
                    record("started")
                    say(f"  {line}")
            ended = True
        except _Failed as failure:
            code = failure.code
        finally:
            if not ended:
                record("stopped")
    if code:
        record("failed")
        raise RunError(f"{title} failed: {failure_reason(log, begin, code)}")
    return record("done")


class _Failed(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _lines(words: Sequence[str], log: Any) -> Iterator[str]:
    """The lines of a command's output, which are also written to ``log``."""
    reading, writing = os.pipe()
    with open(reading, "rb") as lines:
        try:
            child = start_child(words, writing, child_environment(), own_group=False)
        finally:
            os.close(writing)
        try:
            for raw in lines:
                log.write(raw)
                log.flush()
                yield raw.decode("utf-8", "replace").rstrip()
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
            raise
        finally:
            code = child.wait()
    if code:
        raise _Failed(code)


def parse_trial(text: str, seconds: float, scans: int) -> tuple[Speed, float]:
    """Speed, and Dice on the validation scans, from the log of a trial.

    Args:
        text: the log.
        seconds: of the whole run.
        scans: that were validated on.

    Raises:
        RunError: the log has another form than expected.
    """
    epochs = [float(value) for _, _, value in TRAINER_EPOCH.findall(text)]
    validation, dice = EVALUATOR_EPOCH.findall(text), BEST_DICE.findall(text)
    batches = re.search(r"> batches_per_epoch: (\d+)", text)
    if len(epochs) < 2 or not validation or not dice or batches is None:
        raise RunError("The trial's log has no epochs or no validation: see the folder logs.")
    hours, minutes, rest = validation[-1]
    judged = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    start = max(0.0, seconds - sum(epochs) - judged)
    return Speed(min(epochs[1:]) / int(batches[1]), judged / scans, start), float(dice[-1])
