from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.overlays import KINDS, find_overlay, merge_files, order_problems, parse_files, parse_overrides, parse_value

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


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
        "a.json b/c d.json",
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
        ("a=1,b=[1,2], c=x", {"a": 1, "b": [1, 2], "c": "x"}),
        (["a=1,b#c=2"], {"a": 1, "b#c": 2}),
        ("{'a': 1, 'b': [2, 3]}", {"a": 1, "b": [2, 3]}),
        ("a=$dict(x=1, y=2) b='p, q=3' c=it's", {"a": "$dict(x=1, y=2)", "b": "p, q=3", "c": "it's"}),
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


# Orders in which a file takes back, without a word, what another was named for.
WRONG = [
    ("pretrain_once", ["networks/unetr.json", "datasets/sample.json"], "sample.json .* after unetr.json .*`segmenta"),
    ("simtrot", ["presets/hippocampus_cpu.json", "datasets/hippocampus.json"], "`roi_size` back to .* before hippocam"),
    ("ssl3d", ["tasks/age.json", "networks/segresnet.json"], "`encoder#decoder` back: name it before age.json"),
    ("ssl3d", ["tasks/skull.json", "datasets/acdc.json"], 'acdc.json .* `task` back to "acdc": name it before skull'),
    ("ssl3d", ["tasks/skull.json", "presets/synthetic_brain.json"], '`task` back to "structures4"'),
    ("pretrain_once", ["schedules/warmup.json", "presets/official_code.json"], "`warmup` back"),
    ("medical_transformer", ["datasets/ixi_2mm.json", "tasks/structures4.json"], '`label_scheme` back to "freesurfer"'),
]


@pytest.mark.parametrize(("bundle", "files", "sentence"), WRONG)
def test_a_wrong_order_is_refused_with_the_right_one(bundle, files, sentence):
    paths = [BUNDLES / bundle / "configs" / name for name in ("train.json", *files)]
    problems = order_problems(paths)
    assert re.search(sentence, " ".join(problems)) and all(problem.endswith(".json.") for problem in problems)
    assert order_problems([paths[0], *reversed(paths[1:])]) == []
    keys = {part for problem in problems for part in re.findall("`(.+?)`", problem)}
    assert order_problems(paths, keys) == []  # set after all files


def test_the_orders_that_come_along_are_right():
    lists = [(path, json.loads(path.read_text())) for path in BUNDLES.glob("*/*.json")]
    tried = 0
    for path, content in lists:
        for names in (content.get("files", []), content.get("config_file", [])):
            tried += len(names) > 1
            assert order_problems([path.parent / "configs" / name for name in names]) == []
    assert tried > 6


@pytest.mark.parametrize("kind", KINDS)
def test_overlays_of_one_kind_and_the_users_own_have_no_order(tmp_path, kind):
    for name in ("a", "b"):
        for folder in (kind, "mine"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.json").write_text(json.dumps({"task": name, "x#y": name, "x": {}}))
    a, b, mine = (tmp_path / name for name in (f"{kind}/a.json", f"{kind}/b.json", "mine/a.json"))
    assert (
        order_problems([a, b]) == order_problems([b, a]) == order_problems([a, mine]) == order_problems([mine, a]) == []
    )


@pytest.mark.parametrize(
    ("bundle", "files", "sentence"),
    [
        (
            "simtrot",
            ["inference.json", "networks/nnformer_tiny.json", "pretexts/byol.json"],
            "byol.json changes `train#handlers`, but inference.json + nnformer_tiny.json has no such part: it is for "
            "pretrain.json and train.json.",
        ),
        (
            "pretrain_once",
            ["train.json", "presets/official_code.json", "datasets/sample.json"],
            "official_code.json changes `pretext#position`, but train.json has no such part: it is for pretrain.json.",
        ),
        (
            "ssl3d",
            ["train.json", "pretexts/mae.json"],
            "mae.json changes `validate#crop_transforms#0#roi_size`, but train.json has no such part: it is for "
            "pretrain.json.",
        ),
    ],
)
def test_an_overlay_of_another_base_file_is_named_with_its_own(bundle, files, sentence):
    with pytest.raises(ValueError) as caught:
        merge_files([BUNDLES / bundle / "configs" / name for name in files])
    assert str(caught.value) == sentence


def test_files_are_merged_as_monai_merges_them(tmp_path):
    for name, content in (("a", {"x": {"y": [1, 2]}}), ("b", {"x#y#1": 3, "z": "@x"}), ("c", {"x#w#v": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    assert merge_files([a, b]) == {"x": {"y": [1, 3]}, "z": "@x"}
    with pytest.raises(ValueError, match=r"^c.json changes `x#w#v`, but a.json .* name the file that has it before.$"):
        merge_files([a, c])
