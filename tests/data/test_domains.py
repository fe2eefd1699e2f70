from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from common.data import (
    DatalistError,
    domain_classes,
    domain_datalists,
    domain_label_maps,
    domain_spacings,
    load_domains,
    median_spacing,
)
from common.data.__main__ import main
from common.transforms import DomainSpacingd, LoadVolumed, MapLabelsd


def write(folder, name, spacings, codes="RAS", labels=(0, 1), section="training"):
    """A data set of random volumes with these spacings (mm along the axes of `codes`), and its datalist."""
    (folder / name).mkdir(exist_ok=True)
    items = []
    for number, spacing in enumerate(spacings):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
        generator = np.random.default_rng(number)
        image, label = generator.random((6, 7, 8)), generator.choice(labels, (6, 7, 8))
        item = {"image": f"{name}/{number}.nii.gz", "label": f"{name}/{number}_seg.nii.gz"}
        image = nib.Nifti1Image(image.astype(np.float32), np.diag([*spacing, 1.0]))
        label = nib.Nifti1Image(label.astype(np.uint8), image.affine)
        for key, volume in (("image", image), ("label", label)):
            volume = volume.as_reoriented(turn)
            nib.save(volume, folder / item[key])
        items.append(item)
    path = folder / f"{name}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {section: items}))
    return str(path)


@pytest.fixture
def domains(tmp_path):
    write(tmp_path, "a", [(1, 1, 2), (1, 2, 3), (2, 3, 9)], labels=(0, 1, 2))
    write(tmp_path, "b", [(1.5, 1.5, 1.5)], codes="SPL", labels=(0, 7))
    return [
        {"name": "a", "datalist": str(tmp_path / "a.json"), "num_classes": 3},
        {"name": "b", "datalist": str(tmp_path / "b.json"), "num_classes": 2, "channel": 1},
    ]


def test_items_know_their_domain_and_branch(domains):
    lists = load_domains(domains, required=["training"])
    assert [(x["domain"], x["branch"], x["channel"]) for x in lists["training"]] == [("a", 0, 0)] * 3 + [("b", 1, 1)]
    assert lists["validation"] == lists["test"] == []
    assert domain_classes(domains) == [3, 2]
    assert domain_datalists(domains) == [domain["datalist"] for domain in domains]
    assert len(load_domains(domains, fraction=0.3)["training"]) == 2  # one of each


def test_a_scan_may_not_be_learnt_from_in_one_domain_and_validated_on_in_another(domains, tmp_path):
    """Two kinds of masks of the same scans, with lists that were drawn apart."""
    content = json.loads((tmp_path / "a.json").read_text())
    first, second, third = content["training"]
    (tmp_path / "a.json").write_text(json.dumps({"training": [first, second], "validation": [third]}))
    (tmp_path / "other.json").write_text(json.dumps({"training": [third], "validation": [first]}))
    both = [domains[0], domains[0] | {"name": "other", "datalist": str(tmp_path / "other.json")}]
    with pytest.raises(DatalistError, match="the same image is in training and in validation") as raised:
        load_domains(both)
    assert str(raised.value).count("the same image") == 2 and "other.json" in str(raised.value)
    (tmp_path / "other.json").write_text(json.dumps({"training": [first, second], "validation": [third]}))
    assert len(load_domains(both)["training"]) == 4


def test_a_known_label_scheme(domains):
    domains[1] = {
        "name": "b",
        "datalist": domains[1]["datalist"],
        "label_scheme": "msd_hippocampus",
        "task": "hippocampus",
    }
    assert domain_label_maps(domains) == {"a": {0: [0], 1: [1], 2: [2]}, "b": {0: [], 1: [1], 2: [2]}}
    assert domain_classes(domains) == [3, 3]


def test_what_surrounds_the_brain_may_be_classes_of_its_own(domains):
    domains[1] = {"name": "b", "datalist": "b.json", "label_scheme": "freesurfer", "task": "structures33"}
    assert domain_classes(domains) == [3, 34]
    assert {165, 258} <= set(domain_label_maps(domains)["b"][0])  # skull and head: background
    domains[1]["surroundings"] = True
    assert domain_classes(domains) == [3, 36]
    groups = domain_label_maps(domains)["b"]
    assert (groups[34], groups[35]) == ([165], [258]) and list(groups) == list(range(36))
    assert not {165, 258} & set(groups[0])


def test_median_spacing_is_of_turned_axes_and_of_no_order(domains, tmp_path):
    items = load_domains(domains)["training"]
    first = [x for x in items if x["domain"] == "a"]
    assert median_spacing(first) == median_spacing(first[::-1]) == [1, 2, 3]
    assert median_spacing(first, "SRA") == [3, 1, 2]
    np.testing.assert_allclose(median_spacing(first, statistic="mean"), [4 / 3, 2, 14 / 3], atol=1e-5)
    # The same scans stored with other axes first.
    write(tmp_path, "c", [(1, 1, 2), (1, 2, 3), (2, 3, 9)], codes="PSR")
    other = load_domains([{"name": "c", "datalist": str(tmp_path / "c.json"), "num_classes": 2}])["training"]
    assert median_spacing(other) == [1, 2, 3]
    assert domain_spacings(items, domains) == {"a": [1, 2, 3], "b": [1.5, 1.5, 1.5]}
    domains[0]["spacing"] = [4, 4, 4]
    assert domain_spacings(items, domains)["a"] == [4, 4, 4]
    with pytest.raises(ValueError, match="no training items"):
        median_spacing([])
    with pytest.raises(ValueError, match="'mode'"):
        median_spacing(first, statistic="mode")


