"""Plan the bundle runs of a comparison: files, overrides, folders and lengths."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks import final_sentence, override_problem
from ..files import common_folder
from ..json_files import read_json
from ..overlays import order_problems
from ..volumes import and_more
from .bundle_config import (
    BundleConfig,
    Read,
    data_digest,
    drawn_from,
    keeps_best_encoder,
    merged_files,
    scans_digest,
    tested_items,
    validated_items,
)
from .run import Run
from .settings import SPLIT, Arm, CompareError, Settings
from .trials import list_trials, trial_values

__all__ = ["Plan", "example_root", "make_plan"]

ALLOW = "set `transductive` to allow it, which the report will say"
MARGIN = 0.01  # of Dice
VALIDATION_SHARE = 0.2  # of the labels, where they are all that there is


@dataclass(frozen=True)
class Plan:
    """All runs in the order of their start, and the configs and data that they share.

    Args:
        train, evaluate: configs of fine-tuning with all labels and of evaluation.
        test: items of the fixed test part, or of the test parts of all folds.
        training: number of training items in the smallest fold; 0 uses those of ``train``.
    """

    settings: Settings
    runs: tuple[Run, ...]
    train: BundleConfig
    evaluate: BundleConfig
    test: list[dict[str, Any]]
    training: int = 0
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def shown(self) -> Sequence[dict[str, Any]]:
        """The test items in the report's pictures: chosen by their scores, or the first ones without scores."""
        return self.examples or self.candidates[: self.settings.examples]

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The test items that may be shown; with folds those of the first."""
        return tested_items(self.evaluate) if self.settings.folds else self.test

    @property
    def margin(self) -> float | None:
        """Two arms are equivalent if the main metric differs by less; None if the metric has no default."""
        dice = "dice" in next(iter(self.evaluate.metrics))
        return self.settings.margin if self.settings.margin is not None else MARGIN if dice else None

    def labelled(self) -> dict[int, tuple[int, int]]:
        """Number of labels -> how many of them are trained on and validated on, as in the first run."""
        first = {run.labels: run for run in reversed(self.runs) if run.stage == "train" and run.labels is not None}
        configs = {labels: self.config(run) for labels, run in first.items()}
        return {
            labels: (len(one.get("data")["training"]), len(validated_items(one))) for labels, one in configs.items()
        }

    @property
    def validated_on_test(self) -> bool:
        """Whether the weights are chosen by scans of the test list."""
        return not set(_files(validated_items(self.train))).isdisjoint(_files(tested_items(self.evaluate)))

    def fractions(self) -> dict[float, int]:
        """Share of the training list -> number of its items."""
        return _fractions(self.settings, self.training or len(drawn_from(self.train)))

    def kind(self, run: Run) -> tuple[str, str, int]:
        """Runs of one kind cost the same per step: the same net and batch size."""
        arm = next((arm for arm in self.settings.arms if arm.name == run.arm), None)
        own = run.arm if run.stage == "pretrain" or arm is None or arm.override or arm.overlays else ""
        return "train" if run.stage == "tune" else run.stage, own, min(run.items, run.batch)

    def config(self, run: Run) -> BundleConfig:
        """The config of a run, as for one process."""
        files = [file for file in run.files if not Path(file).name.startswith("multi_gpu_")]
        return BundleConfig(files, run.override, self.settings.bundle)

    def lists(self, run: Run) -> dict[str, list[dict[str, Any]]]:
        """The lists of a fine-tuning, as it draws them."""
        return self.config(run).get("data")

    def other_steps(self) -> list[str]:
        """Notes on fine-tunings with other steps than requested, since they make whole passes over the labels."""
        asked = self.settings.steps
        if asked is None or self.settings.equal != "steps":
            return []
        runs = [run for run in self.runs if run.stage == "train" and run.steps != asked]
        lines = [
            f"--steps {asked}: fine-tuning on {run.labels} labels takes {run.steps}, since it makes whole epochs of "
            f"{run.steps // run.epochs} steps."
            for run in runs
        ]
        return list(dict.fromkeys(lines))


def make_plan(
    settings: Settings,
    extra_steps: Mapping[tuple[str, int], int] | None = None,
    try_items: bool = False,
    chosen: Mapping[tuple[str, int, int | None], int] | None = None,
    examples: Sequence[dict[str, Any]] = (),
) -> Plan:
    """Plan the runs of a comparison.

    Args:
        extra_steps: per arm and number of labels, steps of fine-tuning beyond those of the settings (for ``equal``
            time).
        try_items: load one training and one test item like the runs, so an error in all labels, such as their label
            scheme, is found before hours of pre-training.
        chosen: per arm, number of labels and fold, the trial whose values fine-tuning uses (for ``tune``). Without it
            fine-tuning waits for all trials.
        examples: test items to show, by default the first ones.

    Raises:
        CompareError: the bundle lacks a file, an override names no id of the config, the data cannot be read, a list is
            empty, a number of labels exceeds the training list, or a tried item cannot be loaded.
    """
    builder = _Builder(settings, extra_steps or {}, chosen or {})
    builder.examples = tuple(examples)
    shared = (builder.train, builder.evaluate, builder.test, builder.training, builder.examples)
    plan = Plan(builder.settings, tuple(builder.runs()), *shared)
    if try_items:
        builder.try_items()
    return plan


@dataclass(frozen=True)
class _FineTuning:
    """What the runs of one fine-tuning share.

    Args:
        data: what it trains and validates on.
        folder: folder of its runs, except those of trials.
        encoder: the encoder file that it starts from, if any.
    """

    arm: Arm
    fraction: float
    labels: int
    seed: int
    fold: int | None
    data: Read
    folder: Path
    encoder: tuple[Path, ...]

    @property
    def start(self) -> dict[str, Any]:
        """The override that names its encoder file."""
        return {"pretrained_encoder": str(self.encoder[0])} if self.encoder else {}

    @property
    def pretrained(self) -> tuple[Path, ...]:
        """The result of its pre-training, without which it does not start."""
        made_here = self.arm.pretrain or self.arm.encoder_of
        return (self.encoder[0].with_name("pretrain.json"),) if made_here else ()

    @property
    def model(self) -> Path:
        return self.folder / "model.pt"


class _Builder:
    """Builds the runs, with the data that they share."""

    def __init__(
        self,
        settings: Settings,
        extra_steps: Mapping[tuple[str, int], int],
        chosen: Mapping[tuple[str, int, int | None], int],
    ) -> None:
        self.settings, self.extra_steps, self.chosen = settings, extra_steps, chosen
        self.folds: tuple[int | None, ...] = tuple(range(settings.folds)) if settings.folds else (None,)
        self.pretrained_by_fold: set[str] = set()
        self.configs: dict[str, BundleConfig] = {}
        self.pretrainings: dict[str, BundleConfig] = {}
        self.examples: tuple[dict[str, Any], ...] = ()
        self.places = {
            name: value
            for name, value in (("dataset_dir", settings.dataset_dir), ("datalist", settings.datalist))
            if value is not None
        }
        trains = [self.read("train", {**settings.override, **self.split(fold)}) for fold in self.folds]
        evaluates = [self.read("evaluate", self.evaluation(self.split(fold))) for fold in self.folds]
        self.train, self.evaluate = trains[0], evaluates[0]
        _ = self.evaluate.metrics  # refused now rather than after hours
        self.test = [item for evaluate in evaluates for item in tested_items(evaluate)]
        validated = self.train.get("validated_list", "validation")
        if settings.validation_from_labels and validated != "validation":
            raise CompareError(
                f"--validation_from_labels draws the validation list, but `validated_list` names {validated!r}: leave "
                "out one of them."
            )
        for name, items in (("validation", validated_items(self.train)), ("test", self.test)):
            if len(items) < settings.processes:
                raise CompareError(
                    f"--processes {settings.processes}: every process needs a {name} item, but there are only "
                    f"{len(items)}."
                )
        self.sizes = [len(drawn_from(train)) for train in trains]
        self.source_size = len(self.train.get("data")["training"]) - self.sizes[0]
        self.training = training = min(self.sizes)
        self.fractions = _fractions(settings, training)
        self.known: dict[tuple[BundleConfig, str], Read] = {}  # each is asked for many times
        parts = zip(self.folds, trains, evaluates, strict=True)
        self.data = {fold: (self.learnt_from(train), self.judged_on(judge)) for fold, train, judge in parts}
        if settings.evaluate_override:
            self.check_other_test()
        steps = self.train.steps_per_epoch(training + self.source_size)
        self.full_steps = self.train.get("max_epochs") * steps
        self.settings = replace(settings, arms=self.choose_pretrainings())

    def split(self, fold: int | None) -> dict[str, Any]:
        """The ids that make a fold's part the test list."""
        return {} if fold is None else {"fold": fold, "data#pool_test": True, "data#num_folds": self.settings.folds}

    def evaluation(self, override: Mapping[str, Any]) -> dict[str, Any]:
        """The overrides of an evaluation whose training has these beside those of all arms."""
        return {**self.settings.override, **override, **self.settings.evaluate_override}

    def learnt_from(self, train: BundleConfig, stage: str = "train") -> Read:
        """What a fine-tuning reads, or a probe of its encoder."""
        if (train, stage) not in self.known:
            items = list(train.get("data")["training"])
            if stage == "probe":
                items += train.get("data")["test"]
            elif not self.settings.validation_from_labels:
                items += validated_items(train)
            scans = scans_digest(train, items, self.starts_from(train))
            self.known[train, stage] = Read(data_digest(train), scans)
        return self.known[train, stage]

    def judged_on(self, evaluate: BundleConfig) -> Read:
        """What an evaluation reads: its datalists, and where they differ from those of the other stages."""
        own = self.settings.evaluate_override  # whose folder, unlike that of all stages, may be what tells two apart
        if (evaluate, "evaluate") not in self.known:
            data = data_digest(evaluate) + (json.dumps(own, sort_keys=True, default=str) if own else "")
            self.known[evaluate, "evaluate"] = Read(data, scans_digest(evaluate, tested_items(evaluate)))
        return self.known[evaluate, "evaluate"]

    def evaluated_by(self, arm: Arm, fold: int | None) -> Read:
        """``judged_on`` of an arm whose override may name other lists."""
        override = self.evaluation({**arm.override, **self.split(fold)})
        return self.judged_on(self.read("evaluate", override, arm.overlays))

    def check_other_test(self) -> None:
        """Refuse a test list of evaluation's own with scans or subjects that training learns from or is chosen by."""
        from ..data.copies import find_copies

        test = tested_items(self.evaluate)
        data = {"training": self.train.get("data")["training"], "validation": validated_items(self.train)}
        for name in data:
            taken, known = set(_files(data[name])), getattr(data[name], "subjects", {})
            both = [file for file in _files(test) if file in taken]
            both += [file for digest, file in getattr(test, "subjects", {}).items() if digest in known]
            copies = find_copies({name: data[name], "test": test})
            if both or copies:
                what = f"{both[0]} of its test list, or another scan of its subject, is" if both else ""
                what = what or f"{copies[0][0]} of its test list has a copy"
                raise CompareError(
                    f"--evaluate_override: {what} in the {name} list of fine-tuning: take it out of one of them."
                )

    def files(self, stage: str, overlays: Sequence[str] = ()) -> tuple[str, ...]:
        """Base files, the overlays of every stage, the given overlays, and the one for several processes."""
        stage = "train" if stage == "tune" else stage
        names = {"evaluate": ("train", "evaluate"), "infer": ("inference",), "probe": ("train",)}.get(stage, (stage,))
        base = [self.required(f"{name}.json") for name in names]
        files = (*base, *self.settings.config_file, *overlays)
        if self.settings.patience and stage == "train" and "patience" not in read_json(base[0]):
            files = (*files, str(Path(__file__).with_name("early_stopping.json")))
        if self.settings.processes > 1 and stage in ("pretrain", "train", "evaluate"):
            files = (*files, self.required(f"multi_gpu_{stage}.json"))
        return files

    def required(self, name: str) -> str:
        path = self.settings.bundle / "configs" / name
        if not path.is_file():
            raise CompareError(f"{self.settings.bundle.name} has no configs/{name}.")
        return str(path)

    def read(self, stage: str, override: Mapping[str, Any], overlays: Sequence[str] = ()) -> BundleConfig:
        # The config itself is the same for one process and for several, whose file needs torchrun's environment.
        files = [file for file in self.files(stage, overlays) if not Path(file).name.startswith("multi_gpu_")]
        override = {**self.places, **override}
        key = json.dumps([stage, files, override], default=str)
        if key not in self.configs:  # arms share most of them, and a list may take long to read
            self.check_ids(stage, override, files)
            self.configs[key] = BundleConfig(files, override, self.settings.bundle)
        return self.configs[key]

    def check_ids(self, stage: str, override: Mapping[str, Any], files: Sequence[str]) -> None:
        """Refuse an override that the run would refuse."""
        config = merged_files(files)
        names = " + ".join(Path(file).name for file in files)
        option = "--pretrain_override " if stage == "pretrain" else "--override "
        own = self.settings.evaluate_override if stage == "evaluate" else {}
        for key, value in override.items():
            typed = f"--{key}" if key in self.places else option + key
            typed = f"--evaluate_override {key}" if key in own else typed
            problem = override_problem(key, typed, config, names, prefix="", value=value)
            if problem:
                raise CompareError(problem)
        problems = order_problems(files, override)
        if problems:
            raise CompareError(problems[0])

    def try_items(self) -> None:
        """Load the first training and test item with each arm's transforms of fine-tuning and evaluation, and the first
        one of each pre-training with its own.
        """
        for name, config in self.pretrainings.items():
            try:
                _load_first(config, config.get("data")["training"], "validate#dataset#transform")
            except CompareError as error:
                raise CompareError(f"Pre-training of arm {name!r}: {error}") from error
        tried: list[Any] = []
        for arm in self.settings.arms:
            override = {**self.settings.override, **arm.override}
            if (arm.overlays, override) in tried:
                continue
            tried.append((arm.overlays, override))
            for stage, shared in (("train", self.train), ("evaluate", self.evaluate)):
                given = override if stage == "train" else self.evaluation(arm.override)
                config = self.read(stage, given, arm.overlays) if arm.override or arm.overlays else shared
                section = "training" if stage == "train" else config.get("evaluated_list", "test")
                _load_first(config, config.get("data")[section])

    def runs(self) -> Iterator[Run]:
        for arm in self.settings.arms:
            if arm.pretrain:
                yield from self.pretraining(arm)
            self.check_encoder(arm)
            self.check_scratch(arm)
        for fraction, labels in self.fractions.items():
            for seed, fold in itertools.product(self.settings.seeds, self.folds):
                for arm in (arm for arm in self.settings.arms if not arm.scores):
                    yield from self.fine_tuning(arm, fraction, labels, seed, fold)

    def pretraining_items(self, arm: Arm) -> int:
        """Number of items that its pre-training processes."""
        given = {**self.settings.pretrain_override, **arm.pretrain_override}
        config = self.read("pretrain", {**self.places, **given}, arm.pretrain[1:])
        return config.get("max_epochs") * config.steps_per_epoch(len(config.get("data")["training"])) * config.batch

    def fine_tuning_items(self, arm: Arm) -> int:
        """Number of items that its fine-tunings of one seed and fold process, over all numbers of labels."""
        override = {**self.places, **self.settings.override, **arm.override, **self.split(self.folds[0])}
        config = self.read("train", override, arm.overlays)
        steps = 0
        for labels in self.fractions.values():
            per_epoch = config.steps_per_epoch(labels + self.source_size)
            steps += self.epochs(arm, labels, config, per_epoch) * per_epoch
        return steps * config.batch

    def later(self, arm: Arm) -> list[Arm]:
        """The arms that start from its encoder, directly or through another arm."""
        found = [arm]
        for one in self.settings.arms:
            found += [one] if one.pretrain_from in [other.name for other in found] else []
        return found[1:]

    def choose_pretrainings(self) -> tuple[Arm, ...]:
        """Decide for each arm whether it pre-trains once per seed.

        By default it does if a pre-training, with that of the arm it starts from, processes no more items than the
        fine-tunings of one seed. A folder that already holds a pre-training of an arm keeps its way.
        """
        settings = self.settings
        found: dict[str, Arm] = {}
        for arm in settings.arms:
            per_seed = arm.pretrain_per_seed
            given = {**settings.pretrain_override, **arm.pretrain_override}
            if arm.pretrain and per_seed is None:
                first = found.get(arm.pretrain_from or "")
                folder = settings.output / "pretrain" / arm.name
                if first is not None:
                    per_seed = first.pretrain_per_seed
                elif any(folder.glob("**/pretrain.json")):
                    per_seed = any(folder.glob("**/seed-*/pretrain.json"))
                elif len(settings.seeds) > 1 and "seed" not in given:
                    spent = sum(self.pretraining_items(one) for one in (arm, *self.later(arm)))
                    per_seed = spent <= self.fine_tuning_items(arm)
            elif arm.encoder_of:
                per_seed = found[arm.encoder_of].pretrain_per_seed
            found[arm.name] = replace(arm, pretrain_per_seed=bool(per_seed))
        return tuple(found.values())

    def pretraining(self, arm: Arm) -> Iterator[Run]:
        """Its pre-training, or one per fold if its list holds scans of the folds."""
        if self.settings.folds and arm.pretrain_from not in self.pretrained_by_fold:
            try:
                yield from list(self.pretraining_of(arm, self.folds))
                return
            except CompareError:
                given = {**self.settings.pretrain_override, **arm.pretrain_override}
                if "fold" in given or "fold" not in self.read("pretrain", given, arm.pretrain[1:]).ids:
                    raise  # its lists are the same in every fold
        if self.settings.folds:
            self.pretrained_by_fold.add(arm.name)
        for fold in self.folds:
            yield from self.pretraining_of(arm, (fold,), fold)

    def pretraining_of(self, arm: Arm, folds: Sequence[int | None], fold: int | None = None) -> Iterator[Run]:
        """The pre-training for some folds, with the lists of ``fold``."""
        settings = self.settings
        given = {**settings.pretrain_override, **arm.pretrain_override}
        # What fine-tuning holds out, pre-training must not see.
        known = self.read("pretrain", given, arm.pretrain[1:]).ids
        held_out = {**settings.override, **arm.override, **self.split(fold)}
        split = {key: held_out[key] for key in SPLIT if key in held_out and key.partition("#")[0] in known}
        override = {**self.places, **split, **given}
        config = self.read("pretrain", override, arm.pretrain[1:])
        if arm.pretrain_from is not None and "pretrained_encoder" not in config.ids:
            raise CompareError(f"Arm {arm.name!r}: the bundle's pre-training starts from no encoder file.")
        started = self.starts_from(config) if arm.pretrain_from is None else None
        if config.get("norm") == "frozen" and arm.pretrain_from is None and started is None:
            from ..networks.norms import NO_STATISTICS  # loads torch

            raise CompareError(
                f"Pre-training of arm {arm.name!r}: {NO_STATISTICS}set norm to batch or group in its pretrain_override."
            )
        self.pretrainings[arm.name] = config
        epochs = config.get("max_epochs")
        seen = config.get("data")["training"]
        chosen_by = config.get("data")["validation"] if keeps_best_encoder(config) else []
        users = [arm, *(other for other in settings.arms if other.encoder_of == arm.name)]
        for user, one in itertools.product(users, folds):
            self.check_leak(user, seen, chosen_by, one)
        items = len(seen)
        override |= _checkpoint_interval(config, override, epochs)
        data = data_digest(config, "pretrain_datalist" if "pretrain_datalist" in config.ids else "datalist")
        scans = scans_digest(config, [*seen, *config.get("data").get("validation", ())])
        for seed in settings.seeds if arm.pretrain_per_seed else (None,):
            folder = self.pretrain_folder(arm, seed, fold)
            own = {**override, "resume": True, "output_dir": str(folder)}
            own |= {} if seed is None else {"seed": seed + arm.seed_offset}
            first: dict[str, Any] = {}
            if arm.pretrain_from is not None:
                earlier = next(one for one in settings.arms if one.name == arm.pretrain_from)
                path = self.pretrain_folder(earlier, seed, fold) / "encoder.safetensors"
                own |= {"pretrained_encoder": str(path)}
                first = {"inputs": (path,), "needs": (path.with_name("pretrain.json"),)}
            elif started is not None:
                first = {"inputs": (started,)}
            yield Run(
                "pretrain",
                arm.name,
                self.files("pretrain", arm.pretrain[1:]),
                own,
                folder,
                seed=seed,
                steps=epochs * config.steps_per_epoch(items),
                epochs=epochs,
                items=items,
                batch=config.batch,
                data=data,
                scans=scans,
                fold=fold,
                **first,
            )

    def starts_from(self, config: BundleConfig) -> Path | None:
        """The encoder file from which a pre-training or fine-tuning starts by its own config."""
        from ..weights.shipped import find_encoder

        named = config.get("pretrained_encoder")
        try:
            return Path(find_encoder(named)) if named else None
        except FileNotFoundError:
            return None  # the run says so

    def held_out(self, arm: Arm, fold: int | None) -> dict[str, Any]:
        """The lists that choose and judge fine-tuning in this arm; its override may draw others."""
        train, evaluate = self.train, self.evaluate
        if arm.override or arm.overlays or fold:
            override = {**self.settings.override, **arm.override, **self.split(fold)}
            train = self.read("train", override, arm.overlays)
            evaluate = self.read("evaluate", self.evaluation({**arm.override, **self.split(fold)}), arm.overlays)
        judged = {"test": tested_items(evaluate)}
        if self.settings.validation_from_labels:  # parts of the training list, which pre-training may see
            return judged
        return {"validation": validated_items(train), **judged}

    def check_leak(
        self,
        arm: Arm,
        seen: Sequence[Mapping[str, Any]],
        chosen_by: Sequence[Mapping[str, Any]] = (),
        fold: int | None = None,
    ) -> None:
        """Refuse a pre-training that sees the lists that choose or judge fine-tuning, or is chosen by the latter."""
        if self.settings.transductive:
            return
        from ..data.copies import find_copies
        from ..data.datalist import OTHER_PEOPLE

        held = self.held_out(arm, fold)
        judged = set(_files(held["test"]))
        first = next((file for file in _files(chosen_by) if file in judged), None)
        if first is not None:
            raise CompareError(
                f"Arm {arm.name!r}: {first} of the validation list of pre-training, which chooses the encoder, "
                f"is also in the test list of fine-tuning: remove it from pre-training, or {ALLOW}."
            )
        where = {file: name for name, items in held.items() for file in _files(items)}
        leaks = [file for file in _files(seen) if file in where]
        if leaks:
            raise CompareError(
                f"Arm {arm.name!r}: {and_more(leaks)} of the pre-training list is also in the {where[leaks[0]]} "
                f"list of fine-tuning: remove it from pre-training, or {ALLOW}."
            )
        copies = [problem for problem in find_copies({"pre-training": seen, **held}) if "pre-training" in problem[1]]
        if copies:
            raise CompareError(f"Arm {arm.name!r}: {copies[0][0]} {copies[0][1]}, or {ALLOW}.")
        known = getattr(seen, "subjects", {})
        for name, items in held.items():
            subjects = getattr(items, "subjects", {})
            both = [digest for digest in known if digest in subjects]
            if both:
                raise CompareError(
                    f"Arm {arm.name!r}: {known[both[0]]} of the pre-training list belongs to the subject of "
                    f"{subjects[both[0]]} in the {name} list of fine-tuning ({OTHER_PEOPLE}): remove it from "
                    f"pre-training, or {ALLOW}."
                )

    def check_encoder(self, arm: Arm) -> None:
        """Refuse a foreign encoder file trained on the lists that choose or judge fine-tuning."""
        if self.settings.transductive or arm.encoder is None:
            return
        from ..data.seen import find_seen
        from ..weights.encoder_file import read_record

        try:
            scans = read_record(arm.encoder).get("scans")
        except ValueError as error:
            raise CompareError(f"Arm {arm.name!r}: {error}") from error
        each = (find_seen(scans, self.held_out(arm, fold), ("validation", "test")) for fold in self.folds)
        found = next(filter(None, each), None)
        if found:
            raise CompareError(
                f"Arm {arm.name!r}: {arm.encoder} {', and '.join(found)}: take an encoder that has not seen them, or "
                f"{ALLOW}."
            )

    def check_scratch(self, arm: Arm) -> None:
        """Refuse frozen norms in an arm that starts from random weights, before the others train for hours."""
        if arm.pretrain or arm.encoder or arm.encoder_of or arm.scores:
            return
        config = self.read("train", {**self.settings.override, **arm.override}, arm.overlays)
        if "frozen" in (config.get("norm"), *self.settings.tune.get("norm", ())):
            from ..networks.norms import NO_STATISTICS  # loads torch

            raise CompareError(f"Arm {arm.name!r}: {NO_STATISTICS}set norm to batch or group in this arm's override.")

    def pretrain_folder(self, arm: Arm, seed: int | None, fold: int | None) -> Path:
        folder = self.settings.output / "pretrain" / arm.name
        folder = folder / f"fold-{fold}" if arm.name in self.pretrained_by_fold else folder
        return folder / f"seed-{seed}" if arm.pretrain_per_seed else folder

    def fine_tuning(self, arm: Arm, fraction: float, labels: int, seed: int, fold: int | None = None) -> Iterator[Run]:
        settings = self.settings
        override = {**self.places, **settings.override, **arm.override, **self.split(fold)}
        config = self.read("train", override, arm.overlays)
        share, data, evaluated = self.drawn(arm, config, fraction, labels, fold)
        trials = [trial_values(trial, config, arm) for trial in list_trials(settings)]
        for values in trials:
            self.read("train", values, arm.overlays)  # which refuses ids that there are not
        override |= self.draw(arm, config, share, seed)
        folder, encoder = self.folder(arm, labels, seed, fold), self.encoder(arm, seed, fold)
        one = _FineTuning(arm, fraction, labels, seed, fold, data, folder, encoder)

        training = labels
        if settings.validation_from_labels or self.source_size:
            training = len(self.read("train", override, arm.overlays).get("data")["training"])
        per_epoch = config.steps_per_epoch(training)
        epochs = self.epochs(arm, labels, config, per_epoch)
        interval = _checkpoint_interval(config, override, epochs)
        choice = self.chosen.get((arm.name, labels, fold))
        override |= trials[choice] if choice is not None else {}
        train = {**override, **one.start, **interval, "max_epochs": epochs}
        if settings.validation_from_labels and one.start and "transductive" in config.ids:
            train["transductive"] = True  # of the test list there is nothing: check_leak and check_encoder
        train |= self.validation_rule(arm, config, epochs)
        length = {"steps": epochs * per_epoch, "epochs": epochs, "items": training, "batch": config.batch}
        place = {"output_dir": str(one.folder)}

        tuned = settings.seeds[: settings.tune_seeds or 1] if trials else ()
        numbers = range(len(trials))
        tried = tuple(self.trial_folder(arm, labels, fold, number, seed) for number in numbers)
        if seed in tuned:
            for number, (values, where) in enumerate(zip(trials, tried, strict=True)):
                own = {**train, **values, "resume": True, "output_dir": str(where)}
                yield self.run(one, "tune", own, folder=where, trial=number, **length)
        waits = [
            self.trial_folder(arm, labels, fold, number, other) / "tune.json"
            for number in numbers
            for other in tuned
            if choice in (None, number)
        ]
        done = {"tried": tried, "trial": choice} if seed in tuned else {}
        yield self.run(
            one, "train", {**train, "resume": True, **place}, needs=(*one.pretrained, *waits), **done, **length
        )
        judged = {**override, **settings.evaluate_override}
        if "datalist" in settings.evaluate_override:
            judged.pop("data#validation_share", None)  # of training's list, which this evaluation does not read
        yield self.run(one, "evaluate", {**judged, **place}, **evaluated._asdict())
        if self.is_shown(one):
            yield self.inference(one, judged)
        for target in settings.probe:
            scans = self.learnt_from(config, "probe").scans
            yield self.run(one, "probe", {**override, **one.start, **place}, target=target, scans=scans)

    def drawn(
        self, arm: Arm, config: BundleConfig, fraction: float, labels: int, fold: int | None
    ) -> tuple[float, Read, Read]:
        """The share of the training list that is drawn, and what training and evaluation read."""
        share = fraction if fold is None else labels / self.sizes[fold]
        if not (arm.override or arm.overlays):  # which may name other lists
            return share, *self.data[fold]
        data, evaluated = self.learnt_from(config), self.evaluated_by(arm, fold)
        own_size = len(drawn_from(config))  # 0 in an arm that leaves the target domain out
        if 0 < own_size < labels:
            raise CompareError(
                f"Arm {arm.name!r}: its training list has only {own_size} items, fewer than the {labels} that all "
                f"arms train on: give --labels {own_size} or fewer."
            )
        if own_size not in (0, self.training if fold is None else self.sizes[fold]):
            share = labels / own_size
        return share, data, evaluated

    def draw(self, arm: Arm, config: BundleConfig, share: float, seed: int) -> dict[str, Any]:
        """The ids that draw the labels and start the generators."""
        override: dict[str, Any] = {"fraction": share, "seed": seed + arm.seed_offset}
        if self.settings.validation_from_labels:
            override["data#validation_share"] = VALIDATION_SHARE
        if self.settings.transductive and "transductive" in config.ids:
            override["transductive"] = True
        if arm.seed_offset:
            override["data#seed"] = seed  # the labels that the other arms have
        return override

    def validation_rule(self, arm: Arm, config: BundleConfig, epochs: int) -> dict[str, int]:
        """How often a training validates, and when it ends without a better validation, in epochs."""
        settings = self.settings
        interval = max(1, epochs // settings.validations)
        if settings.patience:
            return {"val_interval": interval, "patience": settings.patience * interval}
        if config.get("patience") and not any(
            "patience" in given for given in (settings.override, arm.override, settings.tune)
        ):  # the bundle's own rule, which counts epochs between validations of its own
            rounds = math.ceil(config.get("patience") / config.get("val_interval", 1))
            return {"val_interval": interval, "patience": rounds * interval}
        return {"val_interval": interval}

    def run(self, one: _FineTuning, stage: str, own: dict[str, Any], **more: Any) -> Run:
        """A run of a fine-tuning; ``more`` are fields of it that differ from those of the others."""
        reads = {"inputs": one.encoder, "needs": one.pretrained}
        if stage in ("evaluate", "infer"):
            # a net of a training that failed half-way is none to evaluate, although its file is there
            reads = {"inputs": (one.model,), "needs": (one.folder / "train.json",)}
        arm = one.arm
        files = self.files(stage, arm.network if stage == "infer" else arm.overlays)
        where = {"seed": one.seed, "fraction": one.fraction, "labels": one.labels, "fold": one.fold}
        given = {"folder": one.folder, **where, **reads, **one.data._asdict(), **more}
        return Run(stage, arm.name, files, own, **given)

    def is_shown(self, one: _FineTuning) -> bool:
        """Whether its net labels the test items that the report shows."""
        settings = self.settings
        first = one.seed == settings.seeds[0] and one.labels == min(self.fractions.values()) and not one.fold
        inference = (settings.bundle / "configs" / "inference.json").is_file()
        return bool(settings.examples and first and inference and isinstance(self.test[0].get("label"), str))

    def inference(self, one: _FineTuning, judged: Mapping[str, Any]) -> Run:
        """The run that labels the test items that the report shows; ``judged`` are the overrides of evaluation."""
        settings = self.settings
        ids = self.read("infer", {}, one.arm.network).ids
        ids.discard("data")  # the images to label: nothing that training's lists and their draw have
        own = {key: value for key, value in judged.items() if re.split("#|::", key)[0] in ids}
        examples = self.examples or tested_items(self.evaluate)[: settings.examples]
        images = [str(item["image"]) for item in examples]
        own |= {"dataset_dir": example_root(examples)}
        own |= {"datalist": str(settings.output / "examples.datalist.json")}
        own |= {"model_path": str(one.model), "output_dir": str(one.folder / "predictions")}
        data = hashlib.sha256("\n".join(images).encode()).hexdigest()
        scans = scans_digest(self.evaluate, [{"image": item["image"]} for item in examples])
        return self.run(one, "infer", own, data=data, scans=scans)

    def encoder(self, arm: Arm, seed: int, fold: int | None) -> tuple[Path, ...]:
        """The encoder file that its fine-tuning starts from, if any."""
        if arm.encoder_of:
            arm = next(other for other in self.settings.arms if other.name == arm.encoder_of)
        if not (arm.pretrain or arm.encoder):
            return ()
        return (Path(arm.encoder or self.pretrain_folder(arm, seed, fold) / "encoder.safetensors"),)

    def folder(self, arm: Arm, labels: int, seed: int, fold: int | None) -> Path:
        folder = self.settings.output / "runs" / arm.name / f"labels-{labels:04d}" / f"seed-{seed}"
        return folder if fold is None else folder / f"fold-{fold}"

    def trial_folder(self, arm: Arm, labels: int, fold: int | None, number: int, seed: int) -> Path:
        folder = self.settings.output / "tune" / arm.name / f"labels-{labels:04d}"
        name = f"trial-{number}" + (f"-seed-{seed}" if self.settings.tune_seeds else "")
        return (folder if fold is None else folder / f"fold-{fold}") / name

    def epochs(self, arm: Arm, labels: int, config: BundleConfig, per_epoch: int) -> int:
        """Whole passes over the labels, so steps are equal up to one pass (and the same in every arm)."""
        settings = self.settings
        if settings.equal == "epochs":
            return settings.epochs or config.get("max_epochs")
        steps = (settings.steps or self.full_steps) + self.extra_steps.get((arm.name, labels), 0)
        return max(1, round(steps / per_epoch))


def _load_first(
    config: BundleConfig, items: Sequence[Mapping[str, Any]], through: str = "validate#preprocessing"
) -> None:
    """Load the first of some items through the transforms of an id."""
    transforms = config.get(through) or dict
    try:
        transforms(dict(items[0]))
    except Exception as error:  # MONAI wraps whatever a transform raises
        raise CompareError(final_sentence(error) or f"{type(error).__name__}: {error}") from error


def example_root(items: Sequence[Mapping[str, Any]]) -> str:
    """The folder with the images of all items; predictions have the same paths below the output folder."""
    images = [item["image"] if isinstance(item["image"], str) else item["image"][0] for item in items]
    return common_folder(images)


def _fractions(settings: Settings, training: int) -> dict[float, int]:
    if settings.labels is None:
        found = {fraction: max(1, round(fraction * training)) for fraction in settings.fractions}
        if len(set(found.values())) < len(found):
            counts = ", ".join(f"{fraction}: {count}" for fraction, count in found.items())
            raise CompareError(
                f"--fractions: two shares keep the same number of the {training} training items ({counts}): give "
                "others."
            )
        return found
    if max(settings.labels) > training:
        raise CompareError(f"--labels {max(settings.labels)}: the training list has only {training} items.")
    return {label / training: label for label in settings.labels}


def _checkpoint_interval(config: BundleConfig, override: Mapping[str, Any], epochs: int) -> dict[str, int]:
    """At most ten checkpoints per run: with few labels an epoch is only a step or two."""
    if "checkpoint_interval" not in config.ids or "checkpoint_interval" in override:
        return {}
    return {"checkpoint_interval": max(1, epochs // 10)}


def _files(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The image files of some items, with links resolved. An item that is made on the fly has none."""
    from ..data.copies import image_files

    return list(dict.fromkeys(map(os.path.realpath, image_files(items))))
