"""What every bundle checks before its first step: the packages, and the names given on the command line."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import os
import pydoc
import re
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from typing import Any, NamedTuple

from . import doctor

__all__ = [
    "check_overrides",
    "config_digest",
    "final_sentence",
    "first_cause",
    "override_problem",
    "own_sentence",
    "parse_flags",
    "running_config",
    "split_arguments",
]

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
# Ids that were given another name and meaning.
RENAMED = {
    "warmup_epochs": ("warmup", "a fraction of all steps (0.05) or a whole number of optimiser steps"),
    "warmup_steps": ("warmup", "a fraction of all steps (0.05) or a whole number of optimiser steps"),
}
# Ids that say where files lie and what is drawn, not what is computed: two runs that differ in nothing else have one
# digest.
PLACES = ("bundle_root", "dataset_dir", "output_dir", "resume", "log_images")
PATIENCE = 60.0
"""Seconds that a failed run waits for the threads of a pool, each of which is at most one volume from its end."""
REFUSED = "The run was refused"
REFUSALS = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError)
"""What a sentence for the user is raised as; other kinds say that a program is wrong."""
TRACEBACK = "MONAI_TRANSFER_TRACEBACK"
"""Environment variable that brings back the traceback of a refusal."""


# What torch re-raises an error of a DataLoader's worker with: from that process comes the printed traceback alone.
WRAPPED = re.compile(r"Caught \w+ [^\n]*\.\nOriginal (Traceback \(.*)", re.DOTALL)
PRINTED = re.compile(
    r"Traceback \([^\n]*\):\n(?P<frames>(?:[ \t][^\n]*\n)*)(?P<kind>[\w.<>]+)(?:: (?P<text>.*))?", re.DOTALL
)
CAUSED = "The above exception was the direct cause of the following exception:"
MET = "During handling of the above exception, another exception occurred:"


class _Raised(NamedTuple):
    """An error, of this process or of a worker."""

    name: str
    kind: Any  # its class, None where that of a worker's cannot be found
    text: str
    frame: traceback.FrameSummary | None  # where it was raised

    @property
    def is_ours(self) -> bool:
        package = Path(__file__).resolve().parent
        return self.frame is not None and Path(self.frame.filename).resolve().is_relative_to(package)

    @property
    def is_refusal(self) -> bool:
        meant = isinstance(self.kind, type) and issubclass(self.kind, REFUSALS)
        meant = meant and not issubclass(self.kind, NotImplementedError)
        return meant and self.frame is not None and (self.frame.line or "").startswith("raise ")


class _Command(NamedTuple):
    """A running ``python -m monai.bundle run``: its config files, and the overrides by id."""

    files: list[str]
    overrides: dict[str, Any]
    typed: dict[str, str]  # how each override was written
    tracking: Any


def check_overrides() -> None:
    """Refuse to run ``python -m monai.bundle run`` with an override that would do nothing.

    MONAI accepts any ``--name value`` and ignores the names that the config lacks. This compares the names on the
    command line, and those in ``--args_file``, with the ids of the named config files. It also checks that MONAI and
    torch are recent enough and that the settings of ``--tracking`` fit the config, and sees to it that a later error
    ends the output with what it says: MONAI's own last line only names the step of the config. What this package
    refuses comes without a traceback. Outside of that command (also in a workflow made in Python) it does nothing.

    Put it first in ``initialize``: ``{"_target_": "common.checks.check_overrides"}``.

    Raises:
        SystemExit: with one sentence a problem, so that the command ends with it instead of a traceback.
    """
    command = _running_command()
    if command is None:
        return
    sys.excepthook = _end_with_sentence
    problems = doctor.check_run()
    config = _load_config(command.files)
    if command.tracking:
        problems += _tracking_problems(command, config)
    accepted = _runner_arguments(command.tracking)
    names = " + ".join(Path(file).name for file in command.files)
    for key in command.overrides:
        if _normalise(key)[0] not in accepted:
            problem = override_problem(key, command.typed[key], config, names)
            if problem:
                problems.append(problem)
    problems += renamed_problems(config)
    if problems:
        raise SystemExit("\n".join(problems))
    if "datalist" in command.overrides and not _is_read("datalist", config):
        read = "domains" if "domains" in config else "pretrain_datalist"
        logger.warning("--datalist changes nothing: what %s reads is the id `%s`.", names, read)


def own_sentence(error: BaseException | None) -> str | None:
    """What this package says about an error that MONAI, ignite or a worker wrapped, None if it was not raised here."""
    return next((link.text for link in _chain(error) if link.is_ours), None)


def final_sentence(error: BaseException) -> str | None:
    """What the output ends with after an error: our own sentence, else the first cause; None if it says so itself."""
    sentence = own_sentence(error)
    if sentence is None:
        causes = list(_chain(error, causes_only=True))
        if len(causes) > 1:
            sentence = f"{causes[-1].name}: {causes[-1].text}"
    return sentence


def first_cause(error: BaseException) -> BaseException:
    """The error that others were raised from; itself where there is none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def running_config() -> dict[str, Any] | None:
    """What the running ``python -m monai.bundle run`` was given: its merged files with the overrides, as written.

    None outside of that command. References, macros and expressions are as they are written, not their values, so that
    the whole can be run again as one config file. What ``--tracking`` adds is not part of it.
    """
    command = _running_command()
    if command is None:
        return None
    from monai.bundle import ConfigParser

    parser = ConfigParser(config=_load_config(command.files))
    accepted = _runner_arguments(command.tracking) - set(PLACES)
    parser.update({key: value for key, value in command.overrides.items() if key not in accepted})
    return parser.get()


