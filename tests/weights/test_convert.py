from __future__ import annotations

import argparse
import fractions
import json
import runpy
import sys

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR as MonaiUNETR
from monai.networks.nets import MaskedAutoEncoderViT, SwinUNETR, ViT, ViTAutoEnc
from torch import nn

from common.checkpoint_file import read_checkpoint
from common.networks import UNETR, DilatedResNet, LegacyPatchMerging, SwinEncoder, ViTEncoder
from common.weights import convert, load_encoder, read_encoder, save_encoder

SIZE, GRID = (32, 16, 48), (2, 1, 3)
HIDDEN, HEADS, DEPTH = 24, 3, 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "source.pt", tmp_path / "encoder.safetensors"


def image_of(size=SIZE):
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(3))


def randomise(module):
    """Draw every parameter, also those that start at 0 or 1, so that none can be mixed up."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


class Block(nn.Module):
    """A pre-norm transformer block in timm's names, attention written out."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-6), nn.LayerNorm(HIDDEN, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(HIDDEN, 3 * HIDDEN), "proj": nn.Linear(HIDDEN, HIDDEN)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(HIDDEN, 40), "fc2": nn.Linear(40, HIDDEN)})

    def forward(self, x):
        width, y, heads = HIDDEN // HEADS, self.norm1(x), []
        query, key, value = self.attn["qkv"](y).chunk(3, dim=-1)
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / width**0.5
            heads.append(scores.softmax(-1) @ value[..., part])
        x = x + self.attn["proj"](torch.cat(heads, dim=-1))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Published(nn.Module):
    """The published layout: class token, one position per slice plus one per place in a slice, unused leftovers."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(1, HIDDEN, 16, 16)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, HIDDEN))
        self.pos_embed_class = nn.Parameter(torch.empty(1, 1, HIDDEN))
        self.pos_embed_temporal = nn.Parameter(torch.empty(1, GRID[0], HIDDEN))
        self.pos_embed_spatial = nn.Parameter(torch.empty(1, GRID[1] * GRID[2], HIDDEN))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-6)
        # In the file, used by nothing: timm's head and 2-D positions; the decoder stays behind as well.
        self.head = nn.Linear(HIDDEN, 10)
        self.pos_embed = nn.Parameter(torch.empty(1, 5, HIDDEN))
        self.decoder_embed = nn.Linear(HIDDEN, 12)
        self.decoder_blocks = nn.ModuleList([Block()])
        self.decoder_pos_embed_spatial = nn.Parameter(torch.empty(1, 3, 12))

    def forward(self, image):
        tokens = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        places = self.pos_embed_spatial.repeat(1, GRID[0], 1)
        places = places + torch.repeat_interleave(self.pos_embed_temporal, GRID[1] * GRID[2], dim=1)
        first = (self.cls_token + self.pos_embed_class).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens + places], dim=1)
        maps = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number < DEPTH:
                maps.append(x)
        return [x[:, 1:].transpose(1, 2).unflatten(2, GRID) for x in [*maps, self.norm(x)]]


def unetr(seed=1, **arguments):
    torch.manual_seed(seed)
    net = UNETR(
        1, 2, SIZE, feature_size=4, hidden_size=HIDDEN, mlp_dim=40, num_heads=HEADS, num_layers=DEPTH, qkv_bias=True,
        class_token=True, **arguments,
    )  # fmt: skip
    return ViTEncoder(net.eval().vit)


def assert_same_features(source_maps, encoder, image):
    with torch.no_grad():
        for expected, found in zip(source_maps, encoder(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


WRAPPINGS = [
    lambda s: s,
    lambda s: {"model": s, "epoch": 3},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("position", ["separable", "learnable"])
def test_published_unetr_mae(paths, position, wrap):
    net = randomise(Published())
    torch.save(wrap(net.state_dict()), paths[0])
    record = convert(*paths, num_heads=HEADS, spatial_size=SIZE, spacing=[1, 1, 1], intensity="0..1")
    encoder = unetr(position=position, norm_eps=1e-6)
    report = load_encoder(encoder, paths[1], spatial_size=SIZE)
    assert report.covered == 1 and not report.unused and not report.warnings
    image = image_of()
    with torch.no_grad():
        expected = net(image)
    assert_same_features(expected, encoder, image)
    assert record == read_encoder(paths[1])[1]
    assert record["architecture"] == {k: v for k, v in encoder.architecture().items() if k != "tokens"}
    assert record["method"] == "converted from unetr_mae checkpoint source.pt"
    known = {"spacing": [1.0, 1.0, 1.0], "orientation": None, "intensity": None, "value_range": None}
    assert record["preparation"].items() >= known.items()
    assert record["spatial_size"] == list(SIZE) and record["intensity"] == "0..1"  # in words


def test_monai_mae(paths):
    net = randomise(
        MaskedAutoEncoderViT(
            1, SIZE, 16, hidden_size=HIDDEN, mlp_dim=40, num_layers=DEPTH, num_heads=HEADS, decoder_hidden_size=12,
            decoder_num_layers=1, decoder_num_heads=2, qkv_bias=True,
        )
    )  # fmt: skip
    # Older versions kept an unused cross-attention in each block.
    old = {f"blocks.{block}.cross_attn.to_q.weight": torch.zeros(2, 2) for block in range(DEPTH)}
    torch.save(net.state_dict() | old, paths[0])
    record = convert(*paths, num_heads=HEADS, spatial_size=SIZE)
    encoder = unetr()
    report = load_encoder(encoder, paths[1], spatial_size=SIZE)
    assert report.covered == 1 and not report.unused and not report.warnings
    assert record["architecture"] == {k: v for k, v in encoder.architecture().items() if k != "tokens"}
    image = image_of()
    with torch.no_grad():
        x = torch.cat([net.cls_token.expand(2, -1, -1), net.patch_embedding(image)], dim=1)
        maps = []
        for block in net.blocks:  # the last one is the norm
            x = block(x)
            maps.append(x[:, 1:].transpose(1, 2).unflatten(2, GRID))
    assert_same_features([*maps[: DEPTH - 1], maps[DEPTH]], encoder, image)


def swin(**arguments):
    return SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), **arguments)


def new_names(state):
    return state


def bare_names(state):
    return {k.removeprefix("swinViT."): v for k, v in state.items() if k.startswith("swinViT.")}


def ssl_head_names(state):
    """Beside the transformer, the self-supervised heads."""
    heads = {"rotation_head.weight": torch.zeros(4, 192), "conv.0.weight": torch.zeros(3, 3)}
    return {f"swinViT.{k}": v for k, v in bare_names(state).items()} | heads


def old_names(state):
    """As before the MLP's layers were renamed, saved from DataParallel."""
    renamed = {f"module.{k.replace('.mlp.linear', '.mlp.fc')}": v for k, v in bare_names(state).items()}
    assert any(".mlp.fc2.bias" in name for name in renamed)
    return renamed | {"module.rotation_head.weight": torch.zeros(4, 192)}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [(lambda t: t * float("nan"), "not finite"), (lambda t: t.long(), "of type int64")],
)
def test_values_that_are_not_sound_are_not_converted(paths, spoil, sentence):
    state = swin().state_dict()
    state["swinViT.patch_embed.proj.bias"] = spoil(state["swinViT.patch_embed.proj.bias"])
    torch.save(state, paths[0])
    with pytest.raises(ValueError, match=f"source.pt: swin.patch_embed.proj.bias holds values .*{sentence}"):
        convert(*paths)
    assert not paths[1].exists()


