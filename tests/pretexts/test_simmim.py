from __future__ import annotations

import pytest
import torch
from torch import nn

from common.losses import MaskedL1Loss
from common.pretexts import SimMIM


class Cells(nn.Module):
    """Sees of each cell of 2 x 4 x 4 voxels everything, and nothing else."""

    in_channels, channels, strides = 2, (8,), ((2, 4, 4),)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 8, (2, 4, 4), (2, 4, 4))

    def forward(self, image):
        self.seen = image
        return [self.conv(image)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_encoder_sees_noise_where_the_loss_looks():
    image = torch.rand(2, 2, 4, 8, 16) + 5
    pretext = SimMIM(Cells(), mask_ratio=0.5, mask_size=(2, 4, 4))
    prediction = pretext(image)
    assert prediction["reconstruction"].shape == image.shape and torch.equal(prediction["target"], image)
    assert prediction["mask"].flatten(1).float().mean(1).tolist() == [0.5, 0.5]
    assert torch.equal((pretext.encoder.seen < 4).all(1), prediction["mask"])


def test_pictures():
    image = torch.rand(2, 2, 4, 8, 16)
    pretext = SimMIM(Cells(), mask_ratio=0.5, mask_size=(2, 4, 4))
    prediction = pretext(image)
    target, given, filled = pretext.pictures(image, prediction)
    assert torch.equal(target, image) and torch.equal(given, pretext.encoder.seen)
    mask = prediction["mask"][:, None].expand_as(image)
    assert torch.equal(filled[~mask], image[~mask]) and torch.equal(filled[mask], prediction["reconstruction"][mask])


def test_each_token_makes_the_voxels_below_it():
    pretext = SimMIM(Cells(), mask_size=(2, 4, 4))
    with torch.no_grad():
        pretext.encoder.conv.weight.zero_()
        pretext.encoder.conv.bias.zero_()
        pretext.head.bias.copy_(torch.arange(64))
    # patches are voxel by voxel in row-major order with the channel last, as `patchify` has them
    block = torch.arange(64.0).view(2, 4, 4, 2).permute(3, 0, 1, 2)
    expected = block.repeat(1, 2, 2, 2)[None]
    assert torch.equal(pretext(torch.rand(1, 2, 4, 8, 8))["reconstruction"], expected)


def test_learns_a_constant_image():
    image = torch.full((2, 2, 4, 8, 8), 0.7)
    pretext, loss = SimMIM(Cells(), mask_size=(2, 4, 4)), MaskedL1Loss()
    optimizer = torch.optim.Adam(pretext.parameters(), 0.02)
    first = loss(pretext(image)).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(pretext(image))
        value.backward()
        optimizer.step()
    assert value.item() < 0.2 * first


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="mask_ratio must be between 0 and 1"):
        SimMIM(Cells(), mask_ratio=0)
    with pytest.raises(ValueError, match="set mask_size"):
        SimMIM(Cells(), mask_size=(8, 4, 4))(torch.rand(1, 2, 4, 8, 8))
