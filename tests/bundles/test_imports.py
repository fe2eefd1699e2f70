"""What a run of a bundle imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# `import monai` takes along whatever of these is installed. A run would hide behind it that it imports them itself, so
# MONAI is told that they are missing.
UNUSED = (
    "highdicom", "matplotlib", "mlflow", "nilearn", "nvflare", "onnx", "onnxruntime", "onnxscript", "optuna", "skimage",
    "submitit", "timm", "torchvision", "transformers",
)  # fmt: skip
START = f"""
import atexit, json, os, sys

class NotForMonai:
    @staticmethod
    def find_spec(name, path=None, target=None):
        monai = sys.modules.get("monai")
        if name in {UNUSED} and getattr(getattr(monai, "__spec__", None), "_initializing", False):
            raise ImportError(name + " is not imported while MONAI is")

sys.meta_path.insert(0, NotForMonai)
atexit.register(lambda: json.dump(sorted(sys.modules), open(os.environ["IMPORTED"], "w")))
"""


BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
NAMED = {"transseg": {"transformers"}}
"""Packages whose networks a bundle's configs name."""


@pytest.mark.parametrize(
    "bundle, name",
    [
        pytest.param(bundle, name, marks=() if (bundle, name) == ("ssl3d", "train.json") else pytest.mark.slow)
        for bundle in BUNDLES
        for name in ("train.json", "pretrain.json")
    ],
)
def test_no_package_that_the_config_does_not_name(cohort, small_files, tmp_path, bundle, name):
    """Each of them takes a second or more of every start."""
    (tmp_path / "sitecustomize.py").write_text(START)
    words = [f"configs/{name}", *(f"configs/{file}" for file in small_files[bundle][:-1]), small_files[bundle][-1]]
    ids = {"dataset_dir": cohort, "output_dir": tmp_path / "run", "device": "cpu"}
    if "log_images" in json.loads((ROOT / "bundles" / bundle / "configs" / name).read_text()):
        ids["log_images"] = 0  # with them matplotlib
    ended = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(words)]
        + [word for key, value in ids.items() for word in (f"--{key}", str(value))],
        cwd=ROOT / "bundles" / bundle,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "IMPORTED": str(tmp_path / "imported.json")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    packages = {module.partition(".")[0] for module in json.loads((tmp_path / "imported.json").read_text())}
    assert {"common", "monai", "torch"} <= packages
    assert not (packages & set(UNUSED)) - NAMED.get(bundle, set())
