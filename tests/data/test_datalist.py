from __future__ import annotations

import gzip
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import list_data_collate

from common.data import DatalistError, load_datalist
from common.data.__main__ import check as check_command
from common.transforms import CheckVolumed, LabelRegionsd, LoadVolumed, MapLabelsd

SHAPE = (4, 5, 6)


def write_volume(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) if data is None else data
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def write_list(path: Path, **lists) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lists))
    return path


def item(name: str, **keys) -> dict:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", **keys}


def make_study(folder: Path, training=6, validation=2, test=2, prefix="s", **keys) -> Path:
    lists, number = {}, 0
    for section, count in (("training", training), ("validation", validation), ("test", test)):
        lists[section] = []
        for _ in range(count):
            entry = item(f"{prefix}{number:03d}", **keys)
            write_volume(folder / entry["image"])
            write_volume(folder / entry["label"], np.ones(SHAPE, np.uint8))
            lists[section].append(entry)
            number += 1
    return write_list(folder / "datalist.json", **lists)


def names(items) -> list[str]:
    return [Path(x["image"]).name.removesuffix(".nii.gz") for x in items]


def edit(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


# --- reading -----------------------------------------------------------------------------------------------------


def test_paths_are_absolute_and_the_order_is_the_files(tmp_path):
    lists = load_datalist(make_study(tmp_path), check="full", num_classes=2)
    assert {k: len(v) for k, v in lists.items()} == {"training": 6, "validation": 2, "test": 2}
    assert names(lists["training"]) == [f"s{i:03d}" for i in range(6)]
    assert lists["training"][0] == {
        "image": str(tmp_path / "images/s000.nii.gz"),
        "label": str(tmp_path / "labels/s000.nii.gz"),
    }
    pickle.dumps(lists)


def test_relative_datalist_path_gives_absolute_items(tmp_path, monkeypatch):
    make_study(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    lists = load_datalist("study/datalist.json")
    assert lists["test"][0]["image"] == str(tmp_path / "study/images/s008.nii.gz")


def test_base_dir_replaces_the_folder_of_the_file(tmp_path):
    path = make_study(tmp_path / "data")
    moved = tmp_path / "elsewhere.json"
    moved.write_text(path.read_text())
    assert load_datalist(moved, tmp_path / "data") == load_datalist(path)
    with pytest.raises(DatalistError, match=r"10 files|20 files"):
        load_datalist(moved)


def test_absent_lists_are_empty(tmp_path):
    path = edit(make_study(tmp_path), lambda c: [c.pop("validation"), c.pop("test")])
    lists = load_datalist(path)
    assert lists["validation"] == [] and lists["test"] == [] and len(lists["training"]) == 6


def test_extra_keys_pass_and_keys_of_only_some_items_do_not(tmp_path):
    path = make_study(tmp_path, age=41.5, diagnosis=1)
    edit(path, lambda c: c["training"][2].pop("age"))
    lists = load_datalist(path)
    assert all("age" not in x and x["diagnosis"] == 1 for x in lists["training"])
    assert all(x["age"] == 41.5 for x in lists["validation"])


def test_subjects_stay_if_one_item_has_none(tmp_path):
    """They were dropped from the whole list, and the two visits of a person counted as two people."""
    path = make_study(tmp_path, test=5)
    people = ["P0", "P0", 1, None, "absent"]

    def name(content):
        for x, person in zip(content["test"], people, strict=True):
            x.update({} if person == "absent" else {"subject": person})
        content["validation"][0]["subject"] = None

    lists = load_datalist(edit(path, name))
    own = ["images/s011.nii.gz", "images/s012.nii.gz"]
    assert [x["subject"] for x in lists["test"]] == ["P0", "P0", "1", *own]
    assert not any("subject" in x for x in lists["training"] + lists["validation"])
    drawn = [load_datalist(path, fraction=0.2, seed=seed, training_sections=("test",))["training"] for seed in range(9)]
    assert {str(x["subject"]) for (x,) in drawn} == {"P0", "1", *own}


@pytest.mark.parametrize(("key", "filled"), [("subject", "images/s001.nii.gz"), ("domain", "")])
def test_a_batch_of_items_of_which_one_has_no_number(tmp_path, key, filled):
    """The loader ended with "invalid data type 'str'"."""
    path = make_study(tmp_path, training=3)
    edit(path, lambda content: [content["training"][number].update({key: 7 + number}) for number in (0, 2)])
    batch = list_data_collate(load_datalist(path)["training"])
    assert batch[key] == ["7", filled, "9"]
    edit(path, lambda content: content["training"][1].update({key: 8}))
    assert list_data_collate(load_datalist(path)["training"])[key].tolist() == [7, 8, 9]


def test_own_subjects_of_two_datalists_with_equal_paths_are_two(tmp_path):
    paths = [make_study(tmp_path / name, test=2) for name in "ab"]
    for path in paths:
        edit(path, lambda content: content["test"][0].update(subject="P0"))
    own = [x["subject"] for x in load_datalist(paths)["test"] if x["subject"] != "P0"]
    assert own == [str(tmp_path / name / "images/s009.nii.gz") for name in "ab"]


@pytest.mark.parametrize(("target", "no_domain"), [(None, ""), ("b", "b")])
def test_domains_stay_if_one_item_has_none(tmp_path, target, no_domain):
    """The number 7 of domain a would else be the person 7 of the items without a domain."""
    path = make_study(tmp_path)

    def name(content):
        content["test"][0].update(domain=target or "a", subject="7")
        content["test"][1].update(subject="7")
        content["training"][0].update(domain="b")

    lists = load_datalist(edit(path, name), target_domain=target)
    assert [(x["domain"], x["subject"]) for x in lists["test"]] == [(target or "a", "7"), (no_domain, "7")]
    assert [x["domain"] for x in lists["training"]] == ["b", *[""] * 5]
    assert not any("domain" in x for x in lists["validation"])


def test_files_beside_their_datalist_and_not_in_the_folder_given_are_said(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "data").mkdir()
    path = make_study(tmp_path / "prepared")
    with pytest.raises(DatalistError, match=rf"set `dataset_dir` to {tmp_path / 'prepared'}\.$"):
        load_datalist(path, tmp_path / "data")
    (tmp_path / "prepared" / "images" / "s000.nii.gz").unlink()
    for folder in (None, tmp_path / "prepared"):
        with pytest.raises(DatalistError, match=r"s000.nii.gz: does not exist(.|\n)*`dataset_dir`\) is set\.$"):
            load_datalist(path, folder)


def test_label_key_none_drops_labels_and_does_not_look_for_them(tmp_path):
    path = make_study(tmp_path)
    for file in (tmp_path / "labels").iterdir():
        file.unlink()
    with pytest.raises(DatalistError, match=r"labels/s000.nii.gz: does not exist"):
        load_datalist(path)
    lists = load_datalist(path, label_key=None)
    assert all(set(x) == {"image"} for items in lists.values() for x in items)


def test_other_keys_can_be_image_and_label(tmp_path):
    path = make_study(tmp_path, age=30)
    lists = load_datalist(path, image_key="label", label_key="age")
    assert lists["training"][0] == {"image": str(tmp_path / "labels/s000.nii.gz"), "label": 30}


@pytest.mark.parametrize("spelling", ["unlabelled", "unlabeled"])
@pytest.mark.parametrize("asked", ["unlabelled", "unlabeled"])
def test_lists_merged_for_pretraining(tmp_path, spelling, asked):
    path = make_study(tmp_path)
    write_volume(tmp_path / "more.nii.gz")
    edit(path, lambda c: c.update({spelling: [{"image": "more.nii.gz"}]}))
    lists = load_datalist(path, label_key=None, training_sections=("training", "validation", asked))
    assert names(lists["training"]) == [*(f"s{i:03d}" for i in range(8)), "more"]
    assert lists["validation"] == [] and names(lists["test"]) == ["s008", "s009"]


def test_unknown_list_is_named(tmp_path):
    with pytest.raises(DatalistError, match="no list called 'trainnig'"):
        load_datalist(make_study(tmp_path), training_sections=("trainnig",))


def test_a_file_of_several_is_refused_in_two_lists(tmp_path):
    """Contrasts of a scan are files of their own: one that training and test share is a leak as well."""
    path = make_study(tmp_path)

    def share(content):
        for section, number in (("training", 0), ("test", 8)):
            content[section][0]["image"] = [f"images/s00{number}.nii.gz", "images/s001.nii.gz"]
        content["training"].pop(1)

    with pytest.raises(DatalistError, match=r"1 file .*\n.*s001.nii.gz: the same image is in training and in test"):
        load_datalist(edit(path, share))


def test_several_datalists_are_merged(tmp_path):
    paths = [make_study(tmp_path / d, prefix=d, domain=d) for d in ("a", "b")]
    lists = load_datalist(paths)
    assert {k: len(v) for k, v in lists.items()} == {"training": 12, "validation": 4, "test": 4}
    assert load_datalist([paths[0], tmp_path / "b/datalist.json"], [None, tmp_path / "b"]) == lists
    with pytest.raises(ValueError, match="3 folders for 2 datalists"):
        load_datalist(paths, [None] * 3)


def test_decathlon_test_list_of_bare_paths(tmp_path):
    path = edit(make_study(tmp_path), lambda c: c.update(test=["./images/s008.nii.gz"]))
    assert load_datalist(path)["test"] == [{"image": str(tmp_path / "images/s008.nii.gz")}]


def test_modalities_and_dicom_folder(tmp_path):
    path = make_study(tmp_path, training=2, validation=0, test=0)
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/1.dcm").write_bytes(b"x")

    def change(content):
        content["training"][0]["image"] = ["images/s000.nii.gz", "images/s001.nii.gz"]
        content["training"][1]["image"] = "dicom"

    lists = load_datalist(edit(path, change))
    with pytest.raises(DatalistError, match=r"1 file or item .*\n  .*dicom: .*1.dcm is damaged or not a DICOM image"):
        load_datalist(path, check="full")
    assert lists["training"][0]["image"] == [str(tmp_path / f"images/s00{i}.nii.gz") for i in (0, 1)]
    assert lists["training"][1]["image"] == str(tmp_path / "dicom")
    write_volume(tmp_path / "images/s001.nii.gz", np.ones((4, 5, 7)))
    with pytest.raises(DatalistError, match=r"s001.nii.gz: has the shape 4x5x7, but .*s000.nii.gz has 4x5x6"):
        load_datalist(path)


# --- splits ------------------------------------------------------------------------------------------------------


def test_folds_partition_training_and_validation(tmp_path):
    path = make_study(tmp_path, 7, 4, 3)
    whole = load_datalist(path)
    pool = set(names(whole["training"] + whole["validation"]))
    seen: list[str] = []
    for fold in range(4):
        lists = load_datalist(path, fold=fold, num_folds=4)
        assert lists["test"] == whole["test"]
        assert set(names(lists["training"])) == pool - set(names(lists["validation"]))
        assert len(lists["validation"]) in (2, 3)
        seen += names(lists["validation"])
    assert sorted(seen) == sorted(pool)
    assert load_datalist(path, fold=0, num_folds=4, seed=1) != load_datalist(path, fold=0, num_folds=4)


def test_folds_keep_subjects_together(tmp_path):
    path = make_study(tmp_path, 12, 0, 0)
    edit(path, lambda c: [x.update(subject=f"p{i // 3}") for i, x in enumerate(c["training"])])
    for fold in range(4):
        lists = load_datalist(path, fold=fold, num_folds=4)
        assert len({x["subject"] for x in lists["validation"]}) == 1 and len(lists["validation"]) == 3
    with pytest.raises(ValueError, match=r"4 subjects cannot be split into 5 folds; lower .*`data#num_folds`"):
        load_datalist(path, fold=0)
    with pytest.raises(ValueError, match="from 0 to 3"):
        load_datalist(path, fold=4, num_folds=4)


def test_pooled_folds_test_each_item_once(tmp_path):
    path = make_study(tmp_path, 7, 3, 3)
    whole = load_datalist(path)
    pool = sorted(names([x for items in whole.values() for x in items]))
    tested: list[str] = []
    lists = [load_datalist(path, fold=fold, num_folds=5, pool_test=True) for fold in range(5)]
    for fold, found in enumerate(lists):
        assert sorted(names(found["training"] + found["validation"] + found["test"])) == pool
        # A fold validates on what the next one tests.
        assert found["validation"] == lists[(fold + 1) % 5]["test"]
        assert len(found["test"]) in (2, 3) and len(found["training"]) in (7, 8, 9)
        tested += names(found["test"])
    assert sorted(tested) == pool
    assert load_datalist(path, fold=0, pool_test=True, seed=1)["test"] != lists[0]["test"]
    assert load_datalist(path, fold=0)["test"] == whole["test"]


def test_pooled_folds_keep_subjects_together_and_the_fraction_is_of_training(tmp_path):
    path = make_study(tmp_path, 12, 4, 4)

    def pair(content):
        items = [x for section in ("training", "validation", "test") for x in content[section]]
        for number, entry in enumerate(items):
            entry["subject"] = f"p{number // 2}"

    edit(path, pair)
    for fold in range(5):
        whole = load_datalist(path, fold=fold, pool_test=True)
        part = load_datalist(path, fold=fold, pool_test=True, fraction=0.5)
        subjects = [{x["subject"] for x in items} for items in whole.values()]
        assert [len(found) for found in subjects] == [6, 2, 2] and len(set.union(*subjects)) == 10
        assert part["test"] == whole["test"] and part["validation"] == whole["validation"]
        assert len(part["training"]) == 6 and set(names(part["training"])) < set(names(whole["training"]))


def test_pooled_test_items_need_a_label(tmp_path):
    path = make_study(tmp_path, 7, 3, 3)
    edit(path, lambda c: [x.pop("label") for x in c["test"]])
    with pytest.raises(DatalistError, match=r"3 files or items .*\n.*s010.nii.gz: has no 'label', and `pool_test`"):
        load_datalist(path, fold=0, pool_test=True)
    assert all("label" in x for x in load_datalist(path, fold=0)["training"])
    assert len(load_datalist(path, fold=0, pool_test=True, label_key=None)["test"]) in (2, 3)


@pytest.mark.parametrize("pool_test", [False, True])
def test_pretraining_holds_out_what_fine_tuning_does(tmp_path, pool_test):
    """Unlabelled scans are trained on, but have no part in the draw; those of subjects held out are left out."""
    path = make_study(tmp_path, 8, 4, 4)

    def name(content):
        items = [x for section in ("training", "validation", "test") for x in content[section]]
        for number, entry in enumerate(items):
            entry["subject"] = f"p{number}"
        content["unlabelled"] = [{"image": items[n]["image"], "subject": f"p{n}"} for n in range(12)]
        content["unlabelled"] += [{"image": f"images/u{n}.nii.gz", "subject": f"a{n}"} for n in range(5)]

    edit(path, name)
    for fold in range(5):
        tuned = load_datalist(path, fold=fold, pool_test=pool_test)
        lists = load_datalist(
            path, fold=fold, pool_test=pool_test, label_key=None, training_sections=("training", "unlabelled"),
            check="none",
        )  # fmt: skip
        for section in ("validation", "test"):
            assert names(lists[section]) == names(tuned[section])
        subjects = {x["subject"] for x in lists["training"]}
        assert subjects == {x["subject"] for x in tuned["training"]} | {f"a{n}" for n in range(5)}
        assert all(set(x) == {"image", "subject"} for x in lists["training"])


def test_folds_that_the_items_state_are_honoured(tmp_path):
    """The form of MONAI's Auto3DSeg: `fold` in the training items, and a list `testing`."""
    path = make_study(tmp_path, 7, 0, 2)

    def state(content):
        for number, entry in enumerate(content["training"]):
            entry["fold"] = number % 3
        content["testing"] = content.pop("test")

    edit(path, state)
    for fold in range(3):
        lists = load_datalist(path, fold=fold, split_seed=fold)
        assert names(lists["validation"]) == [f"s{n:03d}" for n in range(fold, 7, 3)]
        assert len(lists["training"]) == 7 - len(lists["validation"]) and names(lists["test"]) == ["s007", "s008"]
    whole = load_datalist(path)
    assert len(whole["training"]) == 7 and whole["validation"] == []
    with pytest.raises(ValueError, match=r"`fold` is 3; as the items .* from 0 to 2"):
        load_datalist(path, fold=3)
    assert load_datalist(path, fold=1, num_folds=3) == load_datalist(path, fold=1)
    with pytest.raises(DatalistError, match=r"`data#num_folds`\) is 5, but the items .* state 3 folds: leave"):
        load_datalist(path, fold=1, num_folds=5)
    edit(path, lambda c: [x.update(subject="one") for x in c["training"][:2]])
    with pytest.raises(DatalistError, match=r"its subject 'one' is in training and in validation"):
        load_datalist(path, fold=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["training"][1].pop("fold"), r"s001.nii.gz states no `fold`, but other"),
        (lambda c: c["training"][2].update(fold="two"), r"The `fold` of \S*s002.nii.gz is 'two'"),
        (lambda c: [x.update(fold=x["fold"] + 1) for x in c["training"]], "the folds 1, 2: number them 0, 1"),
        (lambda c: c.update(testing=[]), "a list `test` and a list `testing`"),
    ],
)
def test_stated_folds_that_are_not_whole(tmp_path, change, sentence):
    path = make_study(tmp_path, 4, 0, 2)
    edit(path, lambda c: [x.update(fold=n % 2) for n, x in enumerate(c["training"])])
    with pytest.raises(DatalistError, match=sentence):
        load_datalist(edit(path, change), fold=0)


