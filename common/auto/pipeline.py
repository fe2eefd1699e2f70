"""From folders of scans and masks to a packed model: look, plan, train, deliver."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from ..bundles import find_bundle
from ..files import atomic_write, held_folder
from ..json_files import read_json, write_json
from ..weights.check import ADAPTED, encoder_of
from ..weights.encoder_file import read_record
from ..weights.hub import is_hub_name
from ..weights.prepare import prepared_ids, read_preparation, unsaid
from ..weights.settings import differing_settings
from .commands import Command, execute, parse_trial, training_commands, trial_command
from .errors import RunError
from .look import look
from .machine import this_machine
from .plan import RATE, Plan, PlanError, Prior, Speed, add_time, choose_start, plan_study, split_sizes
from .study import Study, describe_split

if TYPE_CHECKING:
    from .predict import Prediction

__all__ = ["Result", "run"]

logger = logging.getLogger(__name__)

TRIAL_BATCHES = {1: 6, 2: 20}
"""Steps per epoch of the trial, by the number of starts that it compares."""
SMALLER = (1.0, 0.5, 0.25, 0.125)
"""Shares of the crop to try until one fits in memory."""
MOST_CLASSES = 12
"""Of more, the last line of a run does not list the scores."""


@dataclass(frozen=True)
class Result:
    """The result of :func:`run`.

    Attributes:
        folder: the output folder.
        plan: the plan of the training, with reasons.
        model: folder of the packed bundle; None after ``plan_only``.
        report: ``report.html``; None after ``plan_only``.
        dice: mean Dice of each structure on the test scans.
        seconds: time of each step, with the trials.
    """

    folder: Path
    plan: Plan
    model: Path | None = None
    report: Path | None = None
    dice: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def predict(self, images: str | Path, output: str | Path | None = None, force: bool = False) -> list[Prediction]:
        """Label other scans with the packed model (``common.auto.predict``).

        Args:
            images: a file or a folder.
            output: folder for the label maps; by default ``later_predictions`` in the output folder.
            force: accept scans unlike those of the training.
        """
        from .predict import predict

        if self.model is None:
            raise PlanError("There is only a plan yet: run without plan_only first.")
        return predict(self.model, images, output or self.folder / "later_predictions", force=force)


def run(
    images: str | Path,
    masks: str | Path | None = None,
    output: str | Path = "auto",
    subject: str | None = None,
    hours: float = 1.0,
    control: bool = False,
    plan_only: bool = False,
    task: str | None = None,
    bundle: str | Path | None = None,
    names: Mapping[int, str] | None = None,
    pretrained_encoder: str | Path | None = None,
    network: str | None = None,
    prepare_as: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Result:
    """Look at scans and masks, plan, train, evaluate and pack. Another call resumes a stopped run.

    Args:
        images: folder of scans, of a data set in a known layout, or a datalist (``common.auto.look``).
        masks: folder of masks, if the layout does not include them.
        output: folder for all results.
        subject: regular expression for the subject in a scan's path, such as ``patient\\\\d+``.
        hours: time for everything, including the trial.
        control: if the plan starts from an encoder, also train from scratch, so the report shows what the encoder
            gains. Each of the two gets half of the time.
        plan_only: stop after the plan.
        task: task of the collection, such as ``structures4``, if the masks have the numbers of FreeSurfer or another
            known tool; by default each label is a class.
        bundle: folder of ``ssl3d``, if not the one in the package.
        names: label of the masks -> its name, if no table beside the scans has them.
        pretrained_encoder: encoder file to start from; a trial decides between it and a start from scratch.
        network: overlay of the network that it fills, such as ``vista3d`` for ``networks/vista3d.json`` of the bundle.
        prepare_as: ``encoder``, or a file: images get the spacing, orientation and intensities that its record states,
            which the plan gives as the reason.
        say: gets the lines of progress.

    Raises:
        ValueError: the scans cannot be used, or no plan can be made; the message is one sentence.
        RunError: a step failed; the message is one sentence.
    """
    if not 0 < hours < math.inf:
        raise PlanError(f"--hours is {hours}; give a number above 0.")
    folder = Path(output).expanduser().absolute()
    for what, given in (("images", images), ("masks", masks)):
        if given is not None and folder.resolve() == Path(given).expanduser().resolve():
            raise PlanError(f"--output is the folder of --{what}: give another, such as a new one in it.")
    pretrained_encoder, prepare_as = (
        one if one is None or is_hub_name(one) else os.path.expanduser(one) for one in (pretrained_encoder, prepare_as)
    )
    root = find_bundle(bundle if bundle is not None else "ssl3d")
    _check_bundle(root)
    prior = find_prior(root, pretrained_encoder, network, prepare_as, say)
    with _held(folder):
        study = look(images, masks, subject, names, say)
        for line in study.describe():
            say(line)
        lists = _write_lists(study, folder)
        say(describe_split(lists))
        asked = {"hours": hours, "control": control, "task": task}
        chosen = {"pretrained_encoder": pretrained_encoder, "network": network, "prepare_as": prepare_as}
        asked |= {name: str(value) for name, value in chosen.items() if value is not None}
        plan = _make_plan(study, root, folder, asked, prior, lists, say)
        commands = training_commands(plan, root, folder, control, bool(lists["unlabelled"]))
        _write_commands(commands, root, folder)
        for line in ("", "Plan:", *(f"  {one.what}: {one.value} ({one.reason})" for one in plan.decisions), ""):
            say(line)
        if plan_only:
            say(f"The plan is in {folder / 'plan.json'}; edit it, and run again without --plan.")
            return Result(folder, plan)
        done = read_json(folder / "state.json", {})
        seconds = {name: float(one["seconds"]) for name, one in done.items() if name.startswith("trial_")}
        for number, command in enumerate(commands, 1):
            title = f"[{number}/{len(commands)}] {command.name.replace('_', ' ')}"
            seconds[command.name] = execute(command, folder, say, title)
        model = _pack(root, folder)
        from .report import write_report

        report, dice = write_report(study, plan, folder, seconds)
        say(f"Mean Dice on {len(lists['test'])} test scans: {_mean(dice)}")
        say(f"Model: {model}\nReport: {report}")
        return Result(folder, plan, model, report, dice, seconds)


def _mean(dice: dict[str, float]) -> str:
    values = [value for value in dice.values() if value == value]
    each = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    if len(dice) > MOST_CLASSES:
        each = f"{len(values)} of {len(dice)} classes are in these scans; the report has each"
    return f"{sum(values) / max(1, len(values)):.3f} ({each})"


def _check_bundle(root: Path) -> None:
    if not (root / "configs" / "train.json").is_file():
        raise PlanError(f"{root} is not a bundle (no configs/train.json): give the folder of ssl3d with --bundle.")


def find_prior(
    root: Path,
    encoder: str | Path | None,
    network: str | None,
    prepare_as: str | Path | None,
    say: Callable[[str], None] = print,
) -> Prior | None:
    """The encoder that the user chose, with the ids that its record states if ``prepare_as`` asks for them.

    Args:
        root: folder of the bundle, whose ``configs/networks`` has the overlays.
        encoder, network, prepare_as: as for :func:`run`.
        say: gets a sentence for each part of the record that no id takes over.

    Raises:
        PlanError: one of them lacks another, there is no such overlay, or its network has another encoder.
        FileNotFoundError, ValueError: there is no such file, or its record does not say how images were prepared.
    """
    if encoder is None and network is None and prepare_as is None:
        return None
    if network is not None and encoder is None:
        raise PlanError(f"--network {network} is for --pretrained_encoder: give the encoder file, too.")
    if encoder is not None and network is None:
        raise PlanError(
            "--pretrained_encoder needs --network, the overlay of the network that it fills: "
            f"python -m common.weights check {encoder} names those that take it."
        )
    if prepare_as == "model" or (prepare_as == "encoder" and encoder is None):
        raise PlanError(f"--prepare_as {prepare_as} does not say which file here: give its path, --prepare_as FILE.")
    overlay = stride = None
    if encoder is not None and network is not None:
        made = read_record(encoder).get("architecture") or {}
        stem = Path(network).stem
        file = root / "configs" / "networks" / f"{stem}.json"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json")))
            raise PlanError(f"--network {network} is no network of {root.name}: give one of {known}.")
        overlay = (f"networks/{stem}.json", read_json(file))
        net = encoder_of(file)
        own, stride = net.architecture(), tuple(net.strides[-1])
        if made.get("name") and own.get("name") not in (None, made["name"]):
            raise PlanError(
                f"{encoder} holds a {made['name']}, but --network {stem} has a {own['name']}: "
                f"`python -m common.weights check {encoder}` names the networks that it fills."
            )
        differing = [f"{key} {made[key]} and not {own[key]}" for key in differing_settings(made, own, ADAPTED)]
        if differing:
            raise PlanError(
                f"{encoder} was made with {', '.join(differing)} of --network {stem}: `python -m common.weights check "
                f"{encoder}` names the networks that it fills."
            )
    source = encoder if prepare_as == "encoder" else prepare_as
    ids: dict[str, Any] = {}
    if source is not None:
        record = read_preparation(source)
        ids = prepared_ids(source, record)
        for line in unsaid(source, record, ids):
            say(line)
    chosen = str(encoder if encoder is not None else source)
    return Prior(str(Path(chosen).absolute()) if Path(chosen).is_file() else chosen, overlay, ids, stride)


@contextmanager
def _held(folder: Path):
    """Keep other runs out of the output folder. What is refused before anything is written leaves no folder."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held_folder(folder, timeout=0))
        except Timeout:
            raise PlanError(f"Another run is working in {folder}: wait for it, or give another --output.") from None
        except OSError as error:
            raise PlanError(f"{folder} cannot be written ({error.strerror}): give another --output.") from error
        yield