@pytest.mark.parametrize("names", [new_names, bare_names, ssl_head_names, old_names])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_swin_unetr(paths, names, wrap):
    # Old names are older than the repair of the patch merging.
    merging = {"downsample": LegacyPatchMerging} if names is old_names else {}
    net, encoder = randomise(swin(**merging)), SwinEncoder(swin(**merging).eval().swinViT)
    torch.save(wrap(names(net.state_dict())), paths[0])
    record = convert(*paths)
    report = load_encoder(encoder, paths[1])
    assert report.covered == 1 and not report.unused and not report.warnings
    assert record["architecture"]["feature_size"] == 12
    assert record["architecture"]["patch_merging"] == ("LegacyPatchMerging" if merging else "PatchMerging")
    image = image_of((32, 32, 32))
    with torch.no_grad():
        expected = net.swinViT(image)
    assert_same_features(expected, encoder, image)


@pytest.mark.parametrize("prefix", ["module.module.", "_orig_mod.module.", "model.", "net.backbone.", ""])
@pytest.mark.parametrize("holder", ["net", "model_state_dict", "network_weights", "student", "my_weights"])
def test_known_prefixes_and_holders(paths, prefix, holder):
    state = {f"{prefix}{name.replace('swinViT', 'swin_vit')}": x for name, x in swin().state_dict().items()}
    torch.save({holder: state, "epoch": 3}, paths[0])
    convert(*paths)
    assert load_encoder(SwinEncoder(swin().swinViT), paths[1]).covered == 1