def config_digest() -> str | None:
    """SHA-256 of what the running ``python -m monai.bundle run`` computes, None outside of that command.

    Taken over ``running_config`` as sorted JSON, without the ids that say where files lie and what is drawn
    (``bundle_root``, ``dataset_dir``, ``output_dir``, ``resume``, ``log_images``). A packed bundle has the digest of
    its source.
    """
    running = running_config()
    if running is None:
        return None
    config = {key: value for key, value in running.items() if key not in PLACES}
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.replace(f"{__package__}.", "common.").encode()).hexdigest()


def _refusal(error: BaseException | None) -> str | None:
    """The sentence with which this package refused something, None of any other error, whose traceback says more.

    The statement has to be a ``raise`` in this package: what Python or a library finds there is a defect. Wrappers,
    such as MONAI's config parser, have to name the refusal as their cause: an error may also come on top of it.
    """
    for link in _chain(error, causes_only=True):
        if link.is_ours:
            return link.text if link.is_refusal else None
    return None


def _chain(error: BaseException | None, causes_only: bool = False) -> Iterator[_Raised]:
    """An error and those that it was raised from, or on top of, the outermost first."""
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        yield _Raised(type(error).__name__, type(error), str(error), frames[-1] if frames else None)
        wrapped = WRAPPED.match(error.args[0]) if error.args and isinstance(error.args[0], str) else None
        if wrapped:
            yield from _printed_chain(wrapped[1], causes_only)
            return
        error = error.__cause__ or (None if causes_only else error.__context__)


def _printed_chain(text: str, causes_only: bool) -> Iterator[_Raised]:
    """The same of a traceback that was printed: its blocks, between which stands how one led to the next."""
    first, *others = re.split(rf"\n\n({CAUSED}|{MET})\n\n", text)
    blocks = [first, *others[1::2]]
    for number in reversed(range(len(blocks))):
        # Indented lines are frames and their code; what follows them is the error, of any number of lines.
        found = PRINTED.match(blocks[number])
        if found is None:
            return
        places = re.findall(r'^  File "(.*)", line (\d+), in (.*)$', found["frames"], re.MULTILINE)
        frame = traceback.FrameSummary(places[-1][0], int(places[-1][1]), places[-1][2]) if places else None
        name = found["kind"]
        yield _Raised(name.rpartition(".")[2], pydoc.locate(name), (found["text"] or "").rstrip("\n"), frame)
        if causes_only and number > 0 and others[2 * number - 2] != CAUSED:
            return