def _write_lists(study: Study, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Write ``datalist.json``, ``unlabelled.json`` (scans for pre-training) and ``to_predict.json`` (scans without a
    mask)."""
    if study.refusal:
        raise PlanError(study.refusal)
    path = folder / "datalist.json"
    subjects = {case.subject for case in study.labelled}
    validation, test = split_sizes(len(subjects))
    lists = json.loads(json.dumps(study.datalist(validation, test), default=str))
    lists.pop("label_scheme", None)  # the plan says how labels become classes
    if path.is_file() and read_json(path) != lists:
        raise PlanError(
            f"{folder} was started with other scans, masks, subjects or names: give another --output, or remove it."
        )
    write_json(path, lists)
    pool = lists.get("unlabelled", [])
    scans = {
        name: [{key: one[key] for key in ("image", "subject") if key in one} for one in lists.get(name, [])]
        for name in ("training", "unlabelled", "validation")
    }
    write_json(
        folder / "unlabelled.json",
        {"training": scans["training"] + scans["unlabelled"], "validation": scans["validation"]},
    )
    if pool:
        write_json(folder / "to_predict.json", {"test": [{"image": one["image"]} for one in pool]})
    with atomic_write(folder / "study.txt") as temporary:
        temporary.write_text("\n".join(study.describe()) + "\n", encoding="utf-8")
    return {name: lists.get(name, []) for name in ("training", "validation", "test", "unlabelled")}


def _make_plan(
    study: Study,
    root: Path,
    folder: Path,
    asked: dict[str, Any],
    prior: Prior | None,
    lists: dict[str, list[dict[str, Any]]],
    say: Callable[[str], None],
) -> Plan:
    """The plan in ``plan.json``, if it is for the same time; otherwise a new one from a trial."""
    record, overlay_file = folder / "decisions.json", folder / "plan.json"
    if record.is_file() and overlay_file.is_file():
        content = read_json(record)
        if not {"asked", "plan"} <= set(content):
            raise PlanError(f"{record} is damaged: remove it and plan.json, to plan again, or give another --output.")
        if content["asked"] != asked:
            given = {name: value for name, value in content["asked"].items() if value not in (None, False)}
            was = " ".join(f"--{name} {value}" for name, value in given.items())
            raise PlanError(
                f"{folder} has a plan made for {was}: give the same again, give another --output, or remove its "
                "plan.json and decisions.json."
            )
        return Plan.from_json(content["plan"], read_json(overlay_file))
    counts = {name: len(items) for name, items in lists.items()}
    machine = this_machine()
    for share in SMALLER:
        plan = plan_study(study, machine, share, asked["task"], prior)
        # With its data named, plan.json is all that train, evaluate, pre-train and compare have to be given.
        data = {"dataset_dir": str(folder), "datalist": str(folder / "datalist.json")}
        plan = replace(plan, overlay={**data, **plan.overlay})
        write_json(overlay_file, plan.overlay)
        try:
            speed = _trial(plan, root, folder, min(3, counts["validation"]), say)
            break
        except RunError as error:
            if "memory" not in str(error) or share == SMALLER[-1]:
                raise
            say(f"  {error}; trying a smaller crop")
    write_json(folder / "trial.json", {"machine": machine.name, **speed.__dict__})
    halves = asked["control"] and choose_start(plan, speed)[0] != "scratch"  # what a control is trained against
    plan = add_time(plan, speed, asked["hours"] * (0.5 if halves else 1.0), counts)
    write_json(overlay_file, plan.overlay)
    write_json(record, {"asked": asked, "machine": machine.name, "plan": plan.to_json()})
    return plan


def _trial(plan: Plan, root: Path, folder: Path, scans: int, say: Callable[[str], None]) -> Speed:
    """Train a few steps from each candidate start."""
    batches = TRIAL_BATCHES[min(2, len(plan.candidates))]
    dice: dict[str, float] = {}
    speed: Speed | None = None
    for start in plan.candidates:
        rate = RATE["scratch" if start == "scratch" else "encoder"]
        command = trial_command(root, folder, start, rate, batches)
        seconds = execute(command, folder, lambda _: None, f"trial from {start}")
        log = (folder / "logs" / f"{command.name}.log").read_text(encoding="utf-8", errors="replace")
        measured, dice[start] = parse_trial(log[log.rfind("\n$ ") :], seconds, scans)
        speed = speed or measured
        say(f"  trial from {start}: {measured.step:.2g} s per step, {measured.volume:.2g} s per scan")
    assert speed is not None
    return Speed(speed.step, speed.volume, speed.start, dice)


def _write_commands(commands: list[Command], root: Path, folder: Path) -> None:
    """Write ``commands.sh`` with all commands, for users who want to run them by hand."""
    lines = [
        "#!/usr/bin/env bash",
        "# What common.auto ran here, in order; plan.json is an overlay like any other.",
        "set -e",
    ]
    lines += [shlex.join(command.words()) for command in commands]
    model = folder / "training" / "model.pt"
    pack = ["python", "-m", "common.pack", str(root), "--output", str(folder), "--name", "model", "--force"]
    pack += ["--weights", str(model), "--config_file", str(folder / "plan.json")]
    lines.append(shlex.join(pack))
    with atomic_write(folder / "commands.sh") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.chmod(0o755)


def _pack(root: Path, folder: Path) -> Path:
    from ..pack import pack

    model, archive = pack(
        root,
        folder,
        [folder / "training" / "model.pt"],
        force=True,
        config_file=[folder / "plan.json"],
        name="model",
    )
    archive.unlink()
    return model
