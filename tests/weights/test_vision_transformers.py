"""2-D checkpoints of `transformers` and of their authors become encoder files that give the 2-D model's features."""

from __future__ import annotations

import functools
import json
import re

import fire
import pytest
import torch
from monai.transforms import ScaleIntensityRanged
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinForImageClassification,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTForImageClassification,
)

from common.networks.beit_encoder import BeitEncoder
from common.networks.dino_encoder import DinoEncoder
from common.networks.swin_slice_encoder import SwinSliceEncoder, VideoSwinEncoder
from common.weights import convert, load_encoder, read_encoder, save_encoder
from common.weights.inflate import resample_grid_positions, resample_relative_positions

SIZE, SLICES = (40, 40), 5
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
TOKENS = {
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "mlp_dim": 40,
    "patch_size": 8,
    "out_blocks": (1, 2, 3, 4),
}
STAGES = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 3, 4)}
ENCODERS = {
    "beit": functools.partial(BeitEncoder, **TOKENS),
    "vit": functools.partial(DinoEncoder, **TOKENS),
    "swin": functools.partial(SwinSliceEncoder, **STAGES, patch_size=2, window_size=3),
}
COMMON = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40, "image_size": SIZE[0],
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip


def randomise(module: nn.Module) -> nn.Module:
    """Draw every parameter, also those that start at 0 or 1, so that none can be mixed up."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


@pytest.fixture(scope="module")
def models():
    sizes = {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 3, 4], "window_size": 3}
    return {
        "beit": randomise(BeitForImageClassification(BeitConfig(**COMMON, use_relative_position_bias=True))),
        "vit": randomise(ViTForImageClassification(ViTConfig(**COMMON))),
        "swin": randomise(SwinForImageClassification(SwinConfig(**sizes, image_size=SIZE[0], patch_size=2))),
    }


def last_map(kind: str, model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The last map of a 2-D model, before the final norm of BEiT and ViT, behind a norm without weights of Swin."""
    base = model.base_model
    if kind == "swin":
        x = base.encoder(*base.embeddings(image)).last_hidden_state
        return F.layer_norm(x, x.shape[-1:]).transpose(1, 2).unflatten(2, (3, 3))
    states = base(image, output_hidden_states=True).hidden_states
    return states[-1][:, 1:].transpose(1, 2).unflatten(2, (5, 5))


