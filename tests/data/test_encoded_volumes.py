from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from common.data.encoded_volumes import EncodedVolumes
from common.networks import MultiViewEncoder

SIZE = (34, 36, 38)


class Means(nn.Module):
    """A slice's vector is its mean times a weight, with dropout in training."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def encode_planes(self, image):
        self.calls.append((tuple(image.shape), image.dtype, torch.is_grad_enabled(), self.training))
        axes = ((1, 3, 4), (1, 2, 4), (1, 2, 3))
        return [self.dropout(image.mean(a)[..., None] * self.weight) for a in axes]


def load(item):
    """An image that belongs to the item."""
    generator = torch.Generator().manual_seed(item["image"])
    return {"image": MetaTensor(torch.rand(1, 4, 5, 6, generator=generator))}


def expected(number):
    image = load({"image": number})["image"].as_tensor()
    return torch.cat([image.mean(axes) for axes in ((0, 2, 3), (0, 1, 3), (0, 1, 2))])[:, None]


DATA = [{"image": number} for number in range(3)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_vectors_of_all_slices_of_each_volume_in_order(num_workers):
    volumes = EncodedVolumes(DATA, load, Means(), num_workers=num_workers)
    assert len(volumes) == 3
    for number in (2, 0, 1):
        item = volumes[number]
        assert set(item) == {"image"} and item["image"].shape == (15, 1)
        torch.testing.assert_close(item["image"], expected(number))


def test_encodes_once_when_the_first_item_is_asked_for():
    encoder, loaded = Means(), []
    volumes = EncodedVolumes(DATA, lambda item: loaded.append(item["image"]) or load(item), encoder)
    assert not encoder.calls and not loaded
    with torch.no_grad():
        encoder.weight.fill_(2)  # weights that are loaded before the first item count
    for number in (1, 0, 2, 1, 0):
        torch.testing.assert_close(volumes[number]["image"], 2 * expected(number))
    assert loaded == [0, 1, 2] and len(encoder.calls) == 3


@pytest.mark.parametrize("training", [True, False])
def test_in_evaluation_mode_without_gradient_a_volume_at_a_time(training):
    encoder = Means().train(training)
    item = EncodedVolumes(DATA, load, encoder)[0]
    assert encoder.calls == [((1, 1, 4, 5, 6), torch.float32, False, False)] * 3
    assert encoder.training == training and encoder.dropout.training == training
    assert not item["image"].requires_grad and type(item["image"]) is torch.Tensor


def test_a_frozen_part_stays_in_evaluation_mode():
    encoder = Means().train()
    encoder.dropout.eval()
    EncodedVolumes(DATA, load, encoder)[0]
    assert encoder.training and not encoder.dropout.training


def test_the_mode_is_put_back_after_an_error():
    encoder = Means().train()
    encoder.dropout.eval()
    volumes = EncodedVolumes([{"image": 0}, {}], load, encoder)
    with pytest.raises(KeyError, match="image"):
        volumes[0]
    assert encoder.training and not encoder.dropout.training


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_generators_are_left_untouched(num_workers):
    volumes = EncodedVolumes(DATA, load, Means().train(), num_workers=num_workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    volumes[0]
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


def test_in_float32_under_autocast():
    encoder = MultiViewEncoder(embed_dim=6, widths=(4, 4, 4, 8), num_heads=2, dim_head=3, mlp_dim=8)
    image = torch.rand(1, *SIZE).half()
    volumes = EncodedVolumes([{}], lambda item: {"image": image}, encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = volumes[0]["image"]
    with torch.no_grad():
        vectors = encoder.encode_planes(image[None].float())
    assert found.shape == (sum(SIZE), 6) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat(vectors, dim=1)[0])


def test_arrays_serve_as_well():
    values = np.random.default_rng(0).random((1, 4, 5, 6))
    found = EncodedVolumes([{}], lambda item: {"image": values}, Means())[0]["image"]
    torch.testing.assert_close(found[:4, 0], torch.as_tensor(values.mean((0, 2, 3))).float())