def test_stated_folds_with_the_test_list_among_them(tmp_path):
    path = make_study(tmp_path, 6, 0, 3)
    edit(path, lambda c: [x.update(fold=n % 3) for n, x in enumerate(c["training"] + c["test"])])
    lists = load_datalist(path, fold=2, pool_test=True)
    assert names(lists["test"]) == ["s002", "s005", "s008"] and names(lists["validation"]) == ["s000", "s003", "s006"]


def test_folds_have_a_seed_of_their_own(tmp_path):
    path = make_study(tmp_path, 12, 4, 4)
    first, second, other = (
        load_datalist(path, fold=1, pool_test=True, fraction=0.5, seed=seed, split_seed=split)
        for seed, split in ((0, 0), (1, 0), (0, 1))
    )
    assert first["test"] == second["test"] != other["test"] and first["validation"] == second["validation"]
    assert first["training"] != second["training"]
    assert load_datalist(path, fold=1, pool_test=True, fraction=0.5, seed=0) == first
    assert (
        load_datalist(path, fold=1, pool_test=True, fraction=0.5, seed=1)["test"]
        == (load_datalist(path, fold=1, pool_test=True, split_seed=1)["test"])
    )


def test_pooled_folds_of_two_leave_nothing_to_train_on(tmp_path):
    with pytest.raises(DatalistError, match=r"training"):
        load_datalist(make_study(tmp_path), fold=0, num_folds=2, pool_test=True, required=["training"])


