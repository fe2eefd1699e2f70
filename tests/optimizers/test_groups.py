from __future__ import annotations

import functools
from collections.abc import Iterable

import pytest
import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet, SwinUNETR
from torch import nn

from common import networks
from common.networks.beit_encoder import BeitEncoder
from common.networks.dino_encoder import DinoEncoder
from common.networks.encoder_layers import encoder_layers
from common.networks.swin_slice_encoder import SwinSliceEncoder, VideoSwinEncoder
from common.networks.transseg import TransSeg
from common.optimizers import decay_groups, parameter_groups

DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def unetr(**more):
    net = networks.UNETR(1, 2, (32, 32, 32), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2, **more)
    return net, networks.ViTEncoder(net.vit)


def unetr_layers(net):
    first = [net.vit.patch_embedding]
    if net.has_class_token:
        first += list(net.vit.parametrizations.parameters()) or [net.vit.cls_token]
    return [first, *([block] for block in net.vit.blocks), [net.vit.norm]], [net.out]


def swin_unetr(use_v2):
    net = SwinUNETR(1, 2, feature_size=12, use_v2=use_v2)
    return net, networks.SwinEncoder(net.swinViT)


def swin_unetr_layers(net):
    swin = net.swinViT
    stages = [
        [getattr(swin, f"layers{n}"), *([getattr(swin, f"layers{n}c")] if swin.use_v2 else [])] for n in range(1, 5)
    ]
    return [[swin.patch_embed], *stages], [net.out]


def nnformer():
    net = networks.NNFormer(1, 3, (64, 64, 64), embed_dim=12, num_heads=(3, 3, 3, 3), deep_supervision=True)
    return net, net.model_down


def nnformer_layers(net):
    down = net.model_down
    stages = [[layer, getattr(down, f"norm{n}")] for n, layer in enumerate(down.layers)]
    return [[down.patch_embed], *stages], [net.final]


def dynunet(deep_supervision=False):
    net = DynUNet(3, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 4, 8, 8], deep_supervision=deep_supervision)
    return net, networks.DynUNetEncoder(net)


def dynunet_layers(net):
    heads = [net.output_block, *(net.deep_supervision_heads if net.deep_supervision else [])]
    return [[net.input_block], *([stage] for stage in net.downsamples), [net.bottleneck]], heads


def residual():
    settings = {"features": [4, 8, 8], "blocks": [1, 1, 1], "strides": [1, 2, 2], "deep_supervision": True}
    net = networks.ResidualEncoderUNet(1, 2, **settings)
    return net, networks.ResidualUNetEncoder(net)


def residual_layers(net):
    return [[net.encoder.stem], *([stage] for stage in net.encoder.stages)], [net.decoder.seg_layers]


def segresnet():
    net = SegResNet(init_filters=8)
    return net, networks.SegResNetEncoder(net)


def segresnet_layers(net):
    return [[net.convInit], *([stage] for stage in net.down_layers)], [net.conv_final]


def mednext(deep_supervision):
    net = MedNeXt(spatial_dims=3, init_filters=4, in_channels=1, out_channels=2, deep_supervision=deep_supervision)
    return net, networks.MedNeXtEncoder(net)


def mednext_layers(net):
    stages = [list(pair) for pair in zip(net.enc_stages, net.down_blocks, strict=True)]
    heads = [net.out_0, *([net.out_blocks] if net.do_ds else [])]
    return [[net.stem], *stages, [net.bottleneck]], heads


def med3d(preactivation):
    head = functools.partial(networks.DenseASPP, num_classes=2)
    net = networks.Med3DNet(head, preactivation=preactivation, width=4)
    return net, net.encoder


def med3d_layers(net):
    resnet = net.encoder
    last = [[resnet.bn_last]] if resnet.preactivation else []
    return [[resnet.conv1, resnet.bn1], *([getattr(resnet, f"layer{n}")] for n in range(1, 5)), *last], [net.head]


