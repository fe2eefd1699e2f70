from __future__ import annotations

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