def _end_with_sentence(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    refused = _refusal(error)
    if refused is None or os.environ.get(TRACEBACK):
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"\n{REFUSED} ({TRACEBACK}=1 in the environment shows where).", file=sys.stderr)
    _join_pools()
    sentence = refused or final_sentence(error)
    if sentence:
        print(f"\n{sentence}", file=sys.stderr)


def _join_pools() -> None:
    """Wait for the threads of ``multiprocessing.pool.ThreadPool``, with which ``CacheDataset`` fills its cache.

    The pool does not: when one item fails, it lets go of its threads, daemons that are still at work on theirs. One
    that comes back to the interpreter while that is shutting down is ended by ``pthread_exit`` (Python before 3.14),
    which unwinds the C++ frames of torch, and these call ``std::terminate``: the process aborts after its sentence.
    """
    end = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(max(0.0, end - time.monotonic()))


def _running_command() -> _Command | None:
    """The running command from ``sys.argv``, None if this process is not ``python -m monai.bundle run``."""
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] != ["run"]:
        return None
    from fire.parser import DefaultParseValue

    given = {key: (DefaultParseValue(value), typed) for key, value, typed in parse_flags(sys.argv[2:])}
    arguments: dict[str, Any] = {}
    typed: dict[str, str] = {}
    if "args_file" in given:
        arguments = _load_config([given["args_file"][0]])
        typed = {key: f"`{key}` in {given['args_file'][0]}" for key in arguments}
    arguments.update({key: value for key, (value, _) in given.items()})
    typed.update({key: text for key, (_, text) in given.items()})
    files = arguments.pop("config_file", None) or []
    files = [files] if isinstance(files, str) else list(files)
    return _Command(files, arguments, typed, arguments.get("tracking"))


def parse_flags(tokens: Sequence[str]) -> list[tuple[str, str, str]]:
    """Split the command line as fire does into (name, value, as typed); positional arguments are left out."""
    return split_arguments(tokens)[0]


