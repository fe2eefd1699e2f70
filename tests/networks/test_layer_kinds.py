from __future__ import annotations

import pytest
from monai.networks.layers.factories import Act
from monai.networks.nets import DynUNet, SegResNetDS
from torch import nn

from common.networks import DynUNetEncoder, SegResNetDSEncoder, place
from common.networks.architecture import network_architecture
from common.networks.layer_kinds import layer_kinds
from common.networks.norms import make_norm
from common.networks.sync_batch_norm import SyncBatchNorm
from common.weights import load_encoder, save_encoder


def test_norms_and_activations_are_named_once():
    layers = [nn.GroupNorm(2, 4), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.LayerNorm(3), nn.GELU("tanh"), nn.ReLU()]
    assert layer_kinds(nn.Sequential(*layers).modules()) == {
        "norms": ["group (2 groups)", "layer"],
        "activations": ["GELU tanh", "LeakyReLU 0.2", "ReLU"],
    }
    assert layer_kinds([nn.Linear(1, 1)]) == {}


def test_variants_of_batch_norm_are_one_kind():
    norms = [make_norm("batch", 2), make_norm("frozen", 2), SyncBatchNorm(2), nn.BatchNorm2d(2)]
    assert layer_kinds(norms) == {"norms": ["batch"]}
    assert layer_kinds([make_norm("group", 4)]) == {"norms": ["group (2 groups)"]}


def test_one_function_has_one_name():
    swish = [Act[name]() for name in ("SWISH", "MEMSWISH")]
    assert layer_kinds([*swish, nn.SiLU()]) == {"activations": ["SiLU"]}
    assert layer_kinds([nn.ELU(1), nn.ELU(), Act["MISH"](), nn.Mish()]) == {"activations": ["ELU 1.0", "Mish"]}
    assert layer_kinds([Act["SWISH"](alpha=2)]) == {"activations": ["Swish 2.0"]}


def dynunet(**arguments):
    return DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], **arguments)


def segresnet_ds(**arguments):
    return SegResNetDS(init_filters=8, blocks_down=(1, 1), **arguments)


NETS = {
    "DynUNet": (DynUNetEncoder, dynunet(), dynunet(norm_name=("GROUP", {"num_groups": 2}))),
    "SegResNetDS": (
        SegResNetDSEncoder,
        segresnet_ds(norm=("INSTANCE", {"affine": True})),
        segresnet_ds(norm=("GROUP", {"num_groups": 2})),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_an_encoder_of_another_norm_is_told(name, tmp_path, caplog):
    view, made, other = NETS[name]
    save_encoder(view(made, decoder=False), tmp_path / "encoder.safetensors", {"method": "test"})
    with caplog.at_level("WARNING"):
        load_encoder(view(other, decoder=False), tmp_path / "encoder.safetensors")
    assert "made with norms ['instance'], but this one has ['group (2 groups)']" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        load_encoder(view(made, decoder=False), tmp_path / "encoder.safetensors")
    assert "norms" not in caplog.text


def test_a_file_with_a_decoder_states_what_one_without_it_does():
    stated = DynUNetEncoder(dynunet()).architecture()
    assert stated["norms"] == ["instance"] and stated == DynUNetEncoder(dynunet(), decoder=False).architecture()


def test_a_placed_network_states_what_it_did_before():
    network = dynunet()
    before = network_architecture(network)
    assert before["all_norms"] == ["instance"] and network_architecture(place(network, "cpu")) == before
