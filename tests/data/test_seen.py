from __future__ import annotations

import gzip
import json
import pickle

import nibabel as nib
import numpy as np
import pytest

from common.data import copies, load_datalist, load_domains
from common.data.seen import SeenScans, find_seen, refuse_seen

BOTH = ("training", "validation")


@pytest.fixture
def write(tmp_path):
    """Write a datalist; what is in a scan's file follows from its name, whose first letters are its subject."""

    def make(folder, lists, subjects=False, name="list.json"):
        content = {}
        for section, scans in lists.items():
            content[section] = []
            for scan in scans:
                values = np.random.default_rng(list(scan.encode())).normal(size=(12, 12, 12)).astype(np.float32)
                path = tmp_path / folder / f"{scan}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                if not path.exists():
                    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
                entry = {"image": path.name, "label": path.name}
                content[section].append(entry | ({"subject": scan[:2]} if subjects else {}))
        path = tmp_path / folder / name
        path.write_text(json.dumps(content))
        return path

    return make


def record_of(path, used=BOTH, earlier=None, **given):
    record = SeenScans(load_datalist(path, **given), used, earlier).record()
    return json.loads(json.dumps(record))


def test_a_scan_of_training_is_found_under_another_name_and_unpacked(write, tmp_path):
    record = record_of(write("a", {"training": ["t1", "t2"], "validation": ["v1"]}))
    assert {part: len(found["files"]) for part, found in record.items()} == {"training": 2, "validation": 1}
    lists = load_datalist(write("b", {"validation": ["v1", "n1"], "test": ["n2", "n3"]}))
    assert find_seen(record, lists, ["validation", "test"]) == []  # validation scans choose here as they did there
    for change, name in ((gzip.decompress, "patient.nii"), (bytes, "patient.nii.gz")):
        file = tmp_path / "b" / name
        file.write_bytes(change((tmp_path / "a" / "t2.nii.gz").read_bytes()))
        lists["test"].append({"image": str(file)})
        assert find_seen(record, lists, ["test"]) == [f"was trained on {file} of the test list"]
        lists["test"].pop()
    lists["test"] = lists["validation"]
    assert find_seen(record, lists, ["test"]) == [f"was chosen by {tmp_path}/b/v1.nii.gz of the test list"]


def test_large_scans_are_told_by_their_beginning(tmp_path, monkeypatch):
    """The cost of a record does not grow with the size of packed scans; a file of several parts is read whole."""
    scans = np.random.default_rng(0).integers(0, 255, (2, 9_000_000), dtype=np.uint8)
    read = []
    content = copies._content

    def watch(file):
        for block in content(file):
            read.append(len(block))
            yield block

    monkeypatch.setattr(copies, "_content", watch)
    files = [tmp_path / f"{name}.nii.gz" for name in ("one", "parts")]
    for file, scan, end in zip(files, scans, (b"", gzip.compress(b"")), strict=True):
        file.write_bytes(gzip.compress(scan.tobytes(), 1) + end)
    record = SeenScans({"training": [{"image": str(files[0])}]}, ("training",)).record()
    assert 1 << 22 <= sum(read) < (1 << 22) + (1 << 20)
    lists = {"test": [{"image": str(file)} for file in files]}
    assert find_seen(record, lists, ["test"]) == [f"was trained on {files[0]} of the test list"]
    read.clear()
    record = SeenScans({"training": [{"image": str(files[1])}]}, ("training",)).record()
    assert sum(read) == 9_000_000 and find_seen(record, lists, ["test"]) == [
        f"was trained on {files[1]} of the test list"
    ]


def test_other_scans_of_a_subject_are_found_in_one_folder_alone(write, tmp_path):
    record = record_of(write("a", {"training": ["s1_t1", "s2_t1"]}, subjects=True))
    assert "s1" not in json.dumps(record)  # no names leave with the weights
    lists = load_datalist(write("a", {"test": ["s1_t2", "s3_t1", "s2_t2"]}, subjects=True, name="other.json"))
    (phrase,) = find_seen(record, lists, ["test"])
    start = f"was trained on other scans of the subjects of {tmp_path}/a/s1_t2.nii.gz and 1 more of the test list"
    assert phrase == start + " (if these are other people, from another set, give its items a `domain`)"
    elsewhere = load_datalist(write("b", {"test": ["s1_t2", "s3_t1", "s2_t2"]}, subjects=True))
    assert find_seen(record, elsewhere, ["test"]) == []  # number 1 of another study