LAYOUTS = {
    "a whole Swin UNETR": new_names,
    "the transformer alone": bare_names,
    "SwinViT by another name": lambda s: {k.replace("swinViT", "swin_vit"): v for k, v in s.items()},
    "self-supervised": ssl_head_names,
    "old names, from DataParallel": old_names,
}


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_swin_unetr_of_both_versions_in_every_layout(paths, layout, v2):
    """Built where the network is of the file's version and merges patches as it did, else refused or told."""
    merging = {"downsample": LegacyPatchMerging} if "old" in layout else {}
    net = randomise(swin(use_v2=v2, **merging))
    torch.save({"state_dict": LAYOUTS[layout](net.state_dict())}, paths[0])
    architecture = convert(*paths)["architecture"]
    right = SwinEncoder(swin(use_v2=v2, **merging).eval().swinViT)
    assert architecture == right.architecture()
    report = load_encoder(right, paths[1])
    assert report.covered == 1 and not report.unused and not report.warnings
    image = image_of((32, 32, 32))
    with torch.no_grad():
        expected = net.swinViT(image)
    assert_same_features(expected, right, image)
    other = SwinEncoder(swin(use_v2=not v2, **merging).swinViT)
    with pytest.raises(ValueError, match=r"encoder.safetensors: .* holds swin.layers1c\..* of Swin UNETR V2"):
        load_encoder(other, paths[1])
    warned = load_encoder(
        SwinEncoder(swin(use_v2=v2, **({} if merging else {"downsample": LegacyPatchMerging})).swinViT), paths[1]
    )
    assert ["patch_merging" in warning for warning in warned.warnings] == [True]


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("swinViT.layers1.0.blocks.0.attn.logit_scale", True),
        ("swinViT.patch_embed.norm.weight", True),
        ("swinViT.layers5.0.blocks.0.norm1.weight", True),
        ("swinViT.layers1.0.blocks.0.ls.gamma", True),
        ("adapter.weight", True),
        ("rotation_head.weight", False),
        ("contrastive_head.bias", False),
        ("convTrans3d.weight", False),
        ("norm.weight", False),
        ("organ_embedding", False),
    ],
)
def test_a_tensor_that_no_rule_knows_is_refused_by_name(paths, added, named):
    torch.save({"state_dict": swin().state_dict() | {added: torch.zeros(12)}}, paths[0])
    if not named:
        left_out = convert(*paths)["left_out"]
        assert left_out.pop("Swin UNETR's convolutions") > 10 and list(left_out.values()) == [1]
        return
    with pytest.raises(ValueError, match=f"{added.removeprefix('swinViT.')}"):
        convert(*paths)
    assert not paths[1].exists()


def test_what_no_rule_knows_is_left_out_by_choice_only(paths):
    torch.save(swin().state_dict() | {"adapter.weight": torch.zeros(3)}, paths[0])
    with pytest.raises(ValueError, match=r"it holds adapter.weight, which .*; if the encoder does not .* --leave_out"):
        convert(*paths)
    assert convert(*paths, leave_out="^adapter")["left_out"]["--leave_out ^adapter"] == 1


def vit(**arguments):
    return ViT(1, SIZE, 16, HIDDEN, 40, DEPTH, HEADS, qkv_bias=True, **arguments)


def unetr_of_monai():
    return MonaiUNETR(1, 2, SIZE, 4, HIDDEN, 40, HEADS, qkv_bias=True)


def autoencoder_of_monai():
    return ViTAutoEnc(1, SIZE, 16, hidden_size=HIDDEN, mlp_dim=40, num_layers=DEPTH, num_heads=HEADS)


