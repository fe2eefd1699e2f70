from __future__ import annotations

import pytest

from common.overlays import find_overlay, parse_files, parse_overrides, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("null", None),
        ("None", None),
        ("true", True),
        ("True", True),
        ('["a", 1]', ["a", 1]),
        ("['a', 1]", ["a", 1]),
        ("(1, 2)", (1, 2)),
        ("a b", "a b"),
        ("$@x + 1", "$@x + 1"),
        ("@x", "@x"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_values(text, value):
    assert parse_value(text) == value
    assert parse_overrides([f"some#id={text}"]) == {"some#id": value}


@pytest.mark.parametrize(
    "given",
    [
        "['a.json','b/c d.json']",
        '["a.json", "b/c d.json"]',
        "a.json,b/c d.json",
        "a.json, b/c d.json,",
        ["a.json", "b/c d.json"],
        ["['a.json','b/c d.json']"],
        ["a.json,", "b/c d.json"],
    ],
)
def test_one_list_of_files_in_every_spelling(given):
    assert parse_files(given) == ["a.json", "b/c d.json"]


def test_names_of_files_that_are_no_list():
    assert parse_files(()) == parse_files("") == []
    assert parse_files("[a].json") == ["[a].json"]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (None, {}),
        ({"a": "1"}, {"a": "1"}),  # a mapping is what it says
        ("a=1 b#c::d=[1, 2] e=x y", {"a": 1, "b#c::d": [1, 2], "e": "x y"}),
        (["a=1", "b=x y=z"], {"a": 1, "b": "x y=z"}),
        (("a=1", "a=2"), {"a": 2}),
    ],
)
def test_overrides(given, values):
    assert parse_overrides(given) == values


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("a", "--override 'a' has no value; write id=value."),
        (["a=1", "b"], "--override 'b' has no value"),
        (3, "--override 3: write id=value"),
    ],
)
def test_refused_overrides(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_overrides(given)


def test_the_nearest_file_is_taken(tmp_path, monkeypatch):
    bundle, here = tmp_path / "bundle", tmp_path / "here"
    (bundle / "configs").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(FileNotFoundError, match=rf"No config file a\.json: neither in {here} nor in {bundle} or"):
        find_overlay("a.json", bundle)
    for folder in (bundle / "configs", bundle, here):
        (folder / "a.json").touch()
        assert find_overlay("a.json", bundle) == folder / "a.json"
    assert find_overlay("a.json", bundle, base=bundle / "configs") == bundle / "configs" / "a.json"
    assert find_overlay(here / "a.json", bundle) == here / "a.json"
