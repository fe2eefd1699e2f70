"""`make demo` trains for minutes; here: its settings are those of a comparison that could begin, and what it prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from common.compare.settings import read_settings
from common.weights import find_encoder, read_encoder

ROOT = Path(__file__).resolve().parents[1]


def test_its_settings_name_what_is_there(tmp_path):
    settings = read_settings(str(ROOT / "demo" / "compare.json"), output=str(tmp_path))
    scratch, encoder = settings.arms
    assert settings.baseline == scratch.name and encoder.encoder == str(find_encoder("synthetic_brain"))
    assert encoder.override["encoder#heads"] is True
    assert read_encoder(encoder.encoder)[1]["preparation"]["task"] == "structures4"


def test_it_prints_the_outcome_of_the_report():
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    report = "# Does it help?\n\n## Outcome\n\n- With 1 label: better.\n\n### Note\n\nOne seed.\n\n## Mean Dice\n\nrows"
    assert demo.outcome(report) == "- With 1 label: better.\n\n### Note\n\nOne seed."
