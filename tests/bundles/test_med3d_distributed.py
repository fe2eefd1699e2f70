"""Pre-training of `med3d` on two processes, which share batches of one domain, and so of one branch, at a time."""

from __future__ import annotations

import json
from pathlib import Path

from common.weights import read_encoder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "med3d" / "configs"
FILES = ("pretrain.json", "datasets/sample.json", "multi_gpu_pretrain.json")

# Each rank runs what `python -m monai.bundle run` would, and notes the branch of each of its batches.
RANK = """
import json, os, sys
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

torch.set_num_threads(1)
files, overrides = json.load(open(sys.argv[1]))
workflow = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", **overrides)
workflow.initialize()
parser, branches = workflow.parser, []
workflow.trainer.add_event_handler(
    Events.ITERATION_COMPLETED, lambda engine: branches.append(int(engine.state.batch["branch"][0]))
)
net = parser.get_parsed_content("network_def")
start = [branch.weight.detach().clone() for branch in net.decoder.branches]
workflow.run()
report = {
    "branches": branches,
    "weights": [parameter.detach().double().sum().item() for parameter in net.parameters()],
    "moved": [not torch.equal(old, new.weight) for old, new in zip(start, net.decoder.branches)],
    "val_loss": float(parser.get_parsed_content("validate#evaluator").state.metrics["val_loss"]),
}
with open(f"{overrides['output_dir']}/{os.environ['RANK']}.json", "w") as file:
    json.dump(report, file)
workflow.finalize()
"""


def test_processes_have_one_branch_at_a_time_and_end_alike(cohort, tmp_path, run_ranks):
    settings = {
        "dataset_dir": str(cohort),
        "output_dir": str(tmp_path),
        "roi_size": [32] * 3,
        "segmentation_net#width": 4,
        "batch_size": 2,
        "batches_per_epoch": 4,
        "max_epochs": 1,
        # A validation scan of 8 mm is predicted from one window, that of 4 mm, which the other process has, from eight.
        "domains#0#spacing": [4.0] * 3,
        "domains#1#spacing": [8.0] * 3,
    }
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job").write_text(json.dumps([[str(CONFIGS / name) for name in FILES], settings]))
    run_ranks(tmp_path / "rank.py", tmp_path / "job", timeout=300)

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["branches"] == second["branches"] and sorted(first["branches"]) == [0, 0, 1, 1]
    assert first["weights"] == second["weights"] and first["moved"] == second["moved"] == [True, True]
    assert first["val_loss"] == second["val_loss"]
    _, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == "MultiBranchNet"
