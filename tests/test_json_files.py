from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.json_files import read_json, to_json, write_json


def test_what_is_written_is_read(tmp_path):
    content = {"ä": [1, 2.5, None], "empty": {}, "list": [], "deep": {"a": [{"b": True}]}, "text": "$@x['y']"}
    write_json(tmp_path / "new" / "a.json", content)
    assert read_json(tmp_path / "new" / "a.json") == content
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert text == to_json(content) and text.endswith("}\n") and '"ä"' in text
    assert json.loads(text) == content


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_files_that_are_not_there(tmp_path):
    assert read_json(tmp_path / "a.json", {}) == {}
    assert read_json(tmp_path / "a.json", None) is None
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000], ids=["cut", "empty", "deep"])
def test_what_is_no_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json cannot be read as JSON \("):
        read_json(tmp_path / "a.json", {})


def test_what_json_has_no_form_for(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": Path("x")})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "a.json", {"path": Path("x")}, default=str)
    assert read_json(tmp_path / "a.json") == {"path": "x"}
