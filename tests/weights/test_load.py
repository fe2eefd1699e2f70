from __future__ import annotations

import logging
import re
from typing import ClassVar

import pytest
import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet, SwinUNETR
from monai.transforms import Compose, NormalizeIntensityd, Orientationd, ScaleIntensityd, Spacingd
from torch import nn

from common.networks import (
    UNETR,
    DilatedResNet,
    DynUNetEncoder,
    LegacyPatchMerging,
    MedNeXtEncoder,
    MultiViewEncoder,
    NNFormer,
    ResidualEncoderUNet,
    ResidualUNetEncoder,
    SegResNetEncoder,
    STUNet,
    STUNetEncoder,
    SwinEncoder,
    ViTEncoder,
)
from common.preparation import preparation_record
from common.transforms import CheckVolumed, DomainSpacingd
from common.weights import load_encoder, save_encoder
from common.weights.encoder_file import read_encoder, write_state

SIZE = (32, 16, 48)
WORDS = {"spacing": [1.0, 1.0, 1.0], "orientation": "RAS", "intensity": "z-score", "spatial_size": list(SIZE)}
"""What files said of their images before there was a record of preparation."""


def images(spacing=(1.0, 1.0, 1.0), axcodes="RAS", intensity=NormalizeIntensityd, channels=1):
    resample = DomainSpacingd("image", spacing) if isinstance(spacing, dict) else Spacingd("image", spacing)
    check, turn = CheckVolumed("image", channels=channels), Orientationd("image", axcodes, labels=None)
    return Compose([check, turn, resample, intensity("image")])


def made_of(**arguments):
    return {"preparation": preparation_record(images(**arguments)), "spatial_size": list(SIZE)}


def make(seed=0, channels=1, size=SIZE, num_heads=3, hidden_size=24, **arguments):
    torch.manual_seed(seed)
    net = UNETR(
        channels, 2, size, feature_size=4, hidden_size=hidden_size, mlp_dim=40, num_heads=num_heads, num_layers=4,
        **arguments,
    )  # fmt: skip
    return ViTEncoder(net.eval().vit)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "encoder.safetensors"


def clone(encoder):
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def image_of(channels=1, size=SIZE):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(3))


def edit(path, change):
    """Write the file again with `change(state, record)` made."""
    state, record = read_encoder(path)
    change(state, record)
    write_state(state, path, record)


@pytest.mark.parametrize("nothing", [None, ""])
def test_from_scratch_is_logged(caplog, nothing):
    caplog.set_level(logging.INFO)
    encoder = make()
    before = clone(encoder)
    assert load_encoder(encoder, nothing) is None
    assert same(encoder.state_dict(), before) and "training from scratch" in caplog.text


def test_a_network_without_an_encoder_trains_from_scratch(path, caplog):
    with caplog.at_level("INFO"):
        assert load_encoder(None, None) is None
    assert "training from scratch" in caplog.text
    with pytest.raises(ValueError, match=r"pretrained_encoder is .*, but the network has no encoder"):
        load_encoder(None, path)


def test_everything_loads(path, caplog):
    caplog.set_level(logging.INFO)
    source, target = make(0), make(1)
    save_encoder(source, path, {**made_of(), "method": "MAE"})
    report = load_encoder(target, path, images(), SIZE)
    assert same(target.state_dict(), source.state_dict())
    assert report.covered == 1 and len(report.loaded) == len(source.state_dict())
    assert not (report.adapted or report.new or report.unused or report.warnings)
    assert f"transfer report for {path}" in caplog.text and "WARNING" not in caplog.text


class Parts(nn.Module):
    """An encoder with rules for a part that files may lack and one that it may lack itself."""

    fresh_weights: ClassVar = {"scale": r"^scale\."}
    spare_weights: ClassVar = {"head": r"^head\."}

    def __init__(self):
        super().__init__()
        self.body, self.scale = nn.Linear(3, 3), nn.Linear(2, 1)


