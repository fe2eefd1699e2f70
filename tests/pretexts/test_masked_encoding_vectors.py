from __future__ import annotations

import pytest
import torch
from torch import nn

from common.losses import MaskedVectorsLoss
from common.networks import MultiViewEncoder
from common.networks.planes import PLANES, to_slices
from common.pretexts import MaskedEncodingVectors

SIZE = (34, 40, 36)
PAPER = (96, 114, 96)


class Moments(nn.Module):
    """Stands for the backbone: a slice's vector is (mean, mean square) times a weight; keeps what the mixing sees."""

    in_channels, embed_dim = 1, 2

    def __init__(self):
        super().__init__()
        self.planes = nn.ParameterDict({plane: torch.full((1,), 1.0 + n) for n, plane in enumerate(PLANES)})
        self.transformer = nn.Linear(2, 2)
        self.encoded, self.seen = [], {}

    def encode_planes(self, image):
        self.encoded.append(image)
        slices = [to_slices(image, plane) for plane in PLANES]
        vectors = [torch.stack((s.mean((1, 3, 4)), s.square().mean((1, 3, 4))), dim=2) for s in slices]
        return [v * self.planes[plane] for v, plane in zip(vectors, PLANES, strict=True)]

    def mix(self, vectors, plane):
        self.seen[plane] = vectors
        return self.transformer(vectors)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def encoder(norm_scope="volume", num_layers=1):
    return MultiViewEncoder(
        embed_dim=6, widths=(4, 4, 4, 8), num_heads=2, dim_head=3, mlp_dim=8, norm_scope=norm_scope,
        num_layers=num_layers,
    )  # fmt: skip


def run(pretext, image, seed=3):
    torch.manual_seed(seed)
    prediction = pretext(image)
    return prediction, MaskedVectorsLoss()(prediction, image)


def test_the_published_number_of_masked_slices():
    pretext = MaskedEncodingVectors(Moments(), PAPER)
    assert pretext.masked == [9, 11, 9]
    vectors = torch.rand(2, sum(PAPER), 2)
    pretext._mask_vectors = [torch.full((2,), -5.0)] * 3
    prediction = pretext(vectors)
    assert prediction["prediction"].shape == prediction["target"].shape == (2, 29, 2)
    assert prediction["weight"].tolist() == pytest.approx([1 / 9] * 9 + [1 / 11] * 11 + [1 / 9] * 9)
    for plane, count in zip(PLANES, (9, 11, 9), strict=True):
        masked = (pretext.encoder.seen[plane] == -5).all(2)
        assert masked.sum(1).tolist() == [count, count] and not torch.equal(masked[0], masked[1])


@pytest.mark.parametrize(
    ("size", "ratio", "masked"),
    [((9, 10, 20), 0.1, [1, 1, 2]), ((5, 30, 8), 0.5, [2, 15, 4]), (PAPER, 0.15, [14, 17, 14])],
)
def test_the_share_is_rounded_down_and_one_at_least(size, ratio, masked):
    assert MaskedEncodingVectors(Moments(), size, ratio).masked == masked


def test_the_transformer_sees_mask_vectors_and_predicts_what_they_hide():
    net, image = Moments(), torch.rand(2, 1, *SIZE)
    pretext = MaskedEncodingVectors(net, SIZE, mask_ratio=0.2)
    prediction, _ = run(pretext, image)
    vectors = net.encode_planes(image)
    start, blanks = 0, torch.tensor([[-1.0, 1], [-2, 2], [-3, 3]])  # vectors of an image of -1
    for plane, target, count, blank in zip(PLANES, vectors, (6, 8, 7), blanks, strict=True):
        hidden = (net.seen[plane] == blank).all(2)
        assert torch.equal(net.seen[plane][~hidden], target[~hidden]) and hidden.sum(1).tolist() == [count, count]
        for sample in range(2):
            found = prediction["target"][sample, start : start + count]
            expected = target[sample, hidden[sample]]
            order = found[:, 0].argsort(), expected[:, 0].argsort()
            assert torch.equal(found[order[0]], expected[order[1]])
        # All masked slices look alike to this transformer.
        made = net.transformer(blank).expand(2, count, 2)
        torch.testing.assert_close(prediction["prediction"][:, start : start + count], made)
        start += count
    assert start == prediction["target"].shape[1]


def test_targets_are_the_vectors_before_scale_positions_and_planes():
    net, image = encoder(), torch.rand(1, 1, *SIZE)
    prediction, _ = run(MaskedEncodingVectors(net, SIZE), image)
    planes = [3, 4, 3]
    for target, vectors in zip(prediction["target"].split(planes, dim=1), net.encode_planes(image), strict=True):
        apart = (target[0][:, None] - vectors[0][None]).abs().amax(2)
        assert (apart.amin(1) < 1e-5).all() and len(set(apart.argmin(1).tolist())) == len(target[0])


