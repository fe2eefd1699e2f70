from __future__ import annotations

import copy

import pytest
import torch
from monai.networks import nets
from torch import nn

from common.networks import (
    UNETR,
    EncoderClassifier,
    GenesisEncoder,
    GenesisUNet,
    PaddedConv2d,
    PaddedConv3d,
    STUNet,
    place,
    primus,
)


class Net(nn.Module):
    def __init__(self, fail=False):
        super().__init__()
        self.conv, self.norm, self.fail = nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), fail

    def forward(self, image):
        self.seen = self.conv(image).dtype
        if self.fail:
            raise ValueError("no")
        return {"maps": [self.norm(self.conv(image))], "count": 3, "label": torch.ones(1, dtype=torch.long)}


@pytest.fixture
def image():
    return torch.randn(2, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_network_computes_in_bfloat16_and_returns_float32(image):
    torch.manual_seed(0)
    net = Net()
    expected = net(image)["maps"][0]
    result = place(net, "cpu", amp=True)(image)
    assert net.seen == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    assert result["maps"][0].dtype == torch.float32 and result["count"] == 3 and result["label"].dtype == torch.long
    torch.testing.assert_close(result["maps"][0], expected, atol=0.05, rtol=0.05)
    assert not torch.equal(result["maps"][0], expected)


def test_gradients_and_weights_stay_in_float32(image):
    net = place(Net(), "cpu", amp=True)
    net(image)["maps"][0].square().mean().backward()
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.conv.parameters())