def test_the_report_counts_tensors_and_shares_and_says_the_rules(path):
    save_encoder(Parts(), path, {})

    def change(state, record):
        del state["scale.weight"], state["scale.bias"]
        state["head.weight"] = torch.zeros(3)

    edit(path, change)
    target = Parts()
    before, given = clone(target), read_encoder(path)[0]
    report = load_encoder(target, path)
    assert report.new == dict.fromkeys(("scale.weight", "scale.bias"), "the file has no scale")
    assert report.unused == {"head.weight": "the encoder has no head"}
    assert report.loaded == ["body.weight", "body.bias"] and not report.warnings
    assert report.covered == pytest.approx(12 / 15) and report.share(report.new) == pytest.approx(3 / 15)
    after = target.state_dict()
    assert all(torch.equal(after[name], (before if name in report.new else given)[name]) for name in before)
    text = str(report)
    assert "loaded                2 tensors" in text and "new      scale.weight: the file has no scale" in text
    assert "unused   head.weight: the encoder has no head" in text and "unused                1 tensors" in text


@pytest.mark.parametrize("name", ["vit.blocks.2.norm1.bias", "vit.norm.weight", "vit.blocks.3.mlp.linear2.weight"])
@pytest.mark.parametrize("change", ["missing", "renamed", "another shape", "one more"])
def test_each_tensor_has_to_find_its_place(path, name, change):
    """However small: a share of the elements does not show a norm."""
    save_encoder(make(0), path, made_of())

    def spoil(state, record):
        tensor = state[name] if change == "one more" else state.pop(name)
        if change == "another shape":
            state[name] = tensor[:-1]
        elif change != "missing":
            state[f"{name}_2"] = tensor.clone()

    edit(path, spoil)
    target = make(1)
    before = clone(target)
    named = f"holds {name}_2, which this encoder .* lacks" if change == "one more" else f"not all of it: .*{name}"
    with pytest.raises(ValueError, match=named):
        load_encoder(target, path, images(), SIZE)
    assert same(target.state_dict(), before)


@pytest.mark.parametrize(("change", "missing"), [("file", "scale.weight"), ("encoder", "head.bias")])
def test_of_a_part_there_is_all_or_nothing(path, change, missing):
    source, target = Parts(), Parts()
    if change == "encoder":
        source.head, target.head = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    save_encoder(source, path, {})
    if change == "file":
        edit(path, lambda state, record: state.pop(missing))
    with pytest.raises(ValueError, match=missing):
        load_encoder(target, path)


def test_a_channel_of_a_later_layer_is_not_adapted(path):
    """Though it has as many as the image."""
    source, target = (nn.Sequential(nn.Conv3d(2, 2, 1), nn.Conv3d(width, 2, 1)) for width in (2, 3))
    source.architecture = target.architecture = lambda: {"in_channels": 2}
    target.in_channels = 2
    save_encoder(source, path, {})
    with pytest.raises(ValueError, match=r"fit is 1.weight \(shape differs: \(2, 2, .*, \(2, 3, "):
        load_encoder(target, path)


def dynunet(decoder):
    net = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4])
    return DynUNetEncoder(net, decoder)


def segresnet(decoder):
    return SegResNetEncoder(SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), decoder)


def mednext(decoder):
    return MedNeXtEncoder(MedNeXt(3, 2, 1, 2, blocks_down=(1, 1), blocks_up=(1, 1), blocks_bottleneck=1), decoder)


def resenc(decoder):
    return ResidualUNetEncoder(ResidualEncoderUNet(1, 2, [2, 4], [1, 1], [1, 2]), decoder)


@pytest.mark.parametrize("make_net", [dynunet, segresnet, mednext, resenc])
def test_a_decoder_is_left_out_or_lacks_by_rule(path, make_net):
    save_encoder(make_net(True), path, {})
    report = load_encoder(make_net(False), path)
    assert report.covered == 1 and set(report.unused.values()) == {"the encoder has no decoder"}
    source = make_net(False)  # as pretexts of the encoder alone save it
    save_encoder(source, path, {})
    target = make_net(True)
    report = load_encoder(target, path)
    assert set(report.new.values()) == {"the file has no decoder"} and set(report.loaded) == set(source.state_dict())
    # Part of a decoder is neither.
    cut = make_net(True)
    spare = next(name for name in cut.state_dict() if name not in source.state_dict())
    part, _, last = spare.rpartition(".")
    delattr(cut.get_submodule(part), last)
    save_encoder(cut, path, {})
    with pytest.raises(ValueError, match=re.escape(spare)):
        load_encoder(make_net(True), path)


