from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from common.networks.architecture import encoder_in, network_architecture
from common.weights.check import parts_of
from common.weights.settings import differing_settings, plain

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = sorted((ROOT / "bundles").glob("*/configs/networks/*.json"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_the_encoder_of_each_network_is_found_in_it(overlay):
    encoder, network = parts_of(overlay, ("encoder", "segmentation_net"))
    stated = {key: plain(value) for key, value in encoder.architecture().items() if value is not None}
    found = network_architecture(network)
    assert {key: found.get(key) for key in stated} == stated
    inside = encoder_in(nn.Sequential(encoder))  # as in a net of one prediction per scan
    assert inside is encoder


def test_networks_of_elsewhere_state_nothing():
    assert network_architecture(nn.Sequential(nn.Linear(2, 2))) == {}


@pytest.mark.parametrize(
    ("made", "used", "differing"),
    [
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, {"strides": ((1, 1, 1), (2, 2, 2))}, []),
        ({"patch_size": 4}, {"patch_size": [4, 4, 4]}, []),
        ({"patch_size": (1, 4, 4)}, {"patch_size": 4}, ["patch_size"]),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, ["b"]),
        ({"a": None, "b": 1}, {"a": 2, "c": 2}, []),
        ({"on": False}, {"on": True}, ["on"]),
        (None, {"b": 1}, []),
    ],
)
def test_what_both_state_is_compared(made, used, differing):
    assert differing_settings(made, used, passed=("a",)) == differing
    assert differing_settings(used, made, passed=("a",)) == differing
