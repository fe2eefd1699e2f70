from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.transforms import SurroundingLabelsd
from common.transforms.surrounding_labels import split_intensities

SCALP, MUSCLE, SKULL = 0.9, 0.5, 0.02


@pytest.fixture
def head():
    """A ball of two structures in fluid, in shells of skull, muscle and scalp, in air that is not 0."""
    lines = torch.arange(48.0) - 23.5
    x, y, z = torch.meshgrid(lines, lines, lines, indexing="ij")
    radius = (x * x + y * y + z * z).sqrt()
    image, label = torch.zeros(48, 48, 48), torch.zeros(48, 48, 48, dtype=torch.uint8)
    for limit, value in ((22, SCALP), (19, MUSCLE), (17, SKULL), (14, 0.6)):
        image[radius < limit] = value
    label[radius < 14], label[radius < 8] = 1, 2
    image += 0.01 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * (radius < 22)
    return {"image": MetaTensor(image[None] + 0.1), "label": MetaTensor(label[None]), "radius": radius}


def transform(groups=3, first=5, **more):
    return SurroundingLabelsd("image", "label", "anatomy", groups, first, **more)


def test_skull_and_scalp_get_labels_from_dark_to_bright_and_air_has_none(head):
    made = transform()(head)
    anatomy, label, radius = made["anatomy"][0], head["label"][0], head["radius"]
    assert torch.equal(made["label"], head["label"]) and torch.equal(made["image"], head["image"])
    assert torch.equal(anatomy[label > 0], label[label > 0].to(anatomy.dtype))
    assert (anatomy[(radius >= 14) & (radius < 17)] == 5).all()  # skull, dark as air, but inside of the head
    assert (anatomy[(radius >= 17) & (radius < 19)] == 6).all()
    assert (anatomy[(radius >= 19) & (radius < 22)] == 7).all()
    air = anatomy[radius >= 22]
    # behind the bulge of a ball seen along the axes there is none
    assert (air == 0).float().mean() > 0.99 and isinstance(made["anatomy"], MetaTensor)


def test_without_groups_or_without_a_head_the_map_is_that_of_the_labels(head):
    assert torch.equal(transform(groups=0)(head)["anatomy"], head["label"])
    stripped = {**head, "image": torch.where(head["label"] > 0, head["image"], 0.0)}
    assert torch.equal(transform()(stripped)["anatomy"], head["label"])


def test_what_does_not_count_may_be_tissue(head):
    """Unknown labels within the head are drawn; padding, which is air, stays what it is."""
    label = torch.as_tensor(head["label"]).to(torch.int16)
    label[:, 20:28, 20:28, 20:28] = label[:, :2] = -1
    anatomy = transform()({**head, "label": label})["anatomy"]
    assert (anatomy[:, 20:28, 20:28, 20:28] >= 5).all() and (anatomy[:, :2] == -1).all()


def test_the_groups_are_those_of_k_means():
    """Each value is nearest to the mean of its own group, but for the width of a bin."""
    draw = torch.Generator().manual_seed(1)
    values = torch.cat([torch.randn(n, generator=draw).abs() * 0.05 + at for n, at in ((500, 0), (90, 0.4), (40, 1.0))])
    limits = split_intensities(values, 3)
    group = torch.bucketize(values, limits)
    means = torch.stack([values[group == number].mean() for number in range(3)])
    nearest = (values[:, None] - means).abs().argmin(1)
    assert (nearest != group).sum() <= 2 and [int((group == n).sum()) for n in range(3)] == [500, 90, 40]
    assert split_intensities(torch.zeros(9), 2).shape == (1,)  # one intensity


def test_what_cannot_be_labelled_is_said(head):
    with pytest.raises(ValueError, match="groups is -1"):
        transform(groups=-1)
    with pytest.raises(ValueError, match="names 2 scans"):
        SurroundingLabelsd(["image", "other"], "label", "anatomy", 3, 5)
    with pytest.raises(ValueError, match="holds the label 2; `first` must be larger, not 2"):
        transform(first=2)(head)
    with pytest.raises(ValueError, match="must have one channel and lie on the scan's grid"):
        transform()({**head, "image": torch.zeros(1, 4, 4, 4)})


def test_an_item_without_a_label_map_is_one_sentence():
    with pytest.raises(ValueError, match=r"^The item has no 'label' whose surroundings to label, only \['image'\]\.$"):
        SurroundingLabelsd("image", "label", "anatomy", 3, 5)({"image": torch.rand(1, 4, 4, 4)})
