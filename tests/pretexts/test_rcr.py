from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from common.losses import RCRLoss
from common.networks import SwinEncoder
from common.pretexts import RCR


class Pyramid(nn.Module):
    """An encoder of two strided convolutions, for what does not depend on the architecture."""

    in_channels, channels, strides = 1, (8, 16), ((2, 2, 2), (4, 4, 4))

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 8, 2, 2), nn.Conv3d(8, 16, 2, 2)

    def forward(self, image):
        fine = self.first(image)
        return [fine, self.second(fine)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def swin():
    torch.manual_seed(0)
    net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    return RCR(SwinEncoder(net.swinViT), contrast_size=8)


def test_pictures_are_what_the_encoder_saw_and_made():
    pretext, image = RCR(Pyramid()).eval(), torch.rand(2, 1, 16, 16, 16)
    prediction = pretext(image)
    target, given, restored = pretext.pictures(image, prediction)
    assert torch.equal(target, prediction["target"]) and not torch.equal(given, target)
    torch.testing.assert_close(pretext.heads(given)[2], restored)


def test_the_label_is_the_turn_of_the_target():
    pretext, image = RCR(Pyramid(), 6), torch.randn(16, 1, 4, 8, 8)
    prediction = pretext(image)
    assert set(prediction["rotation"].tolist()) == {0, 1, 2, 3}
    for view in range(32):
        turned = torch.rot90(image[view % 16], int(prediction["rotation"][view]), (-2, -1))
        assert torch.equal(prediction["target"][view], turned)
    assert not torch.equal(prediction["rotation"][:16], prediction["rotation"][16:])


def test_shapes():
    prediction = RCR(Pyramid(), 6)(torch.randn(2, 1, 4, 8, 8))
    assert {name: tuple(value.shape) for name, value in prediction.items()} == {
        "rotation_logits": (4, 4),
        "rotation": (4,),
        "contrast1": (2, 6),
        "contrast2": (2, 6),
        "reconstruction": (4, 1, 4, 8, 8),
        "target": (4, 1, 4, 8, 8),
        "damaged": (4, 1, 4, 8, 8),
    }


def test_what_each_head_reads():
    """Rotation from token 0, contrast from token 1, in row-major order of the deepest map."""
    encoder = Pyramid()
    pretext, views = RCR(encoder, 6), torch.randn(3, 1, 4, 8, 8)
    logits, contrast, reconstruction = pretext.heads(views)
    deepest = encoder(views)[-1]
    torch.testing.assert_close(logits, pretext.rotation_head(deepest[:, :, 0, 0, 0]))
    torch.testing.assert_close(contrast, pretext.contrast_head(deepest[:, :, 0, 0, 1]))
    torch.testing.assert_close(reconstruction, pretext.decoder(deepest))


def test_each_view_is_damaged_within_itself():
    """Boxes are swapped within a view, and what is restored is the undamaged view."""
    pretext, image = RCR(Pyramid(), 6), torch.randn(3, 1, 4, 8, 8)
    given, made = [], []
    pretext.cutout = lambda view: (given.append(view), made.append(view + 1))[0] or made[-1]
    fed = []
    pretext.encoder.register_forward_pre_hook(lambda encoder, inputs: fed.append(inputs[0]))
    target = pretext(image)["target"]
    assert [len(view) for view in given] == [3, 3]
    assert torch.equal(torch.cat(given), target) and len(fed) == 1 and torch.equal(fed[0], target + 1)


def test_damage_is_there():
    pretext = RCR(Pyramid(), 6)
    fed = []
    pretext.encoder.register_forward_pre_hook(lambda encoder, inputs: fed.append(inputs[0]))
    target = pretext(torch.full((2, 1, 16, 16, 16), 5.0))["target"]
    share = (fed[0] != target).float().mean()
    assert 0 < share < 0.6 and (target == 5).all()


def test_one_pass_of_both_views_equals_two(swin):
    swin.eval()
    views = torch.rand(2, 1, 64, 64, 64)
    with torch.no_grad():
        together = swin.heads(views)
        apart = [swin.heads(view) for view in views.split(1)]
    for number, found in enumerate(together):
        torch.testing.assert_close(found, torch.cat([heads[number] for heads in apart]), rtol=1e-4, atol=1e-5)


def test_gradients_reach_everything_that_is_used(swin):
    swin.train()
    image = torch.rand(2, 1, 64, 64, 64)
    RCRLoss()(swin(image), image).backward()
    without = {name for name, p in swin.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # The instance norm after them takes out what the biases of the decoder's convolutions add.
    assert all(name.startswith("decoder.") and name.endswith(".bias") for name in without)
    swin.zero_grad()


def test_channel_plan_at_paper_size():
    encoder = SwinEncoder(SwinTransformer(1, 48, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24)))
    with torch.device("meta"):
        pretext = RCR(encoder)
    convolutions = [layer for layer in pretext.decoder if isinstance(layer, nn.Conv3d)]
    assert [layer.in_channels for layer in convolutions] == [768, 384, 192, 96, 48, 48]
    assert [layer.out_channels for layer in convolutions] == [384, 192, 96, 48, 48, 1]
    assert [type(layer).__name__ for layer in pretext.decoder][:4] == [
        "Conv3d", "InstanceNorm3d", "LeakyReLU", "Upsample",
    ]  # fmt: skip
    assert pretext.contrast_head.out_features == 512 and pretext.rotation_head.out_features == 4


@pytest.mark.parametrize(
    ("size", "message"),
    [((32, 32, 32), "a single token; RCR reads two"), ((32, 64, 32), r"crops of \(32, 64, 32\) voxels differ along")],
)
def test_images_it_cannot_take(swin, size, message):
    with pytest.raises(ValueError, match=message):
        swin(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("stride", [(4, 4, 3), (6, 6, 6)])
def test_encoders_it_cannot_take(stride):
    encoder = Pyramid()
    encoder.strides = ((2, 2, 2), stride)
    with pytest.raises(ValueError, match="a power of two on each axis"):
        RCR(encoder)


def test_it_turns_one_plane():
    with pytest.raises(ValueError, match="needs two axes"):
        RCR(Pyramid(), axes=(-3, -2, -1))


@pytest.mark.parametrize("stride", [(2, 4, 4), (1, 4, 4), (4, 2, 2)])
def test_unequal_strides_and_other_planes(stride):
    """Each axis is enlarged by its own stride; crops may be turned in another plane than the last two axes."""
    encoder = Pyramid()
    encoder.second = nn.Conv3d(8, 16, 1)
    encoder.first = nn.Conv3d(1, 8, stride, stride)
    encoder.strides = (stride, stride)
    image = torch.randn(2, 1, 8, 12, 8)
    prediction = RCR(encoder, 6, axes=(-3, -1))(image)
    assert prediction["reconstruction"].shape == prediction["target"].shape == (4, 1, 8, 12, 8)
    turned = torch.rot90(image[0], int(prediction["rotation"][0]), (-3, -1))
    assert torch.equal(prediction["target"][0], turned)
