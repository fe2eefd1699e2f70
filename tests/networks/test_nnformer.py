from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.networks import NNFormer, to_channels_last
from common.networks.nnformer import _Block, _CrossBlock, relative_position_index

SMALL = {"embed_dim": 12, "patch_size": 2, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "drop_path_rate": 0.0}


def small(**changes) -> NNFormer:
    torch.manual_seed(0)
    return NNFormer(1, 3, **{"img_size": (16, 32, 24), **SMALL, **changes})


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        synapse = NNFormer()
        tumour = NNFormer(
            4, 4, (128, 128, 128), 96, 4, num_heads=(3, 6, 12, 24), decoder_num_heads=(6, 12, 24)
        ).model_down
    assert millions(synapse.model_down) == pytest.approx(119.05, abs=0.005)
    assert millions(synapse) == pytest.approx(150.05, abs=0.005)
    assert millions(tumour) == pytest.approx(29.84, abs=0.005)
    assert synapse.model_down.channels == (192, 384, 768, 1536)
    assert synapse.model_down.strides == ((2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32))
    assert tumour.strides[-1] == (32, 32, 32)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((32, 32, 64), None),
        ((32, 48, 32), r"pads its deepest grid of 4 x 6 x 4 .* windows of 4, .* multiples of \[32, 32, 32\]"),
        ((16, 32, 32), r"deepest grid of 2 x 4 x 4 .* attends to 8 in place of 512: set roi_size to \[32, 32, 32\] or"),
    ],
)
def test_a_crop_that_does_not_fill_the_windows_is_said(size, said, caplog):
    small(img_size=size)
    assert len(caplog.records) == bool(said)
    assert not said or re.search(said, caplog.text)


def test_names_of_the_published_checkpoint():
    """A sample of the names in the published code's state dict, one of each kind."""
    with torch.device("meta"):
        names = set(NNFormer().state_dict())
    assert names >= {
        "model_down.patch_embed.proj1.conv1.weight",
        "model_down.patch_embed.proj1.norm2.weight",
        "model_down.patch_embed.proj2.conv2.bias",
        "model_down.patch_embed.norm.weight",
        "model_down.layers.0.blocks.1.attn.relative_position_bias_table",
        "model_down.layers.3.blocks.0.attn.qkv.weight",
        "model_down.layers.2.downsample.reduction.weight",
        "model_down.layers.2.downsample.norm.bias",
        "model_down.layers.1.blocks.0.mlp.fc2.weight",
        "model_down.norm3.weight",
        "decoder.layers.0.blocks.0.attn.kv.weight",
        "decoder.layers.2.blocks.1.attn.qkv.bias",
        "decoder.layers.1.Upsample.up.weight",
        "decoder.layers.1.Upsample.norm.weight",
        "final.2.up.weight",
    }
    assert "model_down.patch_embed.proj2.norm2.weight" not in names
    assert "model_down.layers.3.downsample.norm.weight" not in names


