"""Two processes under torchrun: pre-training, fine-tuning, and an evaluation that agrees with one process."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common import distributed
from common.weights import read_encoder

pytestmark = pytest.mark.slow  # processes that import everything; tests/test_distributed.py has quick ones

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "pretrain_once" / "configs"

# Each rank runs what `python -m monai.bundle run` would, one run after the other, because importing MONAI takes the
# longest. The process group is made once: a second one in the same process hangs.
RANK = """
import hashlib, json, logging, os, sys
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

torch.set_num_threads(1)
logging.basicConfig(level=logging.INFO)
for name, files, overrides in json.load(open(sys.argv[1])):
    workflow = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", **overrides)
    workflow.initialize()
    parser, branches = workflow.parser, []
    if name == "branches":  # the branch of each batch, and which branches are trained by them
        workflow.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: branches.append(int(engine.state.batch["branch"][0]))
        )
        heads = parser.get_parsed_content("network_def").decoder.branches
        start = [head.weight.detach().clone() for head in heads]
    workflow.run()
    weights = hashlib.sha256()
    for tensor in parser.get_parsed_content("network_def").state_dict().values():  # running statistics too
        weights.update(tensor.numpy().tobytes())
    metrics = parser.get_parsed_content("validate#evaluator").state.metrics
    report = {"weights": weights.hexdigest(), "metrics": {key: float(v) for key, v in metrics.items()}}
    report["steps"] = workflow.trainer.state.epoch_length if name != "evaluate" else None
    if name == "branches":
        moved = [not torch.equal(old, head.weight) for old, head in zip(start, heads)]
        report |= {"branches": branches, "moved": moved}
    with open(f"{overrides['output_dir']}/{name}.{os.environ['RANK']}.json", "w") as file:
        json.dump(report, file)