def transseg(kind, **more):
    if kind in (BeitEncoder, DinoEncoder):
        more = {"hidden_size": 8, "mlp_dim": 8, "num_layers": 4, "num_heads": 2, "out_blocks": (1, 2, 3, 4)}
    else:
        more |= {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    net = TransSeg(1, 2, (64, 64), functools.partial(kind, **more), decoder_channels=4)
    return net, net.encoder


def transseg_layers(net):
    encoder = net.encoder
    if isinstance(encoder, BeitEncoder):
        blocks = [list(pair) for pair in zip(encoder.layers, encoder.position_biases, strict=True)]
        first = [encoder.patch_embedding, encoder.cls_token]
    elif isinstance(encoder, DinoEncoder):
        blocks = [[layer] for layer in encoder.layers]
        first = [encoder.patch_embedding, encoder.cls_token, encoder.position_table]
    else:
        blocks = [[stage] for stage in encoder.stages]
        for block, merging in zip(blocks[:-1], encoder.mergings, strict=True):
            block.append(merging)
        for block, norm in zip(blocks, getattr(encoder, "norms", ()), strict=False):
            block.append(norm)
        first = [getattr(encoder, "video_embedding", None) or encoder.patch_embedding, encoder.patch_norm]
    return [first, *blocks], [net.decoder.classifier]


def multi_view(layers):
    encoder = networks.MultiViewEncoder(embed_dim=8, widths=(4, 4, 8, 8), dim_head=8, mlp_dim=8, num_layers=layers)
    return networks.MultiViewSegmenter(encoder, 3), encoder


def multi_view_layers(net):
    planes, transformer = net.encoder.planes.values(), net.encoder.transformer
    stages = [[plane.stages[n] for plane in planes] for n in range(4)]
    layers = [[plane.stem for plane in planes], *stages, [plane.project for plane in planes]]
    if transformer is not None:
        layers += [[transformer.segments], *([layer] for layer in transformer.layers), [transformer.norm]]
    return layers, [net.head]


def classifier():
    net = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 4, 8])
    encoder = networks.DynUNetEncoder(net, decoder=False)
    return networks.EncoderClassifier(encoder, 3), encoder


def classifier_layers(net):
    encoder = net.encoder
    return [[encoder.input_block], [encoder.downsamples[0]], [encoder.bottleneck]], [net.head]


FAMILIES = {
    "UNETR": (unetr, unetr_layers),
    "UNETR, separable positions": (lambda: unetr(class_token=True, position="separable"), unetr_layers),
    "UNETR, patches of 8": (lambda: unetr(patch_size=8), unetr_layers),
    "Swin UNETR": (lambda: swin_unetr(False), swin_unetr_layers),
    "Swin UNETR V2": (lambda: swin_unetr(True), swin_unetr_layers),
    "nnFormer": (nnformer, nnformer_layers),
    "DynUNet": (dynunet, dynunet_layers),
    "DynUNet, deep supervision": (lambda: dynunet(True), dynunet_layers),
    "ResEnc": (residual, residual_layers),
    "SegResNet": (segresnet, segresnet_layers),
    "MedNeXt": (lambda: mednext(False), mednext_layers),
    "MedNeXt, deep supervision": (lambda: mednext(True), mednext_layers),
    "dilated ResNet": (lambda: med3d(False), med3d_layers),
    "dilated ResNet, pre-activation": (lambda: med3d(True), med3d_layers),
    "BEiT": (lambda: transseg(BeitEncoder), transseg_layers),
    "DINO": (lambda: transseg(DinoEncoder), transseg_layers),
    "Swin of slices": (lambda: transseg(SwinSliceEncoder, window_size=2), transseg_layers),
    "video Swin": (lambda: transseg(VideoSwinEncoder, window_size=(2, 2, 2)), transseg_layers),
    "Medical Transformer": (lambda: multi_view(2), multi_view_layers),
    "Medical Transformer without transformer": (lambda: multi_view(0), multi_view_layers),
    "classifier": (classifier, classifier_layers),
}


