from __future__ import annotations

from monai.networks.nets import DynUNet
from torch import nn

from common.networks import place
from common.networks.architecture import network_architecture
from common.networks.layer_kinds import layer_kinds
from common.networks.norms import make_norm
from common.networks.sync_batch_norm import SyncBatchNorm


def test_norms_and_activations_are_named_once():
    parts = nn.Sequential(nn.GroupNorm(2, 4), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.LayerNorm(3), nn.GELU("tanh"))
    assert layer_kinds([parts, nn.ReLU()]) == {
        "norms": ["group of 2", "layer"],
        "activations": ["GELU tanh", "LeakyReLU 0.2", "ReLU"],
    }
    assert layer_kinds([nn.Linear(1, 1)]) == {}


def test_variants_of_batch_norm_are_one_kind():
    norms = [make_norm("batch", 2), make_norm("frozen", 2), SyncBatchNorm(2), nn.BatchNorm2d(2)]
    assert layer_kinds(norms) == {"norms": ["batch"]}
    assert layer_kinds([make_norm("group", 4)]) == {"norms": ["group of 2"]}


def test_a_placed_network_states_what_it_did_before():
    network = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8])
    before = network_architecture(network)
    assert before["all_norms"] == ["instance"] and network_architecture(place(network, "cpu")) == before
