"""Attention in windows, a few at a time, against attention written plainly and MONAI's nets."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks import SABlock
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging, WindowAttention, compute_mask

import common.networks.window_attention as module
from common.networks import NNFormer, place
from common.networks.window_attention import speed_up_windows
from common.networks.window_attention import window_attention as attend


def plain(query, key, value, bias, mask):
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    if mask is not None:
        scores = scores + mask.repeat(len(query) // len(mask), 1, 1)[:, None]
    return scores.softmax(-1).to(value.dtype) @ value


def inputs(width, masked, dtype=torch.float64, windows=6):
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(windows, 5, 3, 2, width, generator=draw, dtype=torch.float64).to(
        dtype
    )  # as a layer makes them
    bias = torch.randn(2, 5, 5, generator=draw, dtype=torch.float64)
    mask = torch.where(torch.rand(3, 5, 5, generator=draw) < 0.3, -100.0, 0.0).double() if masked else None
    if dtype != torch.float64:
        bias, mask = bias.float(), None if mask is None else mask.float()
    return tokens, bias, mask


def results(function, tokens, bias, mask):
    tokens, bias = tokens.clone().requires_grad_(), bias.clone().requires_grad_()
    made = function(*tokens.permute(2, 0, 3, 1, 4), bias, mask)
    weights = torch.arange(made.numel(), dtype=made.dtype).view(made.shape).sin()
    (made * weights).sum().backward()
    return made, tokens.grad, bias.grad


@pytest.mark.parametrize("at_a_time", [0, 1, 4, 100])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [3, 16])
def test_values_and_gradients_are_those_of_plain_attention(monkeypatch, at_a_time, masked, width):
    monkeypatch.setattr(module, "CACHED_BYTES", at_a_time * 2 * 5 * 5 * 8)
    given = inputs(width, masked)
    for found, expected in zip(results(attend, *given), results(plain, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_a_time", [1, 4])
def test_without_a_bias(monkeypatch, at_a_time, masked):
    monkeypatch.setattr(module, "CACHED_BYTES", at_a_time * 2 * 5 * 5 * 8)
    tokens, bias, mask = inputs(16, masked)
    expected = results(plain, tokens, torch.zeros_like(bias), mask)[:2]
    tokens.requires_grad_()
    made = attend(*tokens.permute(2, 0, 3, 1, 4), None, mask)
    (made * torch.arange(made.numel(), dtype=made.dtype).view(made.shape).sin()).sum().backward()
    torch.testing.assert_close((made, tokens.grad), expected, rtol=1e-12, atol=1e-12)


def test_float32_and_bfloat16_are_as_near_as_plain_attention():
    exact = results(plain, *inputs(8, True))
    for dtype in (torch.float32, torch.bfloat16):
        given = inputs(8, True, dtype)
        ours, theirs = results(attend, *given), results(plain, *given)
        for found, other, expected in zip(ours, theirs, exact, strict=True):
            assert found.dtype == (torch.float32 if found.shape == (2, 5, 5) else dtype)
            assert (found - expected).abs().max() <= 1.5 * (other - expected).abs().max()


def test_without_a_gradient_nothing_is_kept():
    tokens, bias, mask = inputs(8, True)
    with torch.no_grad():
        made = attend(*tokens.permute(2, 0, 3, 1, 4), bias, mask)
    torch.testing.assert_close(made, plain(*tokens.permute(2, 0, 3, 1, 4), bias, mask))
    assert attend(*tokens.permute(2, 0, 3, 1, 4), bias, mask).grad_fn is None
    table = bias.requires_grad_()
    assert attend(*tokens.permute(2, 0, 3, 1, 4), table, mask).grad_fn is not None


@pytest.mark.parametrize("v2", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_swin_unetr_is_monais_in_values_and_gradients(v2):
    """Padded, shifted and whole windows; the last stages have one window."""
    torch.manual_seed(0)
    theirs = SwinUNETR(1, 2, feature_size=12, use_v2=v2).double()
    ours = speed_up_windows(copy.deepcopy(theirs))
    swapped = [part for part in ours.modules() if isinstance(part, WindowAttention)]
    assert len(swapped) == 8 and all(type(part) is not WindowAttention for part in swapped)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    image = torch.randn(1, 1, 32, 32, 64, dtype=torch.float64)  # one voxel alone has no instance norm
    outputs = [net(image) for net in (theirs, ours)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.sin().sum().backward()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("merging", [PatchMerging, None], ids=["merging", "last"])
def test_a_stage_is_monais_for_each_size_of_image(merging):
    torch.manual_seed(0)
    theirs = BasicLayer(12, 2, 3, (3, 3, 3), [0.0, 0.0], qkv_bias=True, downsample=merging).double()
    ours = speed_up_windows(copy.deepcopy(theirs))
    assert type(ours) is not BasicLayer
    for size in ((6, 6, 6), (7, 4, 5), (2, 7, 3), (7, 4, 5)):  # whole, padded, smaller than a window; the mask again
        image = torch.randn(2, 12, *size, dtype=torch.float64)
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-12, atol=1e-12)


def block(**arguments):
    torch.manual_seed(0)
    return WindowAttention(12, 3, (2, 3, 2), qkv_bias=True, **arguments)


def test_what_it_does_not_do_is_left_to_monai():
    tokens = torch.randn(4, 12, 12)
    theirs, ours = block(attn_drop=0.5), speed_up_windows(block(attn_drop=0.5))
    found = []
    for net in (theirs, ours):
        torch.manual_seed(1)
        found.append(net(tokens, None))
    assert torch.equal(*found)
    torch.testing.assert_close(ours.eval()(tokens, None), theirs.eval()(tokens, None))
    traced = torch.jit.trace(ours, (tokens, torch.zeros(2, 12, 12)))
    torch.testing.assert_close(traced(tokens * 2, torch.ones(2, 12, 12)), ours(tokens * 2, torch.ones(2, 12, 12)))
    assert "PythonOp" not in str(traced.inlined_graph)


def test_a_meta_tensor_is_taken_as_a_tensor():
    tokens, bias, mask = inputs(8, True)
    metas = [MetaTensor(tensor) for tensor in tokens.permute(2, 0, 3, 1, 4)]
    assert torch.equal(attend(*metas, bias, mask), attend(*tokens.permute(2, 0, 3, 1, 4), bias, mask))


def test_nets_on_a_cpu_have_it():
    net = place(SwinUNETR(1, 2, feature_size=12), "cpu")
    assert not any(type(part) is WindowAttention for part in net.modules())
    assert any(type(part) is WindowAttention for part in place(SwinUNETR(1, 2, feature_size=12), "meta").modules())


def test_self_attention_in_bfloat16_is_as_near_as_torchs():
    torch.manual_seed(0)
    block = SABlock(24, 3, use_flash_attention=True)
    ours = speed_up_windows(copy.deepcopy(block))
    tokens = torch.randn(2, 50, 24)

    def run(module, tokens, bfloat16):
        tokens = tokens.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            made = module(tokens)
        (made.to(tokens.dtype) * tokens.detach().sin()).sum().backward()
        return made, tokens.grad, module.qkv.weight.grad.clone()

    exact = run(copy.deepcopy(block).double(), tokens.double(), False)
    for found, theirs, right in zip(run(ours, tokens, True), run(block, tokens, True), exact, strict=True):
        assert (found - right).abs().max() <= 1.5 * (theirs - right).abs().max()


@pytest.mark.parametrize(
    "arguments",
    [{"use_flash_attention": False}, {"dropout_rate": 0.1}, {"causal": True, "sequence_length": 5}],
)
def test_other_self_attention_is_left_to_monai(monkeypatch, arguments):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(module, "window_attention", refuse)
    block = speed_up_windows(SABlock(8, 2, **{"use_flash_attention": True, **arguments}))
    tokens = torch.randn(1, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(tokens).shape == tokens.shape
        monkeypatch.setattr(module, "MOST_TOKENS", 4)
        assert speed_up_windows(SABlock(8, 2, use_flash_attention=True))(tokens).shape == tokens.shape
        monkeypatch.setattr(module, "MOST_TOKENS", 5)
        with pytest.raises(AssertionError):
            speed_up_windows(SABlock(8, 2, use_flash_attention=True))(tokens)


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (lambda: NNFormer(1, 2, [32, 32, 32], 16, depths=[2, 2], num_heads=[2, 4], patch_size=4), 32),
        (lambda: speed_up_windows(SwinUNETR(1, 2, feature_size=12)), 64),
    ],
)
def test_masked_weights_are_zero_and_not_subnormal(net, side):
    """A core multiplies subnormal numbers about twenty times as slowly."""
    torch.manual_seed(0)
    least, kept = torch.finfo(torch.float32).tiny, []

    def keep(tensor):
        kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net()(torch.rand(1, 1, side, side, side))
    weights = [tensor for tensor in kept if tensor.ndim == 3 and tensor.shape[-1] == tensor.shape[-2] > 16]
    assert any((tensor == 0).any() for tensor in weights)
    for tensor in kept:
        assert not ((tensor != 0) & (tensor.abs() < least)).any()


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 2), (0, 3, 3), (1, 0, 2)])
def test_the_mask_of_shifted_windows_is_monais_with_weights_of_exactly_zero(shift):
    grid, window = (4, 7, 8), (4, 7, 4)
    expected = compute_mask(list(grid), window, shift, torch.device("cpu"))
    found = module.shifted_window_mask(grid, window, shift, torch.device("cpu"))
    assert torch.equal(found == 0, expected == 0) and torch.equal(found.exp(), (expected == 0).float())