def resnet(**arguments):
    return DilatedResNet(**{"depth": 10, "width": 4, **arguments})


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            {"depth": 50},
            r"made with depth 50 and not 10, the first tensor that does not fit is \S+ \(shape differs: \(.*\) in the "
            r"file, \(.*\) in the encoder\); use",
        ),
        (
            {"width": 8},
            r"made with width 8 and not 4, the first tensor that does not fit is \S+ \(shape differs: \(8, 1, .*\) in "
            r"the file, \(4, 1, .*\) in the encoder\); use",
        ),
    ],
)
def test_another_depth_or_width_is_named(path, made, sentence):
    save_encoder(resnet(**made), path, {})
    with pytest.raises(ValueError, match=sentence):
        load_encoder(resnet(), path)


def test_what_lacks_is_named(path):
    save_encoder(resnet(), path, {})
    with pytest.raises(ValueError, match=r"made with depth 10 and not 34, it has no tensor \S+ and \d+ more; use"):
        load_encoder(resnet(depth=34), path)
    edit(path, lambda state, record: state.update({f"net.{name}": state.pop(name) for name in list(state)}))
    with pytest.raises(ValueError, match=r"fits 0.0% .*: no tensor of the encoder is in it by name; use"):
        load_encoder(resnet(), path)


def test_a_part_of_a_deeper_encoder_is_refused(path):
    """All tensors of the shallower one are there, and would compute something else."""
    save_encoder(resnet(depth=18), path, {})
    sentence = (
        r"holds layer\S+ and \d+ more, which this encoder .* no rule leaves out: it was made with depth 18 and not"
    )
    with pytest.raises(ValueError, match=sentence):
        load_encoder(resnet(), path)


def test_refusal_leaves_the_encoder_alone(path):
    save_encoder(make(0, hidden_size=48), path, {"method": "MAE"})
    target = make(1)
    before = clone(target)
    with pytest.raises(ValueError, match=rf"{path} \(MAE on ViTEncoder\) fits 0.\d% of this encoder \(ViTEncoder\)"):
        load_encoder(target, path)
    assert same(target.state_dict(), before)


def test_another_architecture_is_refused(path, caplog):
    torch.manual_seed(0)
    swin = SwinEncoder(SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).swinViT)
    save_encoder(swin, path, {"method": "RCR"})
    target = make()
    with pytest.raises(ValueError, match=r"RCR on SwinEncoder\) fits 0.0% of this encoder.*use the network") as raised:
        load_encoder(target, path)
    assert len(str(raised.value).splitlines()) == 1
    names = list(target.state_dict())
    assert f"new      {names[9]}: no tensor" in caplog.text and f"new      {names[10]}: no tensor" not in caplog.text
    assert f"new      and {len(names) - 10} more" in caplog.text
    assert f"unused   and {len(swin.state_dict()) - 10} more" in caplog.text
    caplog.set_level("DEBUG")
    with pytest.raises(ValueError):
        load_encoder(target, path)
    assert f"new      {names[-1]}: no tensor" in caplog.text


@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1)])
def test_other_channels_are_adapted(path, old, new):
    source, target = make(0, channels=old), make(1, channels=new)
    save_encoder(source, path, made_of())
    report = load_encoder(target, path, images(), SIZE)
    assert report.adapted == {
        "vit.patch_embedding.patch_embeddings.weight": f"{old} input channels to {new}",
    }
    assert report.covered == 1
    image = image_of()
    with torch.no_grad():
        maps = zip(source(image.repeat(1, old, 1, 1, 1)), target(image.repeat(1, new, 1, 1, 1)), strict=True)
        for before, after in maps:
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