workflow.finalize()
"""

# Pre-training of `med3d`, whose processes share batches of one domain, and so of one branch, at a time.
BRANCHES = {
    "roi_size": [32] * 3,
    "segmentation_net#width": 4,
    "batch_size": 2,
    "batches_per_epoch": 4,
    "max_epochs": 1,
    # A validation scan of 8 mm is predicted from one window, that of 4 mm, which the other process has, from eight.
    "pretrain_datalist#0#spacing": [4.0] * 3,
    "pretrain_datalist#1#spacing": [8.0] * 3,
}

# STU-Net, whose authors' network has heads at every level, of which only the finest is trained here.
ONE_HEAD = {
    "segmentation_net#features": [4, 4, 8, 8, 8, 8],
    "spacing": [3.0] * 3,
    "image_size": [64] * 3,
    "roi_size": [64] * 3,
    "batch_size": 2,
    "batches_per_epoch": 2,
    "max_epochs": 1,
    "val_interval": 1,
    "validate#dataset#data": "$@data['test']",
}


@pytest.fixture(scope="module")
def folder(chosen, tiny, small, small_files, cohort, run_ranks, tmp_path_factory):
    """Where two processes pre-trained, fine-tuned and evaluated, one after the other; a folder for each bundle."""
    folder = tmp_path_factory.mktemp("two_processes")
    jobs = []
    for bundle in dict.fromkeys(["pretrain_once", *chosen("test_ranks_end_alike")]):
        overlays = [tiny["unetr"]] if bundle == "pretrain_once" else small_files[bundle]
        output = folder / bundle
        common = {"dataset_dir": str(cohort), "output_dir": str(output), "max_epochs": 1}
        common |= {"batch_size": 2, "batches_per_epoch": 2}
        train = {
            "validate#dataset#data": "$@data['test']",
            "pretrained_encoder": str(output / "encoder.safetensors"),
        }
        for name, files, overrides in (
            ("pretrain", ["pretrain.json", "multi_gpu_pretrain.json"], small[bundle].two_processes),
            ("train", ["train.json", "multi_gpu_train.json"], train),
            # the test scans chose the network here, which is refused otherwise
            ("evaluate", ["train.json", "evaluate.json", "multi_gpu_evaluate.json"], {"transductive": True}),
        ):
            configs = ROOT / "bundles" / bundle / "configs"
            *base, multi_gpu = (str(configs / file) for file in files)
            # batch norms that rest at first, and parameters that train only then
            schedule = ["schedules/sawtooth.json"] if (bundle, name) == ("med3d", "train") else []
            files = [*base, *(str(configs / file) for file in (*overlays, *schedule)), multi_gpu]
            jobs.append((name, files, common | overrides))
    if chosen("test_processes_have_one_branch_at_a_time_and_end_alike"):
        settings = BRANCHES | {"dataset_dir": str(cohort), "output_dir": str(folder / "branches")}
        configs = ROOT / "bundles/med3d/configs"
        files = ("pretrain.json", "datasets/sample.json", "multi_gpu_pretrain.json")
        jobs.append(("branches", [str(configs / name) for name in files], settings))
    if chosen("test_processes_train_a_network_of_one_head"):
        settings = ONE_HEAD | {"dataset_dir": str(cohort), "output_dir": str(folder / "one_head")}
        (folder / "one_head").mkdir()
        configs = ROOT / "bundles/ssl3d/configs"
        files = ("train.json", "datasets/sample.json", "networks/stunet.json", "multi_gpu_train.json")
        jobs.append(("one_head", [str(configs / name) for name in files], settings))
    (folder / "jobs").write_text(json.dumps(jobs))
    (folder / "rank.py").write_text(RANK)
    (folder / "output").write_text(run_ranks(folder / "rank.py", folder / "jobs", timeout=400))
    return folder


def reports(folder: Path, name: str) -> list[dict]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


@pytest.mark.way("two processes")
@pytest.mark.parametrize("name", ["pretrain", "train", "evaluate"])
def test_ranks_end_alike(folder, bundle, name):
    first, second = reports(folder / bundle, name)
    assert first == second
    assert first["metrics"] and np.isfinite(list(first["metrics"].values())).all()


@pytest.mark.parametrize("bundle", ["med3d"])
def test_processes_have_one_branch_at_a_time_and_end_alike(folder, bundle):
    first, second = reports(folder / "branches", "branches")
    assert first == second and sorted(first["branches"]) == [0, 0, 1, 1] and first["moved"] == [True, True]
    assert np.isfinite(first["metrics"]["val_loss"])
    _, record = read_encoder(folder / "branches/encoder.safetensors")
    assert record["method"] == "MultiBranchNet"


@pytest.mark.parametrize("bundle", ["ssl3d"])
def test_processes_train_a_network_of_one_head(folder, bundle):
    """Two steps: parameters without a gradient would stop them at the second."""
    first, second = reports(folder / "one_head", "one_head")
    assert first == second and first["steps"] == 2 and np.isfinite(first["metrics"]["val_mean_dice"])
    assert "did not receive grad" not in (folder / "output").read_text()


@pytest.mark.parametrize("name", ["pretrain", "train"])
def test_ranks_share_the_data(folder, name):
    first, second = reports(folder / "pretrain_once", name)
    assert first["steps"] == second["steps"] == 2  # of four volumes, or of three and one repeated


def test_files_are_written_once_and_without_the_wrapper(folder):
    written = folder / "pretrain_once"
    assert {path.name for path in written.iterdir() if path.suffix in (".pt", ".ckpt", ".safetensors")} == {
        "encoder.safetensors",
        "model.pt",
        "pretrain.ckpt",
        "train.ckpt",
    }
    state, record = read_encoder(written / "encoder.safetensors")
    assert record["method"] == "MAE" and not any(name.startswith("module.") for name in state)
    said = re.findall(r"encoder of epoch .* written to", (folder / "output").read_text())
    assert len(said) == len(list(folder.glob("*/encoder.safetensors")))
    assert not any(name.startswith("module.") for name in torch.load(written / "model.pt", weights_only=True))


def test_evaluation_is_that_of_one_process(folder, run_bundle, tiny, tmp_path):
    folder = folder / "pretrain_once"
    run_bundle(
        "train.json",
        "evaluate.json",
        tiny["unetr"],
        output_dir=str(tmp_path),
        model_path=str(folder / "model.pt"),
        device="cpu",
        transductive=True,
    )
    for name in ("val_mean_dice", "val_mean_dice_with_background", "val_hd95"):
        two, one = rows(folder / f"eval/{name}_raw.csv"), rows(tmp_path / f"eval/{name}_raw.csv")
        assert len(one) == 2
        assert sorted(two, key=lambda row: row["filename"]) == sorted(one, key=lambda row: row["filename"])
    assert (folder / "eval/metrics.csv").read_text() == (tmp_path / "eval/metrics.csv").read_text()


def test_without_torchrun_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match=r"RANK is not set: start multi_gpu_.* configs with torchrun"):
        distributed.rank()


def test_every_process_needs_a_validation_scan(monkeypatch):
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: 3)
    monkeypatch.setattr(distributed.idist, "get_rank", lambda: 1)
    with pytest.raises(ValueError, match=r"2 validation scans are too few for 3 processes, .* --nproc_per_node"):
        distributed.validation_sampler(["a", "b"])
    assert list(distributed.validation_sampler(["a", "b", "c", "d", "e"])) == [1, 4]