def test_fractions_are_nested_by_seed(tmp_path):
    path = make_study(tmp_path, 20, 2, 2)
    previous: set[str] = set()
    for fraction, count in ((0.01, 1), (0.1, 2), (0.3, 6), (0.5, 10), (1.0, 20)):
        lists = load_datalist(path, fraction=fraction)
        kept = names(lists["training"])
        assert len(kept) == count and kept == sorted(kept) and previous <= set(kept)
        assert len(lists["validation"]) == 2 and len(lists["test"]) == 2
        previous = set(kept)
    draws = {tuple(names(load_datalist(path, fraction=0.3, seed=s)["training"])) for s in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize("domain", [None, "heart"], ids=["fraction", "target masks"])
def test_whole_subjects_come_scan_after_scan(tmp_path, domain):
    """Of n scans, at most the last subject's are not all in; smaller draws lie in larger ones."""
    keys = {"domain": domain} if domain else {}
    items = [item(f"{number:02d}", subject=f"p{number // 2}", **keys) for number in range(16)]
    path = write_list(tmp_path / "list.json", training=items)

    def drawn(count, **options):
        share = {"target_domain": domain, "target_masks": count} if domain else {"fraction": count / 16}
        return load_datalist(path, check="none", **share, **options)["training"]

    orders, scattered = set(), 0
    for seed in range(8):
        previous: set[str] = set()
        for count in range(1, 17):
            found = drawn(count, seed=seed, whole_subjects=True)
            per_subject = Counter(x["subject"] for x in found)
            assert sum(per_subject.values()) == count and len(per_subject) == (count + 1) // 2
            kept = names(found)
            assert previous <= set(kept) and kept == sorted(kept)
            previous = set(kept)
        orders.add(tuple(sorted({x["subject"] for x in drawn(6, seed=seed, whole_subjects=True)})))
        scattered += len({x["subject"] for x in drawn(6, seed=seed)}) > 3
    assert len(orders) > 4  # the seed draws the subjects
    assert scattered > 4  # without it, scans of many subjects


def test_whole_subjects_change_nothing_with_one_scan_each(tmp_path):
    path = make_study(tmp_path, 20)
    for count in (1, 7, 20):
        draws = [load_datalist(path, fraction=count / 20, whole_subjects=given)["training"] for given in (False, True)]
        assert names(draws[0]) == names(draws[1])


def test_draws_do_not_depend_on_order_or_place(tmp_path):
    one = make_study(tmp_path / "one", 20)
    two = edit(make_study(tmp_path / "two/deeper", 20), lambda c: c["training"].reverse())
    for options in ({"fraction": 0.3}, {"fold": 1}):
        a, b = (load_datalist(p, **options) for p in (one, two))
        assert sorted(names(a["training"])) == sorted(names(b["training"]))


@pytest.mark.parametrize("masks", [None, 2, 0])
def test_validation_from_the_labels_is_of_the_target_domain(tmp_path, masks):
    """As the validation list is; without target masks it is of the source. No target mask is lost but to validation."""
    items = []
    for number in range(10):
        write_volume(tmp_path / f"{number}.nii.gz", np.full((4, 4, 4), number, np.float32))
        item = {"image": f"{number}.nii.gz", "subject": str(number), "domain": "target" if number < 4 else "source"}
        items.append(item | {"label": f"{number}.nii.gz"})
    path = write_list(tmp_path / "list.json", training=items)
    for seed in range(20):
        lists = load_datalist(path, target_domain="target", target_masks=masks, validation_share=0.2, seed=seed)
        wanted = "source" if masks == 0 else "target"
        assert {x["domain"] for x in lists["validation"]} == {wanted}
        domains = [x["domain"] for x in lists["training"]]
        assert domains.count("target") == {None: 3, 2: 1, 0: 0}[masks] and domains.count("source") == (
            5 if masks == 0 else 6
        )


def test_target_masks_beside_all_of_the_source(tmp_path):
    paths = [make_study(tmp_path / d, prefix=d, domain=d) for d in ("source", "target")]
    previous: set[str] = set()
    for masks in (0, 1, 4, 6):
        lists = load_datalist(paths, target_domain="target", target_masks=masks)
        domains = [x["domain"] for x in lists["training"]]
        assert domains.count("source") == 6 and domains.count("target") == masks
        assert previous <= set(names(lists["training"]))
        previous = set(names(lists["training"]))
        # Without a label of the target there is none to choose the best epoch by, either.
        assert [x["domain"] for x in lists["validation"]] == ["target" if masks else "source"] * 2
        assert [x["domain"] for x in lists["test"]] == ["target"] * 2
    everything = load_datalist(paths, target_domain="target")
    assert len(everything["training"]) == 12


def test_source_masks_and_a_fraction_of_the_target(tmp_path):
    paths = [make_study(tmp_path / d, prefix=d, domain=d) for d in ("source", "target")]

    def drawn(**options):
        lists = load_datalist(paths, target_domain="target", **options)
        return [x["domain"] for x in lists["training"]], set(names(lists["training"]))

    domains, few = drawn(source_masks=2, target_masks=3)
    assert (domains.count("source"), domains.count("target")) == (2, 3)
    assert few <= drawn(source_masks=4, target_masks=3)[1]
    assert drawn(source_masks=0)[0] == ["target"] * 6
    # A share is that of the target's masks, the same draw as their number.
    domains, half = drawn(fraction=0.5)
    assert (domains.count("source"), domains.count("target")) == (6, 3)
    assert half == drawn(target_masks=3)[1]
    with pytest.raises(DatalistError, match=r"7 masks of other domains than 'target'.*`source_masks`.*has 6"):
        drawn(source_masks=7)


def test_several_datalists_lie_in_folders_of_their_own(tmp_path):
    """`dataset_dir` of the bundles is one folder: pre-training on several sets needs no trick."""
    paths = [make_study(tmp_path / "data" / d, prefix=d) for d in ("one", "two")]
    lists = load_datalist(paths, tmp_path / "data")
    assert len(lists["training"]) == 12
    assert lists == load_datalist(paths) == load_datalist(paths, [path.parent for path in paths])
    with pytest.raises(ValueError, match="`base_dir` names 1 folders for 2 datalists"):
        load_datalist(paths, [tmp_path])


def test_test_items_without_domain_stay(tmp_path):
    path = make_study(tmp_path, domain="target")
    edit(path, lambda c: [x.pop("domain") for x in c["test"]])
    assert len(load_datalist(path, target_domain="target", target_masks=1)["test"]) == 2


def test_more_target_masks_than_there_are(tmp_path):
    path = make_study(tmp_path, domain="target")
    with pytest.raises(DatalistError, match=r"7 masks of the domain 'target'.*has 6"):
        load_datalist(path, target_domain="target", target_masks=7)
    with pytest.raises(DatalistError, match=r"domain 'adni'.*there are: target"):
        load_datalist(path, target_domain="adni", target_masks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0}, "`fraction`"),
        ({"fraction": 1.5}, "`fraction`"),
        ({"check": "headers"}, "`check`"),
        ({"target_masks": 3}, "`target_domain`"),
        ({"source_masks": 3}, "`source_masks` counts items by their domain: set `target_domain`"),
        ({"pool_test": True}, "`pool_test` makes the test list one of the folds: set `fold` as well"),
        ({"target_domain": "a", "target_masks": 3, "fraction": 0.5}, "set only one of them"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_datalist(make_study(tmp_path), **options)


# --- checks ------------------------------------------------------------------------------------------------------


def test_one_error_lists_all_that_is_wrong(tmp_path):
    path = make_study(tmp_path, 8)
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "s000.nii.gz").unlink()
    (images / "s001.nii.gz").write_bytes(b"")
    (images / "s002.nii.gz").write_bytes(b"not a scan")
    write_volume(labels / "s003.nii.gz", np.ones((4, 5, 7), np.uint8))
    write_volume(labels / "s004.nii.gz", np.ones(SHAPE, np.uint8), np.diag([1, 1, 1.2, 1]))
    with pytest.raises(DatalistError) as error:
        load_datalist(path)
    text = str(error.value)
    for line in (
        "images/s000.nii.gz: does not exist",
        "images/s001.nii.gz: is empty (0 bytes)",
        "images/s002.nii.gz: is not a readable NIfTI file",
        f"labels/s003.nii.gz: has the shape 4x5x7, but {images}/s003.nii.gz has 4x5x6",
        "labels/s004.nii.gz: lies up to 1 mm away from",
    ):
        assert line in text
    assert "5 files or items" in text and "dataset_dir" in text and "s005" not in text
    with pytest.raises(DatalistError, match="5 files or items"):
        load_datalist(path, check="full")
    assert len(load_datalist(path, check="none")["training"]) == 8


