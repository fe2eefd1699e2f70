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


def test_short_lists_stand_on_one_line():
    content = {
        "sizes": [[-0.3, 0.4], [1, 2]],
        "keys": ["image", "ä"],
        "run": [{"a": [1]}, "$b"],
        "deep": [[{}]],
        "long": ["x" * 50, "y" * 50],
        "none": [],
    }
    text = to_json(content)
    assert json.loads(text) == content and list(json.loads(text)) == list(content)
    assert to_json(json.loads(text)) == text
    expected = f"""{{
    "sizes": [[-0.3, 0.4], [1, 2]],
    "keys": ["image", "ä"],
    "run": [
        {{
            "a": [1]
        }},
        "$b"
    ],
    "deep": [
        [
            {{}}
        ]
    ],
    "long": [
        "{"x" * 50}",
        "{"y" * 50}"
    ],
    "none": []
}}
"""
    assert text == expected


@pytest.mark.parametrize("length", [82, 83])
def test_a_line_has_a_hundred_characters_at_most(length):
    lines = to_json({"a": {"b": ["x" * length]}}).splitlines()
    # `        "b": ["x..."]` and a comma that may follow
    assert lines[2] == ('        "b": ["' + "x" * length + '"]' if length < 83 else '        "b": [')


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
