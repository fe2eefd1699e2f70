"""Command lines that refuse unknown options before anything runs, with one sentence and status 1."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fire
from fire.decorators import SetParseFn, SetParseFns

from .checks import renamed_sentence, split_arguments

__all__ = ["UsageError", "check_arguments", "read_values", "run_command"]


class UsageError(ValueError):
    """An invalid command line; the message is one sentence."""


def run_command(commands: Callable | Mapping[str, Callable], name: str) -> None:
    """Run a function, or the named one of several functions, with the options of the command line.

    fire calls the function first and then complains about leftover options. It also reads `--output 2024` as a number.
    Here options are checked first, and the annotation of a parameter sets the type of its value.

    Args:
        commands: the function, or a mapping from command words to functions. Annotations of `str`, `int`, `float` and
            `bool`, also with `| None`, are enforced.
        name: name of the command.

    Raises:
        SystemExit: with one sentence, if the command line or something that it names cannot be used.
    """
    try:
        check_arguments(commands, sys.argv[1:], name)
        for function in [commands] if callable(commands) else commands.values():
            SetParseFns(**_readers(function))(function)
            if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
                SetParseFn(str)(function)  # as typed: another function's annotations say what they are
        fire.Fire(commands, name=name)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    """What an error says, without the number that the system has for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename is not None else f"{error.strerror}"
    return str(error)


def check_arguments(commands: Callable | Mapping[str, Callable], words: Sequence[str], name: str) -> None:
    """Refuse unknown commands, unknown options and extra arguments.

    Raises:
        UsageError: with a suggestion.
    """
    flags, positional = split_arguments(words)
    if {"help", "h"} & {key for key, _, _ in flags} or not words:
        return
    if callable(commands):
        function, where = commands, name
    else:
        known = ", ".join(commands)
        if not positional or words[0] != positional[0]:
            raise UsageError(f"{words[0]} comes before the command: begin with one of {known}.")
        word = positional.pop(0)
        if word not in commands:
            near = difflib.get_close_matches(word, commands, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {known}."
            raise UsageError(f"{name} has no command {word!r}; {hint}")
        function, where = commands[word], f"{name} {word}"
    parameters = inspect.signature(function).parameters.values()
    options = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key, value, typed in flags:
        if takes_any or key in options or (len(key) == 1 and any(option.startswith(key) for option in options)):
            continue
        if typed == f"--no{key}" and value == "False":  # --normalise without a value, read as --no-rmalise
            key = typed[2:]
        renamed = renamed_sentence(f"{where} {typed}", key, options, prefix="--")
        if renamed:
            raise UsageError(renamed)
        near = difflib.get_close_matches(key, options, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"its options are {', '.join(f'--{o}' for o in options)}."
        raise UsageError(f"{where} has no option {typed}; {hint}")
    places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {p.name for p in places[: len(positional)]} | {key for key, _, _ in flags}
    for parameter in places:
        if parameter.default is parameter.empty and not any(parameter.name.startswith(key) for key in given):
            raise UsageError(f"{where} needs {parameter.name.upper()}; `{where} --help` explains it.")
    if len(positional) > len(places) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise UsageError(
            f"{where} does not know what to do with {positional[len(places)]!r}: name its option, or put names with "
            "spaces in quotes."
        )


def read_values(options: Mapping[str, Any], *functions: Callable) -> dict[str, Any]:
    """Read the text of options that a command passes to other functions, as their annotations say.

    Args:
        options: the options of a command's ``**options``, which `run_command` leaves as they were typed.
        functions: the functions that have these options. One that no function has stays a text.

    Raises:
        UsageError: the value of an option is not a number, word, True or False as required.
    """
    readers = {name: read for function in functions for name, read in _readers(function).items()}
    return {name: readers[name](str(value)) if name in readers else value for name, value in options.items()}


def _readers(function: Callable) -> dict[str, Callable[[str], Any]]:
    """Readers for the text of each option with a simple annotation."""
    readers = {}
    for parameter in inspect.signature(function).parameters.values():
        kinds = {part.strip() for part in str(parameter.annotation).split("|")}
        may_be_none = "None" in kinds
        for kind, read in _READ.items():
            if kinds - {"None"} in ({kind}, {kind, "Path"}, {kind, "os.PathLike"}):
                readers[parameter.name] = _reader(parameter.name, read, may_be_none)
    return readers


def _reader(name: str, read: Callable[[str, str], Any], may_be_none: bool) -> Callable[[str], Any]:
    return lambda text: None if may_be_none and text == "None" else read(name, text)


def _text(name: str, text: str) -> str:
    if text in ("True", ""):  # what fire makes of an option without a value
        raise UsageError(f"--{name} has no value: write one after it.")
    return text


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--{name} {text}: it must be a whole number.") from None


def _number(name: str, text: str) -> float:
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise UsageError(f"--{name} {text}: it must be a number.") from None


def _yes_or_no(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UsageError(f"--{name} {text}: it must be True or False.")
    return text.lower() == "true"


_READ: dict[str, Callable[[str, str], Any]] = {"str": _text, "int": _whole, "float": _number, "bool": _yes_or_no}
