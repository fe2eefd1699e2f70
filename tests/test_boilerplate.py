from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ("metadata", "pretrain", "train", "evaluate", "inference")


def make(*arguments: str | Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "tools.boilerplate", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def bundle(tmp_path):
    """Base files of a new bundle, and nothing else."""
    folder = tmp_path / "mine"
    (folder / "configs").mkdir(parents=True)
    for name in BASE:
        shutil.copy(ROOT / f"bundles/pretrain_once/configs/{name}.json", folder / "configs")
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_committed_is_what_is_made():
    assert make("--check") == (0, "")


def test_a_new_bundle_gets_the_files_of_the_others(bundle):
    assert make(bundle)[0] == 0
    assert make(bundle, "--check") == (0, "")
    made = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    made -= {f"configs/{name}.json" for name in BASE}
    assert len(made) == 16
    for name in made:
        text = (ROOT / "bundles/pretrain_once" / name).read_text()
        assert (bundle / name).read_text() == text.replace('"pretrain_once"', '"mine"'), name


def test_a_change_by_hand_is_found(bundle):
    make(bundle)
    configs = bundle / "configs"
    edit(configs / "multi_gpu_train.json", finalize=[])
    (configs / "logging.conf").unlink()
    status, text = make(bundle, "--check")
    assert status == 1 and not (configs / "logging.conf").exists()
    lines = [f"{configs / name} is not what" for name in ("logging.conf", "multi_gpu_train.json")]
    assert all(line in text for line in lines) and len(text.splitlines()) == 2
    assert make(bundle)[0] == 0 and make(bundle, "--check") == (0, "")


def test_what_follows_from_the_base_files(bundle):
    configs = bundle / "configs"
    train, inference = (json.loads((configs / f"{name}.json").read_text()) for name in ("train", "inference"))
    train["initialize"].append("$print()")
    train["train"]["dataloader"]["shuffle"] = False
    inference["inferer"]["sw_batch_size"] = 7
    inference["save_output"]["folder_layout"]["postfix"] = "mask"
    edit(configs / "train.json", **train)
    edit(configs / "inference.json", **inference)
    (configs / "pretrain.json").unlink()
    make(bundle)
    read = {path.name: json.loads(path.read_text()) for path in configs.rglob("*.json")}
    assert "multi_gpu_pretrain.json" not in read
    several = read["multi_gpu_train.json"]
    assert several["processes"] == {"_target_": "common.distributed.start"} and "initialize" not in several
    assert "train#sampler" not in several and "validate#sampler" in several
    assert read["inference_trt.json"]["trt_args"]["dynamic_batchsize"] == [1, 7, 7]
    assert read["nifti.json"]["save_output"]["folder_layout"]["postfix"] == "mask"
    layout = read["dicom_seg.json"]["save_output"]["folder_layout"]
    assert (layout["postfix"], layout["extension"]) == ("mask", ".dcm")


def test_base_files_that_lack_something(bundle):
    seed = "$monai.utils.set_determinism(0)"
    for steps, lacks in ((["$print()"], "$monai.utils.set_determinism"), ([seed, "@processes"], "@processes before")):
        edit(bundle / "configs/train.json", initialize=steps)
        status, text = make(bundle)
        assert status == 1 and f"`initialize` of train.json has no step {lacks}" in text
    (bundle / "configs/inference.json").unlink()
    status, text = make(bundle)
    assert status == 1 and "inference.json" in text and "Traceback" not in text
