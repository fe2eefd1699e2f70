from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import nn

from common.networks import SegResNetEncoder
from common.weights import save_encoder
from common.weights.check import check
from common.weights.kind import known_kinds
from common.weights.published import published, published_weights

ROOT = Path(__file__).parents[2]


def net() -> SegResNet:
    return SegResNet(init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 2, 1), blocks_up=(1, 1))


def test_published_weights_are_of_kinds_and_overlays_that_exist():
    kinds = {name for name, _ in known_kinds()}
    keys = {"paper", "method", "saw", "licence", "size", "kind", "overlay", "hub", "stated", "loaded_here"}
    keys |= {"prepared", "prepared_by", "unexpressed"}
    for name, entry in published_weights().items():
        assert set(entry) - {"sha256", "other_kinds"} == keys and entry["kind"] in kinds, name
        places = [(bundle, file) for part in re.split("; as MONAI computes it, |, with", entry["overlay"])
                  for bundles, file in re.findall(r"([\w ]+): (networks/\w+\.json)", part)
                  for bundle in bundles.split(" and ")]  # fmt: skip
        assert places, name
        for bundle, file in places:
            assert (ROOT / "bundles" / bundle / "configs" / file).is_file(), (name, bundle, file)
        if entry["hub"] is not None:
            assert entry["hub"].startswith("hf://")
        assert bool(entry["prepared"]) == bool(entry["prepared_by"]), name
        assert set(entry["prepared"]) <= {"channels", "orientation", "spacing", "rule"}, name
        assert f"{name}: " in published()
    assert published().count("loaded here for real: yes") == 1  # the one that a package brings
    assert published().count("loaded here for real: no") == len(published_weights()) - 1


def test_a_foreign_checkpoint_is_told_with_what_takes_it(tmp_path):
    torch.save({"model": net().state_dict()}, tmp_path / "model.pt")
    text = check(str(tmp_path / "model.pt"))
    assert "model.pt is of the kind segresnet, for a SegResNetEncoder (" in text and "depths [1, 2, 1]" in text
    assert "Left out: last layers (" in text and "ssl3d: networks/segresnet.json" in text
    assert f"convert {tmp_path / 'model.pt'} encoder.safetensors" in text


def test_an_encoder_file_is_told(tmp_path):
    save_encoder(SegResNetEncoder(net()), tmp_path / "x.safetensors", {"method": "rotation"})
    text = check(str(tmp_path / "x.safetensors"))
    assert "x.safetensors is an encoder file: rotation, for a SegResNetEncoder" in text
    assert f"--pretrained_encoder {tmp_path / 'x.safetensors'}" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda n: None if n == "down_layers.1.2.conv2.conv.weight" else n, "looks like segresnet, but 1 tensors of"),
        (lambda n: n.replace("convInit", "stem"), "is of no known kind"),
        (lambda n: n.replace("down_layers.0.1", "down_layers.0.9"), "nearest is segresnet, but .*down_layers.0.1"),
    ],
)  # fmt: skip
def test_a_changed_one_is_told_with_the_difference(tmp_path, change, sentence):
    torch.save({change(name): t for name, t in net().state_dict().items() if change(name)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"model.pt .*{sentence}"):
        check(str(tmp_path / "model.pt"))


def test_anything_else(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is of no known kind \(it has tensors such as weight, bias\)"):
        check(str(tmp_path / "model.pt"))
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        check(str(tmp_path / "none.pt"))