@pytest.mark.parametrize("make", [vit, unetr_of_monai, autoencoder_of_monai])
def test_vits_of_monai(paths, make):
    net = randomise(make())
    torch.save(net.state_dict(), paths[0])
    record = convert(*paths, num_heads=HEADS, spatial_size=SIZE)
    assert record["method"].startswith("converted from monai_vit")
    transformer = getattr(net, "vit", net)
    encoder = ViTEncoder(vit() if make is not unetr_of_monai else unetr_of_monai().vit)
    if make is autoencoder_of_monai:
        assert not record["architecture"]["qkv_bias"]
        encoder = ViTEncoder(ViT(1, SIZE, 16, HIDDEN, 40, DEPTH, HEADS))
    report = load_encoder(encoder.eval(), paths[1], spatial_size=SIZE)
    assert report.covered == 1 and not report.unused and not report.warnings
    own = encoder.vit.state_dict()
    assert all(torch.equal(tensor, transformer.state_dict()[name]) for name, tensor in own.items())


@pytest.mark.parametrize("file_is_v2", [True, False])
def test_files_of_swin_unetr_v2_from_before_it_was_told_are_refused(paths, file_is_v2):
    save_encoder(SwinEncoder(swin(use_v2=file_is_v2).swinViT), paths[1], {"method": "SSL"})
    same, other = (SwinEncoder(swin(use_v2=v2).swinViT) for v2 in (file_is_v2, not file_is_v2))
    assert load_encoder(same, paths[1]).covered == 1
    with pytest.raises(ValueError, match=r"encoder.safetensors: .* holds swin.layers1c\..* of Swin UNETR V2"):
        load_encoder(other, paths[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda n, t: None if "layers2.0.downsample.reduction" in n else t,
        lambda n, t: None if "layers2.0.blocks.0.norm2.bias" in n else t,
        lambda n, t: None if "attn.qkv.weight" in n and "layers1" not in n else t,
        lambda n, t: None if ".layers3." in n else t,
        lambda n, t: t[: len(t) // 2] if "layers2.0.blocks.0.attn.qkv.weight" in n else t,
    ],
)
def test_a_part_that_would_stay_as_drawn_is_refused(paths, change):
    state = {name: change(name, tensor) for name, tensor in swin().state_dict().items()}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, paths[0])
    with pytest.raises(ValueError, match="is not a checkpoint of the kind swin_unetr_ssl"):
        convert(*paths)
    assert not paths[1].exists()


@pytest.mark.parametrize("missing", ["blocks.1.attn.qkv.weight", "blocks.2.mlp.fc1.bias", "blocks.0.norm2.weight"])
def test_a_mae_that_lacks_a_part_is_refused(paths, missing):
    state = randomise(Published()).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name != missing}, paths[0])
    with pytest.raises(ValueError, match="is not a checkpoint of the kind unetr_mae: 1 tensors of its network"):
        convert(*paths)


def test_a_refusal_says_what_the_file_has(paths):
    torch.save({"odd.weight": torch.zeros(2)}, paths[0])
    with pytest.raises(ValueError, match=r"lacks tensors .*and has such as odd.weight"):
        convert(*paths, kind="swin_unetr_ssl")


def test_legacy_swin_unetr_needs_legacy_merging(paths):
    net = randomise(swin(downsample=LegacyPatchMerging))
    torch.save(net.state_dict(), paths[0])
    convert(*paths, legacy_patch_merging=True)
    image = image_of((32, 32, 32))
    with torch.no_grad():
        expected = net.swinViT(image)
    right = SwinEncoder(swin(downsample=LegacyPatchMerging).eval().swinViT)
    assert not load_encoder(right, paths[1]).warnings
    assert_same_features(expected, right, image)
    wrong = SwinEncoder(swin().eval().swinViT)
    assert "patch_merging" in load_encoder(wrong, paths[1]).warnings[0]
    assert not torch.allclose(wrong(image)[-1], expected[-1], atol=1e-2)


def pickled(path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "args": fractions.Fraction(1, 2)}, path)


