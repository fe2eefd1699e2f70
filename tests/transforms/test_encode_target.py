from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from common.transforms import EncodeTargetd

IMAGE = MetaTensor(torch.rand(1, 2, 2, 2), meta={"filename_or_obj": "/d/scan.nii.gz"})


@pytest.mark.parametrize("value", [41.5, "41.5", np.float64(41.5), torch.tensor(41.5)])
def test_a_quantity(value):
    found = EncodeTargetd("label")({"label": value, "image": IMAGE})
    assert torch.equal(found["label"], torch.tensor([41.5])) and found["label"].dtype == torch.float32
    assert found["image"] is IMAGE


@pytest.mark.parametrize("value", [2, 2.0, "2", np.int64(2), torch.tensor(2)])
def test_a_class(value):
    found = EncodeTargetd("label", num_classes=3)({"label": value})["label"]
    assert found.shape == () and found.dtype == torch.int64 and found == 2


@pytest.mark.parametrize(
    ("num_classes", "shape", "loss"), [(None, (2, 1), torch.nn.L1Loss()), (3, (2,), torch.nn.CrossEntropyLoss())]
)
def test_batches_are_what_losses_take(num_classes, shape, loss):
    data = Dataset([{"label": 1}, {"label": 2}], EncodeTargetd("label", num_classes=num_classes))
    (batch,) = DataLoader(data, batch_size=2)
    assert batch["label"].shape == shape and batch["label"].flatten().tolist() == [1, 2]
    assert loss(torch.zeros(2, num_classes or 1), batch["label"]).isfinite()


@pytest.mark.parametrize(
    ("value", "num_classes", "message"),
    [
        ("n/a", None, "its label is 'n/a', which is not a number; correct it in the datalist"),
        (None, None, "its label is None, which is not a number"),
        ([1, 2], None, "its label is .1, 2., which is not a number"),
        (float("nan"), None, "its label is nan, which is not finite"),
        ("inf", 3, "its label is inf, which is not finite"),
        (3, 3, "its label is 3, which is not a class from 0 to 2; correct it in the datalist, or set num_classes"),
        (-1, 3, "its label is -1, which is not a class from 0 to 2"),
        (1.5, 3, "its label is 1.5, which is not a class from 0 to 2"),
    ],
)
def test_one_sentence_names_the_file(value, num_classes, message):
    with pytest.raises(ValueError, match=f"^/d/scan.nii.gz: {message}") as error:
        EncodeTargetd("label", num_classes=num_classes)({"label": value, "image": IMAGE})
    assert "\n" not in str(error.value)


def test_an_error_without_an_image_and_missing_keys():
    with pytest.raises(ValueError, match="its age is 'old'"):
        EncodeTargetd("age")({"age": "old"})
    with pytest.raises(KeyError, match="age"):
        EncodeTargetd("age")({})
    assert EncodeTargetd("age", allow_missing_keys=True)({}) == {}