def test_affines_may_differ_by_rounding(tmp_path):
    path = make_study(tmp_path, 1, 0, 0)
    affine = np.eye(4)
    affine[0, 3] = 0.05
    write_volume(tmp_path / "labels/s000.nii.gz", np.ones(SHAPE, np.uint8), affine)
    load_datalist(path)
    affine[0, 3] = 0.2
    write_volume(tmp_path / "labels/s000.nii.gz", np.ones(SHAPE, np.uint8), affine)
    with pytest.raises(DatalistError, match=r"0\.2 mm"):
        load_datalist(path)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("images", [np.nan, np.inf], "2 voxels that are not finite"),
        ("images", [], r"is constant \(every voxel is 1\)"),
        ("labels", [np.nan, 1], "1 voxels that are not finite"),
        ("labels", [0.5, 1], r"not whole numbers \(0.5\)"),
        ("labels", [4, 5], r"outside 0 to 3 \(4, 5\)"),
        ("labels", [-1, 0], r"outside 0 to 3 \(-1\)"),
    ],
)
def test_full_check_reads_the_values(tmp_path, kind, values, message):
    path = make_study(tmp_path)
    data = np.ones(SHAPE, np.float32)
    data.flat[: len(values)] = values
    write_volume(tmp_path / kind / "s001.nii.gz", data)
    load_datalist(path, num_classes=4)
    with pytest.raises(DatalistError, match=rf"{kind}/s001.nii.gz: .*{message}"):
        load_datalist(path, check="full", num_classes=4)


