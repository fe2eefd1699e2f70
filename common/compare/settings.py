"""Settings of a comparison, from the command line and from JSON, checked before anything runs."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..bundles import find_bundle
from ..json_files import read_json
from ..overlays import find_overlay, parse_files, parse_overrides

__all__ = ["Arm", "CompareError", "Settings", "read_settings"]

EQUAL = ("steps", "epochs", "time")


class CompareError(ValueError):
    """A comparison cannot run as requested; the message says what to change."""


@dataclass(frozen=True)
class Arm:
    """One way to start fine-tuning.

    Args:
        name: name in the report, and of a folder.
        pretrain: config files of its pre-training, absolute; empty if there is none.
        encoder: an encoder file to start from instead.
        pretrain_override: ids and values for its pre-training.
        override: ids and values for its fine-tuning and evaluation.
        schedule: config file of its fine-tuning's schedule, absolute, or None to use that of the other files. In
            settings it is the name of a file in ``configs/schedules``, or a path.
        seed_offset: added to the seed of training, not to that of the draw of labels, to repeat another arm.
        pretrain_per_seed: pre-train once per seed instead of once. None does so if that costs less than the
            fine-tunings of the seed (``common.compare.plan``).
        pretrain_from: name of an earlier arm; its encoder starts this arm's pre-training. For methods that pre-train in
            two stages.
        encoder_of: name of an earlier arm with pre-training; fine-tuning starts from its encoder, which is not trained
            again. For another schedule or other overrides.
        against: name of another arm to compare with, beside the baseline. Without it, no reference is compared.
        network: config files of another network, trained as a reference: in the tables, without a verdict. It starts
            from scratch, or from ``encoder``.
        scores: CSV file with scores per subject instead of runs; also a reference.
    """

    name: str
    pretrain: tuple[str, ...] = ()
    encoder: str | None = None
    pretrain_override: Mapping[str, Any] = field(default_factory=dict)
    override: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    seed_offset: int = 0
    pretrain_per_seed: bool | None = None
    pretrain_from: str | None = None
    encoder_of: str | None = None
    against: str | None = None
    network: tuple[str, ...] = ()
    scores: str | None = None

    @property
    def is_reference(self) -> bool:
        """Whether it shows a level, and is compared only with the arm that it names."""
        return bool(self.network or self.scores)

    @property
    def overlays(self) -> tuple[str, ...]:
        """Config files for its fine-tuning and evaluation, over those of all arms."""
        return self.network if self.schedule is None else (*self.network, self.schedule)

    @property
    def goes_on_from(self) -> str | None:
        """Name of the earlier arm whose encoder it starts from, in pre-training or in fine-tuning."""
        return self.pretrain_from or self.encoder_of

    @property
    def is_scratch(self) -> bool:
        return not (self.pretrain or self.encoder or self.encoder_of or self.is_reference)

    def describe(self) -> str:
        if self.scores:
            text = f"reference, scores of {self.scores}"
        elif self.network:
            start = f"encoder file {self.encoder}" if self.encoder else "from scratch"
            text = f"reference, {start} with " + " + ".join(Path(file).name for file in self.network)
        elif self.encoder:
            text = f"encoder file {self.encoder}"
        elif self.encoder_of:
            text = f"from the encoder of {self.encoder_of}"
        elif self.pretrain:
            text = "pre-trained by " + " + ".join(Path(file).name for file in self.pretrain)
            text += f" from the encoder of {self.pretrain_from}" if self.pretrain_from else ""
        else:
            text = "from scratch"
        changes = [f"{key} {value}" for key, value in {**self.pretrain_override, **self.override}.items()]
        changes += [f"schedule {Path(self.schedule).stem}"] if self.schedule else []
        changes += [f"seeds + {self.seed_offset}"] * bool(self.seed_offset)
        return f"{text} ({', '.join(changes)})" if changes else text


@dataclass(frozen=True)
class Settings:
    """A whole comparison; ``read_settings`` explains the fields."""

    bundle: Path
    output: Path
    arms: tuple[Arm, ...]
    fractions: tuple[float, ...] = (1.0,)
    labels: tuple[int, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    equal: str = "steps"
    steps: int | None = None
    epochs: int | None = None
    validations: int = 9
    config_file: tuple[str, ...] = ()
    dataset_dir: str | None = None
    datalist: str | tuple[str, ...] | None = None
    override: Mapping[str, Any] = field(default_factory=dict)
    pretrain_override: Mapping[str, Any] = field(default_factory=dict)
    evaluate_override: Mapping[str, Any] = field(default_factory=dict)
    models_from: Path | None = None
    probe: tuple[str, ...] = ()
    examples: int = 3
    example_slices: int = 1
    devices: tuple[str, ...] = ("",)
    processes: int = 1
    keep_checkpoints: bool = False
    transductive: bool = False
    margin: float | None = None
    validation_from_labels: bool = False
    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tune_trials: int | None = None
    tune_seeds: int | None = None
    patience: int | None = None
    launcher: Mapping[str, Any] = field(default_factory=dict)
    folds: int | None = None

    @property
    def baseline(self) -> str | None:
        """The arm that the others are compared with: the first one from scratch."""
        return next((arm.name for arm in self.arms if arm.is_scratch), None)

    def fixed(self) -> dict[str, Any]:
        """The settings that all runs of an output folder must share for one report, as JSON."""
        return {
            "bundle": self.bundle.name,
            "config_file": [Path(file).name for file in self.config_file],
            "override": dict(self.override),
            "equal": self.equal,
            "steps": self.steps,
            "epochs": self.epochs,
            "processes": self.processes,
            # Folders of comparisons from before there was such a setting go on.
            **{name: getattr(self, name) for name in _LATER if getattr(self, name)},
        }


SPLIT = ("fold", "split_seed", "pool_test", "data#pool_test", "data#num_folds")
"""Ids that change the draw of a datalist's lists."""
_LATER = (
    "transductive",
    "validation_from_labels",
    "tune",
    "tune_trials",
    "tune_seeds",
    "patience",
    "folds",
    "evaluate_override",
)


