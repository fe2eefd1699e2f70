from __future__ import annotations

import functools

import pytest
import torch

from common.inferers import SliceWindowInferer
from common.networks.beit_encoder import BeitEncoder
from common.networks.transseg import TransSeg

SIZE = (16, 24)
make_encoder = functools.partial(
    BeitEncoder, patch_size=8, hidden_size=16, mlp_dim=16, num_layers=4, num_heads=2, out_blocks=(1, 2, 3, 4)
)


@pytest.fixture(scope="module", params=["centre", "all"])
def net(request):
    torch.manual_seed(0)
    return TransSeg(1, 2, SIZE, make_encoder, slices=5, decoder_channels=4, target=request.param).double().eval()


def volume(depth: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(depth)
    return torch.randn(batch, 1, *SIZE, depth, dtype=torch.float64, generator=generator)


def one_by_one(image: torch.Tensor, net: TransSeg, stride: int) -> torch.Tensor:
    """Windows written out: a list of slices each, indices cut off at the ends, one at a time."""
    depth, slices = image.shape[-1], []
    if net.target == "centre":
        for i in range(depth):
            window = [image[..., min(max(i + stride * o, 0), depth - 1)] for o in (-2, -1, 0, 1, 2)]
            slices.append(net(torch.stack(window, dim=-1))[..., 0])
        return torch.stack(slices, dim=-1)
    predicted = {}
    for first in range(stride):
        own = list(range(first, depth, stride))
        for start in range(0, len(own), 5):
            numbers = [first + stride * (start + k) for k in range(5)]
            made = net(torch.stack([image[..., min(n, depth - 1)] for n in numbers], dim=-1))
            predicted |= {n: made[..., k] for k, n in enumerate(numbers) if n < depth}
    return torch.stack([predicted[i] for i in range(depth)], dim=-1)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 3, 12])
@torch.no_grad()
def test_runs_give_what_windows_give_one_by_one(net, depth, stride):
    image = volume(depth, batch=2)
    expected = one_by_one(image, net, stride)
    for chunk in (1, 4, 100):
        made = SliceWindowInferer(5, stride, chunk, net.target)(image, net)
        assert made.shape == (2, 2, *SIZE, depth)
        torch.testing.assert_close(made, expected, atol=1e-10, rtol=0)


def test_the_network_sees_no_more_for_more_slices():
    seen = []

    def network(image):
        seen.append(image.shape[-1])
        return image[..., 2:-2]

    for depth in (40, 400):
        image = volume(depth)[..., :1, :1, :]
        seen.clear()
        assert torch.equal(SliceWindowInferer(5, chunk=8)(image, network), image)
        assert max(seen) == 12 and len(seen) == depth // 8


def test_gathers_on_the_device_that_is_named():
    made = SliceWindowInferer(1, device="meta")(volume(3), lambda image: image)
    assert made.device.type == "meta" and made.shape == (1, 1, *SIZE, 3)


def test_bfloat16_is_gathered_as_float32():
    image = volume(3)
    made = SliceWindowInferer(1)(image.float(), lambda image: image.bfloat16())
    assert made.dtype == torch.float32 and torch.equal(made, image.float().bfloat16().float())


def test_refusals(net):
    with pytest.raises(ValueError, match="slices 4 must be odd"):
        SliceWindowInferer(4)
    with pytest.raises(ValueError, match="'centre' or 'all'"):
        SliceWindowInferer(5, target="center")
    with pytest.raises(ValueError, match="must be the same"):
        SliceWindowInferer(5)(volume(9), lambda image: image)
