"""The running ``python -m monai.bundle run``: its config files and overrides, and a digest of what it computes."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Ids that say where files lie and what is drawn, not what is computed: two runs that differ in nothing else have one
# digest.
PLACES = ("bundle_root", "dataset_dir", "output_dir", "resume", "log_images")


class Command(NamedTuple):
    """A running ``python -m monai.bundle run``: its config files, and the overrides by id."""

    files: list[str]
    overrides: dict[str, Any]
    typed: dict[str, str]  # how each override was written
    tracking: Any


def running_config() -> dict[str, Any] | None:
    """The config of the running ``python -m monai.bundle run``: its merged files with the overrides, as written.

    None outside of that command. References, macros and expressions stay as written, so the result can run again as one
    config file. Additions of ``--tracking`` are left out.
    """
    command = running_command()
    if command is None:
        return None
    from monai.bundle import ConfigParser

    parser = ConfigParser(config=load_config(command.files))
    accepted = runner_arguments(command.tracking) - set(PLACES)
    parser.update({key: value for key, value in command.overrides.items() if key not in accepted})
    workflow = running_workflow()
    if workflow is not None and parser.get("prepare_as"):  # which set these ids when the run began
        from ..preparation import PREPARED

        for name in PREPARED:
            if name in parser:
                parser[name] = workflow.parser[name]
    config: dict[str, Any] = parser.get()
    return config


def running_workflow() -> Any:
    """The ``ConfigWorkflow`` that a function of its config is called by, None outside of one.

    MONAI hands its parser to nobody, so it is looked for among the callers.
    """
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, ConfigWorkflow):
            return found
        frame = frame.f_back
    return None


def config_digest() -> str | None:
    """SHA-256 of what the running ``python -m monai.bundle run`` computes, None outside of that command.

    It covers ``running_config`` as sorted JSON, without the ids that only set where files lie and what is drawn
    (``bundle_root``, ``dataset_dir``, ``output_dir``, ``resume``, ``log_images``). A packed bundle has the digest of
    its source.
    """
    running = running_config()
    if running is None:
        return None
    config = {key: value for key, value in running.items() if key not in PLACES}
    text = json.dumps(config, sort_keys=True, default=str)
    common = __package__.rpartition(".")[0]
    return hashlib.sha256(text.replace(f"{common}.", "common.").encode()).hexdigest()


def running_command() -> Command | None:
    """The running command from ``sys.argv``, None if this process is not ``python -m monai.bundle run``."""
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or sys.argv[1:2] != ["run"]:
        return None
    from fire.parser import DefaultParseValue

    given = {key: (DefaultParseValue(value), typed) for key, value, typed in parse_flags(sys.argv[2:])}
    arguments: dict[str, Any] = {}
    typed: dict[str, str] = {}
    if "args_file" in given:
        arguments = load_config([given["args_file"][0]])
        typed = {key: f"`{key}` in {given['args_file'][0]}" for key in arguments}
    arguments.update({key: value for key, (value, _) in given.items()})
    typed.update({key: text for key, (_, text) in given.items()})
    files = arguments.pop("config_file", None) or []
    files = [files] if isinstance(files, str) else list(files)
    return Command(files, arguments, typed, arguments.get("tracking"))


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


def _is_flag(token: str) -> bool:
    """A negative number is a value, all else with a leading hyphen is a name."""
    return token.startswith("--") or re.match(r"-[a-zA-Z]", token) is not None


def runner_arguments(tracking: Any) -> set[str]:
    """Arguments that belong to the runner, not to the config."""
    from monai.bundle import ConfigWorkflow, create_workflow, run

    names = {"_meta_"}
    for function in (run, create_workflow, ConfigWorkflow.__init__):
        kinds = inspect.signature(function).parameters.items()
        names |= {name for name, parameter in kinds if parameter.kind is not parameter.VAR_KEYWORD}
    if tracking:
        settings = tracking_settings(tracking)
        # Its entries for the engines are handlers that are appended, not ids.
        names |= set(settings.get("configs", {})) - set(settings.get("handlers_id", {}))
    return names


def tracking_settings(tracking: Any) -> dict[str, Any]:
    """The settings that ``--tracking`` names: MONAI's own, those of a file, or a typed dict."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        return DEFAULT_EXP_MGMT_SETTINGS[tracking]
    return ConfigParser.load_config_files(tracking)


def load_config(files: Sequence[str]) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    return ConfigParser.load_config_files(files)


def split_id(key: str) -> list[str]:
    return key.replace("#", "::").split("::")