def read_settings(settings: str | None = None, **given: Any) -> Settings:
    """Read settings from a JSON file, from keyword arguments, or both; an argument that is not None wins.

    Keys of the file are the names of the arguments. Paths in the file are relative to its folder, paths in arguments to
    the working folder. Names of config files are also looked up in the bundle.

    Args:
        settings: JSON file.
        bundle: folder of the bundle, or the name of an included one.
        output: folder of runs and report.
        arms: names separated by commas, or a mapping. ``scratch`` is training from scratch. A name alone is that arm of
            the JSON file, or the file ``configs/pretexts/NAME.json`` over ``configs/pretrain.json``, or
            ``configs/pretrain.json`` alone for the bundle's own name and ``pretrain``. ``NAME=FILE.safetensors`` is an
            encoder file, ``NAME=scores.csv`` a reference (columns subject, value; optional metric, structure, labels,
            seed), ``NAME=a.json+b.json`` pre-training with these files over ``pretrain.json``, ``NAME=scratch`` another
            arm from scratch. In a mapping the value may also be null (scratch) or a mapping of ``Arm``'s fields, in
            which ``pretrain`` lists files over ``pretrain.json``.
        fractions: shares of the training list; nested for one seed.
        labels: numbers of training items instead of shares; of the target domain, if the config has one.
        seeds: seeds for the draw of labels, initialisation and training, the same in every arm.
        equal: what the fine-tunings of all arms share. ``"steps"``: optimiser steps, also across numbers of labels.
            ``"epochs"``: passes over the labels. ``"time"``: seconds including the arm's pre-training; arms that
            pre-trained less train longer.
        steps: optimiser steps of a fine-tuning (for ``"time"``, of the arm that pre-trained longest); by default the
            steps of ``max_epochs`` in the config with all labels.
        epochs: for ``"epochs"``; default ``max_epochs`` of the config.
        validations: validations during a fine-tuning; the best is kept. Nine or more show whether it converged.
        config_file: overlays for every stage.
        dataset_dir, datalist: the config ids, for every stage.
        override: ids and values of fine-tuning and evaluation: a mapping, or text ``id=value id=value``. With
            ``prepare_as`` (``encoder`` in an arm that has a file, or any file) come the ids that its record states.
        pretrain_override: the same for pre-training.
        evaluate_override: ids and values that evaluation alone has, over those of ``override`` and of the arms, such as
            the ``dataset_dir`` and ``datalist`` of scans from another scanner.
        models_from: output folder of a comparison that differs in nothing but ``evaluate_override``; its trainings are
            copied instead of run.
        probe: targets of representation probes: ``label``, ``age``, ``diagnosis``; true is ``label``.
        examples: test volumes to show, with predictions of the nets with the first seed and the fewest labels: the
            worst, the median and the best by mean over the arms; 1 shows the median, 0 none.
        example_slices: consecutive slices of each of them to show, about the one with most of the structures.
        devices: numbers of GPUs; one run at a time on each.
        processes: processes per run, through ``torchrun`` and the ``multi_gpu_*.json`` files.
        keep_checkpoints: keep the checkpoints to resume from.
        transductive: let pre-training see validation and test scans, which is refused otherwise.
        margin: arms are equivalent if the main metric differs by less; default 0.01 for Dice.
        validation_from_labels: validate on a fifth of the labels (at least one) instead of the validation list, which
            would need extra labels. Pre-training on the training list has seen these images.
        tune: ids of fine-tuning with values to try in every arm and number of labels: a mapping from ids to lists, or
            text ``id=[...] id=[...]``. A text such as ``"x0.3"`` multiplies the arm's own value. The best in validation
            is used for all seeds. True, or a number of trials, varies ``learning_rate`` over one
            order of magnitude.
        tune_trials: number of combinations to try, drawn once for all arms; default all.
        tune_seeds: number of seeds that every trial trains on, from the first (default 1). Their mean decides, and a
            trial that fails on one of them is not chosen. That of a settings file counts up to the number of seeds.
        folds: cross-validation: all items of the datalist are split by subject into this many parts. Each part is
            tested once, by nets that validate on the next part and train on the others.
        launcher: where to run: ``local``, this machine; ``slurm``, jobs through ``submitit``; or a mapping with
            ``cluster``, ``jobs`` (the largest number at a time) and parameters of ``submitit.AutoExecutor``, such as
            ``slurm_partition``, ``timeout_min`` and ``gpus_per_node``.
        patience: a fine-tuning ends after this many validations without a better one; its steps are then a cap, the
            same in all arms. Default: the bundle's own rule.

    Raises:
        CompareError: a value, file or name that does not exist or does not fit.
    """
    base = Path.cwd()
    stated: dict[str, Any] = {}
    if settings is not None:
        path = Path(settings).absolute()
        base, stated = path.parent, _read_file(path)
        if given.get("bundle") is None:
            named = stated.get("bundle") or "."
            given["bundle"] = base / named if (base / named).is_dir() else named
    typed = {name: _overrides(given.get(name)) for name in ("override", "pretrain_override", "evaluate_override")}
    merged = _merge(stated, given, typed)
    for name in ("bundle", "output", "arms"):
        if merged.get(name) is None:
            raise CompareError(f"Give --{name}" + (", or a settings file that has it." if name != "output" else "."))
    result = _build(merged, stated.get("arms"), {name for name in given if given[name] is not None}, base)
    result = _check_together(result, merged, given)
    if settings is not None:
        places = {name: given[name] for name in ("dataset_dir", "datalist") if given.get(name) is not None}
        _check_arms_keep_what_is_typed(result, typed, places)
    return _with_preparation(result)


