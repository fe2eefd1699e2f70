from __future__ import annotations

import pytest
import torch
from einops import rearrange
from monai.networks.nets import ViT

from common.networks import UNETR, ViTEncoder

SIZE, GRID = (32, 16, 48), {"d": 2, "h": 1, "w": 3}
SMALL = {"hidden_size": 24, "mlp_dim": 40, "num_heads": 3}


def make(**arguments):
    torch.manual_seed(0)
    return UNETR(1, 2, SIZE, feature_size=4, **SMALL, **arguments).eval().vit


@pytest.mark.parametrize("class_token", [False, True])
def test_maps_are_the_vits_tokens_folded(class_token):
    vit = make(class_token=class_token)
    image = torch.randn(2, 1, *SIZE)
    with torch.no_grad():
        maps = ViTEncoder(vit)(image)
        last, hidden = vit(image)
    for tokens, found in zip([hidden[2], hidden[5], hidden[8], last], maps, strict=True):
        expected = rearrange(tokens[:, int(class_token) :], "b (d h w) c -> b c d h w", **GRID)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("depth", "skips"), [(12, None), (4, None), (6, (1, 6)), (5, (3,))])
def test_the_attributes_tell_the_maps(depth, skips):
    vit = ViT(2, (16, 8, 24), 8, num_layers=depth, **SMALL)
    encoder = ViTEncoder(vit, skips)
    maps = encoder(torch.randn(1, 2, 16, 8, 24))
    assert tuple(x.shape[1] for x in maps) == encoder.channels
    assert [tuple(x.shape[2:]) for x in maps] == [(2, 1, 3)] * len(maps)
    assert encoder.strides == ((8, 8, 8),) * len(maps) and encoder.in_channels == 2


def test_architecture_is_what_builds_it_again():
    encoder = ViTEncoder(make(num_layers=8, class_token=True, qkv_bias=True, norm_eps=1e-6))
    assert encoder.architecture() == {
        "name": "ViTEncoder",
        "in_channels": 1,
        "patch_size": [16, 16, 16],
        "tokens": 6,
        "hidden_size": 24,
        "mlp_dim": 40,
        "num_layers": 8,
        "num_heads": 3,
        "qkv_bias": True,
        "class_token": True,
        "norm_eps": 1e-6,
    }


@pytest.mark.parametrize(
    ("size", "message"),
    [((32, 16, 40), "not a multiple of the patch size"), ((48, 16, 48), r"the ViT was built for 6; set roi_size")],
)
def test_images_of_another_size(size, message):
    with pytest.raises(ValueError, match=message):
        ViTEncoder(make())(torch.zeros(1, 1, *size))


def test_other_transformers():
    with pytest.raises(ValueError, match="3-D ViT"):
        ViTEncoder(ViT(1, (32, 32), 16, spatial_dims=2, **SMALL))
    with pytest.raises(ValueError, match="proj_type='conv'"):
        ViTEncoder(ViT(1, SIZE, 16, proj_type="perceptron", **SMALL))


@pytest.mark.parametrize(("depth", "skips"), [(2, None), (3, None), (4, (2, 2)), (4, (1, 5)), (4, (0, 1))])
def test_skip_blocks_that_are_not_there(depth, skips):
    with pytest.raises(ValueError, match=f"increasing block numbers in 1..{depth}"):
        ViTEncoder(ViT(1, SIZE, 16, num_layers=depth, **SMALL), skips)
