import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage as ndi

from common.data import load_datalist
from common.data.sample import VERSION, make_sample, make_subject
from common.data.sample import cohort as building
from common.data.sample import subject as making
from common.data.sample.cohort import _remove_killed

SPACING = 4.0  # an eighth of the voxels
TINY = {"subjects": 6, "unlabelled": 2, "spacing": SPACING, "progress": False}
TASKS = {"structures4": ("structures4", 5), "skull": ("brain_mask", 2), "lesion": ("lesion", 4)}


@pytest.fixture(scope="module")
def subjects():
    return [make_subject(index, spacing=SPACING) for index in range(12)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return Path(make_sample(tmp_path_factory.mktemp("cohort") / "sample", **TINY))


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def arrays(subject):
    return {key: value for key, value in subject.items() if isinstance(value, np.ndarray)}


def axes(subject):
    """Millimetres along each axis of the brain's grid."""
    corner, shape = subject["brain_affine"][:3, 3], subject["structures4"].shape
    return [c + SPACING * np.arange(n) for c, n in zip(corner, shape, strict=True)]


def ventricle_share(subject):
    """CSF more than 18 mm from the edge of the brain, against the brain."""
    inside = subject["structures4"] > 0
    depth = SPACING * ndi.distance_transform_edt(inside)
    return ((subject["structures4"] == 4) & (depth > 18)).sum() / inside.sum()


def hippocampal_volume(subject):
    """Subcortical grey matter in the lower temporal lobes, in front of the cerebellum, in voxels."""
    _, y, z = axes(subject)
    return (subject["structures4"][:, y > -30][:, :, z < -6] == 2).sum()


def test_a_seed_has_its_bits(subjects):
    np.random.seed(123)
    again = make_subject(3, spacing=SPACING)
    for key, value in arrays(subjects[3]).items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    other = make_subject(3, seed=1, spacing=SPACING)
    assert (other["t1"] != subjects[3]["t1"]).mean() > 0.5
    assert (other["structures4"] != subjects[3]["structures4"]).mean() > 0.03


def test_the_files_have_the_same_bits_too(cohort, tmp_path):
    assert digests(Path(make_sample(tmp_path / "again", **TINY))) == digests(cohort)


def test_leaving_out_the_lesion_changes_nothing_else(subjects):
    plain = make_subject(0, spacing=SPACING, lesion=False)
    assert "lesion" not in plain and "lesion_image" not in plain
    for key, value in arrays(plain).items():
        np.testing.assert_array_equal(value, subjects[0][key], err_msg=key)


def test_subjects_differ(subjects):
    for first, second in pairwise(subjects):
        union = (first["structures4"] > 0) | (second["structures4"] > 0)
        assert (first["structures4"] != second["structures4"])[union].mean() > 0.1
    volumes = [s["brain_mask"].sum() for s in subjects]
    assert np.std(volumes) / np.mean(volumes) > 0.03


def test_intensities_follow_the_labels(subjects):
    for subject in subjects:
        csf, cortex, deep, white = (subject["t1_brain"][subject["structures4"] == k].mean() for k in (4, 1, 2, 3))
        assert csf < min(cortex, deep) and max(cortex, deep) < white
        # Shifted by two voxels, the labels explain less of the image: they are aligned, not only plausible.
        inside = subject["structures4"] > 0
        explained = []
        for shift in (0, 2):
            labels = np.roll(subject["structures4"], shift, axis=0)
            both = inside & (labels > 0)
            image = subject["t1_brain"][both].astype(float)
            means = np.zeros(5)
            for k in range(1, 5):
                means[k] = image[labels[both] == k].mean()
            explained.append(1 - np.mean((image - means[labels[both]]) ** 2) / image.var())
        assert explained[0] > 0.25 and explained[0] > 2 * explained[1]


def test_the_cerebellum_has_no_cortex(subjects):
    """As in `label_maps/structures.json`; judged in boxes that lie inside or outside of it whatever the deformation."""
    for subject in subjects:
        x, y, z = axes(subject)

        def share(where, label, labels=subject["structures4"]):
            grey = labels[np.ix_(*where)]
            return (grey == label).sum() / np.isin(grey, (1, 2)).sum()

        cerebellum = (abs(x) < 34, (y > -76) & (y < -52), (z > -48) & (z < -36))
        assert share(cerebellum, 2) == 1
        occipital = (abs(x) < 40, y < -60, z > 14)
        lower_temporal = (abs(x) > 42, (y > -25) & (y < 0), z < -14)
        assert share(occipital, 1) == 1 and share(lower_temporal, 1) == 1
        # The brain stem is white matter, not cerebellum.
        stem = subject["structures4"][np.ix_(abs(x) < 5, (y > -28) & (y < -22), (z > -38) & (z < -28))]
        assert (stem == 3).mean() > 0.8


def test_the_brain_mask_is_the_structures_in_place(subjects):
    for subject in subjects:
        voxels = np.argwhere(subject["structures4"] > 0)
        world = nib.affines.apply_affine(subject["brain_affine"], voxels)
        index = nib.affines.apply_affine(np.linalg.inv(subject["head_affine"]), world)
        np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
        index = tuple(np.rint(index).astype(int).T)
        assert subject["brain_mask"][index].all() and subject["brain_mask"].sum() == len(voxels)
        np.testing.assert_array_equal(subject["t1"][index], subject["t1_brain"][tuple(voxels.T)])
        assert not subject["t1_brain"][subject["structures4"] == 0].any()


def test_the_brain_fits_its_box(subjects):
    for subject in subjects:
        inside = subject["structures4"] > 0
        # The brain stem may leave through the floor.
        assert not any(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1], inside[:, :, -1]))
        assert ndi.label(inside)[1] <= 3


