from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import FgBgToIndicesd

from common.transforms import ClearIgnoredd, LabelIndicesd


def test_indices_are_those_of_monai_without_the_ignored():
    label = torch.randint(3, (1, 4, 5, 6))
    expected = FgBgToIndicesd("label")({"label": label})
    made = LabelIndicesd("label")({"label": MetaTensor(label)})
    for name in ("label_fg_indices", "label_bg_indices"):
        assert torch.equal(made[name], torch.as_tensor(expected[name])) and not isinstance(made[name], MetaTensor)
    padded = torch.nn.functional.pad(label, [2] * 6, value=-1)
    made = LabelIndicesd("label")({"label": padded})
    found = [padded.flatten()[made[f"label_{name}_indices"]] for name in ("fg", "bg")]
    assert (found[0] > 0).all() and (found[1] == 0).all()
    assert len(made["label_fg_indices"]) + len(made["label_bg_indices"]) == label.numel()


def test_ignored_voxels_become_background():
    label = torch.tensor([[[[0, 1, -1, -1]]]])
    prediction = MetaTensor(torch.tensor([[[[1, 1, 0, 2]]]]), meta={"filename_or_obj": "scan.nii.gz"})
    made = ClearIgnoredd(["pred", "label"])({"pred": prediction, "label": MetaTensor(label)})
    assert made["pred"].tolist() == [[[[1, 1, 0, 0]]]] and made["label"].tolist() == [[[[0, 1, 0, 0]]]]
    assert made["pred"].meta["filename_or_obj"] == "scan.nii.gz" and prediction.tolist() == [[[[1, 1, 0, 2]]]]
    assert ClearIgnoredd("label", allow_missing_keys=True)({"pred": prediction}) == {"pred": prediction}


def test_each_class_is_met_equally_often():
    """A crop is centred on a small structure as often as on a large one; all of a large one is reached."""
    label = torch.zeros(1, 20, 20, 20, dtype=torch.long)
    label[0, 5:15, 5:15, 5:15] = 1
    label[0, 0, 0, :3] = 4
    label[0, 19] = -1
    made = LabelIndicesd("label", per_class=100)({"label": label})
    values = label.flatten()[made["label_fg_indices"]]
    assert (values == 1).sum() == (values == 4).sum() == 100 and len(values) == 200
    of = {value: made["label_fg_indices"][values == value] for value in (1, 4)}
    assert set(of[4].tolist()) == {0, 1, 2}
    assert len(of[1].unique()) == 100 and {int(i) // 400 for i in of[1]} == set(range(5, 15))
    assert torch.equal(made["label_bg_indices"], LabelIndicesd("label")({"label": label})["label_bg_indices"])
    assert len(LabelIndicesd("label", per_class=100)({"label": label.clamp(max=0)})["label_fg_indices"]) == 0


def test_per_class_is_one_or_more():
    with pytest.raises(ValueError, match="per_class is 0"):
        LabelIndicesd("label", per_class=0)
