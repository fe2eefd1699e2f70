from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional as F

from common.losses import SegmentedLabelsLoss
from common.pretexts import SyntheticSegmentation
from common.transforms import RandomDeformation, SyntheticContrast


@pytest.fixture
def maps():
    made = torch.zeros(2, 1, 12, 12, 12)
    made[:, :, 2:10, 2:6, 2:10], made[:, :, 2:10, 6:10, 2:10] = 1, 3
    return made


def pretext(**arguments):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))
    return SyntheticSegmentation(net, SyntheticContrast(), **arguments)


def test_the_labels_are_those_the_image_was_drawn_from(maps):
    torch.manual_seed(0)
    flat = SyntheticContrast(std=(0, 0), black=0, dark=0, bias=0, gamma=0, sharp=1)
    flat.acquire = lambda image, *_: image  # no blur
    model = SyntheticSegmentation(nn.Identity(), flat, RandomDeformation(), targets=[0, 1, 0, 2])
    result = model(maps)
    assert set(result["labels"].unique().tolist()) == {0, 1, 2} and not torch.equal(result["labels"], maps)
    for image, labels in zip(result["drawn"], result["labels"], strict=True):
        assert all(len(image[labels == value].unique()) == 1 for value in range(3))
    assert torch.equal(result["logits"], result["drawn"])


def test_it_learns():
    torch.manual_seed(0)
    maps = torch.zeros(4, 1, 12, 12, 12)
    maps[:, :, 3:9, 3:9, 3:9] = 1
    net = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 2, 5, padding=2))
    model = SyntheticSegmentation(net, SyntheticContrast(parts=1))
    loss, optimizer = (
        SegmentedLabelsLoss(DiceCELoss(to_onehot_y=True, softmax=True)),
        torch.optim.Adam(net.parameters(), 5e-3),
    )
    values = []
    for _ in range(60):
        value = loss(model(maps), maps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.6 * sum(values[:10])


def test_the_image_is_normalised_as_told(maps):
    model = pretext(normalize=lambda item: {"image": item["image"] * 0 + item["image"].ndim}, targets=[0, 1, 2, 2])
    assert (model(maps)["drawn"] == 4).all()


def test_the_loss_is_that_of_the_logits_and_labels(maps):
    prediction = pretext(targets=[0, 1, 2, 2])(maps)
    inner = lambda logits, labels: F.cross_entropy(logits, labels[:, 0].long())  # noqa: E731
    value = SegmentedLabelsLoss(inner)(prediction, maps)
    torch.testing.assert_close(value, F.cross_entropy(prediction["logits"], prediction["labels"][:, 0]))
    coarse = prediction["logits"][:, :, ::2, ::2, ::2]
    both = {**prediction, "logits": [prediction["logits"], coarse]}
    labels = F.interpolate(prediction["labels"].float(), (6, 6, 6), mode="nearest-exact").long()
    expected = (float(value) + 0.5 * float(F.cross_entropy(coarse, labels[:, 0]))) / 1.5
    assert float(SegmentedLabelsLoss(inner)(both, maps)) == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert SegmentedLabelsLoss(inner)(prediction, maps).dtype == torch.float32


def test_pictures_show_classes_image_and_what_was_found(maps):
    model = pretext(targets=[0, 1, 2, 2])
    prediction = model(maps)
    labels, drawn, found = model.pictures(maps, prediction)
    assert torch.equal(labels, prediction["labels"] / 2) and torch.equal(drawn, prediction["drawn"])
    assert torch.equal(found[:, 0], prediction["logits"].argmax(1) / 2)


def test_a_crop_that_one_label_fills_is_drawn(maps):
    """The inside of a large structure, or a crop of air, beside a map of several labels."""
    maps[1] = 2
    model = pretext(targets=[0, 1, 2, 2])
    prediction = model(maps)
    assert (prediction["labels"][1] == 2).all() and torch.isfinite(prediction["logits"]).all()
    assert prediction["drawn"][1].unique().numel() > 100  # a Gaussian of its own


def test_maps_it_cannot_draw_from_are_refused(maps):
    with pytest.raises(ValueError, match="no voxels to draw an image from"):
        pretext()(torch.ones(1, 1, 4, 0, 4))
    with pytest.raises(
        ValueError, match="label 3, but the largest label of its label scheme is 1: set map_label_scheme"
    ):
        pretext(targets=[0, 1])(maps)
