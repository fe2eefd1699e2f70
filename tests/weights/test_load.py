from __future__ import annotations

import logging

import pytest
import torch
from monai.networks.nets import SwinUNETR
from monai.transforms import Compose, NormalizeIntensityd, Orientationd, ScaleIntensityd, Spacingd

from common.networks import UNETR, DilatedResNet, LegacyPatchMerging, MultiViewEncoder, SwinEncoder, ViTEncoder
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


def test_everything_loads(path, caplog):
    caplog.set_level(logging.INFO)
    source, target = make(0), make(1)
    save_encoder(source, path, {**made_of(), "method": "MAE"})
    report = load_encoder(target, path, images(), SIZE)
    assert same(target.state_dict(), source.state_dict())
    assert report.covered == 1 and len(report.loaded) == len(source.state_dict())
    assert not (report.adapted or report.new or report.unused or report.warnings)
    assert f"transfer report for {path}" in caplog.text and "WARNING" not in caplog.text


def test_the_report_counts_tensors_and_shares(path):
    source, target = make(0), make(1)
    save_encoder(source, path, made_of())

    def change(state, record):
        del state["vit.norm.weight"]
        state["vit.norm.bias"] = torch.zeros(7)
        state["vit.head.weight"] = torch.zeros(3)

    edit(path, change)
    before = clone(target)
    report = load_encoder(target, path, images(), SIZE)
    total = sum(tensor.numel() for tensor in before.values())
    assert report.new == ["vit.norm.weight", "vit.norm.bias"]
    assert report.unused == {
        "vit.norm.bias": "shape differs: (7,) in the file, (24,) in the encoder",
        "vit.head.weight": "no tensor of this name in the encoder",
    }
    assert len(report.loaded) == len(before) - 2
    assert report.covered == pytest.approx((total - 48) / total) and report.share(report.new) == pytest.approx(
        48 / total
    )
    after, given = target.state_dict(), source.state_dict()
    assert all(torch.equal(after[name], (before if name in report.new else given)[name]) for name in before)
    text = str(report)
    assert f"loaded            {len(before) - 2:5d} tensors" in text and "new      vit.norm.weight" in text
    assert "unused   vit.head.weight: no tensor" in text and "unused                2 tensors of the file" in text


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
    with pytest.raises(ValueError, match=r"made with depth 10 and not 34, it has no tensor \S+; use"):
        load_encoder(resnet(depth=34), path)
    edit(path, lambda state, record: state.update({f"net.{name}": state.pop(name) for name in list(state)}))
    with pytest.raises(ValueError, match=r"fits 0.0% .*: no tensor of the encoder is in it by name; use"):
        load_encoder(resnet(), path)


def test_a_part_of_a_deeper_encoder_is_warned_of(path):
    save_encoder(resnet(depth=18), path, {})
    (warning,) = load_encoder(resnet(), path).warnings
    assert "made with depth 18, this one has 10." in warning


@pytest.mark.parametrize("min_share", [0.9, 1.0])
def test_refusal_leaves_the_encoder_alone(path, min_share):
    save_encoder(make(0, hidden_size=48), path, {"method": "MAE"})
    target = make(1)
    before = clone(target)
    with pytest.raises(ValueError, match=rf"{path} \(MAE on ViTEncoder\) fits 0.\d% of this encoder \(ViTEncoder\)"):
        load_encoder(target, path, min_share=min_share)
    assert same(target.state_dict(), before)
    assert load_encoder(target, path, min_share=0) is not None


def test_another_architecture_is_refused(path, caplog):
    torch.manual_seed(0)
    swin = SwinEncoder(SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).swinViT)
    save_encoder(swin, path, {"method": "RCR"})
    target = make()
    with pytest.raises(ValueError, match=r"RCR on SwinEncoder\) fits 0.0% of this encoder.*use the network") as raised:
        load_encoder(target, path)
    assert len(str(raised.value).splitlines()) == 1
    names = list(target.state_dict())
    assert f"new      {names[9]}\n" in caplog.text and f"new      {names[10]}\n" not in caplog.text
    assert f"new      and {len(names) - 10} more" in caplog.text
    assert f"unused   and {len(swin.state_dict()) - 10} more" in caplog.text
    caplog.set_level("DEBUG")
    with pytest.raises(ValueError):
        load_encoder(target, path)
    assert f"new      {names[-1]}\n" in caplog.text


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


