from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SegResNet, SwinUNETR, resnet10
from torch import nn
from transformers import ViTConfig, ViTModel

from common.command_line import run_command
from common.networks import SegResNetEncoder
from common.weights import convert, save_encoder
from common.weights.check import architecture_of, check, encoder_of
from common.weights.kind import known_kinds
from common.weights.published import published, published_weights
from common.weights.settings import plain

ROOT = Path(__file__).parents[2]


def net() -> SegResNet:
    return SegResNet(init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 2, 1), blocks_up=(1, 1))


def test_published_weights_are_of_kinds_and_overlays_that_exist():
    kinds = {name for name, _ in known_kinds()}
    keys = {"paper", "method", "saw", "licence", "size", "kind", "overlay", "hub", "stated", "loaded_here"}
    keys |= {"prepared", "prepared_by", "unexpressed"}
    optional = {"sha256", "other_kinds", "architecture", "convert", "options"}
    for name, entry in published_weights().items():
        assert set(entry) - optional == keys and entry["kind"] in kinds, name
        places = [(bundle, file) for part in entry["overlay"].split("; as MONAI computes it, ")
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


SIZES = {
    "openmind_resenc_l_mae": {
        "channels": [32, 64, 128, 256, 320, 320],
        "depths": [1, 3, 4, 6, 6, 6],
    },  # nnU-Net's ResEncL
    "openmind_primus_m_mae": {"hidden_size": 864, "num_layers": 16, "num_heads": 12, "patch_size": 8},
    "medicalnet_resnet50": {"depth": 50, "shortcut": "B"},
    "swin_unetr_tang": {"feature_size": 48, "use_v2": False},
    "voco_b": {"feature_size": 48, "use_v2": True},
    "suprem_swin_unetr": {"feature_size": 48, "use_v2": False},
    "brainsegfounder_ukb": {"feature_size": 48, "use_v2": False},
    "brainiac": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "patch_size": [16] * 3, "qkv_bias": False},
    "bmmae": {"hidden_size": 768, "num_layers": 12, "mlp_dim": 1536, "class_token": True},
    "vista3d": {"init_filters": 48, "depths": [1, 2, 2, 4, 4], "norm": "instance"},
    "sam_med3d": {"hidden_size": 768},
    "beit_b": {"hidden_size": 768, "num_layers": 12, "patch_size": 16},
    "astra_ct_resnet152": {"depth": 152, "kernel": [3, 7, 7]},
}
"""What the authors say of their networks."""


def fills() -> dict[str, str]:
    """The encoder that each kind fills, by the table that tests of the kinds make."""
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("name", published_weights())
def test_the_overlay_of_published_weights_takes_their_kind_and_sizes(name):
    entry = published_weights()[name]
    kinds = [entry["kind"], *entry.get("other_kinds", ())]
    options = dict(re.findall(r"--(\S+) (\"[^\"]*\"|\S+)", entry.get("options", "")))
    options = {key: ast.literal_eval(value.strip('"')) for key, value in options.items()}
    for part in entry["overlay"].split("; as MONAI computes it, "):
        bundles, file = re.findall(r"([\w ]+): networks/(\w+\.json)", part)[0]
        for bundle in bundles.split(" and "):
            path = ROOT / "bundles" / bundle / "configs" / "networks" / file
            own = architecture_of(path, options)
            assert own is not None and own["name"] in {fills()[kind] for kind in kinds}, (bundle, file)
            wanted = SIZES[name] | entry.get("architecture", {})
            shared = {key: value for key, value in wanted.items() if key in own}
            assert {key: plain(own[key]) for key in shared} == shared, (bundle, file)
            assert set(wanted) - set(own) <= {"shortcut"}, own
    assert f"convert {entry['hub'] or 'FILE'} {name}.safetensors --published {name}" in published()


def test_what_no_tensor_shows_of_published_weights_is_in_the_record(tmp_path):
    """Swin UNETRs from before MONAI 1.5 merged patches in another way, which no name tells."""
    net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
    torch.save({"net": net.state_dict()}, tmp_path / "model.pth")
    paths = tmp_path / "model.pth", tmp_path / "x.safetensors"
    assert convert(*paths)["architecture"]["patch_merging"] == "PatchMerging"
    assert convert(*paths, published="suprem_swin_unetr")["architecture"]["patch_merging"] == "LegacyPatchMerging"
    assert "If it was trained with MONAI up to 1.4, add --legacy_patch_merging" in check(str(paths[0]))


