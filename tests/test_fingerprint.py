from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from common.fingerprint import Fingerprint, ScanFacts, scan_facts
from common.volumes import VolumeError

ROOT = Path(__file__).resolve().parents[1]


def write(path, values, spacing=(1.0, 1.0, 1.0), axcodes="RAS"):
    """A NIfTI file of these voxels, whose axes run left to right, back to front and up before it is turned."""
    image = nib.Nifti1Image(np.asarray(values), np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    nib.save(image.as_reoriented(turn), path)
    return path


def brain(shape=(24, 28, 20), seed=0):
    """An MR scan: a bright block in noise of air."""
    random = np.random.default_rng(seed)
    values = random.rayleigh(5, shape)
    values[4:-4, 4:-4, 4:-4] += random.uniform(100, 300, np.array(shape) - 8)
    return values.astype(np.int16)


def body(shape=(24, 28, 20), seed=0):
    """A CT scan: soft tissue and fat in air."""
    random = np.random.default_rng(seed)
    values = np.full(shape, -1000.0)
    values[2:-2, 2:-2, 2:-2] = random.choice([-100.0, 40.0, 60.0, 700.0], np.array(shape) - 4)
    return values.astype(np.int16)


@pytest.fixture
def trained(tmp_path):
    """Fingerprint of three MR scans of 1 mm."""
    return Fingerprint.of(
        scan_facts(write(tmp_path / f"t{n}.nii.gz", brain((24, 28, 20 + n), n), (1, 1, 1 + 0.1 * n))) for n in range(3)
    )


def test_facts_are_those_of_the_file(tmp_path):
    file = write(tmp_path / "a.nii.gz", body(), (1.0, 2.0, 3.0), "PIR")
    facts = scan_facts(file)
    assert (facts.file, facts.channels, facts.orientation) == (str(file), 1, "PIR")
    assert facts.shape == (28, 20, 24)
    assert facts.spacing == (2.0, 3.0, 1.0)
    assert facts.quantiles[2] == pytest.approx(40, abs=25)
    assert facts.air == pytest.approx(float((body() < -200).mean()), abs=1e-6)
    assert ScanFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (body(), "CT"),
        (body()[2:-2, 2:-2, 2:-2], "CT"),  # a crop without air
        (brain(), "MR"),
        ((brain().astype(np.float32) - 100) / 50, "MR"),  # normalised
        (brain().astype(np.float32) * 1000 - 20000, "MR"),  # offsets of no unit
    ],
)
def test_modality_is_told_by_the_units_of_ct(tmp_path, values, modality):
    assert scan_facts(write(tmp_path / "a.nii.gz", values)).modality == modality


def test_several_files_are_channels(tmp_path):
    first, second = write(tmp_path / "a_0000.nii.gz", brain()), write(tmp_path / "a_0001.nii.gz", brain(seed=1) * 2)
    facts = scan_facts([first, second])
    assert (facts.file, facts.channels, len(facts.quantiles)) == (str(first), 2, 10)
    assert facts.quantiles[7] > 1.5 * facts.quantiles[2]
    other = write(tmp_path / "a_0002.nii.gz", brain((24, 28, 21)))
    with pytest.raises(VolumeError, match=r"shape 24x28x20, but its channel .*a_0002.nii.gz 24x28x21"):
        scan_facts([first, other])


def test_damaged_files_are_refused_as_everywhere(tmp_path):
    file = write(tmp_path / "a.nii.gz", brain())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(VolumeError):
        scan_facts(file)
    with pytest.raises(VolumeError, match="does not exist"):
        scan_facts(tmp_path / "none.nii.gz")
    with pytest.raises(VolumeError, match="is constant"):
        scan_facts(write(tmp_path / "c.nii.gz", np.ones((5, 5, 5), np.int16)))


