from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet

from common.networks import (
    DynUNetEncoder,
    MedNeXtEncoder,
    ResidualEncoderUNet,
    ResidualUNetEncoder,
    SegResNetEncoder,
)


def dynunet():
    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, [1, 2, 2]], [2, [1, 2, 2]], filters=[4, 6, 8])


def segresnet():
    return SegResNet(3, 8, 1, 2, blocks_down=(1, 2, 1), blocks_up=(1, 1))


def mednext():
    return MedNeXt(3, 4, 1, 2, kernel_size=3, blocks_down=[1, 2], blocks_bottleneck=1, blocks_up=[1, 1])


def resenc():
    return ResidualEncoderUNet(1, 2, features=(4, 6, 8), blocks=(1, 2, 1), strides=(1, 2, 2))


KINDS = {
    "dynunet": (
        dynunet,
        DynUNetEncoder,
        "output_block",
        lambda net: [net.input_block, net.downsamples[0], net.bottleneck],
    ),
    "segresnet": (segresnet, SegResNetEncoder, "conv_final", lambda net: list(net.down_layers)),
    "mednext": (mednext, MedNeXtEncoder, "out_0", lambda net: [*net.enc_stages, net.bottleneck]),
    "resenc": (resenc, ResidualUNetEncoder, "decoder.seg_layers", lambda net: list(net.encoder.stages)),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    make, view, head, stages = KINDS[request.param]
    return make().eval(), view, head, stages


@torch.no_grad()
def test_maps_are_what_the_network_computes_on_its_way(kind):
    net, view, _, stages = kind
    seen = []
    hooks = [stage.register_forward_hook(lambda m, i, o: seen.append(o.clone())) for stage in stages(net)]
    image = torch.randn(2, 1, 8, 16, 12)
    net(image)
    for hook in hooks:
        hook.remove()
    encoder = view(net)
    maps = encoder(image)
    assert len(maps) == len(seen) == len(encoder.channels) == len(encoder.strides)
    for made, expected, channels, stride in zip(maps, seen, encoder.channels, encoder.strides, strict=True):
        torch.testing.assert_close(made, expected)
        assert made.shape == (2, channels, *(n // s for n, s in zip(image.shape[2:], stride, strict=True)))


def test_with_its_decoder_it_holds_everything_but_the_last_layers(kind):
    net, view, head, _ = kind
    whole = {id(p) for p in net.parameters()}
    last = {id(p) for n, p in net.named_parameters() if n.startswith(head)}
    assert last and {id(p) for p in view(net).parameters()} == whole - last
    alone = {id(p) for p in view(net, decoder=False).parameters()}
    assert alone < whole - last
    image = torch.randn(1, 1, 8, 16, 12)
    sum(m.sum() for m in view(net, decoder=False).train()(image)).backward()
    reached = {id(p) for p in net.parameters() if p.grad is not None}
    # The last map of MedNeXt and the others passes every parameter of the encoder.
    assert reached == alone


def test_names_are_those_of_the_network(kind):
    net, view, _, _ = kind
    assert set(view(net).state_dict()) <= set(net.state_dict())
    assert view(net).architecture()["channels"] == list(view(net).channels)


def test_a_size_that_is_no_multiple_is_refused(kind):
    net, view, _, _ = kind
    with pytest.raises(ValueError, match="multiple of"):
        view(net)(torch.randn(1, 1, 7, 16, 12))


def test_with_heads_it_holds_the_whole_network(kind):
    net, view, head, _ = kind
    whole = view(net, heads=True)
    held = {id(p) for p in whole.parameters()}
    assert held == {id(p) for p in net.parameters()}
    assert {name for name in whole.state_dict()} <= set(net.state_dict())
    added = whole.state_dict().keys() - view(net).state_dict().keys()
    assert added and all(name.startswith(head) for name in added)
    # A file with heads fits the view without them, by a rule.
    assert all(any(re.search(rule, name) for rule in view.spare_weights.values()) for name in added)


def test_heads_of_deep_supervision_belong_to_them():
    net = DynUNet(
        3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], deep_supervision=True, deep_supr_num=1
    )  # fmt: skip
    assert {id(p) for p in DynUNetEncoder(net, heads=True).parameters()} == {id(p) for p in net.parameters()}
    net = MedNeXt(
        3, 4, 1, 2, kernel_size=3, blocks_down=[1, 2], blocks_bottleneck=1, blocks_up=[1, 1], deep_supervision=True
    )
    assert {id(p) for p in MedNeXtEncoder(net, heads=True).parameters()} == {id(p) for p in net.parameters()}