NORMS = {
    "layer": (lambda: nn.LayerNorm(24), (2, 5000, 24)),
    "layer over channels": (lambda: primus._ChannelNorm(24), (1, 24, 20, 25, 20)),
    "batch": (lambda: nn.BatchNorm3d(8), (2, 8, 24, 20, 16)),
    "instance": (lambda: nn.InstanceNorm3d(8, affine=True), (2, 8, 24, 20, 16)),
    "instance with statistics": (
        lambda: nn.InstanceNorm3d(8, affine=True, track_running_stats=True),
        (2, 8, 24, 20, 16),
    ),
    "group": (lambda: nn.GroupNorm(2, 8), (2, 8, 24, 20, 16)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_bfloat16_is_that_of_float64_but_for_the_rounding_of_maps(name, memory_format):
    """Sums over 10,000 voxels and more, of gradients with a mean: in bfloat16 they would stop growing far below."""
    make, shape = NORMS[name]
    if memory_format == torch.channels_last_3d and len(shape) < 5:
        memory_format = torch.contiguous_format
    torch.manual_seed(0)
    norm = make()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = (2 * torch.randn(shape) + 3).bfloat16().contiguous(memory_format=memory_format)
    gradient = (torch.randn(shape) + 0.3).bfloat16().contiguous(memory_format=memory_format)
    results = []
    for module, precision in (
        (copy.deepcopy(norm).double(), torch.float64),
        (place(nn.Sequential(norm), "cpu", amp=True), torch.bfloat16),
    ):
        given = image.to(precision).requires_grad_()
        made = module(given)
        made.backward(gradient.to(made.dtype))
        results.append((made, given.grad, module))
    (expected, by_input, exact), (found, made_by_input, placed) = results
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4 * scale)
    assert torch.equal(found, found.bfloat16().float()) and made_by_input.dtype == torch.bfloat16
    assert (made_by_input - by_input).norm() < 2**-8 * by_input.norm()
    for one, other in zip(exact.parameters(), placed.parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert (other.grad - one.grad).norm() < 1e-3 * one.grad.norm()
    for one, other in zip(exact.buffers(), placed.buffers(), strict=True):
        torch.testing.assert_close(other, one.to(other.dtype), rtol=1e-4, atol=1e-5)


def test_it_ends_with_an_error_too(image):
    net = place(Net(fail=True), "cpu", amp=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            net(image)
        assert not torch.is_autocast_enabled("cpu")


def test_without_amp_it_computes_in_float32(image, caplog, monkeypatch):
    monkeypatch.setattr("common.networks.placement.bfloat16_pays", lambda device: True)
    with caplog.at_level("INFO"):
        net = place(Net(), "cpu")
        place(Net(), "cpu", amp=True)
    net(image)
    assert net.seen == torch.float32
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert [record.message.split(", in ")[1] for record in caplog.records] == ["float32.", "bfloat16 (amp)."]


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("amp", [True, False])
def test_a_warning_says_that_a_device_imitates_bfloat16(amp, pays, caplog, monkeypatch):
    monkeypatch.setattr("common.networks.placement.bfloat16_pays", lambda device: pays)
    place(Net(), "cpu", amp=amp)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (amp and not pays)
    assert all("no instructions for bfloat16 on cpu" in message for message in warnings)


def test_a_copy_has_the_hooks_too(image):
    net = copy.deepcopy(place(Net(), "cpu", amp=True))
    net(image)
    assert net.seen == torch.bfloat16 and not torch.is_autocast_enabled("cpu")


def test_small_images_are_padded_on_a_cpu():
    net = place(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv2d(1, 2, 3)), "cpu")
    assert [type(conv) for conv in net] == [PaddedConv3d, PaddedConv2d]


def test_a_placed_unetr_is_monais_in_values_and_gradients():
    torch.manual_seed(0)
    arguments = {"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
    theirs = nets.UNETR(1, 3, **arguments).double()
    ours = UNETR(1, 3, **arguments, skip_blocks=(4, 7, 10)).double()
    ours.load_state_dict(theirs.state_dict())
    place(ours, "cpu")
    image = torch.randn(1, 1, 32, 32, 32).double()
    results = []
    for net in (theirs, ours):
        made = net(image)
        made.square().mean().backward()
        results.append((made, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)))
    assert len(results[0]) == len(results[1]) > 100
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


UNETS = {
    "DynUNet": (
        lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, [1, 2, 2]], [2, [1, 2, 2]], filters=[4, 8, 8]),
        (2, 4, 4),
    ),
    "SegResNet": (lambda: nets.SegResNet(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (4, 4, 4)),
    "SegResNet of two axes": (
        lambda: nets.SegResNet(2, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        (4, 4),
    ),
    "MedNeXt": (lambda: nets.MedNeXt(3, 4, 1, 2), (16, 16, 16)),
    "SwinUNETR": (lambda: nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1)), (32, 32, 32)),
    "STUNet": (lambda: STUNet(1, 2, (4, 8, 8), (1, 1, 1), ((1, 2, 2), 2)), (2, 4, 4)),
    "GenesisUNet": (lambda: GenesisUNet(1, 2, 2), (8, 8, 8)),
}


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", UNETS)
def test_a_size_that_does_not_fit_a_u_net_is_told_in_one_sentence(name, amp, recwarn):
    make, stride = UNETS[name]
    net = place(make().eval(), "cpu", amp=amp)
    with torch.no_grad():
        sizes = [2 * step for step in stride]
        assert net(torch.rand(1, 1, *sizes)).shape == (1, 2, *sizes)
        for axis, step in enumerate(stride):
            other = [size + step // 2 if place == axis else size for place, size in enumerate(sizes)]
            with pytest.raises(ValueError) as refused:
                net(torch.rand(1, 1, *other))
            said = f"image size that is a multiple of {stride}, not {tuple(other)}; set roi_size to such a size."
            assert said in str(refused.value)
    assert not torch.is_autocast_enabled("cpu") and not any("hook" in str(one.message) for one in recwarn)


def test_networks_for_any_size_keep_it():
    assert place(nn.Conv3d(1, 2, 3, padding=1), "cpu")(torch.rand(1, 1, 5, 7, 9)).shape == (1, 2, 5, 7, 9)
    head = EncoderClassifier(GenesisEncoder(GenesisUNet(1, 2, 2), decoder=False), 2)
    assert place(head.eval(), "cpu")(torch.rand(1, 1, 17, 18, 19)).shape == (1, 2)
