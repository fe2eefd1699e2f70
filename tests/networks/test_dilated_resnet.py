from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.networks import DilatedResNet, FrozenBatchNorm, to_channels_last
from common.networks.sync_batch_norm import sync_batch_norms
from common.weights import convert, load_encoder, save_encoder


def small(**arguments) -> DilatedResNet:
    torch.manual_seed(0)
    return DilatedResNet(**({"depth": 10, "width": 4} | arguments))


def reference(state: dict[str, torch.Tensor], image: torch.Tensor, blocks: list[int], shortcut: str) -> torch.Tensor:
    """The published architecture written anew from its state dict, in evaluation mode.

    Dilated kernels are made dense, with zeros between their taps, so that nothing here takes a dilation.
    """

    def norm(x, name):
        values = [state[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var")]
        scale, shift = (state[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
        return (x - values[0]) / torch.sqrt(values[1] + 1e-5) * scale + shift

    def convolve(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        side = weight.shape[-1]
        reach = dilation * (side - 1) + 1
        dense = torch.zeros(*weight.shape[:2], reach, reach, reach)
        dense[..., ::dilation, ::dilation, ::dilation] = weight
        x = F.pad(x, (reach // 2,) * 6)
        return F.conv3d(x, dense)[..., ::stride, ::stride, ::stride]

    x = torch.relu(norm(convolve(image, "conv1", 2), "bn1"))
    x = F.max_pool3d(F.pad(x, (1,) * 6, value=-torch.inf), 3, 1)[..., ::2, ::2, ::2]
    for layer, (count, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), start=1):
        for block in range(count):
            at = f"layer{layer}.{block}"
            step = stride if block == 0 else 1
            if f"{at}.conv3.weight" in state:
                y = torch.relu(norm(convolve(x, f"{at}.conv1"), f"{at}.bn1"))
                y = torch.relu(norm(convolve(y, f"{at}.conv2", step, dilation), f"{at}.bn2"))
                y = norm(convolve(y, f"{at}.conv3"), f"{at}.bn3")
            else:
                y = torch.relu(norm(convolve(x, f"{at}.conv1", step, dilation), f"{at}.bn1"))
                y = norm(convolve(y, f"{at}.conv2", 1, dilation), f"{at}.bn2")
            if y.shape != x.shape:
                x = x[..., ::step, ::step, ::step]
                if shortcut == "A":
                    x = torch.cat([x, torch.zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], 1)
                else:
                    x = norm(convolve(x, f"{at}.downsample.0"), f"{at}.downsample.1")
            x = torch.relu(x + y)
    return x


def disturb(net: nn.Module) -> nn.Module:
    """Running statistics, scales and shifts as after a training, so that a norm left out shows."""
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm3d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.uniform_(tensor, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        norm.weight.data.add_(1)
    return net.eval()


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (50, "B")])
def test_a_published_file_against_the_architecture_written_anew(depth, shortcut, tmp_path):
    blocks = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
    state = disturb(small(depth=depth, shortcut=shortcut)).state_dict()
    published = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": published}, tmp_path / "resnet.pth")
    convert(tmp_path / "resnet.pth", tmp_path / "encoder.safetensors", kind="medicalnet")
    net = DilatedResNet(depth, shortcut=shortcut, width=4).eval()
    load_encoder(net, tmp_path / "encoder.safetensors")
    image = torch.rand(2, 1, 17, 24, 30)
    with torch.no_grad():
        ours, expected = net(image)[-1], reference(state, image, blocks, shortcut)
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_maps_are_what_channels_and_strides_say():
    net = small(depth=50)
    size = (17, 32, 40)
    maps = net.eval()(torch.rand(1, 1, *size))
    assert [x.shape[1] for x in maps] == list(net.channels) == [4, 16, 32, 64, 128]
    assert [s[0] for s in net.strides] == [2, 4, 8, 8, 8]
    for x, strides in zip(maps, net.strides, strict=True):
        assert tuple(x.shape[2:]) == tuple(-(-n // stride) for n, stride in zip(size, strides, strict=True))


def test_the_first_convolution_of_the_dilated_layers_is_dilated():
    net = small(depth=18)
    for layer, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for block in layer:
            assert block.conv1.dilation == block.conv2.dilation == (dilation,) * 3
            assert block.conv1.stride == (1, 1, 1)


def test_the_first_two_layers_are_those_of_a_strided_net():
    """MONAI's net holds the weights of the dilated one and is the same up to its second layer, and not beyond."""
    from monai.networks.nets import resnet10

    net = disturb(DilatedResNet(10))
    theirs = resnet10(
        n_input_channels=1, conv1_t_stride=2, shortcut_type="B", bias_downsample=False, feed_forward=False
    )
    assert not theirs.load_state_dict(net.state_dict()).missing_keys
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        x = theirs.eval().maxpool(theirs.act(theirs.bn1(theirs.conv1(image))))
        second = theirs.layer2(theirs.layer1(x))
        maps = net(image)
        torch.testing.assert_close(maps[2], second, atol=1e-4, rtol=1e-4)
        fourth = theirs.layer4(theirs.layer3(second))
    assert maps[4].shape[2:] == (4, 4, 4) and fourth.shape[2:] == (1, 1, 1)
    assert not torch.allclose(maps[4][..., :1, :1, :1], fourth, atol=1e-2)


def test_shortcut_a_passes_the_gradient_on():
    """The published code and MONAI take the data of the tensor, so that nothing flows back there."""
    net = small(shortcut="A").eval()
    shortcut = net.layer2[0].downsample
    assert not list(shortcut.parameters())
    x = torch.rand(1, 4, 5, 6, 7, requires_grad=True)
    padded = shortcut(x)
    assert padded.shape == (1, 8, 3, 3, 4)
    assert torch.equal(padded[:, :4], x[..., ::2, ::2, ::2]) and not padded[:, 4:].any()
    padded.sum().backward()
    assert x.grad[..., ::2, ::2, ::2].eq(1).all() and x.grad.sum() == padded[:, :4].numel()


@pytest.mark.parametrize("preactivation", [False, True])
def test_checkpointing_changes_nothing(preactivation):
    image = torch.rand(2, 1, 16, 16, 24)
    plain = small(preactivation=preactivation).train()
    saving = small(preactivation=preactivation, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    for net in (plain, saving):
        net(image)[-1].square().mean().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), other in zip(plain.state_dict().items(), saving.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert saving.bn1.num_batches_tracked == saving.layer1[0].bn1.num_batches_tracked == 1
    assert saving.layer1[0].bn1.momentum == 0.1


def test_checkpointing_keeps_less():
    image = torch.rand(1, 1, 24, 24, 24)
    kept = {}
    for checkpointing in (False, True):
        net = small(depth=18, checkpointing=checkpointing).train()
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(image)
        own = {parameter.data_ptr() for parameter in net.parameters()}
        kept[checkpointing] = sum(size for place, size in sizes.items() if place not in own)
    assert kept[True] < 0.75 * kept[False]


def test_preactivation():
    """Norm and ReLU before every convolution; the path of a block's shortcut is the identity."""
    net = small(preactivation=True, depth=18).eval()
    block = net.layer1[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 5, 5, 5)
    assert torch.equal(block(x.clone()), x)
    last = net(torch.rand(1, 1, 16, 16, 16))[-1]
    assert (last >= 0).all() and last.shape[1] == net.channels[-1]


def test_channels_last_is_the_same_function():
    net = small(shortcut="A").eval()
    image = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        expected = net(image)[-1]
        ours = to_channels_last(copy.deepcopy(net), "cpu")(image)[-1]
    torch.testing.assert_close(ours, expected)


def test_frozen_statistics_stay_and_the_rest_trains():
    torch.manual_seed(0)
    source = disturb(small())
    net = small(norm="frozen")
    net.load_state_dict(source.state_dict())
    image = torch.rand(2, 1, 16, 24, 16)
    made = net.train()(image)[-1]
    torch.testing.assert_close(made, source.eval()(image)[-1])
    made.square().mean().backward()
    assert net.bn1.weight.grad.abs().sum() > 0
    assert all(torch.equal(one, source.state_dict()[name]) for name, one in net.state_dict().items())
    kept = sync_batch_norms(net, torch.device("cpu"))
    assert isinstance(kept.bn1, FrozenBatchNorm) and isinstance(kept.layer2[0].bn1, FrozenBatchNorm)


def test_groups_see_each_sample_by_itself():
    torch.manual_seed(0)
    net = small(norm="group").train()
    image = torch.rand(3, 1, 16, 16, 16)
    torch.testing.assert_close(net(image)[-1][:1], net(image[:1])[-1], atol=1e-5, rtol=1e-4)
    assert not any("running" in name for name in net.state_dict())
    assert net.architecture()["norm"] == "group" and "norm" not in small(norm="frozen").architecture()


def test_files_of_batch_norms_do_not_fill_groups(tmp_path, caplog):
    save_encoder(small(), tmp_path / "x.safetensors", {})
    load_encoder(small(norm="frozen"), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="running_mean"):
        load_encoder(small(norm="group"), tmp_path / "x.safetensors")
    caplog.clear()
    load_encoder(small(output_stride=32), tmp_path / "x.safetensors")
    assert "made with dilations [2, 4], but this one has [1, 1]" in caplog.text


def test_stride_32_has_strides_for_dilations():
    net = small(output_stride=32).eval()
    maps = net(torch.rand(1, 1, 64, 32, 96))
    assert [tuple(x.shape[2:]) for x in maps[2:]] == [(8, 4, 12), (4, 2, 6), (2, 1, 3)]
    assert [strides[0] for strides in net.strides] == [2, 4, 8, 16, 32]
    assert {name for name in net.state_dict()} - {name for name in small().state_dict()} == {"output_stride"}


def test_refusals():
    with pytest.raises(ValueError, match="norm must be one of batch, group, frozen, not 'layer'"):
        DilatedResNet(10, norm="layer")
    with pytest.raises(ValueError, match="8 or 32, not 16"):
        DilatedResNet(10, output_stride=16)
    with pytest.raises(ValueError, match="depth 11; depths are 10, 18"):
        DilatedResNet(11)
    with pytest.raises(ValueError, match="'A' or 'B', not 'C'"):
        DilatedResNet(10, shortcut="C")
    with pytest.raises(ValueError, match="two dilations"):
        DilatedResNet(10, dilations=[2])
