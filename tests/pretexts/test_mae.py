from __future__ import annotations

import pytest
import torch
from monai.networks.nets import MaskedAutoEncoderViT, SwinUNETR, ViT
from torch import nn

import common.pretexts.mae as module
from common.losses import MaskedReconstructionLoss
from common.networks import UNETR, SwinEncoder, ViTEncoder
from common.pretexts import MAE
from common.transforms import patchify

SIZE, TOKENS = (32, 16, 48), 6
DECODER = {"decoder_hidden_size": 12, "decoder_num_layers": 2, "decoder_num_heads": 2}


def make(class_token=False, position="learnable", mask_ratio=0.5, channels=1, **arguments) -> MAE:
    torch.manual_seed(0)
    net = UNETR(
        channels, 2, SIZE, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=3, num_layers=4,
        class_token=class_token, position=position, **arguments,
    )  # fmt: skip
    return MAE(ViTEncoder(net.vit), SIZE, mask_ratio, position=position, **DECODER)


def fine(hidden=8, size=20, ratio=0.85) -> MAE:
    """Patches of 2 x 2 x 2 voxels, for many tokens at little cost."""
    vit = ViT(1, (size,) * 3, 2, hidden_size=hidden, mlp_dim=hidden, num_layers=4, num_heads=1)
    return MAE(ViTEncoder(vit), (size,) * 3, ratio, 8, 1, 1)


def image_of(size=SIZE, batch=3, channels=1):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def split(keep, tokens=TOKENS):
    """Index tensors from a list of kept tokens per sample."""
    masked = [[token for token in range(tokens) if token not in kept] for kept in keep]
    return torch.tensor(keep), torch.tensor(masked)


@pytest.mark.parametrize(
    ("size", "ratio", "kept"), [(20, 0.85, 150), (20, 0.9, 100), (16, 0.85, 77), (16, 0.75, 128), (4, 0.99, 1)]
)
def test_keeps_the_rounded_number_of_tokens(size, ratio, kept):
    mae, tokens = fine(size=size, ratio=ratio), (size // 2) ** 3
    seen = []
    mae.encoder.vit.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0].shape))
    prediction = mae(torch.randn(2, 1, size, size, size))
    assert seen == [(2, kept, 8)]
    assert prediction["patches"].shape == prediction["target"].shape == (2, tokens - kept, 8)
    assert prediction["masked"].shape == (2, tokens - kept)


def test_each_sample_has_its_own_draw_and_the_seed_repeats_it():
    mae, image = fine(), torch.randn(2, 1, 20, 20, 20)
    torch.manual_seed(5)
    first = mae(image)["masked"]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(mae(image)["masked"], first)
    torch.manual_seed(5)
    assert torch.equal(mae(image)["masked"], first)


@pytest.mark.parametrize("class_token", [False, True])
def test_masked_voxels_do_not_reach_the_encoder(class_token):
    mae, image = make(class_token), image_of().requires_grad_()
    keep, masked = split([[0, 3], [1, 5], [2, 4]])
    mae.encode(image, keep).square().sum().backward()
    gradient = patchify(image.grad, (16, 16, 16)).abs().sum(-1)
    assert (gradient.gather(1, masked) == 0).all()
    assert (gradient.gather(1, keep) > 0).all()


@pytest.mark.parametrize("position", ["learnable", "separable"])
def test_visible_patches_are_embedded_as_the_encoder_embeds_all(position):
    mae, image = make(position=position, channels=2), image_of(channels=2)
    keep, _ = split([[4, 1], [0, 2], [3, 5]])
    found = []
    for embed in (mae.embed, lambda image, keep: module.take(mae.encoder.embed(image), keep)):
        mae.zero_grad()
        made = embed(image, keep)
        made.sin().sum().backward()
        gradients = [p.grad.clone() for p in mae.encoder.vit.patch_embedding.parameters()]
        found.append([made, *gradients])
    assert len(found[0]) == (4 if position == "learnable" else 5)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="but the ViT was built for 6"):
        mae.embed(image_of((16, 16, 16), channels=2), keep)


@pytest.mark.parametrize("class_token", [False, True])
def test_tokens_stand_in_their_places_before_the_decoder(class_token):
    mae = make(class_token)
    keep, _ = split([[1, 4], [0, 2], [3, 5]])
    mae.decoder_embed = mae.decoder_norm = mae.decoder_head = nn.Identity()
    mae.decoder_blocks = nn.ModuleList()
    nn.init.zeros_(mae.decoder_positions[0])
    nn.init.constant_(mae.mask_token, -1)
    tokens = (10 * torch.arange(3)[:, None] + keep)[..., None].expand(-1, -1, 12).float()
    if class_token:
        tokens = torch.cat((torch.full((3, 1, 12), 99.0), tokens), dim=1)
    everywhere = torch.arange(TOKENS).expand(3, -1)
    found = mae.decode(tokens, keep, everywhere)[..., 0].tolist()
    assert found == [[-1, 1, -1, -1, 4, -1], [10, -1, 12, -1, -1, -1], [-1, -1, -1, 23, -1, 25]]


