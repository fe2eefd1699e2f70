"""The page of the papers' rows names settings, arms, config files and ids that there are."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from common.compare.settings import read_settings
from common.data.prepare import COLLECTORS
from common.json_files import read_json
from common.overlays import order_problems
from common.weights import shipped
from tools.papers import DOCS, STATES, main, rows

ROOT = DOCS.parent
CONTENT = read_json(DOCS / "papers.json")
ROWS = list(rows(CONTENT))
RESULTS = {path.stem: read_json(path) for path in (DOCS / "results").glob("*.json")}

CONVERTED = (
    "beit.safetensors",
    "i3d_kinetics.safetensors",
    "resnet18_medicalnet.safetensors",
    "resnet50_medicalnet.safetensors",
)
"""Weights that a user converts first, and that are not here."""

NO_DATA_SET = ("/workspace/data/brain_mri", "/workspace/data/healthy_brains")
"""Folders that base files name where no file of `datasets/` does. They hold no data set that a table is about."""

TABLES = {"classification": ("diagnosis", "adni"), "age": ("age", "adni"), "tumours": ("brats", "brats2020")}
"""Word in a row of Medical Transformer's tables -> its task and the folder of its data."""

HEALTHY = [f"/workspace/data/{name}" for name in ("ixi", "camcan", "abide")]
"""What Medical Transformer and the methods that it compares with pre-train on."""


@pytest.fixture(autouse=True)
def converted(monkeypatch):
    """Whether settings can be read, but for these."""
    find = shipped.find_encoder
    monkeypatch.setattr(shipped, "find_encoder", lambda path: path if Path(path).name in CONVERTED else find(path))


def bundle_of(paper, row) -> Path:
    return ROOT / "bundles" / row.get("bundle", paper["bundle"])


def test_the_page_is_current(tmp_path):
    """``python -m tools.papers`` makes it anew."""
    shutil.copy(DOCS / "papers.json", tmp_path)
    shutil.copytree(DOCS / "results", tmp_path / "results")
    assert main(["--docs", str(tmp_path)]) == 0
    assert (tmp_path / "papers.md").read_text() == (DOCS / "papers.md").read_text()


def test_every_row_has_a_state_and_a_way_or_a_reason():
    for paper, item, row in ROWS:
        where = f"{paper['title']}, {item['item']}, {row['row']}"
        assert row["state"] in STATES, where
        ways = [key for key in ("settings", "files", "command", "test") if key in row]
        if row["state"] == "not expressible":
            assert row.get("note"), f"{where}: say why"
        else:
            assert len(ways) == 1, f"{where}: one way, got {ways}"
        if row["state"] == "run here":
            assert "not run" not in row.get("note", ""), where


def test_every_measurement_names_its_results_and_all_results_are_named():
    """And the page of the bundle, or of the weights, says the same code as the file, or as the row if it is older."""
    pages = [path.read_text() for path in (ROOT / "common/weights/encoders").glob("*.md")]
    for paper, item, row in ROWS:
        where = f"{paper['title']}, {item['item']}, {row['row']}"
        names = row.get("results", [])
        trained = "settings" in row or "bundles/" in row.get("command", "")
        assert bool(names or "older" in row) == (row["state"] == "run here" and (trained or bool(names))), where
        assert set(names) <= set(RESULTS), f"{where}: no {set(names) - set(RESULTS)} in docs/results"
        bundle = bundle_of(paper, row)
        assert {RESULTS[name]["bundle"] for name in names} <= {bundle.name}, where
        told = "".join([(bundle / "docs/README.md").read_text(), *pages])
        codes = {RESULTS[name]["code"] for name in names} | {row.get("older", "")} - {""}
        assert not [code for code in codes if f"`{code}`" not in told], f"{where}: {bundle.name}'s page has other code"
    assert set(RESULTS) == {name for _, _, row in ROWS for name in row.get("results", ())}


def test_the_data_are_prepared_by_commands_that_there_are():
    for paper, item, _ in ROWS:
        for quoted in re.findall("`([^`]+)`", item["data"]):
            first, *words = quoted.split()
            if first.startswith("--"):
                continue  # an option of a comparison
            if "." in first:  # a script or a module, not ``python -m common.data``
                places = (ROOT / first, ROOT / first.replace(".", "/"), ROOT / f"{first.replace('.', '/')}.py")
                places += (ROOT / "bundles" / paper["bundle"] / "configs" / first,)
                assert any(place.exists() for place in places), f"{paper['title']}, {item['item']}: no {first}"
            else:
                assert (first, words[0] in COLLECTORS) == ("prepare", True), f"{item['item']}: `{quoted}`"


