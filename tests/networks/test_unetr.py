from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks import SABlock
from monai.networks.nets import UNETR as MonaiUNETR
from torch import nn

from common.networks import UNETR, SeparablePositions, ViTEncoder

SMALL = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 40, "num_heads": 3, "qkv_bias": True}
SIZE = (32, 16, 48)  # a 2 x 1 x 3 grid, so that a swapped axis shows


def make(cls=UNETR, **arguments):
    torch.manual_seed(0)
    return cls(1, 3, SIZE, **SMALL, **arguments).eval()


@pytest.fixture
def image():
    return torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def slow_forward(net, image, after):
    """UNETR by hand: blocks one by one, tokens folded by a loop over the grid; `after` are the three skip blocks."""

    def fold(tokens):
        grid = [size // 16 for size in SIZE]
        volume = torch.zeros(len(tokens), tokens.shape[2], *grid)
        number = tokens.shape[1] - grid[0] * grid[1] * grid[2]  # a class token comes first
        for d in range(grid[0]):
            for h in range(grid[1]):
                for w in range(grid[2]):
                    volume[:, :, d, h, w] = tokens[:, number]
                    number += 1
        return volume

    vit = net.vit
    x = vit.patch_embedding(image)
    if hasattr(vit, "cls_token"):
        x = torch.cat([vit.cls_token.repeat(len(x), 1, 1), x], dim=1)
    z = {}
    for number, block in enumerate(vit.blocks):
        x = block(x)
        z[number + 1] = x
    skips = [fold(z[number]) for number in after]
    enc4 = net.encoder4(skips[2])
    dec = net.decoder5(fold(vit.norm(x)), enc4)
    dec = net.decoder4(dec, net.encoder3(skips[1]))
    dec = net.decoder3(dec, net.encoder2(skips[0]))
    return net.out(net.decoder2(dec, net.encoder1(image)))


def test_with_monais_skip_blocks_it_is_monais_net(image):
    monai, ours = make(MonaiUNETR), make(skip_blocks=(4, 7, 10))
    ours.load_state_dict(monai.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(image), monai(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "after"),
    [
        ({}, (3, 6, 9)),
        ({"num_layers": 4}, (1, 2, 3)),
        ({"num_layers": 8, "skip_blocks": (1, 5, 8)}, (1, 5, 8)),
        ({"class_token": True, "position": "separable"}, (3, 6, 9)),
    ],
)
def test_reads_the_blocks_it_says(image, arguments, after):
    net = make(**arguments)
    assert len(net.vit.blocks) == arguments.get("num_layers", 12) and net.skip_blocks == after
    with torch.no_grad():
        torch.testing.assert_close(net(image), slow_forward(net, image, after), rtol=1e-5, atol=1e-5)
        other = slow_forward(net, image, tuple(min(number + 1, len(net.vit.blocks)) for number in after))
        assert not torch.allclose(net(image), other, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_scripted_net_gives_the_same(image):
    net = make(num_layers=4)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(net)(image), net(image), rtol=1e-5, atol=1e-5)


def test_images_of_another_size():
    net = make(num_layers=4)
    for size in ((48, 32, 16), (32, 32, 48)):  # the first has as many tokens, in another grid
        with pytest.raises(ValueError, match=r"needs images of \[32, 16, 48\] voxels, not .*: set roi_size"):
            net(torch.zeros(1, 1, *size))


def test_channels_last_gives_the_same(image):
    net = make(num_layers=4)
    with torch.no_grad():
        expected = net(image)
        net = net.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_view(image):
    net = make(num_layers=4)
    encoder = ViTEncoder(net.vit)
    inside = {parameter.data_ptr() for parameter in net.vit.parameters()}
    assert {parameter.data_ptr() for parameter in encoder.parameters()} == inside
    before = net(image)
    with torch.no_grad():
        encoder.vit.norm.weight.mul_(2)
    assert not torch.allclose(net(image), before)


def test_separable_positions_are_an_outer_sum():
    axial, planar = torch.randn(1, 2, 5), torch.randn(1, 12, 5)
    table = SeparablePositions((2, 3, 4))(axial, planar)
    assert table.shape == (1, 24, 5)
    for d in range(2):
        for p in range(12):
            assert torch.equal(table[0, d * 12 + p], axial[0, d] + planar[0, p])
    again = SeparablePositions((2, 3, 4))(*SeparablePositions((2, 3, 4)).right_inverse(table))
    torch.testing.assert_close(again, table, atol=1e-5, rtol=0)


def test_separable_positions_in_the_net():
    net = make(position="separable", class_token=True, num_layers=4)
    positions = dict(net.vit.patch_embedding.named_parameters())
    sizes = {name.rpartition(".")[2]: p.shape[1] for name, p in positions.items() if "position" in name}
    assert sizes == {"original0": 2, "original1": 3}
    stds = [p.std().item() for name, p in positions.items() if "position" in name]
    assert all(0.01 < std < 0.03 for std in stds)
    net(torch.randn(1, 1, *SIZE)).sum().backward()
    trained = {name for name, p in net.vit.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {
        "patch_embedding.parametrizations.position_embeddings.original0",
        "patch_embedding.parametrizations.position_embeddings.original1",
        "parametrizations.cls_token.original0",
        "parametrizations.cls_token.original1",
    } <= trained
    copy.deepcopy(net)


def test_freezing_the_patch_embedding_freezes_the_projection_alone():
    net = make(freeze_patch_embed=True, num_layers=4)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    prefix = "vit.patch_embedding.patch_embeddings."
    assert frozen == {f"{prefix}weight", f"{prefix}bias"}


def test_epsilon_of_the_layer_norms():
    assert {m.eps for m in make(norm_eps=1e-6).vit.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize(
    ("arguments", "flash"), [({}, True), ({"dropout_rate": 0.1}, False), ({"save_attn": True}, False)]
)
def test_attention_is_fused_where_that_computes_the_same(arguments, flash):
    net = make(**arguments)
    assert {m.use_flash_attention for m in net.modules() if isinstance(m, SABlock)} == {flash}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": (32, 40, 32)}, "multiple of its patch size 16"),
        ({"num_layers": 13}, "at most 12 blocks"),
        ({"num_layers": 2}, r"increasing block numbers in 1..2"),
        ({"skip_blocks": (6, 3, 9)}, r"not \[6, 3, 9\]"),
        ({"skip_blocks": (3, 6)}, r"not \[3, 6\]"),
        ({"position": "sincos"}, "'learnable' or 'separable', not 'sincos'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNETR(**{"in_channels": 1, "out_channels": 2, "img_size": SIZE} | SMALL | arguments)


def test_patches_of_8_by_hand(image):
    """The grid is twice as fine, and the decoder starts a level higher, with two skips."""
    ours = make(patch_size=8)
    assert ours.vit.patch_embedding.patch_embeddings.kernel_size == (8, 8, 8)
    assert ours.vit.patch_embedding.position_embeddings.shape[1] == 4 * 2 * 6
    grid = [size // 8 for size in SIZE]

    def fold(tokens):
        return tokens.transpose(1, 2).reshape(2, -1, *grid)

    x, after = ours.vit.patch_embedding(image), {}
    for number, block in enumerate(ours.vit.blocks, start=1):
        after[number] = x = block(x)
    halved = ours.decoder4(fold(ours.vit.norm(x)), ours.encoder3(fold(after[8])))
    assert list(halved.shape[2:]) == [size // 4 for size in SIZE]
    expected = ours.decoder3(halved, ours.encoder2(fold(after[4])))
    expected = ours.out(ours.decoder2(expected, ours.encoder1(image)))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), expected)
        torch.testing.assert_close(torch.jit.script(ours)(image), ours(image), rtol=1e-5, atol=1e-5)


def test_patches_of_8_train_every_parameter(image):
    net = make(patch_size=8).train()
    net(image).square().mean().backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None}
    assert all("norm_cross_attn" in name or "cross_attn" in name for name in unused), unused
    encoder = ViTEncoder(net.vit)
    assert encoder.strides[0] == (8, 8, 8) and encoder(image)[0].shape == (2, 24, 4, 2, 6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"patch_size": 4}, "16 or 8, for all axes or for each, not 4"),
        ({"patch_size": 8, "skip_blocks": (3, 6, 9)}, "2 increasing block numbers"),
    ],
)
def test_patch_size_errors(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**arguments)


@pytest.mark.parametrize("patch", [(8, 16, 16), (16, 8, 16), (8, 8, 16)])
def test_patches_of_8_on_some_axes(patch):
    torch.manual_seed(0)
    size = tuple(2 * side for side in patch)
    net = UNETR(1, 3, size, num_layers=4, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2, patch_size=patch)
    encoder = ViTEncoder(net.vit)
    image = torch.rand(2, 1, *size)
    assert encoder.strides[-1] == patch and encoder(image)[-1].shape == (2, 24, 2, 2, 2)
    out = net(image)
    assert out.shape == (2, 3, *size)
    out.square().mean().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert all("cross_attn" in name or "norm_cross" in name for name in unused)


def test_patches_it_cannot_take():
    with pytest.raises(ValueError, match="16 or 8, for all axes or for each"):
        UNETR(1, 2, (32, 32, 32), patch_size=(4, 16, 16))