def test_the_target_is_the_image_at_the_masked_patches():
    mae, image = make(channels=2), image_of(channels=2)
    prediction = mae(image)
    patches = patchify(image, (16, 16, 16))
    for sample in range(3):
        for place, token in enumerate(prediction["masked"][sample].tolist()):
            d, h, w = token // 3, 0, token % 3
            block = image[sample, :, 16 * d : 16 * d + 16, h : h + 16, 16 * w : 16 * w + 16]
            assert torch.equal(prediction["target"][sample, place], block.permute(1, 2, 3, 0).flatten())
            assert torch.equal(prediction["target"][sample, place], patches[sample, token])


def test_loss_is_zero_at_the_target_and_blind_to_visible_patches(monkeypatch):
    mae, image, loss = make().eval(), image_of(), MaskedReconstructionLoss()
    keep, masked = split([[0, 3], [1, 5], [2, 4]])
    monkeypatch.setattr(module, "random_keep_indices", lambda *a, **k: (keep, masked))
    prediction = mae(image)
    assert loss(prediction | {"patches": prediction["target"]}, image) == 0
    # Predictions at all places: those at visible ones are free to change.
    everywhere = torch.arange(TOKENS).expand(3, -1)
    full = mae.decode(mae.encode(image, keep), keep, everywhere)
    full.scatter_(1, keep[..., None].expand(-1, -1, full.shape[-1]), 1e3)
    errors = (full - patchify(image, (16, 16, 16))).square().mean(-1)
    torch.testing.assert_close(loss(prediction, image), errors.gather(1, masked).mean())