def test_one_modality_of_several_may_be_constant(tmp_path):
    """As in training, which looks at the files of an item together."""
    path = make_study(tmp_path)
    write_volume(tmp_path / "images/other.nii.gz", np.zeros(SHAPE, np.float32))
    edit(path, lambda c: c["training"][0].update(image=["images/s000.nii.gz", "images/other.nii.gz"]))
    load_datalist(path, check="full")


def test_full_check_knows_the_labels(tmp_path):
    path = make_study(tmp_path)
    labels = np.ones(SHAPE, np.uint8)
    labels[0, 0, :2] = 77, 4
    write_volume(tmp_path / "labels/s001.nii.gz", labels)
    assert load_datalist(path, check="full", known_labels={1, 4, 77}) == load_datalist(path, known_labels={1})
    with pytest.raises(DatalistError, match=r"1 file or item.*\n.*s001.nii.gz: has labels that no class names \(77\)"):
        load_datalist(path, check="full", known_labels={0, 1, 4})


def test_full_check_finds_a_truncated_file(tmp_path):
    path = make_study(tmp_path)
    file = tmp_path / "images/s001.nii.gz"
    write_volume(file, np.random.default_rng(0).random((16, 16, 16)))
    write_volume(tmp_path / "labels/s001.nii.gz", np.ones((16, 16, 16), np.uint8))
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DatalistError, match=r"s001.nii.gz: cannot be read to its end"):
        load_datalist(path, check="full")