def truncated(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def flipped(path):
    torch.save({"weight": torch.full((100,), 0.3)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((100,), 0.3).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404</html>")


def numbers(path):
    torch.save({"epoch": 3}, path)


def a_list(path):
    torch.save([torch.zeros(3)], path)


def blank(path):
    torch.save({name: torch.zeros_like(x) for name, x in swin().state_dict().items()}, path)


def nothing(path):
    torch.save({"state_dict": {}}, path)


def optimizer(path):
    torch.save({"optimizer": torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict(), "epoch": 3}, path)


def several(path):
    torch.save({"generator": nn.Linear(2, 2).state_dict(), "critic": nn.Linear(2, 2).state_dict()}, path)


def foreign(path):
    torch.save(nn.Linear(2, 2).state_dict(), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (pickled, r"holds Python objects beside tensors \(fractions\.Fraction\), which are not loaded for safety"),
        (flipped, "is not a readable checkpoint .*damaged: the checksum of source/data/0 does not match"),
        (truncated, "not a readable checkpoint"),
        (empty, "not a readable checkpoint"),
        (text, r"is not a readable checkpoint \(it is a web page in place of the file"),
        (numbers, r"holds no state dict but \w+.*: give a file with a state dict"),
        (a_list, "holds no state dict but a list"),
        (foreign, r"of no known kind \(it has tensors such as weight, bias\)"),
        (blank, r"all \d+ kernels and matrices have one value all over, such as 0 in \S+: it holds no learnt weights"),
        (nothing, "holds no state dict, it is empty"),
        (optimizer, "holds no state dict, only the state of an optimizer"),
        (several, r"holds several state dicts \(generator, critic\): save the one of the encoder"),
    ],
)
def test_checkpoints_that_cannot_be_converted(paths, write, message):
    write(paths[0])
    with pytest.raises(ValueError, match=message) as raised:
        convert(*paths)
    assert str(raised.value).startswith(str(paths[0]))
    assert not paths[1].exists()


def published_medicalnet(depth, shortcut, width=4, channels=1):
    """Tensors as MedicalNet's files have them: names of `DataParallel`, with the layers of its demonstration."""
    encoder = DilatedResNet(depth, channels, shortcut, width=width)
    randomise(encoder)
    state = {f"module.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.rand(4, 32, 2, 2, 2)
    return encoder, state


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (34, "A"), (50, "B"), (200, "B")])
def test_medicalnet(paths, depth, shortcut, caplog):
    theirs, state = published_medicalnet(depth, shortcut)
    torch.save({"state_dict": state, "optimizer": {}}, paths[0])
    with caplog.at_level("INFO"):
        record = convert(*paths)
    assert f"{len(state) - 1} tensors of {len(state)} converted as medicalnet" in caplog.text
    assert "left out: conv_seg.0.weight" in caplog.text
    assert record["architecture"] == theirs.architecture()
    encoder = DilatedResNet(depth, shortcut=shortcut, width=4).eval()
    report = load_encoder(encoder, paths[1])
    assert report.covered == 1 and not report.warnings and not report.new
    image = image_of()
    with torch.no_grad():
        for ours, expected in zip(encoder(image), theirs(image), strict=True):
            assert torch.equal(ours, expected)


def test_resnets_of_kinetics_see_a_scan_as_a_grey_video(paths):
    """3D-ResNets-PyTorch has MedicalNet's tensors, with three colours and a head: Med3D's rows "Kinetics"."""
    theirs, state = published_medicalnet(18, "A", channels=3)
    del state["module.conv_seg.0.weight"]
    state |= {"module.fc.weight": torch.rand(400, 32), "module.fc.bias": torch.rand(400)}
    source = paths[0].with_name("resnet-18-kinetics.pth")
    torch.save({"epoch": 200, "arch": "resnet-18", "state_dict": state, "optimizer": {}}, source)
    convert(source, paths[1], kind="medicalnet")  # by itself it is told as a net with strides, which it is in videos
    encoder = DilatedResNet(18, shortcut="A", width=4).eval()
    report = load_encoder(encoder, paths[1])
    assert report.covered == 1 and list(report.adapted) == ["conv1.weight"]
    image = image_of()
    with torch.no_grad():
        for ours, expected in zip(encoder(image), theirs(image.expand(-1, 3, -1, -1, -1)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_medicalnet_without_counters(paths):
    """PyTorch 0.3 did not count batches."""
    _, state = published_medicalnet(10, "B")
    torch.save({name: x for name, x in state.items() if not name.endswith("tracked")}, paths[0])
    convert(*paths)
    assert load_encoder(DilatedResNet(10, width=4), paths[1]).covered == 1


def test_the_other_shortcut_is_refused(paths):
    """The convolutions of B would stay as drawn, those of A be of no use."""
    for own, other in (("B", "A"), ("A", "B")):
        torch.save(published_medicalnet(18, own)[1], paths[0])
        convert(*paths)
        assert load_encoder(DilatedResNet(18, shortcut=own, width=4), paths[1]).covered == 1
        with pytest.raises(ValueError, match=r"layer2\.0\.downsample") as refused:
            load_encoder(DilatedResNet(18, shortcut=other, width=4), paths[1])
        assert f"made with shortcut {own} and not {other}" in str(refused.value)
    with pytest.raises(ValueError, match="not all of it: it was made with depth 18 and not 34"):
        load_encoder(DilatedResNet(34, shortcut="A", width=4), paths[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"module.layer2.0.bn1.weight": None},
            r"1 tensors of its network .*layer2.0.bn1.weight",
        ),
        ({"module.layer5.0.x": torch.zeros(1)}, "it holds layer5.0.x, which this kind lacks"),
        ({"module.conv1.weight": torch.zeros(4, 3, 7, 7)}, r"\(4, 3, 7, 7\), which is not a kernel of a 3-D"),
        ({"module.layer2.1.conv1.weight": torch.zeros(1)}, r"\(1, 2, 1, 1\) basic blocks, unlike a ResNet"),
    ],
)
def test_a_medicalnet_that_is_none(paths, change, message):
    state = published_medicalnet(10, "B")[1] | change
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, paths[0])
    with pytest.raises(ValueError, match=message):
        convert(*paths)
    assert not paths[1].exists()


