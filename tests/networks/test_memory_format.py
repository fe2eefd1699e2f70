from __future__ import annotations

import copy

import pytest
import torch
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