def test_there_is_a_head_around_the_brain(subjects):
    for subject in subjects:
        depth = SPACING * ndi.distance_transform_edt(subject["brain_mask"] == 0)
        vault = np.zeros_like(depth, dtype=bool)
        vault[:, :, subject["t1"].shape[2] // 2 :] = True
        bone, scalp, air = (subject["t1"][vault & (depth > a) & (depth < b)] for a, b in ((3, 7), (9, 18), (45, 99)))
        brain = subject["t1_brain"][subject["structures4"] > 0]
        assert bone.mean() < 0.85 * brain.mean() < np.percentile(scalp, 75)
        assert air.mean() < 0.25 * brain.mean()


def test_sites_look_different(subjects):
    def contrast_to_noise(subject):
        white = ndi.binary_erosion(subject["structures4"] == 3)
        values = subject["t1_brain"][white]
        return (values.mean() - subject["t1_brain"][subject["structures4"] == 1].mean()) / values.std()

    first, second = ([contrast_to_noise(s) for s in subjects if s["domain"] == d] for d in ("site_a", "site_b"))
    assert min(first) > max(second)


def test_age_and_diagnosis_show(subjects):
    for diagnosis in (0, 1):
        group = [s for s in subjects if s["diagnosis"] == diagnosis]
        assert np.corrcoef([s["age"] for s in group], [ventricle_share(s) for s in group])[0, 1] > 0.8


@pytest.mark.parametrize("change", [{"age": 80.0}, {"diagnosis": 1}])
def test_all_else_equal_atrophy_grows(monkeypatch, change):
    traits = making.subject_traits(4, 0) | {"age": 55.0, "diagnosis": 0}
    monkeypatch.setattr(making, "subject_traits", lambda index, seed: traits)
    before = make_subject(4, spacing=SPACING, lesion=False)
    monkeypatch.setattr(making, "subject_traits", lambda index, seed: traits | change)
    after = make_subject(4, spacing=SPACING, lesion=False)
    assert ventricle_share(after) > 1.2 * ventricle_share(before)
    assert hippocampal_volume(after) < 0.95 * hippocampal_volume(before)
    assert (after["structures4"] == 1).sum() < (before["structures4"] == 1).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_stretch_of_subjects_is_balanced(seed):
    traits = [making.subject_traits(index, seed) for index in range(48)]
    for start in range(0, 48, 4):
        assert len({(t["domain"], t["diagnosis"]) for t in traits[start : start + 4]}) == 4
    ages = np.array([t["age"] for t in traits])
    assert ages.min() >= 20 and ages.max() <= 85
    assert np.diff(np.sort(ages[:12])).max() < 12 and np.diff(np.sort(ages)).max() < 5
    assert abs(np.corrcoef(ages, [t["diagnosis"] for t in traits])[0, 1]) < 0.2
    assert len({t["subject"] for t in traits}) == 48


def test_lesions_are_tumours(subjects):
    flair, t1, t1gd, t2 = range(4)
    for subject in subjects:
        lesion, image, structures = subject["lesion"], subject["lesion_image"], subject["structures4"]
        assert set(np.unique(lesion)) == {0, 1, 2, 3}
        assert not lesion[structures == 0].any() and not image[structures == 0].any()
        healthy = lesion == 0

        def mean(channel, where, image=image):
            return image[..., channel][where].mean()

        assert mean(flair, lesion == 1) > 1.4 * mean(flair, healthy & (structures == 3))
        assert mean(t1gd, lesion == 3) > 1.2 * mean(t1gd, lesion == 2)
        assert mean(t1, lesion == 1) < mean(t1, healthy & (structures == 3))
        # In T2 the order of the tissues turns round.
        assert mean(t2, healthy & (structures == 4)) > mean(t2, healthy & (structures == 1))
        assert mean(t2, healthy & (structures == 1)) > mean(t2, healthy & (structures == 3))
        # The core lies within the rim.
        around = ndi.binary_dilation(lesion == 2) & (lesion != 2)
        assert (lesion[around] == 3).mean() > 0.5


def test_the_spacing_does_not_change_the_anatomy(subjects):
    fine = make_subject(0, lesion=False)
    assert fine["t1"].shape == (96, 112, 96) and fine["t1_brain"].shape == (80, 96, 80)
    assert fine["t1"].dtype == np.int16 and fine["structures4"].dtype == np.uint8
    np.testing.assert_array_equal(fine["head_affine"][:3, :3], 2 * np.eye(3))
    a, b = fine["structures4"][::2, ::2, ::2], subjects[0]["structures4"]
    for label in range(1, 5):
        assert 2 * ((a == label) & (b == label)).sum() / ((a == label).sum() + (b == label).sum()) > 0.98


@pytest.mark.parametrize(("task", "kind", "classes"), [(t, *v) for t, v in TASKS.items()])
def test_datalists_read(cohort, task, kind, classes):
    lists = load_datalist(cohort / f"{task}.json", check="full" if task != "lesion" else "header", num_classes=classes)
    names = {split: {item["subject"] for item in items} for split, items in lists.items()}
    assert [len(names[s]) for s in ("training", "validation", "test")] == [3, 1, 2]
    assert len(set.union(*names.values())) == 6
    content = json.loads((cohort / f"{task}.json").read_text())
    assert {"name", "description", "labels"} <= set(content) and len(content["labels"]) == classes
    for item in content["training"]:
        assert item["label"] == f"{kind}/{item['subject']}.nii.gz"
        assert item["domain"] in ("site_a", "site_b") and item["diagnosis"] in (0, 1) and 20 <= item["age"] <= 85
        label = nib.load(cohort / item["label"])
        assert set(np.unique(label.dataobj)) == set(range(classes))


def test_pretraining_sees_no_test_subject(cohort):
    lists = load_datalist(cohort / "unlabelled.json", label_key=None)
    test = {item["subject"] for item in load_datalist(cohort / "structures4.json")["test"]}
    seen = [item["subject"] for item in lists["training"] + lists["validation"]]
    assert len(seen) == len(set(seen)) == 3 + 2 + 1 and not test & set(seen)


def test_files_carry_their_geometry(cohort):
    subject = make_subject(0, spacing=SPACING)
    for kind, affine in (("t1", "head_affine"), ("t1_brain", "brain_affine"), ("lesion_image", "brain_affine")):
        image = nib.load(cohort / kind / "sub-001.nii.gz")
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.affine, subject[affine])
        np.testing.assert_array_equal(np.asarray(image.dataobj), subject[kind])
        assert image.header.get_zooms()[:3] == (SPACING,) * 3 and image.header.get_xyzt_units()[0] == "mm"
    assert nib.load(cohort / "lesion_image" / "sub-001.nii.gz").shape[3:] == (4,)


