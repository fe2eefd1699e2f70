from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from common.networks import pad_small_images
from common.networks.padded_convolution import _FewWritten, _pairs


def gradients(conv, image):
    image = image.clone().requires_grad_()
    conv.zero_grad()
    output = conv(image).float()
    output.square().sum().backward()
    return output.detach(), image.grad, *(parameter.grad.clone() for parameter in conv.parameters())


@pytest.mark.parametrize("layout", ["row-major", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [(1, 16), (32, 8)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [
        (3, 1, 1, 1, (2, 8, 8)),  # bfloat16: wrong before
        (3, 1, "same", 1, (1, 1, 1)),
        (3, 2, 1, 1, (1, 1)),  # bfloat16
        (7, 2, 3, 1, (6, 6, 6)),  # both
        (3, 1, 2, 2, (4, 4, 4)),
        (2, 2, 1, 1, (1, 1, 1)),
        (3, 1, 1, 1, (5, 6, 7)),  # not small
    ],
)
def test_where_the_kernel_is_larger_than_the_image(kernel, stride, padding, dilation, size, channels, dtype, layout):
    """Against torch's own code in float64, every time: oneDNN's read memory that no one wrote, here `rubbish`."""
    torch.manual_seed(0)
    conv = (nn.Conv3d if len(size) == 3 else nn.Conv2d)(*channels, kernel, stride, padding, dilation)
    image = torch.randn(2, channels[0], *size)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = gradients(copy.deepcopy(conv).double(), image.double())
    if layout == "channels last":
        memory_format = torch.channels_last_3d if len(size) == 3 else torch.channels_last
        conv, image = conv.to(memory_format=memory_format), image.to(memory_format=memory_format)
    names = list(conv.state_dict())
    conv = pad_small_images(conv)
    assert list(conv.state_dict()) == names
    for _ in range(3):
        rubbish = [torch.full((4**power,), float("nan")) for power in range(11)]
        del rubbish
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = gradients(conv, image)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= (0.03 if dtype == torch.bfloat16 else 1e-5) * b.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (1, 1, 0, 1),
        (3, 1, 1, 1),
        (5, 1, 2, 1),
        (7, 1, 3, 1),
        ((1, 2, 3), (2, 1, 1), (0, 1, 1), (1, 2, 1)),
        (7, 2, 3, 1),
        (3, (1, 1, 2), 1, 1),
        (1, 2, 0, 1),
    ],
)
def test_pairs_of_voxels_are_the_same_convolution_for_one_channel(kernel, stride, padding, dilation, bias, layout):
    torch.manual_seed(0)
    conv = nn.Conv3d(1, 5, kernel, stride, padding, dilation, bias=bias).double()
    image = torch.randn(2, 1, 9, 8, 12).double()
    expected = gradients(conv, image)
    pairs = pad_small_images(conv.to(memory_format=layout))
    assert pairs._takes_pairs(image) and not pairs._takes_pairs(image[..., 1:])
    for a, b in zip(gradients(pairs, image), expected, strict=True):
        torch.testing.assert_close(a, b)
    made = pairs.float()(image.float())
    assert made.is_contiguous(memory_format=torch.channels_last_3d) and not made.is_contiguous()


def test_pairs_have_a_gradient_after_inference_too():
    _pairs.cache_clear()
    conv, image = pad_small_images(nn.Conv3d(1, 2, 3, padding=1)), torch.randn(1, 1, 4, 4, 6)
    with torch.inference_mode():
        conv(image)
    conv(image).sum().backward()
    assert conv.weight.grad is not None


def test_pairs_are_not_for_other_convolutions():
    image = torch.randn(1, 1, 9, 8, 12)
    for arguments in ((2,), (3, 3, 1), (3, 1, 0), (3, 1, "same"), (3, 1, 2, 2)):
        assert not pad_small_images(nn.Conv3d(1, 2, *arguments))._takes_pairs(image)
    assert not pad_small_images(nn.Conv3d(1, 2, 3, padding=1))._takes_pairs(image[..., :2])


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), ((1, 3, 3), (2, 1, 1), (0, 2, 1), (1, 2, 1))],
)
def test_two_neighbours_at_a_time_are_the_same_convolution(kernel, stride, padding, dilation):
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 2, kernel, stride, padding, dilation, bias=False).double()
    image = torch.randn(2, 3, 5, 6, 8).double().to(memory_format=torch.channels_last_3d).requires_grad_()
    made = _FewWritten.apply(image, conv.weight, conv.stride, conv.padding, conv.dilation)
    expected = conv(image)
    torch.testing.assert_close(made, expected)
    weights = torch.arange(made.numel()).view(made.shape).sin()
    found, plain = (torch.autograd.grad(result, (image, conv.weight), weights) for result in (made, expected))
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("size", [(9, 8, 12), (9, 8, 11)])
def test_eight_channels_in_bfloat16(monkeypatch, size):
    """Even sides go two at a time; both are as near to float64 as bfloat16 is."""
    torch.manual_seed(0)
    conv, image = nn.Conv3d(16, 8, 3, padding=1, bias=False), torch.randn(2, 16, *size)
    expected = gradients(copy.deepcopy(conv).double(), image.double())
    calls, apply = [], _FewWritten.apply
    monkeypatch.setattr(_FewWritten, "apply", lambda *arguments: calls.append(1) or apply(*arguments))
    conv = pad_small_images(conv.to(memory_format=torch.channels_last_3d))
    gradients(conv, image)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(conv, image.to(memory_format=torch.channels_last_3d))
    assert len(calls) == (size[-1] % 2 == 0)
    assert found[2].dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_an_activation_in_place_may_follow_eight_channels(kind):
    """As in MONAI's SegResNet, on the images of its loaders."""
    conv = pad_small_images(nn.Conv3d(8, 8, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d))
    image = kind(torch.randn(1, 8, 6, 6, 6)).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        made = nn.ReLU(inplace=True)(conv(image))
    assert made.min() == 0
    (found,) = torch.autograd.grad(made.float().sum(), conv.weight)
    plain = copy.deepcopy(conv).double()
    passed = (plain(torch.Tensor(image).double()) * (torch.Tensor(made) > 0)).sum()
    (expected,) = torch.autograd.grad(passed, plain.weight)
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max()


def test_other_paddings_and_subclasses_stay():
    class Own(nn.Conv3d):
        pass

    net = pad_small_images(nn.ModuleList([Own(1, 1, 3), nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate")]))
    assert type(net[0]) is Own
    image = torch.randn(1, 1, 2, 2, 2)
    torch.testing.assert_close(net[1](image), nn.Conv3d.forward(net[1], image))
