"""Compare the names on the command line with the ids of the config, before the first step."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import pydoc
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import doctor
from ..files import nearest_existing
from ..overlays import order_problems
from ..peak_memory import record_gpu_peak
from .console import quiet_console
from .refusals import end_with_sentence
from .renamed import renamed_problems, renamed_sentence
from .running import (
    Command,
    load_config,
    runner_arguments,
    running_command,
    running_workflow,
    split_id,
    tracking_settings,
)

logger = logging.getLogger(__name__)

# What people type for our ids; tried before the nearest spelling.
ALIASES = {
    "bs": ("batch_size",),
    "checkpoint": ("resume", "ckpt_path"),
    "data": ("dataset_dir",),
    "data_dir": ("dataset_dir",),
    "dataroot": ("dataset_dir",),
    "epoch": ("max_epochs",),
    "epochs": ("max_epochs",),
    "gpu": ("device",),
    "learning_rate": ("lr",),
    "lr": ("learning_rate",),
    "model": ("network_def",),
    "n_epochs": ("max_epochs",),
    "net": ("network_def",),
    "num_epochs": ("max_epochs",),
    "out": ("output_dir",),
    "output": ("output_dir",),
    "pretrained": ("pretrained_encoder",),
    "split": ("fold",),
    "weights": ("pretrained_encoder",),
}
# What only a config file sets; the end of a sentence that begins with the override.
SET_BY_FILES = {
    "processes": "starts no processes: name a multi_gpu_*.json file last and start the run with torchrun "
    "(docs/multi_gpu.md), or give common.compare its option --processes."
}
# What people write in small letters for values that fire reads with a capital one, and takes for texts otherwise.
WORDS = {"false": False, "true": True, "null": None, "none": None}


def check_overrides() -> None:
    """Refuse to run ``python -m monai.bundle run`` with an override that would do nothing.

    MONAI accepts any ``--name value`` and ignores names that the config lacks. This function compares the names on the
    command line, and those in ``--args_file``, with the ids of the named config files. It refuses ``false``, ``true``,
    ``null`` and ``none`` for ids that hold no text, since MONAI reads them as texts, and every text counts as true. It
    also checks that MONAI and torch are recent enough and that the settings of ``--tracking`` fit the config, and sees
    to it that a later error ends the output with what it says: MONAI's own last line only names the step of the config.
    What this package refuses comes without a traceback, and the console shows each fact once (``quiet_console``).
    Outside of that command (also in a workflow made in Python) it does none of this.

    Both there and in a workflow made in Python it does what the id ``prepare_as`` says
    (``common.weights.prepare.prepare_as``).

    Put it first in ``initialize``: ``{"_target_": "common.checks.check_overrides"}``.

    Raises:
        SystemExit: with one sentence per problem, in place of a traceback.
        FileNotFoundError, ValueError: in a workflow made in Python, as ``prepare_as``.
    """
    command = running_command()
    if command is None:
        _prepare([])
        return
    sys.excepthook = end_with_sentence
    quiet_console()
    record_gpu_peak()
    problems = doctor.check_run()
    config = load_config(command.files)
    if command.tracking:
        problems += _tracking_problems(command, config)
    accepted = runner_arguments(command.tracking)
    names = " + ".join(Path(file).name for file in command.files)
    for key in command.overrides:
        if split_id(key)[0] not in accepted:
            problem = override_problem(key, command.typed[key], config, names, value=command.overrides[key])
            if problem:
                problems.append(problem)
    given = {**config, **command.overrides}
    problems += _output_problems(given.get("output_dir"))
    problems += _orientation_problems(given.get("orientation"))
    problems += renamed_problems(config)
    problems += order_problems(command.files, ["#".join(split_id(key)) for key in command.overrides])
    if problems:
        raise SystemExit("\n".join(problems))
    try:
        _prepare([split_id(key)[0] for key in command.overrides])
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    _warn_of_large_crops(given)
    workflow = running_workflow()
    if workflow is not None and os.environ.get("RANK", "0") == "0":
        resolver = workflow.parser.ref_resolver  # `get_parsed_content` might parse anew, in the middle of `initialize`
        folder = resolver.get_resolved_content("output_dir") if "output_dir" in workflow.parser else None
        where = f"; files go to {os.path.abspath(folder)}" if isinstance(folder, str) else ""
        logger.info("running %s%s.", names, where)
    if "datalist" in command.overrides and not _is_read("datalist", config):
        logger.warning("--datalist changes nothing: %s reads the id `pretrain_datalist`.", names)


def _prepare(given: Collection[str]) -> None:
    """What ``prepare_as`` says, in a workflow that has the id."""
    workflow = running_workflow()
    if workflow is not None and workflow.parser.get("prepare_as"):
        from ..weights.prepare import prepare_as

        prepare_as(workflow.parser, given)


def _output_problems(folder: Any) -> list[str]:
    """Find a file in the place of the output folder, before anything is loaded."""
    if not isinstance(folder, str) or folder.startswith(("$", "@", "%")):
        return []
    there = nearest_existing(folder)
    if there.is_dir():
        return []
    return [f"output_dir is {folder}, and {there} is a file: give a folder."]


def _orientation_problems(codes: Any) -> list[str]:
    """Find an orientation that is none, where it is not an expression."""
    from ..volumes import AXIS_CODES, is_orientation  # numpy, which a command that only reads options does not need

    if not isinstance(codes, str) or codes.startswith(("$", "@", "%")) or is_orientation(codes):
        return []
    return [f"orientation is {codes}: {AXIS_CODES}."]


def _warn_of_large_crops(config: Mapping[str, Any]) -> None:
    """Say so if crops are larger than what volumes are padded to; scans that are larger anyway have room for them."""
    cut, run = json.dumps(config.get("crop_transforms")), json.dumps(config.get("run"))
    crop, volume = (_sides(config.get(name)) for name in ("roi_size", "image_size"))
    if "RandCropBy" not in cut or "train#trainer" not in run or len(crop) != len(volume):
        return
    if any(a > b for a, b in zip(crop, volume, strict=True)):
        logger.warning(
            "roi_size is %s, larger than image_size, %s, to which volumes are padded: a scan without room for such a "
            "crop ends the run; give image_size at least that size.",
            crop,
            volume,
        )


def _sides(size: Any) -> list[int]:
    """A size that stands in a config as numbers; nothing if it is an expression."""
    return size if isinstance(size, list) and all(isinstance(side, int) for side in size) else []


def _is_read(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an id of the config refers to this one."""
    others = json.dumps({key: value for key, value in config.items() if key != name}, default=str)
    return re.search(rf"@{name}(?!\w)", others) is not None