def split_arguments(tokens: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Split the command line as fire does into options, each (name, value, as typed), and positional arguments."""
    if "--" in tokens:  # fire's own flags follow the last one
        tokens = tokens[: len(tokens) - 1 - list(reversed(tokens)).index("--")]
    found = []
    positional = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if not _is_flag(token):
            positional.append(token)
            continue
        name, equals, value = token.lstrip("-").partition("=")
        name = name.replace("-", "_")
        typed = f"--{name}"
        if not equals:
            if position < len(tokens) and not _is_flag(tokens[position]):
                value = tokens[position]
                position += 1
            elif name.startswith("no"):
                name, value = name[2:], "False"
            else:
                value = "True"
        found.append((name, value, typed))
    return found, positional


def _is_read(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an id of the config refers to this one."""
    others = json.dumps({key: value for key, value in config.items() if key != name}, default=str)
    return re.search(rf"@{name}(?!\w)", others) is not None


def _is_flag(token: str) -> bool:
    """A negative number is a value, all else with a leading hyphen is a name."""
    return token.startswith("--") or re.match(r"-[a-zA-Z]", token) is not None


def _runner_arguments(tracking: Any) -> set[str]:
    """Names that belong to the runner, not to the config."""
    from monai.bundle import ConfigWorkflow, create_workflow, run

    names = {"_meta_"}
    for function in (run, create_workflow, ConfigWorkflow.__init__):
        kinds = inspect.signature(function).parameters.items()
        names |= {name for name, parameter in kinds if parameter.kind is not parameter.VAR_KEYWORD}
    if tracking:
        settings = _tracking_settings(tracking)
        # Its entries for the engines are handlers that are appended, not ids.
        names |= set(settings.get("configs", {})) - set(settings.get("handlers_id", {}))
    return names


def _tracking_settings(tracking: Any) -> dict[str, Any]:
    """What ``--tracking`` names: settings of MONAI's, or those of files, or a dict that is typed."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        return DEFAULT_EXP_MGMT_SETTINGS[tracking]
    return ConfigParser.load_config_files(tracking)


def _tracking_problems(command: _Command, config: Mapping[str, Any]) -> list[str]:
    """What would stop the run when its first iteration is logged, or before."""
    problems = []
    settings = _tracking_settings(command.tracking)
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
            f"--tracking {command.tracking} reads the loss off a decollated batch (`output_transform` of its trainer), "
            f"and this trainer does not decollate: write --tracking {own}, which logs to MLflow too."
        )
    return problems


def _load_config(files: Sequence[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    return ConfigParser.load_config_files(files)


def _normalise(key: str) -> list[str]:
    return key.replace("#", "::").split("::")


def override_problem(key: str, typed: str, config: Mapping[str, Any], names: str, prefix: str = "--") -> str | None:
    """A sentence if an override sets nothing that the config reads, None if it is sound.

    Args:
        key: an id, nested with ``#`` or ``::``.
        typed: how the user wrote it; the sentence begins with it.
        config: the merged config files, as ``ConfigParser.load_config_files`` gives them.
        names: how to call the files.
        prefix: what the user writes before an id.
    """
    at: Any = config
    path = _normalise(key)
    for depth, part in enumerate(path):
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                return f"{typed} names no id of {names}; `{'#'.join(path[:depth])}` is a list of {len(at)}."
            at = at[int(part)]
        elif isinstance(at, Mapping):
            if part not in at:
                if depth == len(path) - 1 and "_target_" in at:
                    return _argument_problem(typed, path[:depth], part, at, names, prefix)
                return _unknown_sentence(typed, path[:depth], part, list(at), config, names, prefix)
            at = at.get(part)
        else:
            return f"{typed} names no id of {names}; `{'#'.join(path[:depth])}` has no parts."
    return None


def renamed_problems(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each id of the merged files that has another name now, and would change nothing."""
    return [
        f"`{old}` in the config files is no more: it is `{new}` now, {meaning}."
        for old, (new, meaning) in RENAMED.items()
        if old in config and new in config
    ]


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
    if not parents and name in RENAMED and RENAMED[name][0] in ids:
        new, meaning = RENAMED[name]
        return f"{typed} is no more: it is {prefix}{new} now, {meaning}."
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
    """A sentence if the component does not take this argument; the file need not state those that it takes."""
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


def _arguments(target: Any) -> tuple[list[str], bool]:
    """Names of the arguments of a component's ``_target_``, and whether it takes others, of unknown names, as well.

    A class that takes ``**kwargs`` most likely hands them to its base class, whose names are therefore among them.
    """
    from monai.bundle import ComponentLocator

    try:
        module = ComponentLocator().get_component_module_name(target)
        module = module[0] if isinstance(module, list) else module
        found: Any = pydoc.locate(target if module is None else f"{module}.{target}")
        functions = [found]
        if inspect.isclass(found):
            functions = [vars(base)["__init__"] for base in found.__mro__[:-1] if "__init__" in vars(base)]
        names: list[str] = []
        takes_any = True
        for number, function in enumerate(functions):
            parameters = inspect.signature(function).parameters.values()
            names += [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters)
            takes_any = passes_on if number == 0 else takes_any
            if not passes_on:
                break
    except Exception:  # an expression, or a module or signature that cannot be read: the run itself will say
        return [], True
    return [name for name in dict.fromkeys(names) if name != "self"], takes_any
