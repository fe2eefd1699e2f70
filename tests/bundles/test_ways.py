"""Every bundle, small, in each way it is used: from a foreign folder, packed, by two processes, on DICOM, on bad files.

Where the ways are the business of one bundle only, its own tests have them, with the same mark.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import pytest
import torch

from common.checks import own_sentence
from common.pack import pack
from common.weights import read_encoder

ROOT = Path(__file__).resolve().parents[2]

# Pre-trains, trains, evaluates and infers with each bundle by MONAI's command, all in one process, because importing
# MONAI takes the longest; of packed ones the evaluation and the second stage are left out, and every module is imported
# and every target looked up. What ends one bundle is its result.
COMMANDS = """
import importlib, json, os, pydoc, runpy, sys, traceback
from pathlib import Path

_, job, written = sys.argv
job = json.load(open(job))
results = {}

def unload():  # as MONAI Label does between bundles
    for module in [module for module in sys.modules if module.split(".")[0] == "scripts"]:
        del sys.modules[module]

def targets(value):
    if isinstance(value, dict):
        yield from [value["_target_"]] if "_target_" in value else []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from targets(item)

def find_all(bundle):
    sys.path.insert(0, bundle)
    names = {name for path in Path(bundle).rglob("*.json") for name in targets(json.loads(path.read_text()))}
    names = {name for name in names if name.startswith("scripts.")}
    files = Path(bundle, "scripts").rglob("*.py")
    modules = [".".join(path.relative_to(bundle).with_suffix("").parts).removesuffix(".__init__") for path in files]
    for module in modules:
        importlib.import_module(module)
    lost = [name for name in names if pydoc.locate(name) is None]
    assert not lost and len(names) > 40 and len(modules) > 40, (lost, len(names), len(modules))
    assert not any("compare" in name for name in modules), "a tool that no config needs"

for name, (root, overlays, second_stage) in job["bundles"].items():
    def run(*files, **overrides):
        files = str([path if os.path.isabs(path) else os.path.join(root, "configs", path) for path in files])
        options = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        sys.argv = ["", "run", "--config_file", files, "--bundle_root", root, "--dataset_dir", job["data"], *options]
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

    path = list(sys.path)
    out = os.path.join(job["out"], name)
    encoder = os.path.join(out, "encoder.safetensors")
    try:
        run("pretrain.json", *overlays, output_dir=out)
        if second_stage and not job["packed"]:
            run("pretrain.json", *second_stage, *overlays, output_dir=out, pretrained_encoder=encoder)
        run("train.json", *overlays, output_dir=out, pretrained_encoder=encoder)
        if not job["packed"]:
            run("train.json", "evaluate.json", *overlays, output_dir=out)
        run("inference.json", *overlays, output_dir=out + "/masks", model_path=out + "/model.pt")
        origin = sys.modules["scripts.common.checks" if job["packed"] else "common.checks"].__file__
        results[name] = "done" if origin.startswith(job["code"] or root) else f"the code is that of {origin}"
        if job["packed"]:
            find_all(root)
    except BaseException:
        results[name] = traceback.format_exc()
    sys.path[:] = path
    unload()
