"""The settings with which every bundle logs to MLflow, and runs that do."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

BUNDLES = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "bundles").glob("*/configs"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_settings_differ_in_the_experiment_alone():
    settings = {bundle.name: read(bundle / "configs/tracking.json") for bundle in BUNDLES}
    for name, one in settings.items():
        assert one["configs"].pop("experiment_name") == name
    assert len(settings) > 1 and all(one == settings["simtrot"] for one in settings.values())


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


@pytest.fixture
def command(cohort, unchanged, monkeypatch):
    """MONAI's command on `pretrain_once` in this process: what a run was given is known to it alone."""
    [bundle] = [bundle for bundle in BUNDLES if bundle.name == "pretrain_once"]

    def run(*files: str, **overrides) -> None:
        ids = {"meta_file": bundle / "configs/metadata.json", "logging_file": False, "dataset_dir": cohort}
        words = [word for key, value in (ids | overrides).items() for word in (f"--{key}", str(value))]
        paths = [str(bundle / "configs" / file) for file in files]
        with monkeypatch.context() as patch, unchanged():
            patch.setattr(sys, "excepthook", sys.excepthook)  # the bundle sets it
            patch.setattr(sys, "argv", ["", "run", "--config_file", str(paths), *words])
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

    return run


def test_the_config_of_a_run_gives_its_model_bit_for_bit(command, tiny, tmp_path):
    given = {"seed": 3, "max_epochs": 1, "train#dataloader#batch_size": 1, "fraction": 0.7}
    command("train.json", tiny["unetr"], output_dir=tmp_path / "first", **given)
    command(str(tmp_path / "first/train_config.json"), output_dir=tmp_path / "again")
    first, again = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("first", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    record, other = (read(tmp_path / name / "train_config.json") for name in ("first", "again"))
    assert record.pop("output_dir") != other.pop("output_dir") and record == other


def test_runs_are_logged_and_nothing_lies_elsewhere(command, tiny, tmp_path, monkeypatch):
    """Each is a run of its own, finished and named by its folder; the folders of the process and the bundle stay."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (extra tracking)")
    [bundle] = [bundle for bundle in BUNDLES if bundle.name == "pretrain_once"]
    before = sorted(bundle.rglob("*"))
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("pretrain_once", artifact_location=(tmp_path / "mlruns").as_uri())
    client.create_run(experiment, run_name="elsewhere")  # as a training at the same time, or one that was killed
    shared = {"tracking": bundle / "configs/tracking.json", "tracking_uri": uri}
    encoder, model, masks = (str(tmp_path / name) for name in ("encoder", "model", "masks"))
    command("pretrain.json", tiny["unetr"], output_dir=encoder, max_epochs=1, **shared)
    command("train.json", tiny["unetr"], output_dir=model, max_epochs=1, **shared)
    command("train.json", "evaluate.json", tiny["unetr"], output_dir=model, **shared)
    infer = {"workflow_type": "inference", "task": "structures4", "model_path": f"{model}/model.pt"}
    command("inference.json", tiny["unetr"], output_dir=masks, **infer, **shared)

    assert not list(cwd.iterdir()) and sorted(bundle.rglob("*")) == before
    runs = client.search_runs([experiment])[::-1]  # now the earliest first
    assert [run.info.run_name for run in runs] == ["elsewhere", encoder, model, model, masks]
    assert [run.info.status for run in runs] == ["RUNNING", *["FINISHED"] * 4]
    other, pretraining, training, evaluation, inference = runs
    assert not other.data.metrics and not inference.data.metrics
    assert {"train_loss", "val_loss", "feature_std"} <= set(pretraining.data.metrics)
    assert training.data.params["learning_rate"] == "0.003" and training.data.params["max_epochs"] == "1"
    assert {"train_loss", "val_mean_dice"} <= set(training.data.metrics)
    assert [point.step for point in client.get_metric_history(training.info.run_id, "val_mean_dice")] == [1]
    assert "val_hd95" in evaluation.data.metrics and "train_loss" not in evaluation.data.metrics
    assert inference.data.params["epoch_length"] == "2"
    for run, folder, name in ((pretraining, encoder, "pretrain_config.json"), (training, model, "train_config.json")):
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == [name]
        logged = tmp_path / "mlruns" / run.info.run_id / "artifacts" / name
        assert read(logged) == read(Path(folder, name))