# The second has as many tokens as the file, in another grid.
@pytest.mark.parametrize(("size", "grid"), [((48, 32, 32), (3, 2, 2)), ((48, 32, 16), (3, 2, 1))])
def test_positions_are_resampled_to_another_grid(path, size, grid):
    source, target = make(0), make(1, size=size)
    save_encoder(source, path, made_of())
    report = load_encoder(target, path, images(), size)
    name = "vit.patch_embedding.position_embeddings"
    assert report.adapted == {name: f"positions resampled from grid (2, 1, 3) to {grid}"} and report.covered == 1
    before, after = (e.state_dict()[name][0].unflatten(0, g) for e, g in ((source, (2, 1, 3)), (target, grid)))
    torch.testing.assert_close(after[0, 0, 0], before[0, 0, 0])
    torch.testing.assert_close(after[1, 1, 0], (before[0, 0, 0] + before[1, 0, 0]) / 2)


def test_positions_of_unknown_grid_are_refused(path):
    save_encoder(make(0), path, {"method": "MAE"})
    sentence = r"does not fill vit.\S+position_embeddings, .* \(1, 12, 24\) in the encoder\); give spatial_size\)"
    with pytest.raises(ValueError, match=sentence):
        load_encoder(make(1, size=(48, 32, 32)), path)


def views(embed_dim=6, **arguments):
    return MultiViewEncoder(
        embed_dim=embed_dim, widths=(16, 32, 64, 128), num_heads=2, dim_head=2, mlp_dim=4, **arguments
    )


def test_small_layers_that_do_not_fit_are_refused(path):
    """Of slice encoders the last layer holds a hundredth of the weights, and frozen it would stay random."""
    save_encoder(views(), path, {"method": "PlaneExemplar"})
    target = views(4)
    before = clone(target)
    with pytest.raises(ValueError, match=r"PlaneExemplar on MultiViewEncoder\) .*embed_dim 6 and not 4, .*project"):
        load_encoder(target, path)
    assert same(target.state_dict(), before)
    assert load_encoder(views(in_channels=2), path).covered == 1  # adapted
    report = load_encoder(views(num_layers=0), path)
    assert report.covered == 1 and set(report.unused.values()) == {"the encoder has no transformer"}
    edit(path, lambda state, record: state.pop("planes.axial.stem.weight"))
    with pytest.raises(ValueError, match=r"it has no tensor planes\.axial\.stem\.weight"):
        load_encoder(views(), path)


def test_another_scope_of_the_norm_is_warned_of(path):
    save_encoder(views(norm_scope="volume"), path, {})
    (warning,) = load_encoder(views(norm_scope="slice"), path).warnings
    assert "made with norm_scope volume, but this one has slice." in warning


TWO = {"brain": (1.0, 1.0, 1.0), "liver": (2.0, 2.0, 3.0)}


@pytest.mark.parametrize(
    ("made", "change", "sentence"),
    [
        (
            {},
            {"spacing": (2, 2, 2)},
            "made with spacing [1.0, 1.0, 1.0], the images have [2.0, 2.0, 2.0] (id `spacing`).",
        ),
        ({"spacing": TWO}, {"spacing": (3, 3, 3)}, "'liver': [2.0, 2.0, 3.0]}, the images have [3.0, 3.0, 3.0]"),
        ({"spacing": TWO}, {"spacing": {"liver": (2, 2, 2)}}, "the images have {'liver': [2.0, 2.0, 2.0]}"),
        ({}, {"axcodes": "LPS"}, "made with orientation RAS, the images have LPS (id `orientation`)."),
        ({}, {"intensity": ScaleIntensityd}, "the images have ScaleIntensityd("),
        ({}, {"channels": 2}, "made with channels 1, the images have 2 (id `in_channels`)."),
    ],
)
def test_differences_of_the_images_are_told(path, caplog, made, change, sentence):
    """As warnings, or as refusals where they are not accepted; nothing changes in the encoder then."""
    save_encoder(make(0), path, made_of(**made))
    report = load_encoder(make(1), path, images(**change), SIZE)
    assert len(report.warnings) == 1 and sentence in report.warnings[0]
    assert [record.levelname for record in caplog.records if sentence in record.message] == ["WARNING"]
    told = {"spacing", "axcodes", "intensity"} & set(change)
    assert ("--prepare_as encoder prepares images as those of" in caplog.text) == bool(told)
    encoder = make(1)
    before = clone(encoder)
    with pytest.raises(ValueError, match=r"prepared in another way: .*--accept_preparation True") as refusal:
        load_encoder(encoder, path, images(**change), SIZE, accept_preparation=False)
    assert sentence in str(refusal.value) and same(encoder.state_dict(), before)