def spoil(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)


def other_format(path: Path, data: np.ndarray, compressed: bool = True) -> None:
    itk = pytest.importorskip("itk")
    image = itk.image_from_array(data)
    if data.ndim == 3:
        image.SetDirection(np.diag([-1.0, -1.0, 1.0]))  # RAS, as write_volume
    itk.imwrite(image, str(path), compression=compressed)


NOISE = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("scan.mha", lambda p: (other_format(p, NOISE), spoil(p, 0.9)), r"is damaged \(checksum or compressed voxels"),
        ("scan.mhd", lambda p: (other_format(p, NOISE), spoil(p.with_suffix(".zraw"), 0.6)), r"is damaged \(checksum"),
        ("scan.mha", lambda p: (other_format(p, NOISE), os.truncate(p, p.stat().st_size - 3)), r".*end too early"),
        ("scan.mha", lambda p: (other_format(p, NOISE, False), os.truncate(p, 300)), r"is damaged \(it has"),
        ("scan.nrrd", lambda p: (other_format(p, NOISE), spoil(p, 0.9)), r"is damaged \(checksum or compressed voxels"),
        ("scan.nrrd", lambda p: (other_format(p, NOISE), os.truncate(p, p.stat().st_size - 9)), r".*end too early"),
        ("scan.nrrd", lambda p: other_format(p, NOISE * np.float32(np.nan)), "voxels that are not finite"),
        ("scan.mha", lambda p: other_format(p, 0 * NOISE), "is constant"),
        ("scan.npy", lambda p: np.save(p, NOISE.T * 1j), "holds complex numbers"),
        ("scan.png", lambda p: other_format(p, NOISE[0].astype(np.uint8)), r"has 2 axes \(4x5\)"),
        ("scan", lambda p: (p.mkdir(), (p / "readme.txt").write_text("hello")), "is a folder without DICOM files"),
    ],
)
def test_full_check_opens_every_format(tmp_path, name, make, message):
    path = make_study(tmp_path, training=1, validation=0, test=0)
    make(tmp_path / name)
    edit(path, lambda c: c["training"][0].update(image=name))
    with pytest.raises(DatalistError, match=rf"/{name}: .*?{message}") as error:
        load_datalist(path, check="full")
    assert str(error.value).startswith("1 file or item"), error.value
    if name != "scan":
        with pytest.raises((RuntimeError, ValueError), match=message):
            loading = LoadVolumed("image", ensure_channel_first=True)
            CheckVolumed("image")(loading({"image": str(tmp_path / name)}))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_full_check_compares_grids_across_formats(tmp_path, ending):
    """As Slicer's `.seg.nrrd`, which cover the segments only."""
    path = make_study(tmp_path, training=1, validation=0, test=0)
    edit(path, lambda c: c["training"][0].update(label="mask" + ending))
    itk = pytest.importorskip("itk")
    mask = itk.image_from_array(np.ones(SHAPE[::-1], np.uint8))
    mask.SetDirection(np.diag([-1.0, -1.0, 1.0]))
    itk.imwrite(mask, str(tmp_path / ("mask" + ending)))
    load_datalist(path, check="full", num_classes=2)
    mask.SetSpacing([1.0, 1.0, 2.0])
    itk.imwrite(mask, str(tmp_path / ("mask" + ending)))
    with pytest.raises(DatalistError, match=rf"mask\{ending}: lies up to 5 mm away from .*s000.nii.gz"):
        load_datalist(path, check="full")
    other_format(tmp_path / ("mask" + ending), np.ones((6, 5, 3), np.uint8))
    with pytest.raises(DatalistError, match=rf"mask\{ending}: has the shape 3x5x6, but .*s000.nii.gz has 4x5x6"):
        load_datalist(path, check="full")


