"""Sizes that Zhang et al., "Pretrain Once and Finetune Many Times", BIBM 2023, and its published weights pin down."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR
from torch import nn

from common.networks import UNETR, SwinEncoder, ViTEncoder
from common.pretexts import MAE, RCR
from common.transforms import random_keep_indices

HIDDEN, MLP, DEPTH, PATCH, GRID = 768, 3072, 12, 16**3, (10, 10, 10)
CORE = 88_288_512


def count(module, without="norm_cross_attn"):
    """Parameters, less those that MONAI's blocks hold and never use."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if without not in name)


def linear(inputs, outputs):
    return inputs * outputs + outputs


def block(hidden, mlp):
    """Two layer norms, query, key and value with bias, output projection, and a two-layer MLP."""
    attention = linear(hidden, 3 * hidden) + linear(hidden, hidden)
    return 2 * 2 * hidden + attention + linear(hidden, mlp) + linear(mlp, hidden)


@pytest.fixture(scope="module")
def unetr():
    """The published net. Without storage: only names and shapes are looked at."""
    with torch.device("meta"):
        return UNETR(1, 5, 160, qkv_bias=True, class_token=True, position="separable", norm_eps=1e-6)


@pytest.fixture(scope="module")
def swin():
    """The transformer is real, because MONAI draws its drop path rates as tensors; one such net for all tests."""
    return SwinUNETR(1, 5, feature_size=48)


def test_published_encoder_has_88_3_million_parameters(unetr):
    positions = (GRID[0] + GRID[1] * GRID[2]) * HIDDEN
    tokens = 2 * HIDDEN  # the class token and its position
    norm = 2 * HIDDEN
    assert count(unetr.vit) == linear(PATCH, HIDDEN) + positions + tokens + DEPTH * block(HIDDEN, MLP) + norm == CORE


def test_89_2_million_of_table_1_count_what_the_encoder_never_uses():
    head = linear(HIDDEN, 1000)  # timm's classifier of 1000 classes
    positions = (14 * 14 + 1) * HIDDEN  # timm's positions of a 224 x 224 image with a class token
    assert (head, positions) == (769_000, 151_296)
    assert CORE + head + positions == 89_208_808


def test_42_6_million_of_table_1_are_the_encoder_of_swin_unetr(swin):
    assert count(swin.swinViT) == pytest.approx(8.062e6, abs=500)
    parts = (swin.swinViT, swin.encoder1, swin.encoder2, swin.encoder3, swin.encoder4, swin.encoder10)
    assert sum(count(part) for part in parts) == pytest.approx(42.589e6, abs=500)
    # Not a "3D Swin-T": three quarters are two convolutions of the deepest skip.
    deepest = [p for p in swin.encoder10.parameters() if p.ndim == 5]
    assert [tuple(p.shape) for p in deepest] == [(768, 768, 3, 3, 3)] * 2
    assert sum(p.numel() for p in deepest) / sum(count(part) for part in parts) == pytest.approx(0.75, abs=0.005)


def test_mae_has_103_million_parameters(unetr):
    with torch.device("meta"):
        mae = MAE(ViTEncoder(unetr.vit), (160, 160, 160), position="separable")
    width = 512
    embed, head, norm = linear(HIDDEN, width), linear(width, PATCH), 2 * width
    tokens = 2 * width  # the mask token and the position of the class token
    positions = (GRID[0] + GRID[1] * GRID[2]) * width
    decoder = embed + tokens + positions + 4 * block(width, 4 * width) + norm + head
    assert decoder == 15_162_880
    assert count(mae) == CORE + decoder == 103_451_392


def test_rcr_has_19_1_million_parameters(swin):
    encoder = SwinEncoder(swin.swinViT)
    with torch.device("meta"):
        pretext = RCR(encoder)
    widths = [768, 384, 192, 96, 48, 48]
    convolutions = sum(linear(27 * wide, narrow) for wide, narrow in pairwise(widths))
    heads = linear(768, 4) + linear(768, 512)
    assert count(pretext) == count(swin.swinViT) + heads + convolutions + linear(48, 1) == 19_097_191


@pytest.mark.parametrize(("ratio", "tokens", "kept"), [(0.85, 1000, 150), (0.9, 1000, 100), (0.85, 512, 77)])
def test_mae_keeps_150_of_1000_tokens(ratio, tokens, kept):
    keep, masked = random_keep_indices(2, tokens, ratio)
    assert keep.shape == (2, kept) and masked.shape == (2, tokens - kept)
    assert torch.equal(torch.cat((keep, masked), 1).sort().values, torch.arange(tokens).expand(2, -1))


def test_the_published_encoder_in_numbers(unetr):
    """160^3 voxels in 16^3 patches; skips after blocks 3, 6 and 9; feature size 16; layer norms at 1e-6."""
    encoder = ViTEncoder(unetr.vit)
    assert encoder.grid((160, 160, 160)) == GRID
    assert unetr.skip_blocks == encoder.skip_blocks == (3, 6, 9)
    assert unetr.encoder1.layer.conv1.out_channels == 16
    assert {m.eps for m in unetr.vit.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert [block.attn.num_heads for block in unetr.vit.blocks] == [12] * 12


@pytest.mark.parametrize(("base", "preset"), [("pretrain", "official_code"), ("train", "official_code_train")])
def test_only_the_published_code_freezes_the_patch_projection(base, preset):
    """The paper says nothing of it, so the base files have a ViT as it is; MONAI's inference loads either."""
    configs = Path(__file__).resolve().parents[2] / "bundles" / "pretrain_once" / "configs"
    for files, trained in (([], True), ([f"presets/{preset}.json"], False)):
        parser = ConfigParser()
        parser.read_config([str(configs / name) for name in (f"{base}.json", *files)])
        with torch.device("meta"):
            net = parser.get_parsed_content("segmentation_net")
        projection = dict(net.vit.patch_embedding.named_parameters())
        assert {p.requires_grad for name, p in projection.items() if name.startswith("patch_embeddings")} == {trained}