@pytest.mark.parametrize("spacing", [(2, 2, 3), {"liver": (2, 2, 3)}, TWO])
def test_the_spacing_of_one_of_its_domains_is_no_difference(path, spacing):
    save_encoder(make(0), path, made_of(spacing=TWO))
    load_encoder(make(1), path, images(spacing=spacing), SIZE, accept_preparation=False)


def test_another_size_is_told_where_positions_depend_on_it(path):
    save_encoder(make(0), path, made_of())
    (warning,) = load_encoder(make(1, size=(48, 16, 32)), path, images(), (48, 16, 32)).warnings
    assert "made with spatial_size [32, 16, 48], but the images have [48, 16, 32]." in warning
    save_encoder(DilatedResNet(10, width=4), path, made_of())
    assert not load_encoder(DilatedResNet(10, width=4), path, images(), (48, 16, 32)).warnings


def test_a_table_of_an_unstated_size_fills_no_other_grid_of_as_many_tokens(path):
    """Row by row, it would give each token the position of another one."""
    save_encoder(make(0, size=(32, 32, 32)), path, {})
    target = make(1, size=(64, 32, 16))
    before = clone(target)
    with pytest.raises(ValueError, match=r"states no spatial_size, and 8 tokens .* grid \(4, 2, 1\).*--spatial_size"):
        load_encoder(target, path, spatial_size=(64, 32, 16))
    assert same(target.state_dict(), before)
    edit(path, lambda state, record: record.update(spatial_size=[32, 32, 32]))
    assert "from grid (2, 2, 2) to (4, 2, 1)" in str(load_encoder(target, path, spatial_size=(64, 32, 16)).adapted)
    edit(path, lambda state, record: record.pop("spatial_size"))
    assert not load_encoder(make(1, size=(32, 32, 32)), path, spatial_size=(32, 32, 32)).adapted
    save_encoder(make(0), path, {})  # 6 tokens are those of no cube
    assert not load_encoder(make(1), path, spatial_size=SIZE).adapted


def test_old_files_load_and_say_what_they_do_not_know(path, caplog):
    """Their numbers are compared, their words are shown."""
    caplog.set_level(logging.INFO)
    save_encoder(make(0), path, WORDS)
    assert not load_encoder(make(1), path, images(), SIZE).warnings
    assert (
        "no record of how its images were prepared; it states spacing [1.0, 1.0, 1.0], orientation RAS." in caplog.text
    )
    assert (
        "described in words, 'z-score', so they are not compared; the images have NormalizeIntensityd(" in caplog.text
    )
    (warning,) = load_encoder(make(1), path, images(spacing=(2, 2, 2)), SIZE).warnings
    assert "made with spacing [1.0, 1.0, 1.0], the images have [2.0, 2.0, 2.0]" in warning
    save_encoder(make(0), path, {"domain_spacings": {"a": [4, 4, 4]}})
    (warning,) = load_encoder(make(1), path, images(), SIZE).warnings
    assert "made with spacing {'a': [4, 4, 4]}" in warning


def test_what_one_side_does_not_say_is_no_difference(path):
    save_encoder(make(0), path, {})
    assert not load_encoder(make(1), path, images(), SIZE).warnings
    save_encoder(make(0), path, made_of())
    assert not load_encoder(make(1), path).warnings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_heads": 2}, "made with num_heads 3, but this one has 2."),
        ({"norm_eps": 1e-6}, "made with norm_eps 1e-05, but this one has 1e-06."),
    ],
)
def test_differences_that_no_shape_shows_are_warned_of(path, arguments, sentence):
    save_encoder(make(0), path, made_of())
    report = load_encoder(make(1, **arguments), path, images(), SIZE)
    assert len(report.warnings) == 1 and sentence in report.warnings[0]


@pytest.mark.parametrize("token", [False, True])
def test_a_class_token_on_one_side_is_refused(path, token):
    save_encoder(make(0, class_token=token), path, made_of())
    with pytest.raises(ValueError, match="cls_token") as refused:
        load_encoder(make(1, class_token=not token), path, images(), SIZE)
    assert "vit.cls_token" in str(refused.value) and f"class_token {token} and not {not token}" in str(refused.value)