SETTINGS = sorted({(bundle_of(paper, row), row["settings"]) for paper, _, row in ROWS if "settings" in row})


def test_every_settings_file_of_the_papers_bundles_is_on_the_page():
    """But for that of the sample, which is none of a paper's."""
    bundles = {ROOT / "bundles" / paper["bundle"] for paper in CONTENT["papers"]}
    there = {(bundle, path.name) for bundle in bundles for path in bundle.glob("compare_*.json")}
    named = {(bundle, name) for bundle, name in SETTINGS}
    commands = " ".join(row.get("command", "") for _, _, row in ROWS)
    lacking = [f"{bundle.name}/{name}" for bundle, name in there - named if f"{bundle.name}/{name}" not in commands]
    assert sorted(lacking) == []


@pytest.mark.parametrize(("bundle", "name"), SETTINGS, ids=lambda value: getattr(value, "name", value))
def test_settings_have_the_arms(bundle, name, tmp_path):
    """And the config files and ids of each arm: a mistyped one is found here, not after a pre-training."""
    settings = read_settings(str(bundle / name), output=str(tmp_path))
    arms = {arm.name: arm for arm in settings.arms}
    named = [row for paper, _, row in ROWS if (bundle_of(paper, row), row.get("settings")) == (bundle, name)]
    assert {arm for row in named for arm in row["arms"]} <= set(arms)
    for arm in settings.arms:
        check(bundle, *tuned(settings, arm))
        if arm.pretrain:
            check(bundle, *pretrained(settings, arm))


OF_TABLES = {
    (bundle_of(paper, row), row["settings"], word)
    for paper, item, row in ROWS
    for word in TABLES
    if paper["bundle"] == "medical_transformer" and item["item"] in ("Table 1", "Table 4", "Table 5")
    if "settings" in row and word in re.split("[ ,:]+", row["row"])
}


@pytest.mark.parametrize(("bundle", "name", "word"), sorted(OF_TABLES), ids=lambda value: getattr(value, "name", value))
def test_rows_of_medical_transformer_have_its_task_and_data(bundle, name, word, tmp_path):
    """In fine-tuning and in pre-training, also of the methods that other bundles run."""
    settings = read_settings(str(bundle / name), output=str(tmp_path))
    task, folder = TABLES[word]
    for arm in settings.arms:
        found = check(bundle, *tuned(settings, arm))
        assert (found["task"], found["dataset_dir"]) == (task, f"/workspace/data/{folder}"), arm.name
        assert found["in_channels"] == (4 if word == "tumours" else 1), arm.name
        if arm.pretrain:
            found = check(bundle, *pretrained(settings, arm))
            assert found["dataset_dir"] == HEALTHY and found["in_channels"] == 1, arm.name
            assert [str(Path(path).parent) for path in found["pretrain_datalist"]] == HEALTHY, arm.name


def test_all_rows_of_medical_transformers_table_of_results_are_looked_at():
    rows = [row for paper, item, row in ROWS if (paper["bundle"], item["item"]) == ("medical_transformer", "Table 1")]
    rows = [row for row in rows if row["state"] != "not expressible"]
    assert len(rows) > 6 and all("settings" in row for row in rows)
    assert all(any(word in re.split("[ ,]+", row["row"]) for word in TABLES) for row in rows)


def tuned(settings, arm):
    """Base file, overlays and values of an arm's fine-tuning."""
    return "train.json", (*settings.config_file, *arm.overlays), {**settings.override, **arm.override}


def pretrained(settings, arm):
    """The same of its pre-training."""
    base, *overlays = arm.pretrain
    return base, (*settings.config_file, *overlays), {**settings.pretrain_override, **arm.pretrain_override}


ARMS = sorted(
    {
        (bundle_of(paper, row), row["settings"], ",".join(row["arms"]), row.get("options", ""))
        for paper, _, row in ROWS
        if "settings" in row
    }
)