def test_full_check_compares_the_checksum(tmp_path):
    path = make_study(tmp_path)
    file = tmp_path / "images/s001.nii.gz"
    for kind in ("images", "labels"):  # larger than what is read to find the header
        write_volume(tmp_path / kind / "s001.nii.gz", np.arange(16**3, dtype=np.float32).reshape(16, 16, 16) % 2)
    data = bytearray(gzip.compress(gzip.decompress(file.read_bytes()), 0))
    data[-20] ^= 1  # a voxel: stored without compression
    file.write_bytes(data)
    load_datalist(path)
    with pytest.raises(DatalistError, match=r"s001.nii.gz: is damaged \(checksum"):
        load_datalist(path, check="full")


@pytest.mark.parametrize(("label", "message"), [(2, "from 0 to 1"), (0.5, "from 0 to 1"), (float("nan"), "not finite")])
def test_number_labels(tmp_path, label, message):
    path = make_study(tmp_path, diagnosis=1)
    assert load_datalist(path, label_key="diagnosis", num_classes=2)["training"][0]["label"] == 1
    edit(path, lambda c: c["training"][0].update(diagnosis=label))
    with pytest.raises(DatalistError, match=message):
        load_datalist(path, label_key="diagnosis", num_classes=2)


def test_missing_keys_name_the_item(tmp_path):
    path = make_study(tmp_path)
    edit(path, lambda c: [c["training"][1].pop("image"), c["test"][0].pop("label"), c["validation"].append(3)])
    with pytest.raises(DatalistError) as error:
        load_datalist(path)
    text = str(error.value)
    assert "training[1]: has no 'image'" in text
    assert "test[0]: has no 'label'" in text
    assert "validation[2]: is neither a dictionary nor a path" in text


def test_the_same_image_in_two_lists(tmp_path):
    path = make_study(tmp_path)
    edit(path, lambda c: c["test"].append(c["training"][0]))
    with pytest.raises(DatalistError, match=r"s000.nii.gz: the same image is in training and in test"):
        load_datalist(path)


def test_the_same_subject_in_two_lists(tmp_path):
    path = make_study(tmp_path)
    edit(path, lambda c: [x.update(subject="p1") for x in (c["training"][0], c["test"][0])])
    with pytest.raises(DatalistError, match=r"s008.nii.gz: its subject 'p1' is in training and in test \(.* `domain`"):
        load_datalist(path)
    edit(path, lambda c: c["test"][0].update(domain="other"))
    assert len(load_datalist(path)["test"]) == 2


def test_long_lists_of_problems_are_cut(tmp_path):
    path = write_list(tmp_path / "d.json", training=[item(f"x{i}") for i in range(30)])
    with pytest.raises(DatalistError) as error:
        load_datalist(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1 and "and 40 more" in lines[-2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "no/datalist.json", r"No dataset folder at .*no: .*`dataset_dir`"),
        (lambda d: d / "datalist.json", r"No datalist at .*datalist.json: .*`datalist`"),
        (lambda d: write_list(d / "d.json", images=[]), "is not a datalist"),
        (lambda d: Path(d / "d.json").write_text("{") and d / "d.json", "cannot be read as JSON"),
    ],
)
def test_unusable_datalist_is_one_sentence(tmp_path, make, message):
    with pytest.raises(DatalistError, match=message) as error:
        load_datalist(make(tmp_path))
    assert "\n" not in str(error.value)


def test_missing_base_dir(tmp_path):
    with pytest.raises(DatalistError, match=r"No dataset folder at .*gone: set the config id `dataset_dir`"):
        load_datalist(make_study(tmp_path), tmp_path / "gone")


# --- required lists ----------------------------------------------------------------------------------------------


def test_required_lists_must_not_be_empty(tmp_path):
    path = make_study(tmp_path, validation=0)
    assert load_datalist(path)["validation"] == []
    assert load_datalist(path, required=["training", "test"])["validation"] == []
    with pytest.raises(DatalistError, match=r"the list 'validation' is empty; set `fold`"):
        load_datalist(path, required=["training", "validation"])
    lists = load_datalist(path, required=["training", "validation"], fold=0)
    assert lists["validation"]


