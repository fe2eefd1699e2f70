"""The settings with which every bundle logs to MLflow, and runs that do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

BUNDLES = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "bundles").glob("*/configs"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_settings_differ_in_the_experiment_alone():
    settings = {bundle.name: read(bundle / "configs/tracking.json") for bundle in BUNDLES}
    for name, one in settings.items():
        assert one["configs"].pop("experiment_name") == name
    assert len(settings) == 5 and all(one == settings["simtrot"] for one in settings.values())


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_settings_fit_every_base_file(bundle):
    """What a handler refers to is an id of the files that it is added to, and the trainers do not decollate."""
    configs = read(bundle / "configs/tracking.json")["configs"]
    engines = {"trainer": ("pretrain", "train"), "validator": ("pretrain", "train"), "evaluator": ("inference",)}
    shared = {key: value for key, value in configs.items() if key not in engines}
    for engine, names in engines.items():
        text = json.dumps([configs[engine], shared])
        for name in names:
            config = read(bundle / f"configs/{name}.json")
            assert set(re.findall(r"@(\w+)", text)) <= {*config, *shared}
            assert engine != "trainer" or config["train"]["trainer"]["decollate"] is False


def test_runs_are_logged_and_nothing_lies_elsewhere(run_bundle, tiny, tmp_path, monkeypatch):
    """Training and evaluation are a run each, both finished; the folders of the process and of the bundle stay."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra tracking)")
    [bundle] = [bundle for bundle in BUNDLES if bundle.name == "pretrain_once"]
    before = sorted(bundle.rglob("*"))
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "run"
    given = {"output_dir": str(folder), "tracking": str(bundle / "configs/tracking.json"), "max_epochs": 1}
    (tmp_path / "record.json").write_text("{}")  # the command writes it, a workflow in Python does not
    run_bundle("train.json", tiny["unetr"], config_record=str(tmp_path / "record.json"), **given)
    run_bundle("train.json", "evaluate.json", tiny["unetr"], **given)

    assert not list(cwd.iterdir()) and sorted(bundle.rglob("*")) == before
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    [experiment] = [one for one in client.search_experiments() if one.name == "pretrain_once"]
    evaluation, training = client.search_runs([experiment.experiment_id])  # the latest first
    assert training.info.status == evaluation.info.status == "FINISHED"
    assert training.data.params["learning_rate"] == "0.003" and training.data.params["max_epochs"] == "1"
    assert {"train_loss", "val_mean_dice"} <= set(training.data.metrics)
    assert [point.step for point in client.get_metric_history(training.info.run_id, "val_mean_dice")] == [1]
    assert [file.path for file in client.list_artifacts(training.info.run_id)] == ["record.json"]
    assert "val_hd95" in evaluation.data.metrics and "train_loss" not in evaluation.data.metrics
