from __future__ import annotations

import pytest
import torch

from common.losses import PlaneTripletLoss
from common.networks import MultiViewEncoder
from common.networks.planes import PLANES, to_slices
from common.pretexts import PlaneExemplar
from common.transforms import RandomBezier

SIZE = (34, 36, 38)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def encoder():
    return MultiViewEncoder(embed_dim=6, widths=(4, 4, 4, 8), num_heads=2, dim_head=3, mlp_dim=8)


def encode(encoder, image):
    """Mean vectors of the planes, a volume and a plane at a time (B, 3, d)."""
    rows = [[encoder.planes[p](to_slices(x[None], p))[0][0].mean(0) for p in PLANES] for x in image]
    return torch.stack([torch.stack(row) for row in rows])


def test_means_over_slices_of_the_image_and_of_its_transformed_version(encoder):
    image = torch.rand(2, 1, *SIZE)
    seen = []

    def intensity(batch):
        seen.append(batch)
        return 1 - batch**2

    found = PlaneExemplar(encoder, intensity)(image)
    assert found["anchor"].shape == found["positive"].shape == (2, 3, 6)
    torch.testing.assert_close(found["anchor"], encode(encoder, image), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["positive"], encode(encoder, 1 - image**2), atol=1e-4, rtol=1e-3)
    assert len(seen) == 3 and all(torch.equal(batch, image) for batch in seen)  # a draw for each plane


def test_means_are_of_float32_in_mixed_precision(encoder):
    image = torch.rand(2, 1, *SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = PlaneExemplar(encoder, lambda batch: 1 - batch)(image)
        vectors = encoder.planes["sagittal"](to_slices(torch.cat((image, 1 - image)), "sagittal"))[0]
    assert vectors.dtype == torch.bfloat16
    expected = vectors.double().mean(dim=1)
    for name, means in (("anchor", expected[:2]), ("positive", expected[2:])):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name][:, 0].double(), means, atol=1e-6, rtol=1e-5)


def test_rolled_anchors_are_the_rolled_batch_encoded_anew(encoder):
    image, pretext, loss = torch.rand(3, 1, *SIZE), PlaneExemplar(encoder), PlaneTripletLoss()
    prediction = pretext(image)
    negative = encode(encoder, image.roll(1, dims=0))
    torch.testing.assert_close(prediction["anchor"].roll(1, dims=0), negative, atol=1e-4, rtol=1e-3)
    to_positive, to_negative = (
        (prediction["anchor"] - other).norm(dim=2) for other in (prediction["positive"], negative)
    )
    expected = (to_positive - to_negative + 1).clamp_min(0).mean()
    torch.testing.assert_close(loss(prediction, image), expected, atol=1e-4, rtol=1e-3)


def test_each_sample_and_plane_has_its_own_map_of_the_global_generator(encoder):
    image = torch.rand(1, 1, *SIZE).repeat(2, 1, 1, 1, 1)
    pretext = PlaneExemplar(encoder)
    assert isinstance(pretext.intensity, RandomBezier)
    torch.manual_seed(4)
    first = pretext(image)
    torch.manual_seed(4)
    again = pretext(image)
    assert torch.equal(first["positive"], again["positive"])
    torch.testing.assert_close(first["anchor"][0], first["anchor"][1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first["positive"][0], first["positive"][1], atol=1e-3)
    maps = []
    pretext.intensity = lambda batch: maps.append(RandomBezier()(batch)) or maps[-1]
    pretext(image)
    assert not torch.allclose(maps[0], maps[1]) and not torch.allclose(maps[1], maps[2])


def test_gradients_reach_the_plane_encoders_and_not_the_transformer(encoder):
    image = torch.rand(2, 1, *SIZE)
    PlaneTripletLoss(margin=5)(PlaneExemplar(encoder)(image), image).backward()
    assert all(p.grad.any() for name, p in encoder.planes.named_parameters() if name.endswith("weight"))
    assert all(p.grad is None for p in encoder.transformer.parameters())


def test_planes_have_no_part_in_each_other(encoder):
    image = torch.rand(2, 1, *SIZE)
    PlaneTripletLoss(margin=5, plane=1)(PlaneExemplar(encoder)(image), image).backward()
    reached = {name for name, p in encoder.planes.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(name.startswith("coronal.") for name in reached)


def test_learns_to_tell_two_volumes_apart_whatever_their_contrast(encoder):
    base = torch.zeros(2, 1, 18, 20, 22)
    base[0, :, 4:10, 6:16, 3:17] = 0.7
    base[1, :, 2:16, 8:13, 11:19] = 0.6
    image = base + 0.1 * torch.rand_like(base)
    pretext, loss = PlaneExemplar(encoder), PlaneTripletLoss()
    optimizer = torch.optim.Adam(pretext.parameters(), 0.01)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        value = loss(pretext(image), image)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-3:]) < 0.6 * sum(values[:3])