def test_a_required_list_without_the_target_domain_names_it(tmp_path):
    path = make_study(tmp_path, domain="a")
    edit(path, lambda content: [x.update(domain="b") for x in content["test"]])
    with pytest.raises(DatalistError, match=r"the list 'test' has no items of the domain 'a'"):
        load_datalist(path, required=["test"], target_domain="a")


# --- lists for pre-training, label scheme -----------------------------------------------------------------------------


def test_a_missing_unlabelled_list_counts_as_empty(tmp_path):
    path = make_study(tmp_path)
    lists = load_datalist(path, label_key=None, training_sections=("training", "unlabelled"), required=["training"])
    assert lists == load_datalist(path, label_key=None)
    with pytest.raises(DatalistError, match="the list 'training' is empty"):
        load_datalist(path, label_key=None, training_sections=["unlabelled"], required=["training"])


def test_another_label_scheme_is_refused(tmp_path):
    path = edit(make_study(tmp_path), lambda c: c.update(label_scheme="oasis_seg4"))
    lists = load_datalist(path)
    assert load_datalist(path, label_scheme="oasis_seg4") == lists
    with pytest.raises(DatalistError, match=r"'oasis_seg4'.*config id `label_scheme` is 'oasis_seg35'") as error:
        load_datalist(path, label_scheme="oasis_seg35")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    edit(path, lambda c: c.update(numbering=c.pop("label_scheme")))  # files of earlier versions
    with pytest.raises(DatalistError, match=r"'oasis_seg4'.*config id `label_scheme` is 'oasis_seg35'"):
        load_datalist(path, label_scheme="oasis_seg35")
    edit(path, lambda c: c.pop("numbering"))
    assert load_datalist(path, label_scheme="oasis_seg35") == lists


def test_a_link_to_a_test_scan_is_that_scan(tmp_path):
    path = make_study(tmp_path)
    linked = tmp_path / "images/s000.nii.gz"
    linked.unlink()
    linked.symlink_to(tmp_path / "images/s009.nii.gz")
    with pytest.raises(DatalistError, match=r"s009\.nii\.gz: in test leads to the same file as .*s000.* in training"):
        load_datalist(path)


def test_a_link_within_a_list_passes(tmp_path):
    path = make_study(tmp_path)
    linked = tmp_path / "images/s000.nii.gz"
    linked.unlink()
    linked.symlink_to(tmp_path / "images/s001.nii.gz")
    assert len(load_datalist(path)["training"]) == 6


def test_a_byte_order_mark_is_read(tmp_path):
    path = make_study(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(load_datalist(path)["training"]) == 6


def test_a_copy_of_a_test_scan_in_training_is_refused(tmp_path):
    path = make_study(tmp_path)
    noise = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    for name in ("s000", "s009"):
        write_volume(tmp_path / f"images/{name}.nii.gz", noise)
    with pytest.raises(DatalistError, match=r"s009.nii.gz: in test is a copy of .*s000.nii.gz in training"):
        load_datalist(path)


def test_json_that_is_nested_too_deeply_is_refused_by_name(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"training": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(DatalistError, match=r"deep.json cannot be read as JSON"):
        load_datalist(path)


def test_a_label_that_is_true_is_no_class(tmp_path):
    path = edit(make_study(tmp_path), lambda content: content["training"][0].update(label=True))
    with pytest.raises(DatalistError, match=r"'label' is True, which is not a path"):
        load_datalist(path)


@pytest.mark.parametrize("value", [{"id": 1}, ["p1"], True])
@pytest.mark.parametrize("key", ["subject", "domain"])
def test_what_is_no_name_is_no_subject(tmp_path, key, value):
    """It ended the check in a traceback, and in a training it stood for a name."""
    path = make_study(tmp_path)
    edit(path, lambda c: c["training"][0].update({key: value}))
    with pytest.raises(DatalistError, match=rf"training\[0\]: '{key}' is .* neither a word nor a number"):
        check_command(str(path))
    with pytest.raises(DatalistError, match=f"'{key}' is "):
        load_datalist(path, label_key=None)


@pytest.mark.parametrize("near", [0.9999999, 1.0000001])
def test_labels_next_to_whole_numbers_are_rounded_everywhere(tmp_path, near):
    """As slope and offset of a header leave them."""
    path = make_study(tmp_path, training=1, validation=0, test=0)
    write_volume(tmp_path / "labels/s000.nii.gz", np.full(SHAPE, near, np.float64))
    items = load_datalist(path, check="full", num_classes=2)["training"]
    load_datalist(path, check="full", known_labels={0, 1})
    loaded = LoadVolumed(["image", "label"], ensure_channel_first=True, dtype=np.float64)(items[0])
    assert (loaded["label"] == near).all()
    for check in (
        CheckVolumed("image", "label", 2),
        MapLabelsd("label", {1: [1]}, other="error"),
        LabelRegionsd("label", [[1]], 2),
    ):
        assert (check(dict(loaded))["label"] == 1).all()


def test_labels_further_off_are_told_in_full(tmp_path):
    path = make_study(tmp_path)
    write_volume(tmp_path / "labels/s000.nii.gz", np.full(SHAPE, 0.999998, np.float64))
    with pytest.raises(DatalistError, match=r"s000.nii.gz: has labels that are not whole numbers \(0.999998\)"):
        load_datalist(path, check="full", num_classes=2)