json.dump(results, open(written, "w"))
"""


def command(folder: Path, bundles: dict, cohort: Path, packed: bool, path: str, first: str = "") -> dict[str, str]:
    """Runs all bundles, behind the code `first`, from a folder that is none of theirs; how it ended for each."""
    (folder / "elsewhere").mkdir()
    job = {"bundles": bundles, "data": str(cohort), "out": str(folder / "out"), "packed": packed}
    (folder / "job.json").write_text(json.dumps(job | {"code": None if packed else str(ROOT)}))
    done = subprocess.run(
        [sys.executable, "-c", first + COMMANDS, str(folder / "job.json"), str(folder / "results.json")],
        cwd=folder / "elsewhere",
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert list((folder / "elsewhere").iterdir()) == []
    return json.loads((folder / "results.json").read_text())


def what_a_run_leaves(folder: Path) -> None:
    """An encoder, a model, and a mask of each of two scans on its grid."""
    read_encoder(folder / "encoder.safetensors")
    assert torch.load(folder / "model.pt", weights_only=True)
    masks = list((folder / "masks").rglob("*_seg.nii.gz"))
    assert len(masks) == 2 and all(nib.load(path).shape == (40, 48, 40) for path in masks)


@pytest.fixture(scope="module")
def from_elsewhere(chosen, small, small_files, cohort, child_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    bundles = {
        name: [str(ROOT / "bundles" / name), small_files[name], small[name].second_stage]
        for name in chosen("test_runs_from_a_foreign_folder")
    }
    return folder / "out", command(folder, bundles, cohort, packed=False, path=child_path)


# Packed, each bundle runs in a foreign folder, too.
@pytest.mark.slow
@pytest.mark.way("foreign folder")
def test_runs_from_a_foreign_folder(from_elsewhere, bundle):
    folder, results = from_elsewhere
    assert results[bundle] == "done", results[bundle]
    what_a_run_leaves(folder / bundle)
    assert (folder / bundle / "eval/metrics.csv").stat().st_size


@pytest.fixture(scope="module")
def packed(chosen, small_files, without_common, cohort, quick_start, tmp_path_factory):
    """All bundles out of their archives, one after the other in one process that has no `common`."""
    folder = tmp_path_factory.mktemp("packed")
    bundles = {}
    for name in chosen("test_runs_packed"):
        _, archive = pack(ROOT / "bundles" / name, folder / "archives")
        with zipfile.ZipFile(archive) as stream:
            stream.extractall(folder / "unpacked")
        bundles[name] = [str(folder / "unpacked" / name), small_files[name], []]
    return folder / "out", command(folder, bundles, cohort, packed=True, path=quick_start, first=without_common)


@pytest.mark.way("packed")
def test_runs_packed(packed, bundle):
    folder, results = packed
    assert results[bundle] == "done", results[bundle]
    what_a_run_leaves(folder / bundle)


@pytest.mark.way("bad files refused")
def test_inference_refuses_with_a_sentence(run_bundle, small_files, small_model, cohort, bundle, tmp_path):
    """And writes no mask."""
    model = small_model(bundle)
    other = torch.load(model, weights_only=True)
    other["something else"] = other.pop(next(iter(other)))
    torch.save(other, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "scan.nii.gz").touch()
    image = nib.load(next((cohort / "t1_brain").glob("*.nii.gz")))
    (tmp_path / "cut").mkdir()
    nib.save(image, tmp_path / "cut" / "scan.nii")
    content = (tmp_path / "cut" / "scan.nii").read_bytes()
    (tmp_path / "cut" / "scan.nii").write_bytes(content[: len(content) // 2])

    def sentence(**overrides) -> str:
        given = {"dataset_dir": str(cohort), "model_path": str(model), "output_dir": str(tmp_path / "masks")}
        with pytest.raises(Exception) as caught:
            run_bundle(
                "inference.json",
                *small_files[bundle],
                bundle=bundle,
                workflow_type="inference",
                **(given | overrides),
            )
        return own_sentence(caught.value)

    missing = f"{tmp_path}/none"
    assert f"no model {missing}" in sentence(model_path=missing)
    assert f"{tmp_path}/other.pt belongs to another network" in sentence(model_path=f"{tmp_path}/other.pt")
    assert missing in sentence(dataset_dir=missing, datalist=missing)
    for folder, file, text in (("empty", "scan.nii.gz", "is empty"), ("cut", "scan.nii", "cannot be read")):
        where = str(tmp_path / folder)
        said = sentence(dataset_dir=where, datalist=where)
        assert f"{where}/{file}" in said and text in said
    assert not list(tmp_path.rglob("*_seg*"))