@pytest.mark.parametrize("position", ["learnable", "separable"])
@pytest.mark.parametrize("class_token", [False, True])
def test_gradients_reach_everything_that_is_used(class_token, position):
    mae = make(class_token, position)
    MaskedReconstructionLoss()(mae(image_of())).backward()
    without = {name for name, p in mae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {name for name, _ in mae.named_parameters() if "norm_cross_attn" in name}


def slow_mae(mae, image, keep, masked):
    """One sample and one token at a time: nothing is gathered, scattered or batched."""
    vit, patches = mae.encoder.vit, []
    for sample in range(len(image)):
        tokens = vit.patch_embedding(image[sample : sample + 1])[0]
        visible = [tokens[token] for token in keep[sample].tolist()]
        if mae.first:
            visible.insert(0, vit.cls_token[0, 0])
        x = torch.stack(visible)[None]
        for block in vit.blocks:
            x = block(x)
        x = mae.decoder_embed(vit.norm(x))[0]
        table = mae.decoder_positions[0]
        if len(mae.decoder_positions) == 2:
            axial, planar = (part[0] for part in mae.decoder_positions)
            table = torch.stack([a + p for a in axial for p in planar])[None]
        full = []
        if mae.first:
            full.append(x[0] + mae.decoder_class_position[0, 0])
        for token in range(TOKENS):
            known = token in keep[sample].tolist()
            value = x[mae.first + keep[sample].tolist().index(token)] if known else mae.mask_token[0, 0]
            full.append(value + table[0, token])
        x = torch.stack(full)[None]
        for block in mae.decoder_blocks:
            x = block(x)
        x = mae.decoder_head(mae.decoder_norm(x))[0]
        patches.append(torch.stack([x[mae.first + token] for token in masked[sample].tolist()]))
    return torch.stack(patches)


@pytest.mark.parametrize("position", ["learnable", "separable"])
@pytest.mark.parametrize("class_token", [False, True])
def test_equals_a_slow_reference(monkeypatch, class_token, position):
    mae, image = make(class_token, position).eval(), image_of()
    keep, masked = split([[0, 3], [1, 5], [2, 4]])
    monkeypatch.setattr(module, "random_keep_indices", lambda *a, **k: (keep, masked))
    with torch.no_grad():
        torch.testing.assert_close(mae(image)["patches"], slow_mae(mae, image, keep, masked), rtol=1e-4, atol=1e-5)


def test_equals_monais_masked_autoencoder(monkeypatch):
    """MONAI gives its class token no position in the decoder, orders the voxels of a patch alike, and predicts all."""
    mae, image = make(class_token=True, qkv_bias=True).eval(), image_of()
    monai = MaskedAutoEncoderViT(
        1, SIZE, 16, hidden_size=24, mlp_dim=48, num_layers=4, num_heads=3, decoder_hidden_size=12, decoder_mlp_dim=24,
        decoder_num_layers=2, decoder_num_heads=2, pos_embed_type="learnable", decoder_pos_embed_type="learnable",
        qkv_bias=True,
    ).eval()  # fmt: skip
    vit = mae.encoder.vit
    monai.patch_embedding.load_state_dict(vit.patch_embedding.state_dict())
    monai.blocks[:4].load_state_dict(vit.blocks.state_dict())
    monai.blocks[4].load_state_dict(vit.norm.state_dict())
    monai.decoder_embed.load_state_dict(mae.decoder_embed.state_dict())
    monai.decoder_blocks[:2].load_state_dict(mae.decoder_blocks.state_dict())
    monai.decoder_blocks[2].load_state_dict(mae.decoder_norm.state_dict())
    monai.decoder_pred.load_state_dict(mae.decoder_head.state_dict())
    monai.cls_token.data = vit.cls_token.data
    monai.mask_tokens.data = mae.mask_token.data
    monai.decoder_pos_embedding.data = mae.decoder_positions[0].data
    nn.init.zeros_(mae.decoder_class_position)

    keep, masked = split([[0, 3], [1, 5], [2, 4]])
    monkeypatch.setattr(module, "random_keep_indices", lambda *a, **k: (keep, masked))
    monkeypatch.setattr(torch, "multinomial", lambda *a, **k: keep)
    with torch.no_grad():
        patches, mask = monai(image)
        ours = mae(image)["patches"]
    assert [torch.nonzero(row)[:, 0].tolist() for row in mask] == masked.tolist()
    expected = patches.gather(1, masked[..., None].expand(-1, -1, patches.shape[-1]))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_reconstruction_for_pictures():
    mae, image = make().eval(), image_of()
    prediction = mae(image)
    target, blanked, filled = mae.pictures(image, prediction)
    assert torch.equal(target, image)
    masked = torch.zeros(3, TOKENS, dtype=torch.bool).scatter(1, prediction["masked"], True)
    truth, seen, drawn = (patchify(x, (16, 16, 16)) for x in (image, blanked, filled))
    assert torch.equal(seen[~masked], truth[~masked]) and (seen[masked] == 0).all()
    assert torch.equal(drawn[~masked], truth[~masked])
    torch.testing.assert_close(drawn[masked], prediction["patches"].flatten(0, 1))


def test_normalised_patches_are_those_of_the_image_less_their_mean_over_their_deviation():
    """And pictures are in the intensities of the image: a perfect prediction is the image."""
    mae, image = make().eval(), 3 + 2 * image_of()
    image[:, :, :16, :, :16] = 5.0  # a patch without any deviation
    mae.normalise_patches = True
    prediction = mae(image)
    patches = patchify(image, (16, 16, 16))
    for sample, numbers in enumerate(prediction["masked"].tolist()):
        for place, number in enumerate(numbers):
            patch = patches[sample, number].double()
            centred = patch - patch.sum() / patch.numel()
            expected = centred / ((centred**2).sum() / (patch.numel() - 1) + 1e-6).sqrt()
            torch.testing.assert_close(prediction["target"][sample, place].double(), expected, atol=1e-4, rtol=1e-4)
    for under in (torch.bfloat16, None):
        with torch.autocast("cpu", torch.bfloat16, enabled=under is not None):
            _, _, filled = mae.pictures(image, prediction | {"patches": prediction["target"]})
        torch.testing.assert_close(filled, image, atol=1e-4, rtol=1e-4)


def test_under_autocast_the_loss_is_float32():
    mae = make(class_token=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = MaskedReconstructionLoss()(mae(image_of()))
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()


def test_the_decoder_follows_the_encoders_proportions():
    vit = ViT(1, SIZE, 16, hidden_size=24, mlp_dim=16, num_layers=4, num_heads=3)  # an MLP that narrows
    assert MAE(ViTEncoder(vit), SIZE, **DECODER).decoder_blocks[0].mlp.linear1.out_features == 8
    assert make(norm_eps=1e-6).decoder_norm.eps == make(norm_eps=1e-6).decoder_blocks[1].norm2.eps == 1e-6
    assert type(make(position="separable")).__name__ == "MAE"


def test_refuses_swin():
    swin = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).swinViT
    with pytest.raises(ValueError, match=r"only a ViT allows, not SwinEncoder\. Use the RCR pretext"):
        MAE(SwinEncoder(swin), (32, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mask_ratio": 1.0}, "not 1.0"), ({"mask_ratio": 0}, "not 0"), ({"position": "sincos"}, "not 'sincos'")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAE(make().encoder, SIZE, **arguments)


def test_image_size_that_no_patches_fill():
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        MAE(make().encoder, (32, 16, 40))
