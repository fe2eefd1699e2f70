from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Orientationd, Spacingd, SpatialPadd

from common.transforms import LoadVolumed, MapLabelsd, StoredGridd

SHAPE, AFFINE = (14, 18, 11), np.diag([-2.0, 1.5, 4.0, 1.0])
BOTH = ["image", "label"]


def preprocessing(label_map=None):
    return Compose(
        [
            LoadVolumed(BOTH, ensure_channel_first=True),
            Compose([MapLabelsd("label", label_map or {1: [3], 2: [7]})]),
            Orientationd(BOTH, axcodes="PSR", labels=None),
            Spacingd(BOTH, pixdim=[2.0, 2.0, 3.0], mode=["bilinear", "nearest"]),
            CropForegroundd(BOTH, source_key="image", allow_smaller=True),
            SpatialPadd(BOTH, spatial_size=[24, 24, 24]),
        ]
    )


@pytest.fixture
def item(tmp_path):
    """Files of a scan with a margin, and of a label that reaches into it; and what the label holds in classes."""
    image, label = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int16)
    image[3:-3, 3:-3, 2:-2] = np.random.default_rng(0).uniform(1, 2, image[3:-3, 3:-3, 2:-2].shape)
    label[0:5, 2:9, 4:7], label[8:12, 4:13, 3:8] = 3, 7
    for name, data in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / f"{name}.nii.gz")
    classes = np.select([label == 3, label == 7], [1, 2])
    return {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}, classes


def predicted(loaded):
    """Scores of three classes, sure of what the label on the network's grid says."""
    scores = torch.stack([loaded["label"][0] == number for number in range(3)]).float() * 30
    return MetaTensor(scores, meta=loaded["label"].meta)


def test_the_label_of_the_file_and_the_prediction_beside_it(item):
    files, classes = item
    transform = preprocessing()
    loaded = transform(files)
    found = StoredGridd("pred", transform)(loaded | {"pred": predicted(loaded)})
    np.testing.assert_array_equal(found["label"][0].numpy(), classes)
    assert found["pred"].shape == (3, *SHAPE)
    for key in ("pred", "label"):
        np.testing.assert_allclose(found[key].affine, AFFINE, atol=1e-5)
    inside = np.zeros(SHAPE, bool)
    inside[4:-4, 4:-4, 3:-3] = True
    values = found["pred"].argmax(0).numpy()
    assert (values == classes)[inside].mean() > 0.85
    sums = found["pred"].sum(0).numpy()[inside]  # probabilities, resampled
    np.testing.assert_allclose(sums, 1, atol=1e-4)
    assert loaded["label"].shape == (1, 24, 24, 24)  # the cached item is left as it is


def test_a_label_stored_in_another_orientation_is_turned(item):
    files, classes = item
    label = nib.load(files["label"])
    nib.save(label.as_reoriented(nib.io_orientation(np.diag([-1.0, -1.0, -1.0, 1.0]))), files["label"])
    transform = preprocessing()
    loaded = transform(files)
    found = StoredGridd("pred", transform)(loaded | {"pred": predicted(loaded)})
    np.testing.assert_array_equal(found["label"][0].numpy(), classes)


def test_disabled_changes_nothing(item):
    transform = preprocessing()
    loaded = transform(item[0])
    loaded["pred"] = predicted(loaded)
    found = StoredGridd("pred", transform, enabled=False)(loaded)
    assert all(found[key] is loaded[key] for key in loaded)


def test_labels_of_several_label_schemes(item):
    files, classes = item
    transform = preprocessing({"a": {1: [3], 2: [7]}, "b": {1: [7], 2: [3]}})
    loaded = transform(files | {"domain": "b"})
    found = StoredGridd("pred", transform)(loaded | {"pred": predicted(loaded)})
    np.testing.assert_array_equal(found["label"][0].numpy(), np.array([0, 2, 1])[classes])


def test_a_label_without_a_file_is_refused(item):
    transform = preprocessing()
    loaded = transform(item[0])
    pred = predicted(loaded)
    loaded["label"] = loaded["label"].as_tensor()
    with pytest.raises(ValueError, match=r"was not loaded from a file.*--native False"):
        StoredGridd("pred", transform)(loaded | {"pred": pred})


def test_a_label_of_another_shape_is_refused_with_its_file(item):
    files, _ = item
    transform = preprocessing()
    loaded = transform(files)
    nib.save(nib.Nifti1Image(np.zeros((14, 18, 12), np.int16), AFFINE), files["label"])
    with pytest.raises(ValueError, match=r"label\.nii\.gz has the shape 14x18x12.*image\.nii\.gz has 14x18x11"):
        StoredGridd("pred", transform)(loaded | {"pred": predicted(loaded)})
