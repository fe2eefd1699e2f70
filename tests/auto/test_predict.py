from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.auto.predict import exit_status, predict
from common.fingerprint import FingerprintInTheMaking
from common.pack import pack
from common.preparation import preparation_record
from common.weights.model_file import save_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scans(cohort):
    """The cohort's T1 scans."""
    content = json.loads((cohort / "structures4.json").read_text())
    return [str(cohort / item["image"]) for item in content["training"]]


@pytest.fixture(scope="module")
def packed(run_bundle, tiny, scans, tmp_path_factory):
    """A tiny network, drawn at random, in a pack; it was trained on the cohort's scans by its record."""
    folder = tmp_path_factory.mktemp("packed")
    workflow = run_bundle("inference.json", tiny["unetr"], workflow_type="inference", execute=False, task="structures4")
    net, images = (workflow.parser.get_parsed_content(name) for name in ("network_def", "preprocessing"))
    record = {"preparation": preparation_record(images, task="structures4")}
    save_model(
        net.state_dict(),
        folder / "model.pt",
        record | FingerprintInTheMaking([{"image": one} for one in scans]).record(),
    )
    return pack(
        ROOT / "bundles/pretrain_once", folder, [folder / "model.pt"], config_file=[Path(tiny["unetr"])],
        override={"task": "structures4", "device": "cpu"},
    )[0]  # fmt: skip


@pytest.fixture
def images(tmp_path, scans):
    """A folder of two scans, a CT, and a file that is cut off."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(scans[0], folder / "a.nii.gz")
    shutil.copy(scans[1], folder / "d.nii.gz")
    scan = nib.load(scans[0])
    values = scan.get_fdata()
    ct = np.where(values > 0, values / values.max() * 100, -1000).astype(np.int16)
    nib.save(nib.Nifti1Image(ct, scan.affine), folder / "b.nii.gz")
    (folder / "c.nii.gz").write_bytes(Path(scans[2]).read_bytes()[:-500])
    return folder


def test_cases_that_fit_get_masks_and_the_others_a_reason(packed, images, tmp_path, capsys, unchanged):
    output = tmp_path / "masks"
    path = list(sys.path)
    with unchanged():
        found = predict(packed, images, output)
    assert [(one.name, one.status) for one in found] == [
        ("a", "done"),
        ("b", "refused"),
        ("c", "refused"),
        ("d", "done"),
    ]
    assert exit_status(found) == 1
    assert "Hounsfield" in found[1].reason and found[1].reason.endswith("accept this one with --force.")
    assert str(images / "c.nii.gz") in found[2].reason
    assert found[0].source == (images / "a.nii.gz",)
    for one in found[::3]:
        mask, scan = nib.load(one.mask), nib.load(one.source[0])
        assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine)
    assert sorted(file.name for file in output.iterdir()) == ["a.nii.gz", "d.nii.gz", "predictions.json"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "4/4 d: done" and any(line.startswith("1/4 a: done (about ") for line in lines)
    assert not [name for name in sys.modules if name.split(".")[0] == "scripts"]
    assert sys.path == path


def test_masks_are_those_of_the_packs_own_command(packed, scans, tmp_path, run_bundle, tiny, unchanged):
    with unchanged():
        (one,) = predict(packed, scans[0], tmp_path / "masks", progress=False)
    run_bundle(
        "inference.json", tiny["unetr"], workflow_type="inference", task="structures4", datalist=scans[0],
        dataset_dir=str(Path(scans[0]).parent), output_dir=str(tmp_path), model_path=str(packed / "models/model.pt"),
    )  # fmt: skip
    (other,) = tmp_path.glob("*_seg.nii.gz")
    assert np.array_equal(nib.load(one.mask).get_fdata(), nib.load(other).get_fdata())


def test_what_is_done_is_skipped_until_the_scan_or_the_model_changes(packed, images, scans, tmp_path, unchanged):
    def run(model=packed, **values):
        with unchanged():
            return {
                one.name: one.status for one in predict(model, images, tmp_path / "masks", progress=False, **values)
            }

    for name in ("b", "c"):
        (images / f"{name}.nii.gz").unlink()
    assert run() == {"a": "done", "d": "done"}
    assert run() == {"a": "skipped", "d": "skipped"}
    shutil.copy(scans[2], images / "a.nii.gz")
    assert run() == {"a": "done", "d": "skipped"}
    (tmp_path / "masks" / "d.nii.gz").unlink()
    assert run() == {"a": "skipped", "d": "done"}
    other = shutil.copytree(packed, tmp_path / "other")
    with open(other / "configs" / "inference.json", "a") as config:
        config.write("\n")
    assert run(other) == {"a": "done", "d": "done"}
    assert run(other, force=True) == {"a": "done", "d": "done"}


def test_forced_scans_are_taken_with_a_warning(packed, images, tmp_path, caplog, unchanged):
    (images / "c.nii.gz").unlink()
    with unchanged():
        found = predict(packed, images, tmp_path / "masks", force=True, progress=False)
    assert [one.status for one in found] == ["done"] * 3 and exit_status(found) == 0
    assert f"{images / 'b.nii.gz'} is unlike the scans" in caplog.text


def test_files_of_nnunets_names_are_channels_of_a_case(packed, images, scans, tmp_path, unchanged):
    for file in images.iterdir():
        file.unlink()
    for name in ("x_0000", "y_0000", "y_0001", "z_2019"):
        shutil.copy(scans[0], images / f"{name}.nii.gz")
    with unchanged():
        found = predict(packed, images, tmp_path / "masks", progress=False)
    assert [(one.name, one.status) for one in found] == [("x", "done"), ("y", "refused"), ("z_2019", "done")]
    assert [file.name for file in found[1].source] == ["y_0000.nii.gz", "y_0001.nii.gz"]
    assert "has 2 channels, but the network takes 1" in found[1].reason


def test_what_cannot_be_done_is_refused_in_a_sentence(packed, images, tmp_path):
    with pytest.raises(ValueError, match=r"a\.nii\.gz would overwrite it"):
        predict(packed, images, images)
    with pytest.raises(FileNotFoundError, match="not a packed bundle with its model"):
        predict(images, images, tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*none; set --images to the images"):
        predict(packed, tmp_path / "none", tmp_path / "masks")
    with pytest.raises(ValueError, match=r"set --images to the folder of the images, or .* give it with --images FILE"):
        predict(packed, images.parent, tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        predict(tmp_path / "none", images, tmp_path / "masks")
    shutil.copy(images / "a.nii.gz", images / "a.mha")
    with pytest.raises(ValueError, match=r"would both have the mask a\.nii\.gz"):
        predict(packed, images, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()