def test_the_spacing_is_read_as_training_reads_the_files(tmp_path, write_series):
    """ITK takes a series with slices missing for one of thicker slices."""
    volume = np.random.default_rng(0).integers(0, 100, (4, 5, 8))
    files = write_series(tmp_path / "series", volume, np.diag([-1.0, -1, 2, 1]))
    item = {"image": str(tmp_path / "series")}
    assert median_spacing([item]) == [1, 1, 2]
    for file in files[3:6]:
        file.unlink()
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'series'}: .* 3 slices are missing there.*[^.]\.$"):
        median_spacing([item])


def test_a_scan_without_a_spacing_is_named(tmp_path):
    (tmp_path / "bad.nii").write_bytes(b"no volume")
    for name, problem in (("none.nii", "does not exist"), ("bad.nii", "is not a readable NIfTI file")):
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: {problem}.*\.$"):
            median_spacing([{"image": str(tmp_path / name)}])


def test_resampling_to_the_domains_spacing_keeps_the_labels(domains):
    """New size = size * spacing / median (section 3.1), and no label comes or goes."""
    items = load_domains(domains)["training"]
    keys = ["image", "label"]
    prepare = Compose(
        [
            LoadVolumed(keys, ensure_channel_first=True),
            DomainSpacingd(keys, domain_spacings(items, domains), mode=["bilinear", "nearest"]),
        ]
    )
    made = prepare(items[2])
    # Grids from the first to the last voxel's centre: (n - 1) * spacing / median + 1 voxels.
    assert tuple(made["image"].shape[1:]) == tuple(made["label"].shape[1:]) == (11, 10, 22)
    assert made["label"].unique().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="domain 'c', which has no spacing; spacings are known for a, b"):
        DomainSpacingd(keys, domain_spacings(items, domains))(items[0] | {"domain": "c"})


def test_a_label_outside_a_domains_classes(domains):
    """Domain b has labels 0 and 7 in its files and two classes."""
    item = load_domains(domains)["training"][-1]
    transform = MapLabelsd("label", domain_label_maps(domains), other="error")
    with pytest.raises(
        ValueError, match=r"b/0_seg.nii.gz has labels that no class of the domain 'b' names \(7\): .*`num_classes`"
    ):
        transform(LoadVolumed(["image", "label"], ensure_channel_first=True)(item))
    with pytest.raises(DatalistError, match=r"(?s)^Domain 'b': .*b/0_seg.nii.gz: has labels that no class names \(7\)"):
        load_domains(domains, check="full")
    load_domains(domains[:1], check="full")


@pytest.mark.parametrize("label", [None, 3], ids=["missing", "a number"])
def test_a_domain_without_labels(domains, label):
    path = domains[1]["datalist"]
    content = json.loads(Path(path).read_text())
    for item in content["training"]:
        item.pop("label")
        if label is not None:
            item["label"] = label
    Path(path).write_text(json.dumps(content))
    with pytest.raises(DatalistError) as raised:
        load_domains(domains)
    text = str(raised.value)
    assert text.startswith("The domain 'b' has no label images") and path in text and "\n" not in text


def test_an_error_names_the_domain(domains):
    domains[1]["datalist"] += ".missing"
    with pytest.raises(DatalistError, match="missing"):
        load_domains(domains)
    domains[1]["datalist"] = domains[0]["datalist"]
    with pytest.raises(DatalistError, match=r"^Domain 'a': the list 'validation' of .*a.json is empty") as raised:
        load_domains(domains, required=["validation"])
    assert "fold" not in str(raised.value)  # which domains do not have


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "x"}, "Domain 'b' has an unknown key 'nam'; did you mean 'name'?"),
        ({"numbering": "x"}, "Domain 'b': `numbering` was renamed: it is `label_scheme` now"),
        ({"datalist": None}, "Domain 'b' has no 'datalist'."),
        ({"task": "hippocampus", "label_scheme": "msd_hippocampus"}, "needs either `num_classes` or both"),
        ({"num_classes": ...}, "needs either `num_classes` or both"),
        ({"name": "a"}, "Two domains are called 'a'"),
    ],
)
def test_what_a_domain_has_to_say(domains, change, message):
    domains[1] = {key: value for key, value in (domains[1] | change).items() if value is not ...}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_domains(domains)
    with pytest.raises(ValueError, match="no domains"):
        domain_classes([])
    for given in ("a.json", ["a.json"]):
        with pytest.raises(ValueError, match=r"it must list mappings, one per datalist: \[\{.name"):
            domain_classes(given)


def test_spacing_on_the_command_line(domains, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data", "spacing", domains[0]["datalist"], "--statistic", "mean"])
    main()
    assert capsys.readouterr().out == "1.33333 x 2 x 4.66667 mm (RAS)\n"


def test_a_fold_is_held_out_in_every_domain(tmp_path):
    domains = []
    for name in "ab":
        write(tmp_path, name, [(1, 1, 1)] * 6)
        domains.append({"name": name, "datalist": str(tmp_path / f"{name}.json"), "num_classes": 2})
    held_out = []
    for fold in range(5):
        lists = load_domains(domains, fold=fold, seed=fold, split_seed=3)
        images = {section: {x["image"] for x in lists[section]} for section in ("training", "validation")}
        assert {x["domain"] for x in lists["validation"]} == {"a", "b"}
        assert not images["training"] & images["validation"] and len(set.union(*images.values())) == 12
        held_out += images["validation"]
    assert len(held_out) == len(set(held_out)) == 12