def parameters(parts: Iterable[nn.Module | nn.Parameter]) -> set[int]:
    found = set()
    for part in parts:
        found |= {id(part)} if isinstance(part, nn.Parameter) else {id(p) for p in part.parameters()}
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_where_the_modules_say(family):
    make, list_layers = FAMILIES[family]
    net, encoder = make()
    layers, head = list_layers(net)
    inside = parameters(head).union(*map(parameters, layers))
    rates = {"head": 3.0} | ({"decoder": 2.0} if {id(p) for p in net.parameters()} - inside else {})
    groups = parameter_groups(net, encoder, 0.1, 0.05, layer_decay=0.5, rates=rates)

    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in net.parameters())
    assert all(group["params"] for group in groups)

    expected = {id(p): ("decoder", None, 0.2) for p in net.parameters()}
    expected |= dict.fromkeys(parameters(head), ("head", None, 0.1 * 3.0))
    for depth, layer in enumerate(layers):
        rate = 0.1 * 0.5 ** (len(layers) - depth)
        expected |= dict.fromkeys(parameters(layer), ("encoder", depth, rate))
    found = {id(p): (group["part"], group["depth"], group["lr"]) for group in groups for p in group["params"]}
    assert {key: value[:2] for key, value in found.items()} == {key: value[:2] for key, value in expected.items()}
    assert all(found[key][2] == pytest.approx(value[2]) for key, value in expected.items())

    weights = {id(module.weight) for module in net.modules() if isinstance(module, DECAYING)}
    assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == weights
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_the_rate_is_that_of_all_without_decay_by_layer():
    net, encoder = dynunet()
    assert {group["lr"] for group in parameter_groups(net, encoder, 0.1)} == {0.1}
    torch.optim.SGD(parameter_groups(net, encoder, 0.1), 1.0)


def test_only_the_encoder_may_go_slower():
    net, encoder = dynunet()
    groups = parameter_groups(net, encoder, 0.1, rates={"encoder": 0.01})
    assert {(g["part"], g["lr"]) for g in groups} == {("encoder", 0.001), ("decoder", 0.1), ("head", 0.1)}


def test_an_encoder_without_names_of_layers_is_one_layer():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert [list(layer) for layer in encoder_layers(net[0])] == [["weight", "bias"]]
    groups = parameter_groups(net, net[0], 1.0)
    assert {(group["part"], group["depth"]) for group in groups} == {("encoder", 0), ("decoder", None)}
    with pytest.raises(ValueError, match="Linear does not name its layers"):
        parameter_groups(net, net[0], 1.0, layer_decay=0.5)


def test_what_cannot_be_meant():
    net, encoder = dynunet()
    for decay in (0, 1.1, -1):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            parameter_groups(net, encoder, 1.0, layer_decay=decay)
    with pytest.raises(ValueError, match="are not among those of the network"):
        parameter_groups(dynunet()[0], encoder, 1.0)
    with pytest.raises(ValueError, match="rates names 'neck'; the parts of DynUNet are encoder, decoder, head"):
        parameter_groups(net, encoder, 1.0, rates={"neck": 1})


def test_what_decays_is_what_the_published_code_names():
    make = functools.partial(
        BeitEncoder, patch_size=8, hidden_size=8, mlp_dim=8, num_layers=4, num_heads=2, out_blocks=(1, 2, 3, 4)
    )
    net = TransSeg(1, 2, (16, 16), make, decoder_channels=4)
    decaying, others = decay_groups(net, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert "encoder.position_biases.0.relative_position_bias_table" in kept
    assert "encoder.layers.0.attention.q_proj.bias" in kept
    assert not {"encoder.layers.0.layernorm_before.weight", "encoder.layers.0.lambda_1"} & kept
    assert all("bias" in name for name in kept)


def test_other_names():
    net = torch.nn.Linear(2, 3)
    decaying, others = decay_groups(net, 0.1, without=["weight"])
    assert decaying["params"] == [net.bias] and others["params"] == [net.weight]


def test_a_network_without_an_encoder_is_a_decoder_and_a_head():
    net = nn.ModuleDict({"body": nn.Conv3d(1, 2, 3), "out": nn.Conv3d(2, 3, 1)})
    groups = parameter_groups(net, None, 0.1, 0.01)
    assert {group["part"] for group in groups} == {"decoder", "head"} and all(group["lr"] == 0.1 for group in groups)
    found = [parameter for group in groups for parameter in group["params"]]
    assert {id(one) for one in found} == {id(one) for one in net.parameters()} and len(found) == 4
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5, but NoneType"):
        parameter_groups(net, None, 0.1, layer_decay=0.5)