def _tracking_problems(command: Command, config: Mapping[str, Any]) -> list[str]:
    """Find what would stop the run at or before its first logged iteration."""
    problems = []
    settings = tracking_settings(command.tracking)
    text = json.dumps(settings.get("configs", {}), default=str)
    if "MLFlowHandler" in text and find_spec("mlflow") is None:
        problems.append("--tracking logs to MLflow, which is not installed: pip install 'mlflow>=3.17'.")
    trainer = config.get("train", {}).get("trainer", {}) if "train#trainer" in json.dumps(config.get("run")) else {}
    transform = str(settings.get("configs", {}).get("trainer", {}).get("output_transform"))
    if trainer.get("decollate") is False and "from_engine" in transform:
        # Beside the base files; a config that a run kept lies elsewhere, and names the bundle.
        root = str(command.overrides.get("bundle_root") or config.get("bundle_root") or ".")
        near = [Path(command.files[0]).with_name("tracking.json"), Path(root, "configs", "tracking.json")]
        own = next((path for path in near if path.is_file()), "configs/tracking.json of the bundle")
        problems.append(
            f"--tracking {command.tracking} reads the loss from a decollated batch (`output_transform` of "
            f"its trainer), but this trainer does not decollate: write --tracking {own}, which logs to "
            "MLflow too."
        )
    return problems


def override_problem(
    key: str, typed: str, config: Mapping[str, Any], names: str, prefix: str = "--", value: Any = None
) -> str | None:
    """Return a sentence if an override sets nothing that the config reads, or sets a word for a truth value, else None.

    Args:
        key: an id, nested with ``#`` or ``::``.
        typed: how the user wrote it; the sentence begins with it.
        config: the merged config files, as ``ConfigParser.load_config_files`` gives them.
        names: what the sentence calls the files.
        prefix: what the user writes before an id.
        value: what the override sets, as it was read.
    """
    at: Any = config
    path = split_id(key)
    if path[0] in SET_BY_FILES and path[0] in config:
        return f"{typed} {SET_BY_FILES[path[0]]}"
    for depth, part in enumerate(path):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                return f"{typed} names no id of {names}; `{'#'.join(path[:depth])}` is a list of {len(at)}."
            at = at[int(part)]
        elif isinstance(at, Mapping):
            if part not in at:
                if depth == len(path) - 1 and "_target_" in at:
                    unknown = _argument_problem(typed, path[:depth], part, at, names, prefix)
                    return unknown or _word_problem(typed, value, _own(at, part), config)
                return _unknown_sentence(typed, path[:depth], part, list(at), config, names, prefix)
            at = at.get(part)
        else:
            return f"{typed} names no id of {names}; `{'#'.join(path[:depth])}` has no parts."
    return _word_problem(typed, value, at, config)


