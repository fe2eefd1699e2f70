"""The encoders of slices and the net around them, against `transformers`' 2-D models in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BeitConfig, BeitForSemanticSegmentation, BeitModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from common.networks.beit_encoder import BeitEncoder, RelativePositionBias
from common.networks.dino_encoder import DinoEncoder
from common.networks.foreign import Source
from common.networks.slice_encoder import SliceEmbedding
from common.networks.swin_slice_encoder import SwinSliceEncoder, VideoSwinEncoder
from common.networks.transseg import TransSeg
from common.weights.adapt import adapt_channels
from common.weights.inflate import inflate_depth, inflate_patch_embedding
from common.weights.kind import fill, find_kind

SIZE, SLICES = (32, 48), 5
# The BEiT of `transformers` mixes up the axes of its table where they differ.
SIZES = {"beit": (40, 40), "vit": (40, 40), "swin": SIZE}
TOKENS = {
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 3,
    "mlp_dim": 40,
    "patch_size": 8,
    "out_blocks": (1, 2, 3, 4),
}
STAGES = {"embed_dim": 12, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 3, 4)}
COMMON = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40,
    "patch_size": 8, "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
KINDS = ("beit", "vit", "swin")
ENCODERS = {
    "beit": functools.partial(BeitEncoder, **TOKENS),
    "vit": functools.partial(DinoEncoder, **TOKENS),
    "swin": functools.partial(SwinSliceEncoder, **STAGES, patch_size=2, window_size=2),
    "video_swin": functools.partial(VideoSwinEncoder, **STAGES, patch_size=2, window_size=(8, 2, 2)),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    """Draw every parameter, also those that start at 0 or 1, so that none can be mixed up."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def published(kind: str):
    """A random 2-D model of `transformers`, and its maps of an image in our order."""
    if kind == "beit":
        config = BeitConfig(**COMMON, image_size=SIZES[kind], use_relative_position_bias=True)
        model = BeitModel(config, add_pooling_layer=False)
    elif kind == "vit":
        model = ViTModel(ViTConfig(**COMMON, image_size=SIZES[kind]), add_pooling_layer=False)
    else:
        sizes = {"embed_dim": 12, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 2}
        model = SwinModel(SwinConfig(**sizes, image_size=32, patch_size=2), add_pooling_layer=False)
    model = randomise(model.double())

    def maps(image):
        if kind == "swin":
            states = []
            hooks = [
                stage.register_forward_hook(lambda *args: states.append(args[-1][1]), always_call=False)
                if stage.downsample is None
                else stage.downsample.register_forward_hook(
                    lambda module, inputs, output: states.append(inputs[0].transpose(1, 2).unflatten(2, inputs[1]))
                )
                for stage in model.encoder.layers
            ]
            model(image)
            for hook in hooks:
                hook.remove()
            return [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in states]
        states = model(image, output_hidden_states=True).hidden_states[1:]
        return [x[:, 1:].transpose(1, 2).unflatten(2, [side // 8 for side in SIZES[kind]]) for x in states]

    return model, maps


def inflated(kind: str, model: nn.Module, slices: int = SLICES, in_channels: int = 1, **how) -> nn.Module:
    encoder = ENCODERS[kind](in_channels=in_channels, img_size=SIZES[kind], slices=slices).double().eval()
    state = fill(find_kind({}, kind)[1], Source(model.state_dict())).state
    embedding = [state[f"patch_embedding.{part}"] for part in ("weight", "bias")]
    embedding = inflate_patch_embedding(*embedding, slices, in_channels, **how)
    state |= dict(zip(("patch_embedding.weight", "patch_embedding.bias"), embedding, strict=True))
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert unexpected == [] and all(name.startswith("norms.") for name in missing)
    return encoder


def rgb(grey: torch.Tensor) -> torch.Tensor:
    return grey.expand(-1, 3, -1, -1)


def close(made, expected):
    assert len(made) == len(expected) == 4
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_centring_starts_as_the_2d_model_of_the_centre_slice(kind):
    model, maps = published(kind)
    encoder = inflated(kind, model)
    window = torch.rand(2, 1, *SIZES[kind], SLICES, dtype=torch.float64) * 2 - 1
    expected = maps(rgb(window[..., 2]))
    close([x[..., 0] for x in encoder(window)], expected)
    others = torch.randn_like(window)
    others[..., 2] = window[..., 2]
    close([x[..., 0] for x in encoder(others)], expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_average_starts_as_the_2d_model_of_the_mean_slice(kind):
    model, maps = published(kind)
    encoder = inflated(kind, model, inflation="average")
    window = torch.rand(2, 1, *SIZES[kind], SLICES, dtype=torch.float64)
    close([x[..., 0] for x in encoder(window)], maps(rgb(window.mean(-1))))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_channels_enter_as_their_mean(kind):
    model, maps = published(kind)
    encoder = inflated(kind, model, in_channels=4)
    window = torch.rand(1, 4, *SIZES[kind], SLICES, dtype=torch.float64)
    close([x[..., 0] for x in encoder(window)], maps(rgb(window[..., 2].mean(1, keepdim=True))))


@torch.no_grad()
def test_identical_slices_give_the_same_whatever_k():
    model, _ = published("beit")
    grey = torch.rand(1, 1, *SIZES["beit"], 1, dtype=torch.float64)
    for how in ("centring", "average"):
        made = [inflated("beit", model, k, inflation=how)(grey.expand(-1, -1, -1, -1, k)) for k in (1, 3, 11)]
        for other in made[1:]:
            close(other, made[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_the_other_slices_at_the_first_step(kind):
    model, _ = published(kind)
    encoder = inflated(kind, model)
    window = torch.rand(1, 1, *SIZES[kind], SLICES, dtype=torch.float64)
    sum(x.square().sum() for x in encoder(window)).backward()
    gradient = encoder.patch_embedding.weight.grad.abs().sum((0, 1, 2, 3))
    assert encoder.patch_embedding.weight[..., [0, 1, 3, 4]].abs().max() == 0
    assert (gradient > 1e-6).all()


@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_a_run_of_slices_gives_what_its_windows_give(kind):
    net = TransSeg(1, 3, SIZE, ENCODERS[kind], decoder_channels=8).double().eval()
    image = torch.randn(2, 1, *SIZE, 7, dtype=torch.float64)
    windows = [image[..., start : start + SLICES] for start in range(3)]
    expected = torch.cat([net(window) for window in windows], dim=-1)
    assert expected.shape == (2, 3, *SIZE, 3)
    torch.testing.assert_close(net(image), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_maps_keep_to_the_contract(kind):
    encoder = ENCODERS[kind](in_channels=2, img_size=(34, 47))
    image = torch.randn(1, 2, 34, 47, 6)
    maps = encoder(image)
    assert len(maps) == len(encoder.channels) == len(encoder.strides) == 4
    for x, width, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert x.shape == (1, width, -(-34 // stride[0]), -(-47 // stride[1]), 2)
    sum(x.sum() for x in maps).backward()
    unused = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert unused == set()


@pytest.mark.parametrize("target", ["centre", "all"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_net_trains_on_odd_sizes(kind, target):
    net = TransSeg(1, 3, (33, 47), ENCODERS[kind], decoder_channels=8, target=target)
    logits = net(torch.randn(2, 1, 33, 47, SLICES))
    assert logits.shape == (2, 3, 33, 47, 1 if target == "centre" else SLICES)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.encoder.parameters())


@torch.no_grad()
def test_decoder_is_that_of_transformers():
    """The same neck, head and interpolation as of a whole BEiT of `transformers`, on maps of the same blocks."""
    size = SIZES["beit"]
    settings = COMMON | {"num_hidden_layers": 5, "image_size": size, "num_labels": 3, "out_indices": [2, 3, 4, 5]}
    model = randomise(BeitForSemanticSegmentation(BeitConfig(**settings, use_relative_position_bias=True)).double())
    make = functools.partial(BeitEncoder, **TOKENS | {"num_layers": 5})
    net = TransSeg(1, 3, size, make, decoder_channels=24).double().eval()
    state = fill(find_kind({}, "beit")[1], Source(model.beit.state_dict())).state
    state["patch_embedding.weight"] = inflate_depth(adapt_channels(state["patch_embedding.weight"], 1), SLICES)
    net.encoder.load_state_dict(state)
    net.neck.load_state_dict(model.fpn.state_dict())
    state = {}
    for name, tensor in model.decode_head.state_dict().items():
        name = name.replace("convolution", "conv").replace("normalization", "batch_norm")
        name = name.replace("psp_bottleneck", "bottleneck").replace("psp_modules.blocks.", "psp_modules.")
        state[
            name.replace(".conv.conv", ".1.conv")
            .replace(".conv.batch", ".1.batch")
            .replace("classifier.", "classifier.1.")
        ] = tensor
    net.decoder.load_state_dict(state)
    window = torch.rand(2, 1, *size, SLICES, dtype=torch.float64)
    # out_indices count the embedding as 1, so these are blocks 1 to 4; a stride of 2 is left for the caller.
    expected = F.interpolate(model(rgb(window[..., 2])).logits, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(net(window)[..., 0], expected, atol=1e-10, rtol=0)


def test_bias_can_be_exported():
    """The kept one is told by an address in memory, which `torch.export` has not."""
    bias = RelativePositionBias((3, 4), 2).eval()
    with torch.no_grad():
        exported = torch.export.export(bias, (), strict=False).module()
        torch.testing.assert_close(exported(), bias())


def test_bias_is_gathered_once_until_the_table_changes():
    bias = RelativePositionBias((3, 4), 2).eval()
    with torch.no_grad():
        first = bias()
        assert bias() is first
        bias.relative_position_bias_table.normal_()
        second = bias()
        assert second is not first
        torch.testing.assert_close(second[0, :, 1, 2], bias.relative_position_bias_table[bias.index[1, 2]])
        bias.load_state_dict({"relative_position_bias_table": torch.ones_like(bias.relative_position_bias_table)})
        assert (bias() == 1).all()
    assert bias().requires_grad
    bias.train()
    with torch.no_grad():
        assert bias() is not bias()


def test_dense_embedding_is_that_of_each_window():
    embedding = SliceEmbedding(2, 6, 4, 3).double()
    image = torch.randn(2, 2, 8, 12, 5, dtype=torch.float64)
    made = embedding(image).unflatten(0, (2, 3))
    for start in range(3):
        window = image[..., start : start + 3]
        expected = F.conv3d(window, embedding.weight, embedding.bias, stride=(4, 4, 3))[..., 0]
        torch.testing.assert_close(made[:, start], expected, atol=1e-12, rtol=0)


def test_runs_under_autocast_in_bfloat16():
    for kind in ENCODERS:
        net = TransSeg(1, 3, SIZE, ENCODERS[kind], decoder_channels=8)
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.randn(2, 1, *SIZE, SLICES)).float().mean().backward()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.isfinite(net.eval()(torch.randn(1, 1, *SIZE, SLICES)).float()).all()


def test_refusals():
    make = ENCODERS["beit"]
    with pytest.raises(ValueError, match="odd number of slices"):
        TransSeg(1, 3, SIZE, make, slices=4)
    with pytest.raises(ValueError, match="centre, all"):
        TransSeg(1, 3, SIZE, make, target="center")
    with pytest.raises(ValueError, match=r"block numbers in 1\.\.4"):
        make(in_channels=1, img_size=SIZE, out_blocks=(2, 5))
    with pytest.raises(ValueError, match="four maps"):
        TransSeg(1, 3, SIZE, functools.partial(BeitEncoder, **TOKENS | {"out_blocks": (1, 4)}))
    with pytest.raises(ValueError, match=r"fewer than a window of 7: .*image_size"):
        SwinSliceEncoder(1, (96, 96))
    net = TransSeg(1, 3, SIZE, make, decoder_channels=8)
    with pytest.raises(ValueError, match=r"\(B, 1, 32, 48, slices\), not \(2, 1, 48, 32, 5\): set image_size"):
        net(torch.zeros(2, 1, 48, 32, SLICES))
    with pytest.raises(ValueError, match="SliceWindowInferer"):
        net.encoder(torch.zeros(2, 1, *SIZE, 3))
    with pytest.raises(ValueError, match="raise batch_size"):
        net(torch.zeros(1, 1, *SIZE, SLICES))
    net = TransSeg(1, 3, SIZE, make, decoder_channels=8, target="all")
    with pytest.raises(ValueError, match="target='all'"):
        net(torch.zeros(1, 1, *SIZE, 7))


def test_a_random_beit_has_the_published_initialisation():
    """BEiT's `fix_init_weight`, which the arm without pre-training has: ends of residual branches shrink with depth."""
    encoder = BeitEncoder(1, (32, 32), 5, 8, hidden_size=96, mlp_dim=192, num_layers=12, num_heads=3)
    for number, layer in enumerate(encoder.layers, start=1):
        for part in (layer.attention.o_proj, layer.mlp.fc2):
            assert float(part.weight.detach().std()) == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
        for part in (layer.attention.q_proj, layer.mlp.fc1):
            assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
