"""Scans of real sets against the fingerprint of others of their set, and of other sets and modalities."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.fingerprint import Fingerprint, scan_facts, spread

DATA = Path(__file__).parents[3] / "shared" / "data"
SETS = {"hippocampus": "imagesTr", "ixi": "t1", "acdc": "images"}


@pytest.fixture(scope="module")
def facts():
    """``facts(name)``: of ten training scans and twelve others of a set, split by patient."""
    made = {}

    def give(name):
        if not (DATA / name).is_dir():
            pytest.skip(f"the real scans are not at {DATA / name}")
        if name not in made:
            files = sorted((DATA / name / SETS[name]).glob("[!.]*.nii.gz"))
            half = len(files) // 4 * 2  # ACDC has two frames a patient
            parts = (spread(files[:half], 10), spread(files[half:], 12))
            made[name] = [[scan_facts(file) for file in part] for part in parts]
        return made[name]

    return give


@pytest.mark.parametrize("name", SETS)
def test_held_out_scans_of_a_set_are_not_refused(facts, name):
    training, others = facts(name)
    fingerprint = Fingerprint.of(training)
    refused = [one for scan in others for one in fingerprint.differences(scan) if one.severity == "refuse"]
    assert refused == []
    assert fingerprint.modalities == {"MR": 10}


def test_scans_of_another_organ_and_of_ct_are_refused(facts):
    for name in SETS:
        fingerprint = Fingerprint.of(facts(name)[0])
        for other in {"hippocampus", "ixi"} - {name}:
            for scan in facts(other)[1]:
                assert "refuse" in {one.severity for one in fingerprint.differences(scan)}, (name, scan.file)
        for file in ("abdomen_ct", "spleen_ct"):
            found = fingerprint.differences(scan_facts(DATA / "ct" / f"{file}.nii.gz"))
            assert ("modality", "refuse") in [(one.what, one.severity) for one in found]


def test_mr_scans_are_refused_by_a_network_of_ct(facts):
    scans = [scan for name in SETS for scan in facts(name)[1]]  # skips where there are none
    fingerprint = Fingerprint.of([scan_facts(DATA / "ct" / f"{name}.nii.gz") for name in ("abdomen_ct", "spleen_ct")])
    for scan in [*scans, scan_facts(DATA / "ct" / "abdomen_mr.nii.gz")]:
        assert ("modality", "refuse") in [(one.what, one.severity) for one in fingerprint.differences(scan)]
