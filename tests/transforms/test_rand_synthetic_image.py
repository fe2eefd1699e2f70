from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from common.transforms import NormalizeForegroundd, RandomDeformation, RandSyntheticImaged, SyntheticContrast


@pytest.fixture
def item():
    label = torch.zeros(1, 16, 16, 16)
    label[:, 3:9, 3:13, 3:13], label[:, 9:13, 3:13, 3:13] = 1, 2
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    meta = {"filename_or_obj": "case.nii.gz"}
    return {
        "image": MetaTensor(torch.rand(1, 16, 16, 16), affine=affine, meta=meta),
        "label": MetaTensor(label, affine),
    }


def test_the_image_is_drawn_from_the_label_that_stands_beside_it(item):
    transform = RandSyntheticImaged(
        deformation=RandomDeformation(), contrast=SyntheticContrast(std=(0, 0), bias=0, gamma=0, sharp=1)
    )
    transform.set_random_state(0)
    made = transform(item)
    assert made["image"].shape == item["image"].shape and not torch.equal(made["label"], item["label"])
    assert torch.equal(made["image"].affine, item["image"].affine)
    assert made["image"].meta["filename_or_obj"] == "case.nii.gz"
    means = [made["image"][made["label"] == label].mean() for label in range(3)]
    between = torch.stack(means).std()
    within = torch.stack([made["image"][made["label"] == label].std() for label in range(3)]).mean()
    assert between > 2 * within


def test_monais_seed_repeats_it_and_leaves_torchs_generator_alone(item, monkeypatch):
    made, reset = [], []
    monkeypatch.setattr("torch.cuda.manual_seed_all", reset.append)
    for _ in range(2):
        transform = RandSyntheticImaged(deformation=RandomDeformation())
        transform.set_random_state(4)
        torch.manual_seed(9)
        reset.clear()
        made += [transform(item)["image"], transform(item)["image"]]
        assert not reset  # the generators of GPUs, with a GPU or without
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3]) and not torch.equal(made[0], made[1])


def test_another_map_may_hold_more_than_is_segmented(item):
    item["map"] = item["label"] + 1
    item["label"] = (item["label"] == 2).float()
    transform = RandSyntheticImaged(source_key="map", deformation=RandomDeformation())
    transform.set_random_state(0)
    made = transform(item)
    assert set(made["label"].unique().tolist()) == {-1, 0, 1}  # -1 is what comes from outside of the map
    item["map"] = item["label"].clone()
    transform.set_random_state(0)
    assert torch.equal(transform(item)["label"], made["label"])  # moved by the same draw, with whatever source


def test_a_mirrored_map_of_other_numbers_keeps_them(item):
    """Class 2 is the left hippocampus' number of the source, and 1 is what marks voxels that count."""
    item["map"] = torch.where(item["label"].as_tensor() == 2, 41, item["label"].as_tensor().to(torch.int16))
    drawn = []

    def contrast(source):
        drawn.append(source[0])
        return source.float()

    still = {"scaling": 0, "rotation": 0, "shearing": 0, "velocity": 0}
    deformation = RandomDeformation(**still, flip_axis=1, sided=[[2, 41], [1, 0]])
    transform = RandSyntheticImaged(source_key="map", deformation=deformation, contrast=contrast)
    transform.set_random_state(0)
    item["label"][:, 0, 0] = -1
    item["label"][:, 3, 3] = 2  # the mirror image has it elsewhere
    swapped = item["map"].flip(2).apply_(lambda value: {2: 41, 41: 2, 1: 0, 0: 1}[value])
    mirrored = 0
    for _ in range(8):
        label = transform(item)["label"].as_tensor()
        plain = item["label"].as_tensor()
        assert label.dtype == plain.dtype
        if not torch.equal(label, plain):
            mirrored += 1
            assert torch.equal(label, plain.flip(2))
            assert torch.equal(drawn[-1], swapped)
    assert 0 < mirrored < 8