def test_a_foreign_checkpoint_is_told_with_what_takes_it(tmp_path):
    torch.save({"model": net().state_dict()}, tmp_path / "model.pt")
    text = check(str(tmp_path / "model.pt"))
    assert "model.pt is of the kind segresnet, for a SegResNetEncoder (" in text and "depths [1, 2, 1]" in text
    assert "Left out: last layers (" in text
    assert "would take it: ssl3d: networks/segresnet.json (channels [16, 32, 64, 128] there, [8, 16, 32] in" in text
    assert text.endswith(f"python -m common.weights convert {tmp_path / 'model.pt'} encoder.safetensors")


def test_a_network_of_the_right_sizes_is_said_with_commands(tmp_path):
    net = SegResNet(init_filters=16, in_channels=1, out_channels=2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    record = {"method": "rotation", "preparation": {"spacing": [1.5, 1.5, 1.5]}}
    for stated in (True, False):
        save_encoder(SegResNetEncoder(net), tmp_path / "my x.safetensors", record if stated else {"method": "rotation"})
        text = check(str(tmp_path / "my x.safetensors"))
        assert "It fills ssl3d: networks/segresnet.json." in text
        assert f"--pretrained_encoder '{tmp_path / 'my x.safetensors'}'" in text  # quoted for the shell
        assert "['configs/train.json','configs/networks/segresnet.json']" in text
        assert "common.auto --images SCANS --masks MASKS --network segresnet" in text
        assert ("--prepare_as encoder" in text) == stated


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [(lambda x: x * float("nan"), "not finite"), (torch.zeros_like, "one value all over, such as 0")],
)
def test_what_convert_refuses_is_refused(tmp_path, spoil, sentence):
    torch.save({name: spoil(tensor) for name, tensor in net().state_dict().items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=sentence):
        check(str(tmp_path / "model.pt"))


def test_a_kind_that_the_tensors_do_not_show_is_asked_for_and_taken(tmp_path):
    state = {
        name: x for name, x in resnet10(n_input_channels=1, num_classes=2).state_dict().items() if "fc" not in name
    }
    state = {name: x for name, x in state.items() if not name.endswith("downsample.0.bias")}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="give --kind medicalnet or --kind monai_resnet"):
        check(str(tmp_path / "model.pt"))
    text = check(str(tmp_path / "model.pt"), "medicalnet")
    assert text.endswith("encoder.safetensors --kind medicalnet") and "med3d: networks/" in text
    with pytest.raises(ValueError, match=r"--kind medcalnet, which is none of unetr_mae, .*medicalnet"):
        check(str(tmp_path / "model.pt"), "medcalnet")


def test_a_network_of_pictures_is_told(tmp_path):
    torch.save(resnet10(spatial_dims=2, n_input_channels=3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"of no known kind; it is a network of 2-D images"):
        check(str(tmp_path / "model.pt"))


def test_the_command_for_pictures_of_unknown_normalisation_runs_as_printed(tmp_path, monkeypatch):
    settings = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    ViTModel(ViTConfig(**settings, image_size=32, patch_size=16)).save_pretrained(tmp_path / "a net")
    text = check(str(tmp_path / "a net"))
    assert "Nothing in it shows the mean and deviation" in text
    words = shlex.split(text.splitlines()[-1].partition(": ")[2])
    assert words[:4] == ["python", "-m", "common.weights", "convert"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words[2:])
    run_command({"convert": convert}, "python -m common.weights")
    assert "It fills" in check("encoder.safetensors") or "would take it" in check("encoder.safetensors")


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
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist: give a file of weights"):
        check(str(tmp_path / "none.pt"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        check(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    "overlay", sorted((ROOT / "bundles/ssl3d/configs/networks").glob("*.json")), ids=lambda x: x.stem
)
def test_the_encoder_of_an_overlay_is_made_without_values(overlay):
    encoder = encoder_of(overlay)
    assert all(tensor.is_meta for tensor in encoder.parameters())
    assert len(encoder.strides[-1]) == 3 and min(encoder.strides[-1]) >= 1
