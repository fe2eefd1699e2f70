"""Options of the command, read before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.compare import __main__ as module
from common.compare.settings import CompareError

BUNDLE = str(Path(__file__).resolve().parents[2] / "bundles/pretrain_once")
WORDS = ["--bundle", BUNDLE, "--arms", "scratch", "--output", "out"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--stepz", "6"], "There is no option --stepz; did you mean --steps?"),
        (["--stepz=6", "--plan"], "There is no option --stepz; did you mean --steps?"),
        (["--config-files=x"], "There is no option --config_files; did you mean --config_file?"),
        (
            ["--label_scheme", "dlmuse"],
            "--label_scheme is not an option but an id of the bundle's config: use `--override label_scheme=dlmuse`.",
        ),
        (
            ["--train#dataloader#batch_size=4"],
            "--train#dataloader#batch_size is not an option but an id of the bundle's config: use "
            "`--override 'train#dataloader#batch_size=4'`.",
        ),
        (["--num_workers", "0"], "--num_workers is not an option but an id of the bundle's config: use "),
        (
            ["--pretext", "x"],
            "--pretext is not an option but an id of the bundle's config: use `--pretrain_override pre",
        ),
        (["--max_epochs", "3"], "--max_epochs is not an option; the comparison sets this id itself: use --steps, --ep"),
        (
            ["--label_schem", "dlmuse"],
            "There is no option --label_schem; did you mean `--override label_scheme=dlmuse`?",
        ),
        (["--numbering", "dlmuse"], "--numbering was renamed: it is `label_scheme` now, how the masks are"),
        (
            ["--override", "a=1", "--override=b=2"],
            "--override is given twice: give it once, with all values (--o",
        ),
        (["--seeds", "0,", "1"], "There is no option for '1': write a list without spaces (--seeds 0,1,2), and put a"),
        (["-x", "1"], "There is no option --x; `python -m common.compare --help` lists them."),
    ],
)
def test_an_unknown_option_is_refused(words, sentence):
    with pytest.raises(CompareError) as raised:
        module.check_options([*WORDS, *words])
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    "words", [["--steps", "6"], ["--keep-checkpoints"], ["--noplan"], ["-s", "6"], ["--stepz", "--help"], ["--", "-h"]]
)
def test_what_fire_understands_is_let_through(words):
    module.check_options([*WORDS, *words])


def test_the_bundle_of_a_settings_file(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"bundle": BUNDLE, "arms": "scratch"}))
    with pytest.raises(CompareError, match="use `--override label_scheme=dlmuse`"):
        module.check_options(["--settings", str(tmp_path / "s.json"), "--output", "out", "--label_scheme", "dlmuse"])
    with pytest.raises(CompareError, match="There is no option --label_scheme; `python"):
        module.check_options(["--settings", str(tmp_path / "none.json"), "--label_scheme", "dlmuse"])


def test_nothing_runs_with_an_unknown_option(monkeypatch):
    monkeypatch.setattr(module.signal, "signal", lambda *given: None)
    monkeypatch.setattr(module.fire, "Fire", lambda *given, **more: pytest.fail("it ran"))
    monkeypatch.setattr(module.sys, "argv", ["compare", *WORDS, "--stepz", "6"])
    with pytest.raises(SystemExit, match=r"^error: There is no option --stepz; did you mean --steps\?$"):
        module.main()


def test_the_command_prints_the_outcome_without_its_picture():
    start = "# Does it help?\n\n## Outcome\n\n"
    report = start + "- With 1 label: **better**.\n\n**One** seed.\n\n![All](all.png)\n\n*All*\n\n## Dice\n\nrows"
    assert module._outcome(report) == "Outcome\n\n- With 1 label: **better**.\n\n**One** seed."
