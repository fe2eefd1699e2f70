from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import SwinUNETR
from torch import nn

from common.networks import UNETR, ChannelsLastInstanceNorm3d, to_channels_last


def in_both_formats(norm: nn.Module, ours: nn.Module):
    results = []
    for module, memory_format in ((norm, torch.contiguous_format), (ours, torch.channels_last_3d)):
        image = torch.randn(2, 6, 4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
        image = image.contiguous(memory_format=memory_format).requires_grad_()
        output = module.double()(image)
        output.square().mul(torch.arange(output.numel()).view(output.shape)).sum().backward()
        results.append((output, image.grad, *(parameter.grad for parameter in module.parameters())))
    return results


@pytest.mark.parametrize("affine", [False, True])
def test_equals_torchs_instance_norm_and_keeps_the_format(affine):
    norm = nn.InstanceNorm3d(6, eps=1e-3, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = to_channels_last(copy.deepcopy(norm), "cpu")
    assert type(ours) is ChannelsLastInstanceNorm3d
    expected, found = in_both_formats(norm, ours)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a)
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert not found[0].is_contiguous()


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return image.to(memory_format=torch.channels_last_3d).requires_grad_()


@pytest.mark.parametrize("size", [(4, 6, 2), (5, 3, 7)])
@pytest.mark.parametrize("affine", [False, True])
def test_the_gradient_is_that_of_finite_differences(affine, size):
    norm = to_channels_last(nn.InstanceNorm3d(3, affine=affine).double())
    if affine:
        nn.init.normal_(norm.weight)
    parameters = list(norm.parameters())
    assert torch.autograd.gradcheck(lambda image, *_: norm(image), (channels_last(2, 3, *size), *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_an_activation_in_place(kind, dtype):
    norm = to_channels_last(nn.InstanceNorm3d(3, affine=True))
    image = channels_last(2, 3, 4, 4, 4, dtype=dtype)
    results = [nn.LeakyReLU(inplace=inplace)(norm(kind(image))) for inplace in (True, False)]
    in_place, apart = (torch.autograd.grad(result.square().sum(), image)[0] for result in results)
    torch.testing.assert_close(in_place, apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_many_voxels_is_as_exact_as_torchs(dtype):
    """Against torch's instance norm in float64, of an image far from zero mean."""
    norm = nn.InstanceNorm3d(12, affine=True)
    nn.init.uniform_(norm.weight, 0.5, 2)
    image = channels_last(2, 12, 40, 24, 32, dtype=dtype)
    with torch.no_grad():
        image += 3
    weight = torch.linspace(-1, 1, image.numel(), dtype=torch.float64).view(image.shape).sin().to(dtype)
    found = torch.autograd.grad(to_channels_last(copy.deepcopy(norm))(image), image, weight)[0]
    group_norm = nn.functional.group_norm(image, 12, norm.weight, norm.bias, norm.eps)
    torchs = torch.autograd.grad(group_norm, image, weight)[0]
    exact = image.detach().double().contiguous().requires_grad_()
    expected = torch.autograd.grad(norm.double()(exact), exact, weight.double())[0]
    allowed = 1.2 * (torchs - expected).abs().max()
    if (
        dtype == torch.bfloat16
    ):  # rounded twice more, when it is as large as the gradient of the output, times the scale
        scale = norm.weight.max() / exact.std()
        allowed += 2**-8 * scale * weight.abs().max()
    assert (found - expected).abs().max() <= allowed
    assert (found - expected).mean().abs() < 1e-5
    assert found.is_contiguous(memory_format=torch.channels_last_3d) and found.dtype == dtype


def test_a_net_with_convolutions_of_both_kinds():
    net = nn.ModuleList([nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Linear(2, 3)])
    before = copy.deepcopy(net.state_dict())
    assert to_channels_last(net, "cpu") is net
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last_3d) and not net[0].weight.is_contiguous()
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last) and not net[1].weight.is_contiguous()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_single_voxel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        to_channels_last(nn.InstanceNorm3d(2), "cpu")(torch.zeros(2, 2, 1, 1, 1))


def test_running_statistics_are_torchs_business():
    norm = nn.InstanceNorm3d(3, track_running_stats=True)
    ours = to_channels_last(copy.deepcopy(norm), "cpu")
    image = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(ours(image), norm(image))
    torch.testing.assert_close(ours.running_var, norm.running_var)
    torch.testing.assert_close(ours.eval()(image), norm.eval()(image))


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNETR(1, 3, 32, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2),
        lambda: SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), window_size=4),
    ],
    ids=["unetr", "swin_unetr"],
)
def test_networks_keep_their_function_names_and_format(make):
    torch.manual_seed(0)
    network = make().eval()
    ours = to_channels_last(copy.deepcopy(network), "cpu")
    assert list(ours.state_dict()) == list(network.state_dict())
    formats = []

    def note(_, inputs, output):
        formats.append([x.is_contiguous(memory_format=torch.channels_last_3d) for x in (*inputs, output)])

    for module in ours.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.register_forward_hook(note)
    image = torch.randn(1, 1, 64, 64, 64) if isinstance(network, SwinUNETR) else torch.randn(2, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), network(image), rtol=1e-3, atol=1e-3)
    assert [True, True] in formats and [True, False] not in formats