def test_a_mirrored_source_that_extends_the_label_exchanges_the_sides_of_both(item):
    """The source is the label, and 3 where the label has none, which has no side."""
    item["map"] = item["label"].as_tensor().clone()
    item["map"][item["map"] == 0] = 3
    still = {"scaling": 0, "rotation": 0, "shearing": 0, "velocity": 0}
    drawn = []

    def contrast(source):
        drawn.append(source[0])
        return source.float()

    transform = RandSyntheticImaged(
        source_key="map",
        deformation=RandomDeformation(**still, flip_axis=0, sided=[[1, 2]]),
        contrast=contrast,
        source_extends_label=True,
    )
    transform.set_random_state(0)
    exchanged = item["label"].as_tensor().flip(1).apply_(lambda value: {0: 0, 1: 2, 2: 1}[value])
    made = [transform(item)["label"].as_tensor() for _ in range(8)]
    mirrored = sum(torch.equal(label, exchanged) for label in made)
    assert 0 < mirrored < 8 and sum(torch.equal(label, item["label"].as_tensor()) for label in made) == 8 - mirrored
    for label, source in zip(made, drawn, strict=True):
        assert torch.equal(source, torch.where(label == 0, 3, label))


@pytest.mark.parametrize("deformation", [None, RandomDeformation(velocity=0, sided=[[1, 2]], flip_axis=0)])
def test_what_does_not_count_is_drawn_as_background(item, deformation):
    item["label"][:, :, 14:] = -1
    drawn = {}

    def contrast(source):
        drawn["source"] = source
        return source.float()

    transform = RandSyntheticImaged(deformation=deformation, contrast=contrast)
    transform.set_random_state(1)
    label = transform(item)["label"]
    assert torch.equal(drawn["source"][0], label.as_tensor().clamp_min(0))
    assert set(label.unique().tolist()) == {-1, 0, 1, 2}
    assert deformation is not None or torch.equal(label, item["label"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int8])
def test_a_label_map_of_bytes_holds_minus_1(item, dtype):
    item["label"] = item["label"].clamp(max=1).to(dtype)
    transform = RandSyntheticImaged(deformation=RandomDeformation(), prob=0.5)
    transform.set_random_state(0)
    made = [transform(item) for _ in range(12)]
    drawn = [one["label"] for one in made if one["image"] is not item["image"]]
    assert 0 < len(drawn) < 12 and {one["label"].dtype for one in made} == {torch.int16}
    assert set(torch.stack(drawn).unique().tolist()) == {-1, 0, 1}
    assert torch.equal(drawn[0].affine, item["label"].affine)


def test_prob_keeps_real_images(item):
    transform = RandSyntheticImaged(prob=0.4)
    transform.set_random_state(0)
    real = [torch.equal(transform(item)["image"], item["image"]) for _ in range(60)]
    assert 0.4 < sum(real) / 60 < 0.8


def test_an_item_needs_no_image(item):
    del item["image"]
    assert RandSyntheticImaged()(item)["image"].shape == (1, 16, 16, 16)


def test_what_it_cannot_draw_from_is_refused(item):
    with pytest.raises(ValueError, match="no 'mask'"):
        RandSyntheticImaged(label_key="mask")(item)
    with pytest.raises(ValueError, match="no label but 0"):
        RandSyntheticImaged()({"label": torch.zeros(1, 8, 8, 8)})
    with pytest.raises(ValueError, match="no label but 0"):
        RandSyntheticImaged()({"label": torch.tensor([0.0, -1]).view(1, 2, 1, 1)})
    with pytest.raises(ValueError, match="one channel"):
        RandSyntheticImaged()({"label": torch.ones(2, 8, 8, 8)})
    with pytest.raises(ValueError, match="prob"):
        RandSyntheticImaged(prob=2)


def test_items_of_other_domains_stay_as_they_are(item):
    transform = RandSyntheticImaged(domains=["maps"])
    item["domain"] = "scans"
    assert transform(item)["image"] is item["image"] and transform(item)["label"] is item["label"]
    item["domain"] = "maps"
    assert not torch.equal(transform(item)["image"], item["image"])
    for lacking in ({}, {"domain": ""}):
        with pytest.raises(ValueError, match="no 'domain', but only domains maps get drawn images"):
            transform({name: value for name, value in item.items() if name != "domain"} | lacking)


def test_drawn_images_are_brought_to_the_intensities_of_scans(item):
    transform = RandSyntheticImaged(normalize=NormalizeForegroundd("image", foreground="all"))
    image = transform(item)["image"]
    torch.testing.assert_close(image.mean().item(), 0.0, atol=1e-4, rtol=0)
    torch.testing.assert_close(image.std().item(), 1.0, atol=1e-2, rtol=0)
    assert isinstance(image, MetaTensor) and image.meta["filename_or_obj"] == "case.nii.gz"


@pytest.mark.parametrize("value", [0, 1, -1])
def test_a_crop_of_one_label_may_stay_as_it_is(item, value):
    item["label"] = torch.full_like(item["label"], value)
    assert RandSyntheticImaged(keep_uniform=True)(item)["image"] is item["image"]