def test_a_finished_sample_is_reused(cohort, monkeypatch):
    monkeypatch.setattr(building, "_build", lambda *args: pytest.fail("made again"))
    before = digests(cohort)
    assert make_sample(cohort, **TINY) == str(cohort) and digests(cohort) == before


def test_calls_that_race_build_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        building, "make_subject", lambda index, *a, **k: made.append(index) or make_subject(index, *a, **k)
    )
    folder = tmp_path / "sample"
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(lambda _: make_sample(folder, 3, 0, spacing=SPACING, progress=False), range(3)))
    assert found == {str(folder)} and sorted(made) == [0, 1, 2]
    assert {p.name for p in tmp_path.iterdir()} <= {"sample", ".sample.lock"}


def test_a_race_that_the_lock_misses_is_lost_gracefully(tmp_path, monkeypatch):
    replace = os.replace
    winner = tmp_path / "winner"
    make_sample(winner, 3, 0, spacing=SPACING, progress=False)

    def beaten(source, target):
        replace(winner, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", beaten)
    folder = Path(make_sample(tmp_path / "sample", 3, 0, spacing=SPACING, progress=False))
    assert len(list(folder.glob("t1/*.nii.gz"))) == 3
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")} == {"sample"}


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "make_subject", fail)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "sample", **TINY)
    assert {p.name for p in tmp_path.iterdir()} <= {".sample.lock"}


def test_the_default_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(building, "_build", lambda folder, *args: None)
    folders = [Path(make_sample(**arguments)) for arguments in ({}, {"seed": 1}, {"spacing": 4.0}, {"spacing": 2})]
    assert all(f.parent == tmp_path / "monai-transfer-bundles" for f in folders)
    assert len(set(folders)) == 3 and folders[0] == folders[3]
    assert folders[0].name.startswith(f"sample-v{VERSION}-")


def test_foreign_folders_are_refused(cohort, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a finished sample"):
        make_sample(tmp_path, **TINY)
    assert (tmp_path / "precious.txt").exists()
    with pytest.raises(FileExistsError, match="other parameters"):
        make_sample(cohort, **(TINY | {"seed": 5}))


@pytest.mark.parametrize("arguments", [{"subjects": 2}, {"unlabelled": -1}, {"spacing": 3.0}, {"spacing": 0}])
def test_sizes_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="must"):
        make_sample(tmp_path / "sample", **arguments)


def test_what_killed_builds_left_is_removed_after_a_day(tmp_path):
    old, new, other = (tmp_path / f".{name}.{'0a' * 16}" for name in ("sample", "sample", "sample_2"))
    new = new.with_name(f".sample.{'1b' * 16}")
    for folder in (old, new, other):
        (folder / "images").mkdir(parents=True)
    for folder in (old, other):
        os.utime(folder, (1, 1))
    _remove_killed(tmp_path / "sample")
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