def test_equal_names_of_two_people_are_refused_with_the_way_out(write):
    """Two sets in one folder: nothing but `domain` says that their s1 are two people."""
    source = write("a", {"training": ["s1_t1"]}, subjects=True, name="source.json")
    target = write("a", {"test": ["s1_t2"]}, subjects=True, name="target.json")
    record = record_of(source)
    with pytest.raises(ValueError, match=r"s1_t2.nii.gz of the test list \(if these are other people.* a `domain`"):
        refuse_seen("encoder", record, load_datalist(target), ["test"])
    content = json.loads(target.read_text())
    content["test"][0]["domain"] = "target"
    target.write_text(json.dumps(content))
    assert refuse_seen("encoder", record, load_datalist(target), ["test"]) == []


def test_what_the_weights_started_from_counts(write, tmp_path):
    earlier = record_of(write("a", {"training": ["t1"], "validation": ["v1"]}))
    record = record_of(write("b", {"training": ["t2"], "validation": ["v2"]}), earlier=earlier)
    assert {part: len(found["files"]) for part, found in record.items()} == {
        "pretraining": 1, "training": 1, "validation": 2
    }  # fmt: skip
    third = record_of(write("c", {"training": ["t3"]}), ("training",), record)
    lists = load_datalist(write("d", {"test": ["t1", "n1"]}))
    for found in (record, third):
        assert find_seen(found, lists, ["test"]) == [f"was pre-trained on {tmp_path}/d/t1.nii.gz of the test list"]
    assert len(third["pretraining"]["files"]) == 2


def test_the_same_scans_on_both_sides_are_said(write, caplog):
    """Training scans are no leak, but an encoder that learnt from their masks is not transferred to new data."""
    earlier = record_of(write("a", {"training": ["t1", "t2", "t3"]}))
    with caplog.at_level("INFO"):
        record_of(write("b", {"training": ["t4"]}), earlier=earlier)
        assert "training scans" not in caplog.text
        record_of(write("c", {"training": ["t1", "t2", "t5"]}), earlier=earlier)
    assert "2 of the 3 training scans were already used to train" in caplog.text


def test_refused_by_one_sentence_or_said(write, caplog):
    record = record_of(write("a", {"training": ["t1", "t2"]}))
    lists = load_datalist(write("b", {"test": ["t1", "t2", "n1"]}))
    with pytest.raises(ValueError, match=r"model.pt was trained on \S*t1.nii.gz and 1 more of the test list: .*transd"):
        refuse_seen("model.pt", record, lists, ["test"])
    assert len(refuse_seen("model.pt", record, lists, ["test"], transductive=True)) == 1
    assert "transductive: model.pt was trained on" in caplog.text
    with caplog.at_level("INFO"):
        assert refuse_seen("old.pt", None, lists, ["test"]) == []
    assert "old.pt has no record of the scans" in caplog.text


def test_records_that_are_malformed_hold_nothing(write):
    lists = load_datalist(write("b", {"test": ["t1"]}))
    for record in ({"training": []}, {"training": {"files": None, "subjects": [3]}}, {"training": {"files": ["x"]}}):
        assert find_seen(record, lists, ["test"]) == []


def test_subjects_of_domains_and_folds_are_known(write):
    path = write("a", {"training": [f"s{n}_t1" for n in range(5)], "test": ["s8_t1"]}, subjects=True)
    lists = load_domains([{"name": "one", "datalist": str(path), "num_classes": 2}], fold=0, check="none")
    assert [len(lists[name].subjects) for name in ("training", "validation", "test")] == [4, 1, 1]
    again = load_datalist(path, fold=0, check="none")
    assert all(items.subjects == again[name].subjects and items.lists is lists for name, items in lists.items())
    assert pickle.loads(pickle.dumps(lists))["test"].subjects == lists["test"].subjects


def test_an_error_comes_out_where_the_record_is_asked_for():
    with pytest.raises(TypeError):
        SeenScans({"training": [None]}, BOTH).record()