def test_positions_of_unknown_grid_are_left_new(path):
    save_encoder(make(0), path, {"method": "MAE"})
    report = load_encoder(make(1, size=(48, 32, 32)), path)
    assert report.new == ["vit.patch_embedding.position_embeddings"]
    assert "give spatial_size" in report.unused["vit.patch_embedding.position_embeddings"]


def test_what_does_not_fit_is_warned_of(path, caplog):
    save_encoder(make(0), path, {"method": "MAE"})
    load_encoder(make(1, size=(48, 32, 32)), path)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "left as drawn, since the shape does not fit: vit.patch_embedding.position_embeddings (" in warning
    assert "(1, 6, 24) in the file, (1, 12, 24) in the encoder" in warning and "more" not in warning


def views(embed_dim=6, **arguments):
    return MultiViewEncoder(
        embed_dim=embed_dim, widths=(16, 32, 64, 128), num_heads=2, dim_head=2, mlp_dim=4, **arguments
    )


def test_small_layers_that_do_not_fit_are_refused_where_they_are_required(path, caplog):
    """Of slice encoders the last layer holds a hundredth of the weights, and frozen it would stay random."""
    save_encoder(views(), path, {"method": "PlaneExemplar"})
    target = views(4)
    before = clone(target)
    sentence = (
        r"PlaneExemplar on MultiViewEncoder\) does not fill planes.sagittal.project.*, which has to come from the file "
        r"\(shape differs: .* in the file, .* in the encoder\); use the network it was made with"
    )
    with pytest.raises(ValueError, match=sentence) as refused:
        load_encoder(target, path, required=["planes."])
    assert same(target.state_dict(), before) and "\n" not in str(refused.value)
    caplog.clear()
    assert load_encoder(target, path).covered > 0.9
    assert "planes.sagittal.project" in caplog.text and " more." in caplog.text
    load_encoder(views(), path, required=["planes."])
    load_encoder(views(in_channels=2), path, required="planes.")  # adapted
    edit(path, lambda state, record: state.pop("planes.axial.stem.weight"))
    with pytest.raises(ValueError, match=r"planes.axial.stem.weight, .* \(it holds no tensor of this name\)"):
        load_encoder(views(), path, required=["transformer.", "planes."])


def test_another_scope_of_the_norm_is_warned_of(path):
    save_encoder(views(norm_scope="volume"), path, {})
    (warning,) = load_encoder(views(norm_scope="slice"), path).warnings
    assert "made with norm_scope volume, this one has slice." in warning


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
    assert "made with spatial_size [32, 16, 48], the images have [48, 16, 32]." in warning
    save_encoder(DilatedResNet(10, width=4), path, made_of())
    assert not load_encoder(DilatedResNet(10, width=4), path, images(), (48, 16, 32)).warnings


def test_old_files_load_and_say_what_they_do_not_know(path, caplog):
    """Their numbers are compared, their words are shown."""
    caplog.set_level(logging.INFO)
    save_encoder(make(0), path, WORDS)
    assert not load_encoder(make(1), path, images(), SIZE).warnings
    assert (
        "no record of how its images were prepared; it states spacing [1.0, 1.0, 1.0], orientation RAS." in caplog.text
    )
    assert "stated in words, 'z-score', and not compared; the images have NormalizeIntensityd(" in caplog.text
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
        ({"num_heads": 2}, "made with num_heads 3, this one has 2."),
        ({"norm_eps": 1e-6}, "made with norm_eps 1e-05, this one has 1e-06."),
        ({"class_token": True}, "made with class_token False, this one has True."),
    ],
)
def test_differences_that_no_shape_shows_are_warned_of(path, arguments, sentence):
    save_encoder(make(0), path, made_of())
    report = load_encoder(make(1, **arguments), path, images(), SIZE)
    assert len(report.warnings) == 1 and sentence in report.warnings[0]


def test_another_patch_merging_is_warned_of(path):
    def swin(**arguments):
        net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), **arguments)
        return SwinEncoder(net.swinViT)

    save_encoder(swin(downsample=LegacyPatchMerging), path, {})
    (warning,) = load_encoder(swin(), path).warnings
    assert "made with patch_merging LegacyPatchMerging, this one has PatchMerging." in warning


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
    report = load_encoder(target, path, images(), SIZE, min_share=1.0)
    assert report.covered == 1 and not report.unused and not report.adapted
    image = image_of()
    with torch.no_grad():
        for before, after in zip(source(image), target(image), strict=True):
            torch.testing.assert_close(after, before)
