from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from common.networks import UNETR, SwinEncoder, SwinUNETREncoder, UNETREncoder, ViTEncoder
from common.pretexts.octants import check_encoder_alone
from common.weights import load_encoder, save_encoder

SIZE = (32, 64, 32)
RECORD = {"spatial_size": list(SIZE)}


def unetr(classes=2):
    small = {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4}
    return UNETR(1, classes, SIZE, num_layers=4, **small)


def swin_unetr(classes=2):
    return SwinUNETR(1, classes, feature_size=12, depths=(1, 1, 1, 1))


# The network, its encoder, and the encoder of its transformer alone.
KINDS = {
    "unetr": (unetr, UNETREncoder, lambda net: ViTEncoder(net.vit, net.skip_blocks)),
    "swin_unetr": (swin_unetr, SwinUNETREncoder, lambda net: SwinEncoder(net.swinViT)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return KINDS[request.param]


@torch.no_grad()
def test_maps_are_those_of_the_transformer(kind):
    make, view, alone = kind
    net = make().eval()
    image = torch.randn(1, 1, *SIZE)
    assert all(torch.equal(a, b) for a, b in zip(view(net)(image), alone(net)(image), strict=True))


def test_with_its_decoder_it_holds_everything_but_the_last_layer_under_the_names_of_the_network(kind):
    make, view, alone = kind
    net = make()
    names = {id(p): name for name, p in net.named_parameters()}
    left = {name for name, p in net.named_parameters() if id(p) not in {id(q) for q in view(net).parameters()}}
    assert left and all(name.startswith("out.") for name in left)
    assert {id(p) for p in view(net, heads=True).parameters()} == names.keys()
    transformer = view(net, decoder=False)
    assert transformer.state_dict().keys() == alone(net).state_dict().keys()
    check_encoder_alone(transformer, "Rotation")
    with pytest.raises(ValueError, match="encoder#decoder to false"):
        check_encoder_alone(view(net), "Rotation")


def test_files_with_and_without_decoder_fit_encoders_with_and_without(kind, tmp_path):
    make, view, alone = kind
    source, target = make(), make()
    save_encoder(view(source), tmp_path / "whole.safetensors", RECORD)
    save_encoder(alone(source), tmp_path / "alone.safetensors", RECORD)
    report = load_encoder(view(target), tmp_path / "whole.safetensors", spatial_size=SIZE)
    assert report.covered == 1 and not report.unused
    assert all(
        torch.equal(p, target.state_dict()[name]) for name, p in source.state_dict().items() if name[:4] != "out."
    )
    target = make()
    before = {name: p.clone() for name, p in target.state_dict().items()}
    report = load_encoder(alone(target), tmp_path / "whole.safetensors", spatial_size=SIZE)
    assert report.covered == 1 and set(report.unused.values()) == {"the encoder has no decoder"}
    report = load_encoder(view(target), tmp_path / "alone.safetensors", spatial_size=SIZE)
    assert set(report.new.values()) == {"the file has no decoder"}
    convolutions = [name for name in before if name.startswith(("encoder", "decoder"))]
    assert convolutions and all(torch.equal(before[name], target.state_dict()[name]) for name in convolutions)


def test_a_file_for_another_number_of_classes_fills_all_but_the_last_layer(kind, tmp_path):
    make, view, _ = kind
    save_encoder(view(make(), heads=True), tmp_path / "whole.safetensors", RECORD)
    report = load_encoder(view(make(3)), tmp_path / "whole.safetensors", spatial_size=SIZE)
    assert report.covered == 1 and set(report.unused.values()) == {"the encoder has no layer of classes"}