def test_another_patch_merging_is_warned_of(path):
    def swin(**arguments):
        net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), **arguments)
        return SwinEncoder(net.swinViT)

    save_encoder(swin(downsample=LegacyPatchMerging), path, {})
    (warning,) = load_encoder(swin(), path).warnings
    assert "made with patch_merging LegacyPatchMerging, but this one has PatchMerging." in warning


def nnformer(patch_size=4, size=(32, 32, 32), **arguments):
    sizes = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4), "window_size": (4, 4)}
    return NNFormer(1, 2, size, patch_size=patch_size, **sizes, **arguments).model_down


def test_relative_positions_numbered_in_another_way_are_warned_of(path):
    save_encoder(nnformer(legacy_rel_index=True), path, {})
    (warning,) = load_encoder(nnformer(), path).warnings
    assert "made with legacy_rel_index True, but this one has False." in warning


def dynunet(last, decoder=True):
    return DynUNetEncoder(DynUNet(3, 1, 2, [3] * 3, [1, 2, last], [2, last], filters=[4, 8, 8]), decoder)


def resenc(last, decoder=True):
    return ResidualUNetEncoder(ResidualEncoderUNet(1, 2, (4, 8, 8), (1, 1, 1), (1, 2, last)), decoder)


def stunet(last, decoder=True):
    return STUNetEncoder(STUNet(1, 2, (4, 8, 8), (1, 1, 1), (2, last)), decoder)


@pytest.mark.parametrize("make_one", [dynunet, resenc, stunet])
def test_other_strides_are_refused(path, make_one):
    """The encoder alone has the same tensors for any stride."""
    save_encoder(make_one(2, decoder=False), path, {"method": "MAE"})
    target = make_one((1, 2, 2))
    before = clone(target)
    sentence = r"made with strides .*\[4, 4, 4\]\], but this one has .*\[2, 4, 4\]\]; use the network"
    with pytest.raises(ValueError, match=sentence):
        load_encoder(target, path)
    assert same(target.state_dict(), before)
    load_encoder(make_one(2), path)
    edit(path, lambda state, record: record["architecture"].pop("strides"))  # as of an older file
    load_encoder(target, path)


@pytest.mark.parametrize("patch_size", [(2, 4, 4), (1, 4, 4)])
def test_another_patch_size_is_refused_even_if_its_kernels_have_the_same_shapes(path, patch_size):
    save_encoder(nnformer(), path, {})
    with pytest.raises(ValueError, match=r"patch_size \[4, 4, 4\], but this one has \[[12], 4, 4\]; use the network"):
        load_encoder(nnformer(patch_size), path)
    edit(path, lambda state, record: record["architecture"].update(patch_size=4))  # one number for all axes
    assert not load_encoder(nnformer(), path).warnings


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_what_is_no_float_is_refused(path, kind):
    save_encoder(make(), path, {})
    name = "vit.blocks.1.mlp.linear1.weight"
    edit(path, lambda state, record: state.update({name: state[name].to(kind)}))
    encoder = make(seed=1)
    before = clone(encoder)
    with pytest.raises(ValueError, match=f"encoder.safetensors: {name} holds values of type {str(kind)[6:]}"):
        load_encoder(encoder, path)
    assert same(encoder.state_dict(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(path, bad):
    source, target = make(0), make(1)
    with torch.no_grad():
        source.vit.blocks[1].mlp.linear1.weight[3, 4] = bad
    save_encoder(source, path, made_of())
    before = clone(target)
    with pytest.raises(ValueError, match=r"vit.blocks.1.mlp.linear1.weight holds values that are not finite"):
        load_encoder(target, path)
    assert same(target.state_dict(), before)


@pytest.mark.parametrize("form", ["separable", "learnable"])
def test_separable_positions_load_into_either_form(path, form):
    source = make(0, class_token=True, position="separable")
    target = make(1, class_token=True, position=form)
    save_encoder(source, path, made_of())
    report = load_encoder(target, path, images(), SIZE)
    assert report.covered == 1 and not report.unused and not report.adapted
    image = image_of()
    with torch.no_grad():
        for before, after in zip(source(image), target(image), strict=True):
            torch.testing.assert_close(after, before)
