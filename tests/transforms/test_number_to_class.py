from __future__ import annotations

import pytest

from common.transforms import NumberToClassd


def test_ratings_1_to_3_are_benign():
    transform = NumberToClassd("label", [4])
    assert [transform({"label": rating})["label"] for rating in (1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]


def test_age_groups():
    transform = NumberToClassd("label", [40, 60])
    assert [transform({"label": age})["label"] for age in (20.5, 39.9, 40, 59.9, 60, 88)] == [0, 0, 1, 1, 2, 2]


def test_refusals():
    with pytest.raises(ValueError, match="rise"):
        NumberToClassd("label", [4, 4])
    with pytest.raises(ValueError, match="at least one"):
        NumberToClassd("label", [])
    for value in (None, "n/a", float("nan")):
        with pytest.raises(ValueError, match=r"scan.nii has .* under 'label', which is not a number"):
            NumberToClassd("label", [4])({"image": "scan.nii", "label": value})