def _read_file(path: Path) -> dict[str, Any]:
    """What a settings file says."""
    known = [name for name in Settings.__dataclass_fields__ if name != "output"]
    try:
        stated = read_json(path)
    except FileNotFoundError:
        raise CompareError(f"No settings file {path}.") from None
    except ValueError as error:
        raise CompareError(str(error)) from error
    if not isinstance(stated, dict):
        raise CompareError(f"{path} is no JSON object: give a mapping from options to their values.")
    for name in stated:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise CompareError(f"{path}: unknown key {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    return stated


def _merge(stated: Mapping[str, Any], given: Mapping[str, Any], typed: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What a settings file says under the arguments; ``typed`` are the overrides of the arguments, by id."""
    merged = dict(stated)
    given = {name: value for name, value in given.items() if value is not None}
    for name, other in (("labels", "fractions"), ("fractions", "labels")):
        if name in given:  # an argument wins over the file's other way to say it
            merged.pop(other, None)
    places = [name for name in ("dataset_dir", "datalist") if name in given]
    for name in places:
        if name in typed["override"]:
            raise CompareError(f"--{name} and --override {name}=... both say where the data are: give one.")
    for name in (name for name in typed if name in given):
        own = _overrides(merged.get(name))  # merged by id, as everywhere: what the file sets beside it stays
        given[name] = {key: value for key, value in own.items() if key not in typed[name]} | typed[name]
    merged |= given
    for name in places:  # for every stage, so it wins over the file's ids of fine-tuning
        own = _overrides(merged.get("override"))
        merged["override"] = {key: value for key, value in own.items() if key != name}
    return merged


def _build(merged: Mapping[str, Any], defined: Any, given: Collection[str], base: Path) -> Settings:
    """Settings of values that are checked one by one.

    Args:
        merged: values by option.
        defined: the arms of the settings file, if it has some.
        given: options whose paths are relative to the working folder.
        base: folder that the paths of the others are relative to.
    """

    def place(name: str) -> Path:
        return Path.cwd() if name in given else base

    def whole(name: str, low: int) -> int | None:
        return _whole(merged[name], name, low) if merged.get(name) is not None else None

    bundle = find_bundle(merged["bundle"])
    if not (bundle / "configs" / "train.json").is_file():
        raise CompareError(f"{bundle} is not a bundle: it has no configs/train.json (--bundle).")
    equal = merged.get("equal", "steps")
    if equal not in EQUAL:
        raise CompareError(f"--equal is {equal!r}; it must be one of {', '.join(EQUAL)}.")
    if equal == "epochs" and merged.get("steps") is not None:
        raise CompareError("--steps goes with --equal steps or time; with --equal epochs give --epochs.")
    if equal != "epochs" and merged.get("epochs") is not None:
        raise CompareError("--epochs goes with --equal epochs; give --steps.")
    fractions = tuple(sorted({_number(value, "fractions", 0, 1) for value in _list(merged.get("fractions", 1.0))}))
    labels = merged.get("labels")
    if labels is not None and merged.get("fractions") is not None:
        raise CompareError("--fractions and --labels both set how much to train on: give only one of them.")
    return Settings(
        bundle=bundle,
        output=Path(merged["output"]).absolute(),
        arms=_arms(merged["arms"], defined if isinstance(defined, Mapping) else {}, bundle, (place("arms"), base)),
        fractions=fractions,
        labels=tuple(sorted({_whole(value, "labels", 1) for value in _list(labels)})) if labels is not None else None,
        seeds=tuple(dict.fromkeys(_whole(value, "seeds", 0) for value in _list(merged.get("seeds", (0, 1, 2))))),
        equal=equal,
        steps=whole("steps", 1),
        epochs=whole("epochs", 1),
        validations=_whole(merged.get("validations", 9), "validations", 1),
        config_file=tuple(
            _config(name, bundle, place("config_file")) for name in parse_files(merged.get("config_file") or ())
        ),
        dataset_dir=_place(merged.get("dataset_dir"), place("dataset_dir")),
        datalist=_places(merged.get("datalist"), place("datalist")),
        override=_overrides(merged.get("override")),
        pretrain_override=_overrides(merged.get("pretrain_override")),
        evaluate_override=_overrides(merged.get("evaluate_override")),
        models_from=(place("models_from") / merged["models_from"]).absolute() if merged.get("models_from") else None,
        probe=_probe(merged.get("probe", ())),
        examples=_whole(merged.get("examples", Settings.examples), "examples", 0),
        example_slices=_whole(merged.get("example_slices", Settings.example_slices), "example_slices", 1),
        devices=_devices(merged.get("devices")),
        processes=_whole(merged.get("processes", 1), "processes", 1),
        keep_checkpoints=truth(merged.get("keep_checkpoints"), "keep_checkpoints"),
        transductive=truth(merged.get("transductive"), "transductive"),
        validation_from_labels=truth(merged.get("validation_from_labels"), "validation_from_labels"),
        margin=_number(merged["margin"], "margin", 0, math.inf) if merged.get("margin") is not None else None,
        tune=_tune(merged.get("tune")),
        tune_trials=whole("tune_trials", 2),
        tune_seeds=whole("tune_seeds", 1),
        patience=whole("patience", 1),
        launcher=_launcher(merged.get("launcher")),
        folds=whole("folds", 3),
    )


def _check_together(result: Settings, merged: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """Refuse settings that do not fit each other; those of tuning without an effect are removed."""
    if result.patience is not None and result.patience >= result.validations:
        raise CompareError(
            f"--patience {result.patience} ends no fine-tuning of {result.validations} validations: give a larger "
            "--validations, or a smaller patience."
        )
    for name in ("tune_trials", "tune_seeds"):
        if merged.get(name) is not None and merged.get("tune") is None:  # `--tune False` turns off a file's
            raise CompareError(f"--{name} goes with --tune: say what to tune, or leave it out.")
    if result.tune and (result.tune_seeds or 1) > len(result.seeds):
        if given.get("tune_seeds") is not None:
            count = len(result.seeds)
            raise CompareError(f"--tune_seeds {result.tune_seeds} is more than --seeds ({count}): give more seeds.")
        result = replace(result, tune_seeds=len(result.seeds))  # that of a settings file, for a shorter run
    if not result.tune:
        result = replace(result, tune_trials=None, tune_seeds=None)
    if result.tune_seeds == 1:
        result = replace(result, tune_seeds=None)
    if result.launcher and result.devices != ("",):
        raise CompareError("--devices goes with the local launcher; the jobs of a cluster have GPUs by gpus_per_node.")
    if result.processes > 1 and len(result.devices) > 1:
        raise CompareError(
            "--devices runs several runs of one process each, --processes one run of several: choose one."
        )
    _check_overrides_are_not_ours(result)
    return result


def _arms(value: Any, defined: Mapping[str, Any], bundle: Path, bases: tuple[Path, Path]) -> tuple[Arm, ...]:
    """The requested arms; a name that the settings file defines refers to that arm, with paths relative to the file."""
    entries = list(value.items()) if isinstance(value, Mapping) else [_split_arm(text) for text in _list(value)]
    arms = tuple(
        _arm(name, defined[name], bundle, bases[1])
        if isinstance(content, str) and content == name in defined
        else _arm(name, content, bundle, bases[0], defined)
        for name, content in entries
    )
    for arm in arms:
        more = (arm.pretrain, arm.encoder_of, arm.scores and (arm.network or arm.encoder or arm.against))
        if arm.is_reference and any(more):
            raise CompareError(
                f"Arm {arm.name!r}: a `reference` is a network, which may have an `encoder` and name an arm `against` "
                "which it is judged, or scores, and nothing else."
            )
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CompareError(f"--arms names {twice[0]!r} twice; give the second another name, as in {twice[0]}_2=...")
    if not names:
        raise CompareError("--arms is empty.")
    for number, arm in enumerate(arms):
        first = next((other for other in arms[:number] if other.name == arm.pretrain_from), None)
        if arm.pretrain_from is not None and (not arm.pretrain or first is None or not first.pretrain):
            raise CompareError(
                f"Arm {arm.name!r}: `pretrain_from` must name an earlier arm with pre-training, in an arm with "
                f"`pretrain`; {arm.pretrain_from!r} is not one."
            )
        if arm.encoder_of is not None:
            _check_borrowed(arm, arms[:number])
        if first is not None and first.pretrain_per_seed != arm.pretrain_per_seed:
            raise CompareError(f"Arms {first.name!r} and {arm.name!r}: set `pretrain_per_seed` for both or for none.")
        others = {*names, *defined} - {arm.name}
        if arm.against is not None and arm.against not in others:
            raise CompareError(
                f"Arm {arm.name!r}: `against` must name another arm, one of {', '.join(sorted(others))}; "
                f"{arm.against!r} is not one."
            )
    return arms


def _check_borrowed(arm: Arm, earlier: Sequence[Arm]) -> None:
    """Refuse an arm that borrows the encoder of an arm that makes none, or has a start of its own as well."""
    if not any(other.name == arm.encoder_of and other.pretrain for other in earlier):
        raise CompareError(
            f"Arm {arm.name!r}: `encoder_of` must name an earlier arm with pre-training; {arm.encoder_of!r} is not one."
        )
    own = [key for key in ("pretrain", "encoder", "pretrain_override") if getattr(arm, key)]
    own += ["pretrain_per_seed"] if arm.pretrain_per_seed is not None else []
    if own:
        raise CompareError(f"Arm {arm.name!r} has both `encoder_of` and `{own[0]}`: choose one.")


def _split_arm(text: Any) -> tuple[str, Any]:
    name, equals, content = str(text).partition("=")
    return name, content if equals else name


def _arm(name: str, content: Any, bundle: Path, base: Path, defined: Iterable[str] = ()) -> Arm:
    if not re.fullmatch(r"[\w.-]+", name):
        raise CompareError(f"An arm's name may only have letters, digits, '_', '-' and '.', unlike {name!r}.")
    if isinstance(content, Mapping):
        fields = [field for field in Arm.__dataclass_fields__ if field not in ("name", "network", "scores")]
        fields.append("reference")
        for key in content:
            if key not in fields:
                raise CompareError(f"Arm {name!r}: unknown key {key!r}; known are {', '.join(fields)}.")
        reference = _reference(content.get("reference"), name, bundle, base)
        if reference and content.get("encoder"):
            raise CompareError(f"Arm {name!r}: write the `encoder` of a `reference` beside its `network`.")
        arm = Arm(
            name,
            encoder=_encoder(content["encoder"], name, base)
            if content.get("encoder")
            else reference.pop("encoder", None),
            pretrain_override=_overrides(content.get("pretrain_override")),
            override=_overrides(content.get("override")),
            schedule=_schedule(content["schedule"], name, bundle, base) if content.get("schedule") else None,
            seed_offset=_whole(content.get("seed_offset", 0), "seed_offset", 0),
            pretrain_per_seed=None
            if content.get("pretrain_per_seed") is None
            else truth(content["pretrain_per_seed"], "pretrain_per_seed"),
            pretrain_from=content.get("pretrain_from"),
            encoder_of=content.get("encoder_of"),
            against=content.get("against"),
            **reference,
        )
        if content.get("pretrain") is None:
            return arm
        if arm.encoder and not arm.network:
            raise CompareError(f"Arm {name!r} has both `pretrain` and `encoder`: choose one.")
        return replace(arm, pretrain=_pretraining(name, _list(content["pretrain"]), bundle, base))
    if content is None or content == "scratch":
        return Arm(name)
    if isinstance(content, str) and content.endswith(".safetensors"):
        return Arm(name, encoder=_encoder(content, name, base))
    if isinstance(content, str) and content.endswith(".csv"):
        return Arm(name, **_reference(content, name, bundle, base))
    if isinstance(content, str) and content.endswith(".json"):
        return Arm(name, pretrain=_pretraining(name, content.split("+"), bundle, base))
    if content in (bundle.name, "pretrain"):
        return Arm(name, pretrain=_pretraining(name, [], bundle, base))
    if (bundle / "configs" / "pretexts" / f"{content}.json").is_file():
        return Arm(name, pretrain=_pretraining(name, [f"pretexts/{content}.json"], bundle, base))
    from ..weights.shipped import shipped_encoders  # loads torch

    if content in shipped_encoders():
        return Arm(name, encoder=_encoder(content, name, base))
    pretexts = sorted(path.stem for path in bundle.glob("configs/pretexts/*.json"))
    known = dict.fromkeys(["scratch", *defined, bundle.name, *pretexts])
    raise CompareError(
        f"Unknown arm {content!r}. Known to {bundle.name}: {', '.join(known)}; included encoders: "
        f"{', '.join(shipped_encoders())}; or NAME=FILE.safetensors, or NAME=overlay.json+overlay.json for "
        "pre-training with these files."
    )


def _reference(content: Any, name: str, bundle: Path, base: Path) -> dict[str, Any]:
    """The fields of an arm that is a reference.

    Args:
        content: ``{"network": [files]}``, beside which ``encoder`` may name the file that it starts from;
            ``{"scores": file}`` or the file alone.
    """
    content = {"scores": content} if isinstance(content, str) else content or {}
    if not isinstance(content, Mapping) or content.keys() - {"network", "encoder", "scores"}:
        raise CompareError(
            f"Arm {name!r}: `reference` is a CSV file, or a mapping with `network` (and `encoder`) or `scores`."
        )
    found: dict[str, Any] = {}
    if content.get("network"):
        found["network"] = tuple(_config(file, bundle, base) for file in _list(content["network"]))
    if content.get("encoder"):
        if "network" not in found:
            raise CompareError(
                f"Arm {name!r}: `reference` has an `encoder` without its `network`: name its config files."
            )
        found["encoder"] = _encoder(content["encoder"], name, base)
    if content.get("scores"):
        path = (base / str(content["scores"])).absolute()
        if not path.is_file():
            raise CompareError(f"Arm {name!r}: there is no {path}.")
        with path.open(encoding="utf-8", newline="") as file:
            lacking = {"subject", "value"} - set(next(csv.reader(file), []))
        if lacking:
            raise CompareError(f"Arm {name!r}: {path} has no column {' and '.join(sorted(lacking))}.")
        found["scores"] = str(path)
    return found


def _pretraining(name: str, overlays: Sequence[str], bundle: Path, base: Path) -> tuple[str, ...]:
    if not (bundle / "configs" / "pretrain.json").is_file():
        raise CompareError(f"Arm {name!r}: {bundle.name} has no configs/pretrain.json; name an encoder file instead.")
    files = [overlay for overlay in overlays if Path(overlay).name != "pretrain.json"]
    return (str(bundle / "configs" / "pretrain.json"), *(_config(overlay, bundle, base) for overlay in files))


def _schedule(schedule: Any, name: str, bundle: Path, base: Path) -> str:
    known = {path.stem: path for path in sorted(bundle.glob("configs/schedules/*.json"))}
    if schedule in known:
        return str(known[schedule])
    if not str(schedule).endswith(".json"):
        raise CompareError(
            f"Arm {name!r}: unknown schedule {schedule!r}; known to {bundle.name} are {', '.join(known) or 'none'}, or "
            "name a config file."
        )
    return _config(str(schedule), bundle, base)


def _encoder(file: str, name: str, base: Path) -> str:
    from ..weights.shipped import find_encoder, shipped_encoders  # loads torch

    path = (base / file).absolute()
    try:
        return str(find_encoder(file if file in shipped_encoders() and not path.is_file() else path))
    except FileNotFoundError as error:
        raise CompareError(f"Arm {name!r}: {error}") from error


def _config(name: str, bundle: Path, base: Path) -> str:
    try:
        return str(find_overlay(name, bundle, base))
    except FileNotFoundError as error:
        raise CompareError(str(error)) from None


def _place(path: Any, base: Path) -> str | None:
    return None if path is None else str((base / str(path)).absolute())


def _places(paths: Any, base: Path) -> str | tuple[str, ...] | None:
    if isinstance(paths, (list, tuple)):
        return tuple(str((base / str(path)).absolute()) for path in paths)
    return _place(paths, base)


def _devices(value: Any) -> tuple[str, ...]:
    devices = tuple(str(device) for device in _list("" if value is None else value)) or ("",)
    for device in devices:
        if device and not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", device):
            raise CompareError(f"--devices {device!r}: give numbers of GPUs, such as --devices 0,1.")
    return devices


def _overrides(value: Any) -> dict[str, Any]:
    try:
        return parse_overrides(value)
    except ValueError as error:
        raise CompareError(str(error)) from None


# What the comparison sets by itself, and with what else to say it.
OWN = {
    "fraction": "--fractions or --labels",
    "data#validation_share": "--validation_from_labels",
    "max_epochs": "--steps, --epochs or an arm's `pretrain_override`",
    "eval_dir": "--output",
    "model_path": "--arms",
    "output_dir": "--output",
    "pretrained_encoder": "--arms",
    "resume": "nothing, an interrupted comparison resumes by itself",
    "seed": "--seeds",
    "val_interval": "--validations",
}


def _launcher(value: Any) -> dict[str, Any]:
    found = dict(value) if isinstance(value, Mapping) else {"cluster": value or "local"}
    if found == {"cluster": "local"}:
        return {}
    if found.get("cluster") not in ("slurm", "local", "debug"):
        raise CompareError(
            f"--launcher is {value!r}: give local or slurm, or in a settings file a mapping with `cluster` "
            "and other keys."
        )
    if "jobs" in found:
        found["jobs"] = _whole(found["jobs"], "launcher jobs", 1)
    return found


def _tune(value: Any) -> dict[str, tuple[Any, ...]]:
    """Id -> the values to try."""
    word = str(value).lower()  # fire hands over the text that was typed
    if word in ("none", "false"):
        return {}
    if word == "true" or re.fullmatch(r"\d+", word):
        count = 3 if word == "true" else _whole(value, "tune", 2)
        return {"learning_rate": tuple(f"x{10 ** (n / (count - 1) - 0.5):.3g}" for n in range(count))}
    found = _overrides(value)
    for key, values in found.items():
        if not isinstance(values, (list, tuple)) or len(values) < 2:
            raise CompareError(f"--tune: {key} needs a list of two or more values to try, such as {key}=[0.001,0.003].")
    return {key: tuple(values) for key, values in found.items()}


def _check_arms_keep_what_is_typed(
    settings: Settings, typed: Mapping[str, Mapping[str, Any]], places: Mapping[str, Any]
) -> None:
    """Refuse an option of the command that an arm of the settings file would replace without a word."""
    typed = {**typed, "override": {**typed["override"], **places}}
    for arm in settings.arms:
        for name, own in (("override", arm.override), ("pretrain_override", arm.pretrain_override)):
            for key, value in typed[name].items():
                by = next((one for one in own if key == one or re.match(rf"{re.escape(one)}(#|::)", key)), None)
                if by is not None and (by != key or own[by] != value):
                    option = f"--{key}" if key in places and name == "override" else f"--{name} {key}=..."
                    raise CompareError(
                        f"{option} has no effect on arm {arm.name!r}, which sets {by} itself: change the arm in the "
                        "settings file, or leave it out of --arms."
                    )


def _check_overrides_are_not_ours(settings: Settings) -> None:
    for arm in settings.arms:
        for key in (key for key in arm.override if not all(map(is_factor, settings.tune.get(key, ())))):
            raise CompareError(f"Arm {arm.name!r} sets {key!r}, but --tune chooses it: leave it out of one of them.")
    for mapping in (
        settings.override,
        settings.evaluate_override,
        settings.tune,
        *(arm.override for arm in settings.arms),
    ):
        split = [key for key in SPLIT if key in mapping and key != "split_seed"] if settings.folds else []
        if split:
            raise CompareError(f"{split[0]!r} cannot be an override, --folds sets it: leave out one of them.")
        if settings.folds and mapping is settings.evaluate_override and "datalist" in mapping:
            raise CompareError("--folds tests each scan of the datalist: leave `datalist` out of --evaluate_override.")
        if settings.patience and "patience" in mapping:
            raise CompareError("'patience' cannot be an override beside --patience: leave out one of them.")
        for key in mapping:
            if key in OWN:
                raise CompareError(f"{key!r} cannot be an override, the comparison sets it: use {OWN[key]}.")
    per_seed = any(arm.pretrain_per_seed for arm in settings.arms)
    for mapping in (settings.pretrain_override, *(arm.pretrain_override for arm in settings.arms)):
        for key in ("output_dir", "resume", *(["seed"] if per_seed else [])):
            if key in mapping:
                raise CompareError(f"{key!r} cannot be an override, the comparison sets it: use {OWN[key]}.")


def _with_preparation(settings: Settings) -> Settings:
    """The overrides with the ids that ``prepare_as`` stands for, which evaluation and the examples have, too."""
    if not any("prepare_as" in mapping for mapping in (settings.override, *(arm.override for arm in settings.arms))):
        return settings
    from ..weights.prepare import with_preparation

    known = read_json(settings.bundle / "configs" / "train.json")
    arms = []
    try:
        override = with_preparation(settings.override, known)
    except (OSError, ValueError) as error:
        raise CompareError(f"--override: {error} An arm with an encoder file may have `encoder` in its own.") from error
    for arm in settings.arms:
        try:
            arms.append(replace(arm, override=with_preparation(arm.override, known, arm.encoder)))
        except (OSError, ValueError) as error:
            raise CompareError(f"Arm {arm.name!r}: {error}") from error
    return replace(settings, override=override, arms=tuple(arms))


def is_factor(value: Any) -> bool:
    """Whether a value to try is a multiple of the arm's own, such as ``"x0.3"``."""
    return isinstance(value, str) and bool(re.fullmatch(r"x\d*\.?\d+(e-?\d+)?", value))


def truth(value: Any, name: str) -> bool:
    """fire takes only the words True and False for truth values; all others arrive as text."""
    words = {"none": False, "false": False, "0": False, "true": True, "1": True}
    if str(value).lower() not in words:
        raise CompareError(f"--{name}: {value!r} must be True or False.")
    return words[str(value).lower()]


def _probe(value: Any) -> tuple[str, ...]:
    if str(value).lower() in ("true", "false", "none"):
        return ("label",) if str(value).lower() == "true" else ()
    return tuple(str(target) for target in _list(value))


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Sequence) else [value]


def _number(value: Any, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise CompareError(f"--{name}: {value!r} is not a number.") from None
    if not low < number <= high:
        most = "" if high == math.inf else f" and at most {high}"
        raise CompareError(f"--{name}: {value} must be above {low}{most}.")
    return number


def _whole(value: Any, name: str, low: int) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise CompareError(f"--{name}: {value!r} is not a whole number.")
    if int(value) < low:
        raise CompareError(f"--{name}: {value} is below {low}.")
    return int(value)