def test_gradients_reach_the_transformer_and_the_segments_only():
    net, image = encoder(), torch.rand(2, 1, *SIZE)
    pretext = MaskedEncodingVectors(net, SIZE)
    prediction, loss = run(pretext, image)
    loss.backward()
    reached = {name for name, p in pretext.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {f"encoder.transformer.{name}" for name, _ in net.transformer.named_parameters()}
    assert reached == trained and "encoder.transformer.segments.weight" in reached
    assert {name for name, p in pretext.named_parameters() if p.requires_grad} == trained
    assert net.transformer.segments.weight.grad.any(dim=1).all() and not prediction["target"].requires_grad


@pytest.mark.parametrize("norm_scope", ["volume", "slice"])
def test_cached_vectors_give_the_same_loss_and_gradients(norm_scope):
    net, image = encoder(norm_scope), torch.rand(2, 1, *SIZE)
    pretext = MaskedEncodingVectors(net, SIZE)
    cached = torch.cat([torch.cat(net.encode_planes(x[None]), dim=1) for x in image])  # a volume at a time
    results = []
    for given in (image, cached):
        pretext.zero_grad()
        _, loss = run(pretext, given)
        loss.backward()
        results.append((loss.detach(), {n: p.grad.clone() for n, p in net.transformer.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-3)
    assert run(pretext, cached, seed=4)[1] != results[1][0]


def test_cached_and_anew_give_the_same_loss_in_mixed_precision():
    net, image = encoder(), torch.rand(2, 1, *SIZE)
    cached = torch.cat(net.encode_planes(image), dim=1)
    blanks = MaskedEncodingVectors(net, SIZE).mask_vectors()
    losses = []
    for given in (image.bfloat16().float(), image, cached):
        pretext = MaskedEncodingVectors(net, SIZE)
        with torch.autocast("cpu", torch.bfloat16):
            prediction, loss = run(pretext, given)
        assert prediction["target"].dtype == torch.float32
        assert all(torch.equal(found, blank) for found, blank in zip(pretext.mask_vectors(), blanks, strict=True))
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)  # what rounding alone would do


@pytest.mark.parametrize("norm_scope", ["volume", "slice"])
def test_the_mask_vector_does_not_depend_on_the_number_of_slices(norm_scope):
    net = encoder(norm_scope)
    vectors = MaskedEncodingVectors(net, SIZE).mask_vectors()
    for plane, found, size in zip(PLANES, vectors, ((36, 40), (34, 36), (34, 40)), strict=True):
        for count in (1, 5):
            alone, _ = net.planes[plane](torch.full((1, 1, count, *size), -1.0))
            torch.testing.assert_close(alone, found.expand(1, count, 6), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2) and not any(v.requires_grad for v in vectors)


def test_mask_vectors_are_computed_once_and_anew_for_new_weights():
    net = Moments()
    pretext = MaskedEncodingVectors(net, (4, 5, 6))
    first = [v.clone() for v in pretext.mask_vectors()]
    pretext(torch.rand(1, 15, 2))
    pretext(torch.rand(1, 15, 2))
    assert len(net.encoded) == 1
    state = {name: tensor * 2 for name, tensor in pretext.state_dict().items()}
    assert not any("mask" in name for name in state)
    nn.ModuleDict({"network": pretext}).load_state_dict({f"network.{name}": t for name, t in state.items()})
    pretext(torch.rand(1, 15, 2))
    assert len(net.encoded) == 2
    assert all(torch.equal(new, 2 * old) for new, old in zip(pretext.mask_vectors(), first, strict=True))


def test_learns_what_neighbouring_slices_tell():
    net = encoder()
    place = torch.arange(sum(SIZE))[:, None] / 6 + torch.arange(6)
    vectors = torch.stack([torch.sin(place + shift) for shift in (0.0, 1.0, 2.0, 3.0)])
    pretext, loss = MaskedEncodingVectors(net, SIZE), MaskedVectorsLoss()
    optimizer = torch.optim.Adam(net.transformer.parameters(), 0.03)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(pretext(vectors))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


def test_the_frozen_encoders_stay():
    net = encoder()
    before = {name: tensor.clone() for name, tensor in net.planes.state_dict().items()}
    pretext = MaskedEncodingVectors(net, SIZE)
    optimizer = torch.optim.AdamW(pretext.parameters(), 0.1, weight_decay=0.1)
    run(pretext, torch.rand(1, 1, *SIZE))[1].backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.planes.state_dict().items())


@pytest.mark.parametrize("shape", [(1, 1, 34, 40, 37), (1, 109, 6), (1, 110, 5), (34, 40, 36)])
def test_images_of_another_size_are_one_clear_error(shape):
    message = r"set up for images of 34 x 40 x 36 voxels \(roi_size\), or for their vectors \(batch, 110, 6\), not"
    with pytest.raises(ValueError, match=message) as error:
        MaskedEncodingVectors(encoder(), SIZE)(torch.rand(shape))
    assert str(shape) in str(error.value) and "\n" not in str(error.value)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"this encoder has none \(0 layers\): leave stage 2 out"):
        MaskedEncodingVectors(encoder(num_layers=0), SIZE)
    for ratio in (0, 1, -0.1):
        with pytest.raises(ValueError, match=f"mask_ratio is {ratio}; it must be above 0 and below 1"):
            MaskedEncodingVectors(encoder(), SIZE, ratio)
