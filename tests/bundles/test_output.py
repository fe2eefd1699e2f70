"""What a user reads while a bundle runs."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from common.checks import FULL_LOG
from common.child_process import child_environment
from common.warm_start import start_child

ROOT = Path(__file__).resolve().parents[2]
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - ([\w.]+) - (\w+) - (.*)")


@pytest.fixture
def output(cohort, tmp_path, monkeypatch):
    """Lines of ``python -m monai.bundle run`` with small settings of a bundle; a time is left out of a logged one."""
    monkeypatch.chdir(ROOT)
    environment = {
        name: value for name, value in child_environment().items() if name not in (FULL_LOG, "PYTHONWARNINGS")
    }

    def run(bundle: str, *files: str, **values) -> list[str]:
        folder = ROOT / "bundles" / bundle
        small = json.loads((folder / "small.json").read_text())
        names = [str(folder / "configs" / name) for name in (*files, *small["files"])]
        words = ["--config_file", str(names), "--bundle_root", str(folder), "--dataset_dir", str(cohort)]
        evaluation = "train.json" not in files[-1:] and "pretrain.json" not in files
        skipped = {"max_epochs", "val_interval", "batch_size", "batches_per_epoch"} if evaluation else set()
        for key, value in {**small["values"], **values, "output_dir": str(tmp_path / "run")}.items():
            if key not in skipped and (key != "map_size" or "pretrain.json" in files):
                words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        log = tmp_path / "output"
        with log.open("w") as file:
            child = start_child([sys.executable, "-m", "monai.bundle", "run", *words], file.fileno(), environment)
            assert child.wait() == 0, log.read_text()
        return [re.sub(LOGGED, r"\1 \2 \3", line) for line in log.read_text().splitlines() if line]

    return run


@pytest.mark.slow  # three runs and an import of MONAI
def test_a_run_says_everything_once(output, tmp_path):
    """What runs, progress with loss and time left, each validation's score, where the files are; nothing else."""
    folder = tmp_path / "run"
    two = {"max_epochs": 2, "val_interval": 1}
    pretrained = output("ssl3d", "pretrain.json", **two)
    trained = output("ssl3d", "train.json", pretrained_encoder=str(folder / "encoder.safetensors"), **two)
    evaluated = output("ssl3d", "train.json", "evaluate.json")
    for lines in (pretrained, trained, evaluated):
        for line in lines:
            print(line)
        assert not [line for line, count in Counter(lines).items() if count > 1]
        assert not [line for line in lines if line.startswith(("ignite", "monai.bundle")) or "WARNING" in line]
        assert sum(f"files go to {folder}." in line for line in lines) == 1
    for lines, score in ((pretrained, "val_loss"), (trained, "val_mean_dice")):
        progress = [line for line in lines if re.match(r"(pre-training|fine-tuning) epoch", line)]
        assert re.fullmatch(r"\S+ epoch 1/2: loss \d\.\d{4}, \d+\.\d s, about \d\d:\d\d left", progress[0])
        assert re.fullmatch(r"\S+ epoch 2/2: loss \d\.\d{4}, \d+\.\d s", progress[1]) and len(progress) == 2
        assert sum(score in line for line in lines) == 2
        assert lines[-1] == f"common.handlers.checkpoint INFO finished; the files of this run are in {folder}."
    assert sum("effective_rank" in line for line in pretrained) == 2
    assert sum(f"written to {folder / 'encoder.safetensors'}." in line for line in pretrained) == 1
    assert sum(f"written to {folder / 'model.pt'}." in line for line in trained) in (1, 2)
    assert sum("val_mean_dice:" in line for line in evaluated) == 1
    assert evaluated[-1] == f"common.handlers.output_folder INFO tables of the evaluation: {folder / 'eval'}"