def timm_names(kind: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state of `transformers` in the names of the authors' files, written anew from what those are known to hold."""
    base = {re.sub("^(beit|vit|swin)\\.", "", name): tensor for name, tensor in state.items()}
    made = {"head.weight": torch.zeros(10, 24), "norm.weight": torch.ones(24)}
    made["patch_embed.proj.weight"] = base["embeddings.patch_embeddings.projection.weight"]
    made["patch_embed.proj.bias"] = base["embeddings.patch_embeddings.projection.bias"]
    if kind == "swin":
        made |= {f"patch_embed.norm.{part}": base[f"embeddings.norm.{part}"] for part in ("weight", "bias")}
        made |= {n.removeprefix("encoder."): t for n, t in base.items() if ".downsample." in n}
        blocks = {n.partition(".attention")[0] for n in base if ".attention.q_proj.weight" in n}
    else:
        made["cls_token"] = base["embeddings.cls_token"]
        blocks = {n.partition(".attention")[0] for n in base if ".attention.q_proj.weight" in n}
    if kind == "vit":
        made["pos_embed"] = base["embeddings.position_embeddings"]
    for block in blocks:
        name = block.removeprefix("encoder.") if kind == "swin" else block.replace("layers", "blocks")
        for part in ("weight", "bias"):
            made[f"{name}.norm1.{part}"] = base[f"{block}.layernorm_before.{part}"]
            made[f"{name}.norm2.{part}"] = base[f"{block}.layernorm_after.{part}"]
            made[f"{name}.attn.proj.{part}"] = base[f"{block}.attention.o_proj.{part}"]
            made |= {f"{name}.mlp.fc{n}.{part}": base[f"{block}.mlp.fc{n}.{part}"] for n in (1, 2)}
            if kind != "beit" or part == "weight":
                parts = [base[f"{block}.attention.{x}_proj.{part}"] for x in "qkv"]
                made[f"{name}.attn.qkv.{part}"] = torch.cat(parts)
        if kind == "beit":
            made |= {f"{name}.attn.{x}_bias": base[f"{block}.attention.{x}_proj.bias"] for x in "qv"}
            made |= {f"{name}.gamma_{n}": base[f"{block}.lambda_{n}"] for n in (1, 2)}
            made[f"{name}.attn.relative_position_index"] = torch.zeros(3, 3, dtype=torch.int64)
        if kind != "vit":
            place = "attention." if kind == "swin" else ""
            table = base[f"{block}.{place}relative_position_bias.relative_position_bias_table"]
            made[f"{name}.attn.relative_position_bias_table"] = table
    return made


def as_folder(kind, model, tmp_path):
    model.save_pretrained(tmp_path / "hub")  # in the names that files of the hub have
    text = json.dumps({"image_mean": MEAN, "image_std": STD})
    (tmp_path / "hub" / "preprocessor_config.json").write_text(text)
    return tmp_path / "hub", {}


def heads(kind):
    """What has to be said of attention heads: Swin's tensors show them."""
    return {} if kind == "swin" else {"num_heads": 3}


def as_safetensors(kind, model, tmp_path):
    model.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub" / "model.safetensors", {"mean": MEAN, "std": STD, **heads(kind)}


def as_state_dict(kind, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt", {"mean": MEAN, "std": STD, **heads(kind)}


def as_published(kind, model, tmp_path):
    torch.save({"model": timm_names(kind, model.state_dict())}, tmp_path / "model.pth")
    return tmp_path / "model.pth", {"mean": MEAN, "std": STD, **heads(kind)}


def as_timm(kind, model, tmp_path):
    """As timm has them from 0.9 on: Swin merges patches at the start of a stage, not at the end of the one before."""
    names = timm_names(kind, model.state_dict())
    later = {
        re.sub(r"(\d+)\.downsample", lambda found: f"{int(found[1]) + 1}.downsample", n): t for n, t in names.items()
    }
    torch.save(later, tmp_path / "timm.pth")
    return tmp_path / "timm.pth", {"mean": MEAN, "std": STD, **heads(kind)}


def as_teacher(kind, model, tmp_path):
    """As DINO's full checkpoints."""
    state = {f"module.backbone.{name}": tensor for name, tensor in timm_names(kind, model.state_dict()).items()}
    torch.save({"student": {}, "teacher": state, "epoch": 3}, tmp_path / "full.pth")
    return tmp_path / "full.pth", {"mean": MEAN, "std": STD, **heads(kind)}


@pytest.mark.parametrize("write", [as_folder, as_safetensors, as_state_dict, as_published, as_timm, as_teacher])
@pytest.mark.parametrize("kind", ENCODERS)
def test_gives_the_features_of_the_2d_model(models, kind, write, tmp_path):
    source, options = write(kind, models[kind], tmp_path)
    record = convert(source, tmp_path / "encoder.safetensors", slices=SLICES, **options)
    assert record == read_encoder(tmp_path / "encoder.safetensors")[1]
    assert record["method"].startswith(f"converted from {kind} checkpoint")
    encoder = ENCODERS[kind](1, SIZE).eval()
    report = load_encoder(encoder, tmp_path / "encoder.safetensors")
    assert all(name.startswith("norms.") for name in report.new) and not report.unused and not report.warnings
    assert record["architecture"].items() <= encoder.architecture().items()
    window = torch.rand(2, 1, *SIZE, SLICES) * 2 - 1
    unit = (window[..., 2] + 1) / 2
    normalised = (unit.expand(-1, 3, -1, -1) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        expected, made = last_map(kind, models[kind], normalised), encoder(window)[-1][..., 0]
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def beit_of_version_2(names):
    """A self-supervised BEiT v2 in its authors' names, whose class token has two blocks of its own."""
    cls = {n.replace("blocks.0", "cls_pt_layers.0"): t for n, t in names.items() if n.startswith("blocks.0.")}
    return names | cls | {"mask_token": torch.zeros(1, 1, 24), "lm_head.weight": torch.zeros(8, 24)}


def test_images_of_beit_v2_are_normalised_as_those_of_imagenet(models, tmp_path):
    names = beit_of_version_2(timm_names("beit", models["beit"].state_dict()))
    torch.save({"model": names}, tmp_path / "pretrained.pth")
    record = convert(tmp_path / "pretrained.pth", tmp_path / "encoder.safetensors")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    said = "tensor cls_pt_layers.0.norm1.weight"
    assert record["normalisation"] == {"mean": mean, "std": std, "from": said}
    encoder = ENCODERS["beit"](1, SIZE).eval()
    load_encoder(encoder, tmp_path / "encoder.safetensors")
    window = torch.rand(2, 1, *SIZE, SLICES) * 2 - 1
    unit = (window[..., 2].expand(-1, 3, -1, -1) + 1) / 2
    normalised = (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected, made = last_map("beit", models["beit"], normalised), encoder(window)[-1][..., 0]
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "name", "mean"),
    [
        ("beit", "beit_base_patch16_224_pt22k_ft22k.pth", 0.5),
        ("beit", "beitv2_base_patch16_224_pt1k_ft21k.pth", 0.485),
        ("vit", "dino_vitbase16_pretrain.pth", 0.485),
        ("vit", "deit_base_patch16_224-b5f2ef4d.pth", 0.485),
        ("vit", "mae_pretrain_vit_base.pth", 0.485),
        ("swin", "swin_base_patch4_window7_224_22k.pth", 0.485),
    ],
)
def test_published_names_tell_the_normalisation(models, kind, name, mean, tmp_path):
    torch.save({"model": timm_names(kind, models[kind].state_dict())}, tmp_path / name)
    record = convert(tmp_path / name, tmp_path / "encoder.safetensors")
    assert record["normalisation"]["mean"][0] == mean
    assert f"normalisation folded in: mean [{mean}, " in record["conversion"][0]


@pytest.mark.parametrize("kind", ["beit", "vit"])
def test_a_normalisation_that_nothing_tells_is_asked_for(models, kind, tmp_path):
    """BEiT and BEiT v2, or DeiT and Google's ViT, differ in no tensor."""
    source, output = tmp_path / "model.pth", tmp_path / "encoder.safetensors"
    torch.save(timm_names(kind, models[kind].state_dict()), source)
    with pytest.raises(ValueError, match=r"model\.pth: nothing shows the mean .*: give --mean and"):
        convert(source, output)
    with pytest.raises(ValueError, match="--mean and --std belong together"):
        convert(source, output, mean=MEAN)
    assert not output.exists()
    assert convert(source, output, mean=MEAN, std=STD)["normalisation"]["from"] == "--mean and --std"


@pytest.mark.parametrize("whole", [True, False])
def test_timms_folders_tell_the_normalisation(models, whole, tmp_path):
    names = timm_names("beit", models["beit"].state_dict())
    save_file({name: tensor.contiguous() for name, tensor in names.items()}, tmp_path / "model.safetensors")
    settings = {"architecture": "beitv2_base_patch16_224", "pretrained_cfg": {"mean": MEAN, "std": STD}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    source = tmp_path if whole else tmp_path / "model.safetensors"
    record = convert(source, tmp_path / "encoder.safetensors")
    assert record["normalisation"] == {"mean": MEAN, "std": STD, "from": "config.json"}


def test_says_what_it_did(models, tmp_path):
    source, _ = as_folder("beit", models["beit"], tmp_path)
    record = convert(source, tmp_path / "encoder.safetensors", slices=3, inflation="average", image_size=64)
    text = "\n".join(record["conversion"])
    assert "mean [0.4, 0.5, 0.6]" in text and "inflated to 3 slices (average)" in text
    assert "positions of 5 x 5 tokens resampled for 8 x 8" in text and "3 input channels summed, over 1" in text
    assert (record["architecture"]["slices"], record["architecture"]["grid"]) == (3, [8, 8])
    assert record["inflation"] == "average"
    state, _ = read_encoder(tmp_path / "encoder.safetensors")
    assert state["patch_embedding.weight"].shape == (24, 1, 8, 8, 3)
    assert state["position_biases.3.relative_position_bias_table"].shape == (15 * 15 + 3, 3)


def test_images_in_another_range_are_warned_of(models, tmp_path):
    source, options = as_state_dict("beit", models["beit"], tmp_path)
    for value_range in ([-1, 1], [0, 1]):
        convert(source, tmp_path / "encoder.safetensors", value_range=value_range, **options)
        images = ScaleIntensityRanged("image", -175, 250, b_min=0.0, b_max=1.0, clip=True)
        warnings = load_encoder(ENCODERS["beit"](1, SIZE), tmp_path / "encoder.safetensors", images).warnings
        assert len(warnings) == (value_range == [-1, 1])
    convert(source, tmp_path / "encoder.safetensors", **options)
    (warning,) = load_encoder(ENCODERS["beit"](1, SIZE), tmp_path / "encoder.safetensors", images).warnings
    assert "made with value_range [-1.0, 1.0], the images have [0.0, 1.0]" in warning


def test_one_table_for_all_blocks(tmp_path):
    """BEiT's self-supervised files share their table."""
    settings = BeitConfig(**COMMON, use_shared_relative_position_bias=True)
    model = randomise(BeitModel(settings))
    model.save_pretrained(tmp_path)
    convert(tmp_path, tmp_path / "encoder.safetensors")
    state, _ = read_encoder(tmp_path / "encoder.safetensors")
    tables = [state[f"position_biases.{n}.relative_position_bias_table"] for n in range(4)]
    assert all(torch.equal(table, model.shared_position_bias.relative_position_bias_table) for table in tables)


def test_one_table_for_all_blocks_beside_their_own(tmp_path):
    """`transformers` and the authors' code add the two."""
    settings = BeitConfig(**COMMON, use_shared_relative_position_bias=True, use_relative_position_bias=True)
    model = randomise(BeitModel(settings))
    model.save_pretrained(tmp_path)
    convert(tmp_path, tmp_path / "encoder.safetensors")
    state, _ = read_encoder(tmp_path / "encoder.safetensors")
    shared = model.shared_position_bias.relative_position_bias_table
    for number, layer in enumerate(model.layers):
        own = layer.relative_position_bias.relative_position_bias_table
        torch.testing.assert_close(state[f"position_biases.{number}.relative_position_bias_table"], own + shared)


@pytest.fixture
def single(models, tmp_path):
    """A file of each kind as it is made by default: inflated when it is loaded."""
    files = {}
    for kind in ENCODERS:
        files[kind] = tmp_path / f"{kind}.safetensors"
        source, options = as_state_dict(kind, models[kind], tmp_path)
        convert(source, files[kind], **options)
    return files


@pytest.mark.parametrize("inflation", ["centring", "average"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_inflated_when_loaded_is_what_is_inflated_before(models, single, kind, inflation, tmp_path):
    source, options = as_state_dict(kind, models[kind], tmp_path)
    convert(source, tmp_path / "whole.safetensors", slices=SLICES, inflation=inflation, in_channels=2, **options)
    made, expected = (ENCODERS[kind](2, SIZE) for _ in range(2))
    report = load_encoder(made, single[kind], inflation=inflation)
    load_encoder(expected, tmp_path / "whole.safetensors", inflation=inflation)
    torch.testing.assert_close(made.patch_embedding.weight, expected.patch_embedding.weight)
    assert f"1 slice inflated to 5 ({inflation}), 1 input channels to 2" in report.adapted["patch_embedding.weight"]


def test_left_as_drawn(single):
    encoder = ENCODERS["beit"](1, SIZE)
    drawn = encoder.patch_embedding.weight.clone()
    report = load_encoder(encoder, single["beit"], inflation="random")
    assert torch.equal(encoder.patch_embedding.weight, drawn)
    assert report.unused == {"patch_embedding.weight": "left as drawn (inflation random)"}
    with pytest.raises(ValueError, match="one of centring, average, random"):
        load_encoder(encoder, single["beit"], inflation="centering")


def test_positions_of_another_grid(models, single):
    encoder = ENCODERS["beit"](1, (64, 72))
    report = load_encoder(encoder, single["beit"])
    name = "position_biases.1.relative_position_bias_table"
    assert report.adapted[name] == "positions resampled from 5 x 5 to 8 x 9 tokens"
    table = models["beit"].beit.layers[1].relative_position_bias.relative_position_bias_table
    expected = resample_relative_positions(table.detach(), (5, 5), (8, 9))
    torch.testing.assert_close(encoder.position_biases[1].relative_position_bias_table.detach(), expected)
    encoder = ENCODERS["vit"](1, (64, 72))
    load_encoder(encoder, single["vit"])
    expected = resample_grid_positions(models["vit"].vit.embeddings.position_embeddings.detach(), (5, 5), (8, 9))
    torch.testing.assert_close(encoder.position_table.detach(), expected)


def test_a_file_for_other_slices_is_refused_where_it_has_to_fit(models, tmp_path):
    source, options = as_state_dict("beit", models["beit"], tmp_path)
    convert(source, tmp_path / "five.safetensors", slices=5, **options)
    encoder = ENCODERS["beit"](1, SIZE, slices=11)
    drawn = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    sentence = r"was inflated to 5 slices, the encoder takes 11: .* `--slices 11`, or with `--slices 1` to .* here\)\.$"
    with pytest.raises(ValueError, match=sentence):
        load_encoder(encoder, tmp_path / "five.safetensors")
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in encoder.state_dict().items())
    report = load_encoder(encoder, tmp_path / "five.safetensors", inflation="random")
    assert list(report.new) == ["patch_embedding.weight"] and not report.warnings


def test_an_inflation_that_would_not_be_done_is_refused(models, tmp_path):
    source, options = as_state_dict("beit", models["beit"], tmp_path)
    files = {how: tmp_path / f"{how}.safetensors" for how in ("centring", "average", "trained")}
    for how in ("centring", "average"):
        convert(source, files[how], slices=5, inflation=how, **options)
    save_encoder(ENCODERS["beit"](1, SIZE), files["trained"], {"method": "SimMIM"})
    for how, asked in (("centring", "average"), ("average", "centring"), ("trained", "average")):
        encoder = ENCODERS["beit"](1, SIZE)
        drawn = encoder.patch_embedding.weight.clone()
        with pytest.raises(ValueError, match=f"patch embedding of 5 slices .*{how}.*, but inflation is '{asked}'"):
            load_encoder(encoder, files[how], inflation=asked)
        load_encoder(encoder, files[how], inflation="random")
        assert torch.equal(encoder.patch_embedding.weight, drawn)
        load_encoder(encoder, files[how], inflation="average" if how == "average" else "centring")
        assert not torch.equal(encoder.patch_embedding.weight, drawn)
    for how in ("average", "random"):
        with pytest.raises(ValueError, match=r"VideoSwinEncoder\) has no patch embedding that is inflated"):
            load_encoder(VIDEO(1, SIZE), files["centring"], inflation=how)


def test_another_architecture_is_refused(single):
    for encoder, other in (("beit", "vit"), ("vit", "beit"), ("swin", "beit"), ("beit", "swin")):
        with pytest.raises(ValueError, match="use the network it was made with"):
            load_encoder(ENCODERS[encoder](1, SIZE), single[other])


def test_blocks_with_more_in_them_are_refused(models, tmp_path):
    """They would convert without what was left out, and give other features without a word."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "mlp_ratio": 2}
    gated = {"image_size": 40, "patch_size": 8, "use_swiglu_ffn": True}
    dino2 = Dinov2Model(Dinov2Config(**sizes, **gated)).state_dict()
    stages = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "image_size": 16, "window_size": 2}
    plain = timm_names("vit", models["vit"].state_dict())
    cases = {
        "it lacks tensors .*mlp.fc1": dino2,
        "blocks.2.attn.q_norm.weight": plain | {"blocks.2.attn.q_norm.weight": torch.ones(8)},
        "blocks.1.mlp.w12.weight": plain | {"blocks.1.mlp.w12.weight": torch.ones(8, 24)},
        "norm_pre.weight": plain | {"norm_pre.weight": torch.ones(24)},
        "reg_token": plain | {"reg_token": torch.ones(1, 4, 24)},
        "gated": plain | {"blocks.0.mlp.fc2.weight": torch.ones(24, 20)},
        "k_norm.weight, which": models["beit"].state_dict() | {"beit.layers.0.attention.k_norm.weight": torch.ones(8)},
        "absolute positions": models["beit"].state_dict() | {"embeddings.position_embeddings": torch.ones(1, 26, 24)},
        "logit_scale .*which this kind lacks": Swinv2Model(Swinv2Config(**stages)).state_dict(),
    }
    for sentence, state in cases.items():
        torch.save(dict(state), tmp_path / "model.pt")
        with pytest.raises(ValueError, match=f"is not a checkpoint of the kind .*{sentence}"):
            convert(tmp_path / "model.pt", tmp_path / "x.safetensors")
        assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("swin", lambda n: n.replace("layers.1.", "layers.7.")),
        ("swin", lambda n: n.replace("layers.1.blocks.0", "layers.1.blocks.5")),
        ("swin", lambda n: None if "layers.1.downsample.reduction" in n else n),
        ("swin", lambda n: n.replace("layers.2.downsample", "layers.5.downsample")),
        ("swin", lambda n: None if "downsample" in n else n),
        ("swin", lambda n: None if "layers.1.blocks.0.attn.qkv.weight" in n else n),
        ("vit", lambda n: None if "attn.qkv.weight" in n else n),
        ("vit", lambda n: None if "blocks.1.attn.qkv.bias" in n else n),
        ("vit", lambda n: None if "blocks.2." in n else n),
        ("vit", lambda n: n.replace("blocks.1.norm2", "blocks.1.norm3")),
        ("beit", lambda n: None if "blocks.3.gamma_1" in n else n),
        ("beit", lambda n: n.replace("blocks.2", "blocks.9")),
    ],
)
def test_a_part_that_would_stay_as_drawn_is_refused(models, kind, change, tmp_path):
    state = timm_names(kind, models[kind].state_dict())
    changed = {change(name): tensor for name, tensor in state.items()}
    changed.pop(None, None)
    assert changed.keys() != state.keys()
    torch.save(changed, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of the kind") as raised:
        convert(tmp_path / "model.pt", tmp_path / "x.safetensors", kind=kind)
    assert len(str(raised.value).splitlines()) == 1 and not (tmp_path / "x.safetensors").exists()


VIDEO = functools.partial(VideoSwinEncoder, **STAGES, patch_size=2, window_size=(8, 3, 3))


def test_video_swin_from_its_authors_names(tmp_path):
    """What was trained on videos keeps the depth of its patch embedding."""
    # Nine slices are three whole patches: none follow that are zeros to one net and black to the other.
    net = randomise(VIDEO(3, SIZE, slices=9, frame_size=3))
    names = (
        (r"^video_embedding\.", "patch_embed.proj."), (r"^patch_norm\.", "patch_embed.norm."),
        (r"^stages\.(\d+)\.(\d+)\.", r"layers.\1.blocks.\2."), (r"\.mlp\.linear", ".mlp.fc"),
        (r"^mergings\.(\d+)\.", r"layers.\1.downsample."),
    )  # fmt: skip
    state = {"cls_head.fc_cls.weight": torch.zeros(2)}
    for name, tensor in net.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[f"backbone.{name}"] = tensor
    torch.save({"state_dict": state}, tmp_path / "video.pth")
    with pytest.raises(ValueError, match="not inflated: leave out --slices"):
        convert(tmp_path / "video.pth", tmp_path / "encoder.safetensors", slices=5)
    record = convert(tmp_path / "video.pth", tmp_path / "encoder.safetensors", mean=MEAN, std=STD)
    assert record["architecture"]["name"] == "VideoSwinEncoder"
    assert "keeps its own depth of 3" in "\n".join(record["conversion"])
    encoder = VIDEO(1, SIZE, slices=9, frame_size=3).eval()
    report = load_encoder(encoder, tmp_path / "encoder.safetensors")
    assert report.covered == 1 and not report.unused
    window = torch.rand(1, 1, *SIZE, 9) * 2 - 1
    mean, std = (torch.tensor(value).view(3, 1, 1, 1) for value in (MEAN, STD))
    with torch.no_grad():
        expected = net(((window + 1) / 2 - mean) / std)
        for made, other in zip(encoder(window), expected, strict=True):
            torch.testing.assert_close(made, other, atol=1e-4, rtol=1e-4)


def test_video_swin_of_one_frame_is_swin():
    """With patches as deep as the window there is nothing to attend to along the slices."""
    torch.manual_seed(0)
    video = randomise(VIDEO(1, SIZE, frame_size=SLICES).double())
    plain = ENCODERS["swin"](1, SIZE).double().eval()
    state = {name: tensor for name, tensor in video.state_dict().items() if not name.startswith("video")}
    for name in state:
        if name.endswith("bias_table"):
            state[name] = state[name].unflatten(0, (15, 25))[7]  # those of no offset along the slices
    state["patch_embedding.weight"] = video.video_embedding.weight.movedim(2, -1)
    state["patch_embedding.bias"] = video.video_embedding.bias
    plain.load_state_dict(state, strict=False)
    window = torch.rand(2, 1, *SIZE, 7, dtype=torch.float64)
    with torch.no_grad():
        for made, expected in zip(plain(window), video(window), strict=True):
            normalised = F.layer_norm(expected.movedim(1, -1), expected.shape[1:2]).movedim(-1, 1)
            torch.testing.assert_close(made, normalised, atol=1e-10, rtol=0)


def test_refusals(models, tmp_path):
    source, _ = as_folder("beit", models["beit"], tmp_path)
    with pytest.raises(ValueError, match="--inflation is 'centre'"):
        convert(source, tmp_path / "x.safetensors", inflation="centre")
    with pytest.raises(ValueError, match="for more than one slice: give --slices"):
        convert(source, tmp_path / "x.safetensors", inflation="average")
    with pytest.raises(ValueError, match="not a checkpoint of the kind vit"):
        convert(source, tmp_path / "x.safetensors", kind="vit")
    with pytest.raises(
        ValueError, match=r"--mean is \[0.5\]: give one number for all 3, or 3 numbers, one per channel"
    ):
        convert(source, tmp_path / "x.safetensors", mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match="--num_heads is 7, but the tensors show"):
        convert(source, tmp_path / "x.safetensors", num_heads=7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        convert(tmp_path / "empty", tmp_path / "x.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        convert(tmp_path / "cut.safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_command_line(models, tmp_path):
    source, _ = as_folder("beit", models["beit"], tmp_path)
    command = [
        "convert",
        str(source),
        str(tmp_path / "encoder.safetensors"),
        "--slices",
        "3",
        "--image_size",
        "[64,72]",
    ]
    record = fire.Fire({"convert": convert}, command=command)
    assert record == read_encoder(tmp_path / "encoder.safetensors")[1]
    assert record["architecture"]["grid"] == [8, 9] and record["architecture"]["slices"] == 3


def test_one_number_stands_for_all_channels_axes_and_sides(models, tmp_path):
    """As `convert` itself suggests 0.5 for BEiT."""
    source, _ = as_folder("beit", models["beit"], tmp_path)
    made = [
        convert(source, tmp_path / f"{number}.safetensors", **given)
        for number, given in enumerate(
            (
                {"mean": 0.5, "std": 0.25, "spacing": 1.0, "spatial_size": 96, "image_size": 48},
                {"mean": [0.5] * 3, "std": [0.25] * 3, "spacing": (1, 1, 1), "spatial_size": [96] * 3}
                | {"image_size": [48, 48]},
            )
        )
    ]
    assert made[0] == made[1] and made[0]["preparation"]["spacing"] == [1.0, 1.0, 1.0]
    assert made[0]["spatial_size"] == [96, 96, 96] and made[0]["normalisation"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mean": "half", "std": 0.5}, "--mean is 'half': give one number"),
        ({"mean": 0.5, "std": 0}, "--std is 0: give one number for all 3, or 3 numbers above 0"),
        ({"mean": 0.5, "std": float("nan")}, "--std is nan"),
        ({"spacing": [1.0, 1.0]}, r"--spacing is \[1.0, 1.0\]: give .* 3 numbers above 0, one per axis"),
        ({"spacing": [1, -1, 1]}, "--spacing is"),
        ({"spatial_size": 9.5}, "--spatial_size is 9.5: give .* 3 whole numbers"),
        ({"spatial_size": [96, 96]}, "--spatial_size is"),
        ({"value_range": 1}, "--value_range is 1: give 2 numbers, one per end"),
        ({"value_range": [1, -1]}, "--value_range .* lower end first"),
        ({"in_channels": 0}, "--in_channels is 0"),
        ({"slices": 0}, "--slices is 0"),
        ({"num_heads": 0}, "--num_heads is 0"),
        ({"image_size": [96, 96, 96]}, "--image_size is .* height and width"),
        ({"orientation": "ras"}, "--orientation is 'ras': give three capital letters"),
        ({"orientation": "RAR"}, "--orientation is"),
        ({"orientation": 5}, "--orientation is"),
    ],
)
def test_values_that_are_none_of_an_option_are_refused(models, tmp_path, given, sentence):
    source, _ = as_folder("beit", models["beit"], tmp_path)
    with pytest.raises(ValueError, match=sentence):
        convert(source, tmp_path / "x.safetensors", **given)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.json", "{oops", r"config\.json cannot be read as JSON"),
        ("config.json", "[1]", r"config\.json holds a list in place of settings"),
        ("config.json", '{"num_attention_heads": 7}', r"config\.json beside .* num_attention_heads 7, but the tensors"),
        ("preprocessor_config.json", "1", r"preprocessor_config\.json holds a int"),
        (
            "preprocessor_config.json",
            '{"image_mean": [0.5], "image_std": 0.5}',
            r"mean by preprocessor_config\.json is",
        ),
    ],
)
def test_settings_beside_the_weights_that_are_none_are_told_with_their_file(models, tmp_path, name, text, sentence):
    source, _ = as_folder("beit", models["beit"], tmp_path)
    (source / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        convert(source, tmp_path / "x.safetensors")
