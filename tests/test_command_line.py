from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from common.command_line import UsageError, check_arguments, read_values, run_command

CALLS: list[tuple] = []


def draw(path: str, output: str | None = None, count: int = 1, share: float | None = None, force: bool = False) -> None:
    CALLS.append((path, output, count, share, force))


def join(*paths: str, output: str | None = None) -> None:
    CALLS.append((paths, output))


def passed_on(name: str, **options: Any) -> None:
    CALLS.append((name, read_values(options, draw)))


COMMANDS = {"draw": draw, "join": join, "pass": passed_on}


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def run(monkeypatch, *words: str) -> list[tuple]:
    monkeypatch.setattr(sys, "argv", ["prog", *words])
    run_command(COMMANDS, "prog")
    return CALLS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drew", "a"], r"prog has no command 'drew'; did you mean 'draw'\?"),
        (["bogus"], r"prog has no command 'bogus'; there are draw, join, pass\."),
        (["--path", "a", "draw"], r"--path comes before the command: begin with one of draw, join, pass"),
        (["draw", "a", "--cuont", "3"], r"prog draw has no option --cuont; did you mean --count\?"),
        (["draw", "a", "--zzz", "3"], r"prog draw has no option --zzz; its options are --path, --output, --count"),
        (["draw"], r"prog draw needs PATH"),
        (["draw", "a", "b", "1", "1", "True", "c"], r"does not know what to do with 'c'"),
        (["draw", "a", "--count", "x"], r"--count x: it must be a whole number"),
        (["draw", "a", "--count", "1.5"], r"--count 1.5: it must be a whole number"),
        (["draw", "a", "--share", "x"], r"--share x: it must be a number"),
        (["draw", "a", "--force", "x"], r"--force x: it must be True or False"),
        (["draw", "a", "--output"], r"--output has no value"),
    ],
)
def test_nothing_runs_on_words_that_are_not_understood(monkeypatch, words, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(monkeypatch, *words)
    assert CALLS == []


def test_values_are_what_the_annotations_say(monkeypatch):
    words = ["draw", "--path", "2024", "--output=7", "--count", "3", "--share", "0.5", "--force"]
    assert run(monkeypatch, *words) == [("2024", "7", 3, 0.5, True)]
    assert run(monkeypatch, "draw", "a", "--output", "None", "--noforce")[-1] == ("a", None, 1, None, False)
    assert run(monkeypatch, "draw", "-p", "a", "-c", "-2")[-1] == ("a", None, -2, None, False)
    assert run(monkeypatch, "join", "a", "b", "--output", "c")[-1] == (("a", "b"), "c")


def test_values_that_are_passed_on_are_what_the_annotations_say(monkeypatch):
    words = ["--path", "2019.10", "--output", "None", "--count=3", "--share", "0.5", "--force", "false"]
    given = {"path": "2019.10", "output": None, "count": 3, "share": 0.5, "force": False}
    assert run(monkeypatch, "pass", "1e3", *words) == [("1e3", given)]
    assert run(monkeypatch, "pass", "a", "--noforce", "--other", "7")[-1] == ("a", {"force": False, "other": "7"})
    assert run(monkeypatch, "pass", "a", "--output", "a,b")[-1] == ("a", {"output": "a,b"})


def test_help_is_left_to_fire():
    check_arguments(COMMANDS, ["draw", "--help"], "prog")
    check_arguments(COMMANDS, [], "prog")
    with pytest.raises(UsageError):
        check_arguments(COMMANDS, ["draw", "--helpp"], "prog")


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("data", ["spacing", "{list}", "--base_dri", "x"], r"has no option --base_dri; did you mean --base_dir\?"),
        (
            "data",
            ["check", "{list}", "--numbering", "x"],
            r"check --numbering was renamed: it is --label_scheme now, how",
        ),
        ("data", ["prepare", "ixi", "--source", ".", "--output", "o", "--numbering", "x"], r"it is --label_scheme now"),
        ("data", ["spacing", "{list}", "--section", "foo"], r"--section foo: it must be one of training, validation"),
        ("data", ["check", "{list}", "--base_dir", "5"], r"No dataset folder at 5"),
        ("data", ["check", "{list}", "--num_classes", "many"], r"--num_classes many: it must be a whole number"),
        ("data", ["prepare", "sample", "--subjects", "x"], r"--subjects x: it must be a whole number"),
        ("data", ["prepare", "ixi", "--source", ".", "--output", "o", "--test", "x"], r"--test x: it must be a num"),
        ("data", ["prepare", "abide", "--source", ".", "--output", "o", "--min_age", "x"], r"--min_age x: it must"),
        ("score", ["--truth", ".", "--predictoin", "."], r"has no option --predictoin; did you mean --prediction"),
    ],
)
def test_the_commands_of_the_collection(tmp_path, monkeypatch, module, words, message):
    import importlib

    datalist = tmp_path / "a.json"
    datalist.write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))
    name = f"common.{module}" + (".__main__" if module == "data" else "")
    monkeypatch.setattr(sys, "argv", [module, *(word.format(list=datalist) for word in words)])
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        importlib.import_module(name).main()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "a.pt could not be written (No space left on device)"),
            "a.pt could not be written (No space left",
        ),
        (PermissionError(13, "Permission denied", "a.pt"), "a.pt: Permission denied."),
        (FileNotFoundError("no such file: a.pt"), "no such file: a.pt"),
    ],
)
def test_errors_of_the_system_are_said_without_their_numbers(monkeypatch, error, sentence):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["prog", "fail"])
    with pytest.raises(SystemExit) as ended:
        run_command({"fail": fail}, "prog")
    assert str(ended.value.code).startswith(f"error: {sentence}")


@pytest.mark.parametrize("command", ["auto", "compare", "pack"])
def test_a_wrong_option_does_not_wait_for_torch(command):
    """A process of its own, since this one has imported torch."""
    code = f"""
import runpy, sys
sys.argv = [{command!r}, "--no_such_option", "1"]
try:
    runpy.run_module("common.{command}", run_name="__main__")
except SystemExit as ended:
    assert ended.code, "the option was accepted"
assert not {{"torch", "monai"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
