from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet, UNet
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR

from common.checkpoint_file import read_checkpoint, save_checkpoint
from common.handlers import BestModelSaver
from common.networks import (
    UNETR,
    DynUNetEncoder,
    EncoderClassifier,
    LegacyPatchMerging,
    MultiViewEncoder,
    MultiViewSegmenter,
    NNFormer,
    require_strict,
)
from common.pack.weights import check_networks
from common.weights import save_encoder
from common.weights.model_file import load_model, save_model


def views(**arguments):
    return MultiViewSegmenter(MultiViewEncoder(1, 6, (4, 5, 6, 7), 2, 4, 8, **arguments), 2)


def swin(**arguments):
    return MonaiSwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), **arguments)


def nnformer(**arguments):
    sizes = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": (4, 4), "img_size": 32}
    return NNFormer(1, 2, patch_size=4, **sizes, **arguments)


def unetr(size=(32, 32, 32), **arguments):
    return UNETR(1, 2, size, feature_size=4, hidden_size=24, mlp_dim=40, num_heads=3, num_layers=6, **arguments)


def dynunet(last=2, **arguments):
    return DynUNet(3, 1, 2, [3] * 3, [1, 2, last], [2, 2], filters=[4, 8, 8], **arguments)


def unet(**arguments):
    """One of which no encoder is known."""
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), **{"norm": ("INSTANCE", {"affine": True})} | arguments)


def classifier(last=2):
    return EncoderClassifier(DynUNetEncoder(dynunet(last), decoder=False), 2)


PAIRS = {
    "norms ['group (4 groups)'] and not ['instance']": (dynunet(norm_name=("GROUP", {"num_groups": 4})), dynunet()),
    "norms ['group (2 groups)'] and not ['group (4 groups)']": (
        dynunet(norm_name=("GROUP", {"num_groups": 2})),
        dynunet(norm_name=("GROUP", {"num_groups": 4})),
    ),
    "activations ['LeakyReLU 0.1'] and not ['LeakyReLU 0.01']": (
        dynunet(act_name=("LEAKYRELU", {"negative_slope": 0.1})),
        dynunet(),
    ),
    "activations ['SiLU'] and not ['LeakyReLU 0.01']": (dynunet(act_name="swish"), dynunet()),
    "all_norms ['instance'] and not ['group (2 groups)']": (unet(), unet(norm=("GROUP", {"num_groups": 2}))),
    "norm_scope volume and not slice": (views(), views(norm_scope="slice")),
    "patch_merging LegacyPatchMerging and not PatchMerging": (swin(downsample=LegacyPatchMerging), swin()),
    "legacy_rel_index True and not False": (nnformer(legacy_rel_index=True), nnformer()),
    "skip_blocks [2, 3, 4] and not [1, 2, 3]": (unetr(skip_blocks=(2, 3, 4)), unetr(skip_blocks=(1, 2, 3))),
    "img_size [32, 32, 32] and not [64, 32, 16]": (unetr(), unetr((64, 32, 16))),
    "strides [[1, 1, 1], [2, 2, 2], [4, 4, 4]] and not [[1, 1, 1], [2, 2, 2], [2, 4, 4]]": (
        classifier(),
        classifier((1, 2, 2)),
    ),
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.pt"


def write(network, path: Path) -> None:
    """As training does."""
    save_model(network.state_dict(), path, BestModelSaver(path, network).record)


@pytest.mark.parametrize("settings", PAIRS)
def test_a_network_of_other_settings_is_refused_though_all_tensors_fit(path, settings):
    """In evaluation and inference, in MONAI Label, which reads no record, and in a pack."""
    made, other = PAIRS[settings]
    write(made, path)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError) as refused:
        load_model(other, path)
    assert f"it has {settings}" in str(refused.value) and str(refused.value).count(". ") == 0
    with pytest.raises(ValueError) as refused:
        require_strict(other).load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert f"it has {settings}" in str(refused.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    load_model(made, path)
    require_strict(made).load_state_dict(torch.load(path, weights_only=True), strict=False)


def test_a_pack_of_another_network_is_refused(path):
    sizes = {"in_channels": 1, "embed_dim": 6, "widths": [4, 5, 6, 7], "num_heads": 2, "dim_head": 4, "mlp_dim": 8}
    config = {
        "encoder": {"_target_": "common.networks.MultiViewEncoder", **sizes},
        "network_def": {"_target_": "common.networks.MultiViewSegmenter", "encoder": "@encoder", "num_classes": 2},
    }
    write(views(norm_scope="slice"), path)
    with pytest.raises(ValueError, match=r"model.pt does not fit the network of the pack: .*norm_scope slice and not"):
        check_networks([], [path], config, {})
    check_networks([], [path], {**config, "encoder": config["encoder"] | {"norm_scope": "slice"}}, {})


def test_files_without_the_record_load_as_before(path):
    made, other = views(), views(norm_scope="slice")
    torch.save(made.state_dict(), path)
    load_model(other, path)
    require_strict(other).load_state_dict(torch.load(path, weights_only=True), strict=False)
    save_checkpoint(OrderedDict(made.state_dict()), path, {"preparation": {"task": "x"}})
    load_model(other, path)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in made.state_dict().items())


def test_the_record_is_json_and_an_encoder_file_of_a_whole_net_is_compared_too(path, tmp_path):
    write(unetr(), path)
    record = read_checkpoint(path)[1]["architecture"]
    assert record["name"] == "ViTEncoder" and json.loads(json.dumps(record)) == record

    file = tmp_path / "encoder.safetensors"
    save_encoder(DynUNetEncoder(dynunet(), heads=True), file, {"method": "x"})
    load_model(dynunet(), file)
    with pytest.raises(ValueError, match=r"it has strides .*\[4, 4, 4\]\] and not .*\[8, 8, 8\]\]"):
        load_model(dynunet(4), file)