def test_no_checkpoint(paths):
    with pytest.raises(FileNotFoundError, match=f"{paths[0]} does not exist"):
        convert(*paths)


@pytest.mark.parametrize("kind", ["unetr_mae", "monai_mae", "swin_unetr_ssl"])
def test_a_kind_that_the_file_is_not(paths, kind):
    foreign(paths[0])
    with pytest.raises(ValueError, match=f"{paths[0]} is not a checkpoint of the kind {kind}: it lacks tensors"):
        convert(*paths, kind=kind)


def test_an_unknown_kind(paths):
    foreign(paths[0])
    with pytest.raises(ValueError, match="one of unetr_mae"):
        convert(*paths, kind="dino")


def test_command_line(paths, monkeypatch, capsys):
    torch.save(randomise(Published()).state_dict(), paths[0])
    words = ["convert", *map(str, paths), "--num_heads", str(HEADS), "--spacing", "[1,1,1.5]", "--orientation", "RSP"]
    monkeypatch.setattr(sys, "argv", ["common.weights", *words])
    runpy.run_module("common.weights", run_name="__main__")
    record = json.loads(capsys.readouterr().out)
    made = record["preparation"]
    assert made["spacing"] == [1, 1, 1.5] and made["orientation"] == "RSP"
    assert record == read_encoder(paths[1])[1]


@pytest.mark.parametrize("first", ["teacher.", "teacher_backbone.", "ema."])
def test_of_a_teacher_and_its_student_the_teacher_is_taken(paths, first):
    taken, other = (randomise(swin()).state_dict() for _ in range(2))
    state = {f"student.{name}": tensor for name, tensor in other.items()}
    state |= {f"{first}{name}": tensor for name, tensor in taken.items()}
    torch.save({"state_dict": state}, paths[0])
    record = convert(*paths)
    assert record["left_out"]["networks beside the one that is taken"] == len(other)
    name = "patch_embed.proj.weight"
    assert torch.equal(read_encoder(paths[1])[0][f"swin.{name}"], taken[f"swinViT.{name}"])


def test_of_averaged_weights_and_others_the_averaged_ones_are_taken(paths):
    taken, other = randomise(swin()).state_dict(), randomise(swin()).state_dict()
    torch.save({"state_dict": other, "state_dict_ema": taken, "epoch": 3}, paths[0])
    record = convert(*paths)
    assert record["left_out"]["networks beside the one that is taken"] == len(other)
    name = "patch_embed.proj.weight"
    assert torch.equal(read_encoder(paths[1])[0][f"swin.{name}"], taken[f"swinViT.{name}"])


