from __future__ import annotations

import numpy as np
import pytest

from common import volumes
from common.volumes import first_line, format_values, label_problem, left_right_axis, whole_labels


@pytest.mark.parametrize(
    ("values", "dtype", "num_classes", "expected"),
    [
        ([0, 1, 3], np.uint8, 4, None),
        ([0, 1, 300], ">i2", None, None),
        ([0, 1, 3], np.float32, 4, None),
        ([True, False], bool, 2, None),
        ([], np.uint8, 4, None),
        ([0, 4, 5, 4], np.uint8, 4, "has labels outside 0 to 3 (4, 5)"),
        ([-1, -2, 7], np.int16, None, "has labels outside 0 or more (-2, -1)"),
        ([0.5, 1, 7], np.float64, 4, "has labels that are not whole numbers (0.5)"),
        ([np.nan, np.inf, 9], np.float32, 4, "has 2 voxels that are not finite (NaN or infinite)"),
    ],
)
def test_label_problem(values, dtype, num_classes, expected):
    assert label_problem(np.array(values, dtype), num_classes) == expected


def test_some_are_few_and_different():
    assert format_values(np.array([[3, 1], [1, 2]])) == "1, 2, 3"
    assert format_values(np.arange(9)[::-1], 2) == "0, 1, ..."


def test_first_line():
    assert first_line(ValueError("\nwhy\nwhere")) == "why"
    assert first_line(ValueError()) == "ValueError"


def test_labels_next_to_whole_numbers_are_rounded_and_it_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(volumes, "_told", set())
    labels = np.array([0.9999999, 2, 2.00001, np.nan, np.inf, -1e-8])
    for name in ("a.nii.gz", "b.nii.gz"):
        np.testing.assert_equal(whole_labels(labels, name), [1, 2, 2.00001, np.nan, np.inf, 0])
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith(
        "a.nii.gz has labels close to whole numbers (-1e-08, 0.9999999), which are rounded"
    )
    whole = np.array([0.0, 3.0])
    assert whole_labels(whole, "c") is whole


@pytest.mark.parametrize(("codes", "axis"), [("RAS", 0), ("LPS", 0), ("SAR", 2), ("PIL", 2), ("ARS", 1)])
def test_left_right_axis(codes, axis):
    assert left_right_axis(codes) == axis


@pytest.mark.parametrize("codes", ["RAX", "ras", "RA", None, "AAS"])
def test_what_is_no_orientation(codes):
    with pytest.raises(ValueError, match=r"orientation is .*: give three capital letters, .*such as RAS\."):
        left_right_axis(codes)