@pytest.mark.parametrize(("bundle", "name", "arms", "options"), ARMS, ids=lambda value: getattr(value, "name", value))
def test_the_arms_run_without_the_others(bundle, name, arms, options, tmp_path):
    """As the page has them: an arm that goes on from another's pre-training is refused without that one."""
    words = shlex.split(options)
    given = {option.removeprefix("--"): value for option, value in zip(words[::2], words[1::2], strict=True)}
    settings = read_settings(str(bundle / name), output=str(tmp_path), arms=arms, **given)
    assert [arm.name for arm in settings.arms] == arms.split(",")
    for arm in settings.arms:
        files = [bundle / "configs" / name for name in ("train.json", *settings.config_file, *arm.overlays)]
        assert not order_problems(files, {**settings.override, **arm.override})


FILES = [(bundle_of(paper, row), row["files"], row.get("override", {})) for paper, _, row in ROWS if "files" in row]


@pytest.mark.parametrize(("bundle", "files", "override"), FILES, ids=str)
def test_config_files_are_there_and_have_the_ids(bundle, files, override):
    check(bundle, files[0], files[1:], override)
    assert not order_problems([bundle / "configs" / name for name in files], override)


def test_transfers_of_med3d_start_and_learn_as_their_rows_say():
    """From scratch at ten times the rate (the paper's "Transfer learning experiments")."""
    rows = [row for paper, item, row in ROWS if (paper["bundle"], item["item"]) == ("med3d", "Table 2")]
    assert len(rows) == 30  # seven depths, two tasks, two starts; and Kinetics
    for row in rows:
        own = {"learning_rate": 0.01} if "from scratch" in row["row"] else {}
        given = row["override"]
        assert {key: value for key, value in given.items() if key != "pretrained_encoder"} == own, row["row"]
        assert ("pretrained_encoder" in given) == (not own), row["row"]
    assert read_json(ROOT / "bundles/med3d/configs/train.json")["learning_rate"] == 0.001


def test_the_liver_nets_of_med3d_are_pretrained_and_then_evaluated_together():
    """All of ResNet-152 (the paper's "LiTS challenge"); the third row reads what the first two wrote."""
    rows = [row for paper, item, row in ROWS if (paper["bundle"], item["item"]) == ("med3d", "Table 3")]
    coarse, fine, both = rows[:3]
    assert all("networks/resnet152.json" in row["files"] for row in (coarse, fine, both))
    assert coarse["override"]["pretrained_encoder"] == fine["override"]["pretrained_encoder"] == "encoder.safetensors"
    assert both["override"]["output_dir"] == fine["override"]["output_dir"]
    assert both["override"]["coarse_model_path"] == f"{coarse['override']['output_dir']}/model.pt"
    names = [str(ROOT / "bundles/med3d/configs" / name) for name in both["files"]]
    parser = ConfigParser()
    parser.read_config(names)
    parser.update(both["override"])
    assert parser.get_parsed_content("model_path") == f"{fine['override']['output_dir']}/model.pt"


def test_random_in_transsegs_table_4_is_the_whole_encoder():
    """As the published code's `use_pretrained`, which loads all or nothing."""
    (row,) = [row for paper, _, row in ROWS if paper["bundle"] == "transseg" and row["row"] == "(b) random"]
    assert "presets/random_init.json" in row["files"] and "override" not in row
    page = (ROOT / "bundles/transseg/docs/README.md").read_text()
    assert "`random_embedding.json` (only the patch embedding starts at random; not in the paper)" in page


def check(bundle: Path, base: str, files, override) -> dict:
    """The config with its values, after a look at its ids and at where its data are."""
    parser = ConfigParser()
    configs = bundle / "configs"
    parser.read_config([str(configs / base), *(str(configs / name) for name in files)])
    lacking = [name for name in override if name not in parser and not is_argument(parser, name)]
    what = f"{bundle.name}, {base} with {', '.join(map(str, files))}"
    assert not lacking, f"{what} has no ids {lacking}"
    found = {**parser.get(), **override}
    assert found["dataset_dir"] not in NO_DATA_SET, f"{what} names no data set"
    return found


def is_argument(parser: ConfigParser, name: str) -> bool:
    """Of a component, which need not spell it out."""
    component = name.rpartition("#")[0]
    return bool(component) and "_target_" in (parser.get(component) or ())


def test_tests_that_are_named_are_there():
    for _, _, row in ROWS:
        if "test" in row:
            file, _, name = row["test"].partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), row["test"]
