"""`make demo` trains for minutes; here: its settings are those of a comparison that could begin."""

from __future__ import annotations

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
