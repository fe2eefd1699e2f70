from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from common.losses import NTXentLoss, TokenContrastiveLoss
from common.networks import UNETR, NNFormer, SwinEncoder, ViTEncoder
from common.pretexts import TokenContrast
from common.transforms import RandomTexture, TokenViews


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("axes", [(-2, -1), (-3, -2, -1)])
def test_an_encoder_that_commutes_with_turns_gives_equal_tokens(axes, cells):
    """Without texture and mask: zero distance of positives, for every element of the group."""
    pretext = TokenContrast(cells(), TokenViews(axes=axes, mask_ratio=0))
    prediction = pretext(torch.rand(60, 1, 8, 8, 8))
    torch.testing.assert_close(prediction["view1"], prediction["view2"], atol=1e-6, rtol=1e-5)


def test_without_restoring_they_differ(cells):
    views = TokenViews(mask_ratio=0)
    views.restore = lambda map, element: map
    prediction = TokenContrast(cells(), views)(torch.rand(8, 1, 8, 8, 8))
    assert (prediction["view1"] - prediction["view2"]).abs().max() > 1e-2


def test_row_m_is_the_feature_at_grid_position_m(cells):
    encoder = cells()
    pretext = TokenContrast(encoder, TokenViews(axes=None, mask_ratio=0))
    pretext.projector = nn.Identity()
    image = torch.rand(2, 1, 4, 6, 8)
    tokens, map = pretext(image)["view1"], encoder(image)[-1]
    assert tokens.shape == (2, 2 * 3 * 4, 6)
    for m, (d, h, w) in enumerate((d, h, w) for d in range(2) for h in range(3) for w in range(4)):
        torch.testing.assert_close(tokens[:, m], map[:, :, d, h, w])


def test_pooled_is_simclr(cells):
    encoder = cells()
    pretext = TokenContrast(encoder, TokenViews(RandomTexture(), axes=None, mask_ratio=0), pooled=True)
    prediction = pretext(torch.rand(5, 1, 4, 4, 4))
    assert prediction["view1"].shape == (5, 1, 6)
    expected = NTXentLoss()(prediction["view1"][:, 0], prediction["view2"][:, 0])
    torch.testing.assert_close(TokenContrastiveLoss(weight=0)(prediction), expected)


def networks():
    unetr = UNETR(1, 2, (32, 32, 32), num_layers=4, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2)
    swin = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    nnformer = NNFormer(1, 2, (32, 32, 32), 12, 2, (2, 2, 2), (1, 2, 4), drop_path_rate=0.0)
    return {"unetr": ViTEncoder(unetr.vit), "swin": SwinEncoder(swin.swinViT), "nnformer": nnformer.model_down}


@pytest.mark.parametrize("name", ["unetr", "swin", "nnformer"])
def test_any_encoder(name):
    encoder = networks()[name]
    size = 64 if name == "swin" else 32
    pretext = TokenContrast(encoder, TokenViews(RandomTexture()))
    prediction = pretext(torch.rand(2, 1, size, size, size))
    tokens = (size // encoder.strides[-1][0]) ** 3
    assert prediction["view1"].shape == prediction["view2"].shape == (2, tokens, encoder.channels[-1])
    TokenContrastiveLoss()(prediction).backward()
    assert all(p.grad is not None and p.grad.any() for p in pretext.projector.parameters())
    # MONAI's ViT has cross attention that it never uses, nnFormer a norm for each finer map.
    idle = ("cross_attn", "norm_cross") if name == "unetr" else ()
    without = [n for n, p in encoder.named_parameters() if p.grad is None and not any(part in n for part in idle)]
    assert without == (["norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias"] if name == "nnformer" else [])


def test_one_pass_equals_two():
    encoder = networks()["nnformer"].eval()
    first, second = torch.rand(2, 2, 1, 32, 32, 32)
    with torch.no_grad():
        both = encoder(torch.cat((first, second)))[-1]
        torch.testing.assert_close(both, torch.cat((encoder(first)[-1], encoder(second)[-1])), atol=1e-5, rtol=1e-4)


def test_views_that_do_not_fit_the_grid_are_refused(cells):
    encoder = cells()
    encoder.strides = ((2, 4, 4),)
    TokenContrast(encoder, TokenViews())
    with pytest.raises(ValueError, match=r"strides \[2, 4, 4\] differ along them: set turned_axes"):
        TokenContrast(encoder, TokenViews(axes=(-3, -2, -1)))


def test_the_published_projector_is_never_negative(cells):
    prediction = TokenContrast(cells(), TokenViews(mask_ratio=0), projector_relu=True)(torch.rand(2, 1, 8, 8, 8))
    assert prediction["view1"].min() == 0
    assert TokenContrast(cells(), TokenViews(mask_ratio=0))(torch.rand(2, 1, 8, 8, 8))["view1"].min() < 0


def test_the_published_code_compares_groups_of_channels(cells):
    """``z.reshape(-1, z.shape[1])`` of a map (B, C, d, h, w): row 0 has channel 0 at all positions, where C = T."""
    encoder = cells()
    encoder.conv = torch.nn.Conv3d(1, 8, 1)
    encoder.channels = (8,)
    pretext = TokenContrast(encoder, TokenViews(axes=None, mask_ratio=0), channel_rows=True, train_projector=False)
    image = torch.rand(2, 1, 4, 4, 4)
    map = encoder(image)[-1]
    expected = pretext.projector(map.reshape(-1, 8)).unflatten(0, (2, 8))
    prediction = pretext(image)
    torch.testing.assert_close(prediction["view2"], expected)
    torch.testing.assert_close(pretext._vectors(map)[1, 3], map[1, 3].flatten())
    TokenContrastiveLoss()(prediction).backward()
    assert all(p.grad is None for p in pretext.projector.parameters()) and encoder.conv.weight.grad.any()


def test_pooled_rows_of_channels_are_refused(cells):
    with pytest.raises(ValueError, match="set only one of them"):
        TokenContrast(cells(), TokenViews(), pooled=True, channel_rows=True)
