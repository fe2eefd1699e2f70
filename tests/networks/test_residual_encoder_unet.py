from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.networks import ResidualEncoderUNet

SMALL = {"features": (4, 6, 8), "blocks": (1, 2, 2), "strides": (1, 2, (1, 2, 2))}


def make(**arguments):
    torch.manual_seed(0)
    net = ResidualEncoderUNet(2, 3, **{**SMALL, **arguments})
    for module in net.modules():  # blocks begin as the identity, which would hide half of them
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def slow(state, image, every=False):
    """The network by hand, from its tensors' names alone."""

    def conv(x, name, stride=1, act=True):
        weight = state[f"{name}.conv.weight"]
        pad = [(k - 1) // 2 for k in weight.shape[2:]]
        x = F.conv3d(x, weight, state.get(f"{name}.conv.bias"), stride, pad)
        mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, unbiased=False)
        shape = (1, -1, 1, 1, 1)
        x = (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.norm.weight"].view(shape)
        x = x + state[f"{name}.norm.bias"].view(shape)
        return torch.where(x > 0, x, 0.01 * x) if act else x

    maps, x = [], conv(image, "encoder.stem.convs.0")
    for stage, (count, stride) in enumerate(zip(SMALL["blocks"], [(1, 1, 1), (2, 2, 2), (1, 2, 2)], strict=True)):
        for block in range(count):
            name = f"encoder.stages.{stage}.blocks.{block}"
            step = stride if block == 0 else (1, 1, 1)
            short = F.avg_pool3d(x, step) if max(step) > 1 else x
            number = 1 if max(step) > 1 else 0
            if f"{name}.skip.{number}.conv.weight" in state:
                short = conv(short, f"{name}.skip.{number}", act=False)
            x = conv(conv(x, f"{name}.conv1", step), f"{name}.conv2", act=False) + short
            x = torch.where(x > 0, x, 0.01 * x)
        maps.append(x)
    logits = []
    for stage, stride in enumerate([(1, 2, 2), (2, 2, 2)]):
        up = f"decoder.transpconvs.{stage}"
        x = F.conv_transpose3d(x, state[f"{up}.weight"], state[f"{up}.bias"], stride)
        x = conv(torch.cat((x, maps[-stage - 2]), 1), f"decoder.stages.{stage}.convs.0")
        head = f"decoder.seg_layers.{stage}"
        logits.insert(0, F.conv3d(x, state[f"{head}.weight"], state[f"{head}.bias"]))
    return logits if every else logits[0]


@pytest.fixture
def image():
    return torch.randn(2, 2, 8, 12, 16, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_its_tensors_say(image):
    net = make()
    with torch.no_grad():
        torch.testing.assert_close(net(image), slow(net.state_dict(), image), atol=1e-4, rtol=1e-4)


def test_deep_supervision_is_for_training_alone(image):
    net = make(deep_supervision=True).train()
    with torch.no_grad():
        logits = net(image)
        for level, expected in zip(logits, slow(net.state_dict(), image, every=True), strict=True):
            torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)
        assert [tuple(level.shape[2:]) for level in logits] == [(8, 12, 16), (4, 6, 8)]
        torch.testing.assert_close(net.eval()(image), logits[0], atol=1e-5, rtol=1e-5)


def test_the_l_plan_has_the_published_size():
    """102,349,770 parameters with one channel and two classes, as ``dynamic_network_architectures`` 0.4.4 counts."""
    with torch.device("meta"):
        net = ResidualEncoderUNet()
    assert sum(p.numel() for p in net.parameters()) == 102_349_770
    names = set(net.state_dict())
    for name in (
        "encoder.stem.convs.0.conv.weight",
        "encoder.stages.5.blocks.5.conv2.norm.bias",
        "encoder.stages.1.blocks.0.skip.1.conv.weight",
        "decoder.transpconvs.4.bias",
        "decoder.stages.0.convs.0.norm.weight",
        "decoder.seg_layers.4.bias",
    ):
        assert name in names


def test_each_block_begins_as_the_identity():
    torch.manual_seed(0)
    block = ResidualEncoderUNet(1, 2, **SMALL).encoder.stages[1].blocks[1]
    x = torch.rand(1, 6, 4, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_gradients_reach_everything(image):
    net = make(deep_supervision=True).train()
    sum(level.square().mean() for level in net(image)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "conv.bias" not in n)


def test_what_does_not_fit_is_refused(image):
    with pytest.raises(ValueError, match="one value per stage"):
        make(blocks=(1, 2))
    with pytest.raises(ValueError, match="multiple of"):
        make()(image[..., :5])