@pytest.mark.parametrize("patch", [2, 4, (1, 2, 4)])
def test_shapes(patch):
    patch_size = (patch,) * 3 if isinstance(patch, int) else patch
    size = tuple(8 * side for side in patch_size)
    net = small(img_size=size, patch_size=patch)
    image = torch.rand(2, 1, *size)
    maps = net.model_down(image)
    for map, channels, stride in zip(maps, net.model_down.channels, net.model_down.strides, strict=True):
        assert map.shape == (2, channels, *(n // s for n, s in zip(size, stride, strict=True)))
    fine, coarse = net.train()(image)
    assert fine.shape == (2, 3, *size) and coarse.shape == (2, 3, *(n // 2 for n in size))
    out = net.eval()(image)
    assert isinstance(out, torch.Tensor) and out.shape == (2, 3, *size)


def test_other_sizes_run_and_wrong_ones_are_refused():
    net = small().eval()
    assert net(torch.rand(1, 1, 8, 40, 16)).shape == (1, 3, 8, 40, 16)
    with pytest.raises(ValueError, match=r"a multiple of \[8, 8, 8\], not \[16, 30, 24\]; set roi_size"):
        net(torch.rand(1, 1, 16, 30, 24))
    with pytest.raises(ValueError, match="a multiple of"):
        small(img_size=(16, 20, 16))
    with pytest.raises(ValueError, match="one entry per stage"):
        small(num_heads=(1, 2))
    with pytest.raises(ValueError, match="1, 2 or 4"):
        small(patch_size=8, img_size=(32, 32, 32))


def test_without_deep_supervision_there_is_one_head():
    net = small(deep_supervision=False).train()
    assert len(net.final) == 1 and isinstance(net(torch.rand(1, 1, 16, 16, 16)), torch.Tensor)


def test_every_parameter_has_a_gradient():
    net = small().train()
    sum(out.square().mean() for out in net(torch.rand(1, 1, 16, 16, 16))).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_layout_does_not_change_the_function():
    net, image = small().eval(), torch.rand(1, 1, 16, 32, 24)
    with torch.no_grad():
        expected = net(image)
        torch.testing.assert_close(to_channels_last(net, "cpu")(image), expected, atol=1e-5, rtol=1e-4)


# The attention against a reference that goes token by token


def slow_attention(block, tokens, query=None):
    """Windows, shift and bias of a block, one pair of tokens at a time.

    In a shifted grid each axis is cut at ``shift``, ``shift + window``, ...; what wraps around makes windows of its
    own. Two tokens see each other if they are between the same cuts on every axis.
    """
    window, shift, attention = block.window, block.shift, block.attn
    heads, table = attention.num_heads, attention.relative_position_bias_table
    places = list(itertools.product(*(range(n) for n in tokens.shape[1:4])))
    flat = tokens[0].reshape(len(places), -1)
    if query is None:
        q, k, v = attention.qkv(flat).chunk(3, dim=1)
    else:
        q, (k, v) = query[0].reshape(len(places), -1), attention.kv(flat).chunk(2, dim=1)
    q, k, v = (x.reshape(len(places), heads, -1) for x in (q, k, v))
    side = 2 * window - 1
    rows = []
    for a, here in enumerate(places):
        cell = [math.floor((x - shift) / window) for x in here]
        seen = [b for b, other in enumerate(places) if [math.floor((x - shift) / window) for x in other] == cell]
        logits = []
        for b in seen:
            offset = [x - y + window - 1 for x, y in zip(here, places[b], strict=True)]
            bias = table[(offset[0] * side + offset[1]) * side + offset[2]]
            logits.append((q[a] * k[b]).sum(-1) / math.sqrt(q.shape[-1]) + bias)
        share = torch.stack(logits).softmax(0)
        rows.append(torch.einsum("sh,shc->hc", share, v[seen]).flatten())
    return attention.proj(torch.stack(rows)).reshape(tokens.shape)


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_equals_the_slow_reference(shift):
    torch.manual_seed(0)
    block = _Block(8, 2, window=2, shift=shift, mlp_ratio=2.0, drop_path=0.0, legacy_rel_index=False, grid=(4, 6, 4))
    nn.init.normal_(block.attn.relative_position_bias_table)
    tokens = torch.randn(1, 4, 6, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(block._attend(tokens), slow_attention(block, tokens), atol=1e-5, rtol=1e-4)
        hidden = tokens + slow_attention(block, block.norm1(tokens))
        expected = hidden + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(hidden))))
        torch.testing.assert_close(block(tokens), expected, atol=1e-5, rtol=1e-4)


def test_cross_attention_asks_the_upsampled_and_reads_the_skip():
    torch.manual_seed(0)
    block = _CrossBlock(8, 2, window=2, shift=0, mlp_ratio=2.0, drop_path=0.0, legacy_rel_index=False, grid=(4, 2, 4))
    nn.init.normal_(block.attn.relative_position_bias_table)
    up, skip = torch.randn(2, 1, 4, 2, 4, 8)
    with torch.no_grad():
        hidden = up + skip + slow_attention(block, block.norm1(skip), block.norm1(up))
        expected = hidden + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(hidden))))
        torch.testing.assert_close(block(up + skip, up, skip), expected, atol=1e-5, rtol=1e-4)


def test_batches_do_not_mix():
    net, image = small().eval(), torch.rand(3, 1, 16, 32, 24)
    with torch.no_grad():
        torch.testing.assert_close(net(image)[1:2], net(image[1:2]), atol=1e-5, rtol=1e-4)


# Relative positions


def test_every_offset_has_a_bias_of_its_own_but_not_in_the_published_code():
    index = relative_position_index(4)
    assert len(index.unique()) == 7**3 and index.max() < 7**3
    legacy = relative_position_index(4, legacy=True)
    assert len(legacy.unique()) == 115
    assert len(relative_position_index(8, legacy=True).unique()) == 547
    assert legacy[0, 0] == 11 * 3 + 7 * 3 + 3


def test_published_weights_say_which_label_scheme_they_need():
    published = small(legacy_rel_index=True)
    state = published.state_dict()
    prefix = "model_down.layers.0.blocks.0.attn."
    index = published.model_down.layers[0].blocks[0].attn.relative_position_index
    state[f"{prefix}relative_position_index"] = index
    small(legacy_rel_index=True).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="legacy_rel_index=True"):
        small().load_state_dict(dict(state))


def test_windows_shrink_with_the_grid():
    layers = small(img_size=(16, 16, 16)).model_down.layers
    assert [(block.window, block.shift) for layer in layers for block in layer.blocks] == [
        (4, 0),
        (4, 2),
        (4, 0),
        (4, 0),
        (2, 0),
        (2, 0),
    ]


def test_traces_to_the_same_function():
    net, image = small().eval(), torch.rand(1, 1, 16, 32, 24)
    with torch.no_grad():
        traced = torch.jit.trace(net, image)
        torch.testing.assert_close(traced(image), net(image), atol=1e-6, rtol=1e-5)


def test_a_grid_of_another_size_has_a_mask_of_its_own():
    sizes = {"depths": (2, 1), "num_heads": (1, 2)}
    made, other = small(img_size=(16, 16, 32), **sizes).eval(), small(img_size=(32, 32, 16), **sizes).eval()
    other.load_state_dict(made.state_dict())
    image = torch.rand(1, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(image), made(image))