def test_a_kernel_of_zeros_is_said(paths, caplog):
    state = randomise(swin()).state_dict()
    state["swinViT.layers2.0.blocks.0.mlp.linear1.weight"].zero_()
    torch.save(state, paths[0])
    convert(*paths)
    said = "swin.layers2.0.blocks.0.mlp.linear1.weight, kernels and matrices, are 0 throughout"
    assert said in caplog.text
    assert any(said in warning for warning in load_encoder(SwinEncoder(swin().swinViT), paths[1]).warnings)


def test_an_encoder_file_of_zeros_is_refused(tmp_path):
    encoder = SwinEncoder(swin().swinViT)
    torch.nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in encoder.parameters())), encoder.parameters())
    save_encoder(encoder, tmp_path / "x.safetensors", {})
    with pytest.raises(ValueError, match=r"x\.safetensors: all \d+ kernels and matrices have one value all over"):
        load_encoder(SwinEncoder(swin().swinViT), tmp_path / "x.safetensors")


def test_settings_and_numbers_beside_the_weights_run_nothing(paths):
    """DINO's full checkpoints hold the settings of its command line, nnU-Net's numbers of NumPy."""
    beside = {
        "args": argparse.Namespace(lr=1e-3, arch="vit_base"),
        "epoch": np.int64(3),
        "logging": {"loss": [np.float32(0.5), np.float64(0.25)], "steps": np.bool_(True)},
    }
    torch.save({"teacher": bare_names(swin().state_dict())} | beside, paths[0])
    assert convert(*paths)["method"].startswith("converted from swin_unetr_ssl")
    with pytest.raises(ValueError, match="holds Python objects beside tensors"):
        read_checkpoint(paths[0])


@pytest.mark.parametrize("heads", [5, 48])
def test_heads_that_do_not_divide_the_width_are_refused(paths, heads):
    net = ViTAutoEnc(1, SIZE, 16, hidden_size=HIDDEN, mlp_dim=40, num_layers=DEPTH, num_heads=HEADS)
    torch.save(randomise(net).state_dict(), paths[0])
    with pytest.raises(ValueError, match=f"--num_heads is {heads}, which does not divide the width of {HIDDEN}"):
        convert(*paths, num_heads=heads)


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        ({"init_args": ["x"]}, "init_args beside its weights is a list"),
        ({"init_args": {"plans": "nnUNetPlans"}}, "init_args.plans beside its weights is a str"),
        ({"init_args": {"configuration": "a", "plans": {"configurations": {"a": 3}}}}, "configurations.a beside"),
        ({"nnssl_adaptation_plan": "x"}, "nnssl_adaptation_plan beside"),
    ],
)
@pytest.mark.parametrize("decoder", [False, True])
def test_a_plan_that_is_none_is_told_with_the_file(paths, beside, sentence, decoder):
    state, before = {}, 1
    for stage, width in enumerate((4, 8, 8)):
        for number in (0, 1):
            place = f"encoder.stages.{stage}.0.convs.{number}."
            state[f"{place}conv.weight"] = torch.randn(width, before, 3, 3, 3)
            state |= {f"{place}norm.{part}": torch.rand(width) + 0.5 for part in ("weight", "bias")}
            before = width
    if decoder:  # shows the strides, so that the plan is read for the images alone
        for level, (coarse, width) in enumerate(((8, 8), (8, 4))):
            state[f"decoder.transpconvs.{level}.weight"] = torch.randn(coarse, width, 2, 2, 2)
            state[f"decoder.transpconvs.{level}.bias"] = torch.randn(width)
            for number, inputs in ((0, 2 * width), (1, width)):
                place = f"decoder.stages.{level}.convs.{number}."
                state[f"{place}conv.weight"] = torch.randn(width, inputs, 3, 3, 3)
                state |= {f"{place}norm.{part}": torch.rand(width) + 0.5 for part in ("weight", "bias")}
    torch.save({"network_weights": state, **beside}, paths[0])
    with pytest.raises(ValueError, match=rf"source\.pt.*{sentence}"):
        convert(*paths)