def test_scans_like_the_training_scans_differ_in_nothing(tmp_path, trained):
    assert trained.differences(scan_facts(write(tmp_path / "a.nii.gz", brain((26, 30, 22), 7)))) == []
    turned = write(tmp_path / "b.nii.gz", brain((24, 28, 20), 8) * 50, (1, 1, 1.2), "PIR")
    assert trained.differences(scan_facts(turned)) == []


@pytest.mark.parametrize(
    ("values", "spacing", "what", "severity", "words"),
    [
        (body(), (1, 1, 1), "modality", "refuse", "Hounsfield units"),
        (
            np.stack([brain()] * 2, -1),
            (1, 1, 1),
            "channels",
            "refuse",
            "it has 2 channels, but the training scans have 1",
        ),
        (brain(), (1, 1, 2), "spacing", "warn", "voxels of 2 mm (up-down), the training scans of 1 to 1.2 mm"),
        (brain((24, 28, 10)), (1, 1, 5), "spacing", "refuse", "voxels of 5 mm (up-down)"),
        (brain((48, 28, 20)), (1, 1, 1), "size", "warn", "a size of 48 mm (left-right), the training scans of 24 mm"),
        (brain().clip(0, 150), (1, 1, 1), "contrast", "warn", "it has another contrast (a median at 1.00 of"),
        (brain((24, 90, 20)), (1, 1, 1), "size", "refuse", "a size of 90 mm (front-back)"),
    ],
)
def test_others_differ_by_the_rule(tmp_path, trained, values, spacing, what, severity, words):
    facts = scan_facts(write(tmp_path / "a.nii.gz", values, spacing))
    found = {one.what: one for one in trained.differences(facts)}
    assert found[what].severity == severity
    assert words in found[what].sentence


def test_an_mr_scan_is_refused_by_a_fingerprint_of_ct(tmp_path):
    trained = Fingerprint.of([scan_facts(write(tmp_path / "ct.nii.gz", body()))])
    (found,) = trained.differences(scan_facts(write(tmp_path / "a.nii.gz", brain())))
    assert (found.what, found.severity, found.sentence) == (
        "modality",
        "refuse",
        "it is not CT, the training scans are CT",
    )


def test_json_keeps_the_fingerprint_and_names_no_file(trained):
    values = json.loads(json.dumps(trained.to_json()))
    assert Fingerprint.from_json(values) == trained
    assert ".nii" not in json.dumps(values)
    with pytest.raises(ValueError, match="format 9"):
        Fingerprint.from_json(values | {"format": 9})
    with pytest.raises(ValueError, match="damaged"):
        Fingerprint.from_json({"format": 1})


BACKGROUND = """
import sys, threading
import common.fingerprint as module

facts, read, go_on = module.scan_facts, [], threading.Event()

def scan_facts(path):
    if threading.current_thread() is not threading.main_thread():
        go_on.wait()
        read.append(path)
    return facts(path)

module.scan_facts = scan_facts
for files in (sys.argv[1:3], sys.argv[3:]):  # of NIfTI, which needs less, first
    read.clear()
    go_on.clear()
    made = module.FingerprintInTheMaking([{"image": path} for path in files])
    before = set(sys.modules)
    go_on.set()
    assert made.record()["fingerprint"]["scans"] == 2 and read == files[1:]
    assert set(sys.modules) == before, sorted(set(sys.modules) - before)
"""


@pytest.mark.slow  # imports everything in a process of its own
def test_the_thread_imports_nothing(tmp_path):
    """MONAI goes through `sys.modules` to find the classes of a config, which fails while another thread imports."""
    files = [str(tmp_path / name) for name in ("0.nii.gz", "1.nii.gz", "0.mha", "1.mha")]
    for seed, path in enumerate(files):
        if path.endswith(".mha"):
            itk.imwrite(itk.image_from_array(brain(seed=seed)), path)
        else:
            write(path, brain(seed=seed))
    subprocess.run([sys.executable, "-c", BACKGROUND, *files], cwd=ROOT, check=True)