def _word_problem(typed: str, value: Any, own: Any, config: Mapping[str, Any]) -> str | None:
    """Return a sentence if a value is, or holds, a word that is no text of the id.

    Args:
        own: what the override replaces. Where that is a text, the word may be one, too (``"cache": "none"``).
    """
    if isinstance(value, Mapping):
        target = {"_target_": value["_target_"]} if "_target_" in value else {}
        owner = {**own, **target} if isinstance(own, Mapping) else target
        found = (_word_problem(typed, one, _own(owner, name), config) for name, one in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        first = own[0] if isinstance(own, list) and own else None
        return next(filter(None, (_word_problem(typed, one, first, config) for one in value)), None)
    if not isinstance(value, str) or value.lower() not in WORDS:
        return None
    seen = set()
    while isinstance(own, str) and own.startswith("@") and own not in seen:
        seen.add(own)
        at: Any = config
        for part in split_id(own[1:]):
            at = at.get(part) if isinstance(at, Mapping) else None
        own = at
    if isinstance(own, str) and not own.startswith(("$", "@", "%")):
        return None
    meant = WORDS[value.lower()]
    return (
        f"{typed} is read as the text {value!r}, not as {meant}: write {meant} ({json.dumps(meant)} without quotes in "
        "a JSON file)."
    )


def _own(owner: Mapping[str, Any], name: str) -> Any:
    """The value that a part of a config has, or that its ``_target_`` gives it where the file does not state it."""
    if name in owner:
        return owner[name]
    return _arguments(owner["_target_"])[0].get(name) if "_target_" in owner else None


def _unknown_sentence(
    typed: str,
    parents: Sequence[str],
    name: str,
    ids: Collection[str],
    config: Mapping[str, Any],
    names: str,
    prefix: str,
) -> str:
    if not parents and typed == f"--no{name}" and f"no{name}" in config:
        return f"{typed} without a value is read as `--{name} False`; write `{typed} True`."
    renamed = None if parents else renamed_sentence(typed, name, ids, prefix)
    if renamed:
        return renamed
    aliases = [alias for alias in ALIASES.get(name, ()) if alias in ids]
    near = aliases or difflib.get_close_matches(name, ids, n=1, cutoff=0.6)
    start = f"{typed} names no id of {names}"
    if near:
        return f"{start}; did you mean {prefix}{'#'.join([*parents, near[0]])}?"
    where = f"the ids of `{'#'.join(parents)}`" if parents else "its top-level ids"
    return f"{start}; {where} are {', '.join(ids)}."


def _argument_problem(
    typed: str, parents: Sequence[str], name: str, component: Mapping[str, Any], names: str, prefix: str
) -> str | None:
    """Return a sentence if the component does not take this argument. The file need not state every argument."""
    arguments, takes_any = _arguments(component["_target_"])
    if name.startswith("_") or name in arguments or (takes_any and not arguments):
        return None
    near = difflib.get_close_matches(name, arguments, n=1, cutoff=0.6)
    if takes_any and not near:
        return None
    at = "#".join(parents)
    start = f"{typed} names no argument of `{at}` ({component['_target_']}) in {names}"
    if near:
        return f"{start}; did you mean {prefix}{at}#{near[0]}?"
    return f"{start}; its arguments are {', '.join(arguments) or 'none'}."


def _arguments(target: Any) -> tuple[dict[str, Any], bool]:
    """Arguments of a component's ``_target_`` with their defaults, and whether it also takes ones of unknown names.

    A class that takes ``**kwargs`` most likely hands them to its base class, so the names of the base class are
    included.
    """
    from monai.bundle import ComponentLocator

    try:
        module = ComponentLocator().get_component_module_name(target)
        module = module[0] if isinstance(module, list) else module
        found: Any = pydoc.locate(target if module is None else f"{module}.{target}")
        functions = [found]
        if inspect.isclass(found):
            functions = [vars(base)["__init__"] for base in found.__mro__[:-1] if "__init__" in vars(base)]
        defaults: dict[str, Any] = {}
        takes_any = True
        for number, function in enumerate(functions):
            parameters = inspect.signature(function).parameters.values()
            for one in parameters:
                if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.name != "self":
                    defaults.setdefault(one.name, one.default)
            passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters)
            takes_any = passes_on if number == 0 else takes_any
            if not passes_on:
                break
    except Exception:  # an expression, or a module or signature that cannot be read: the run itself will say
        return {}, True
    return defaults, takes_any
