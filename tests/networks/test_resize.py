"""Linear resampling by products with matrices against torch's own kernels, with gradients."""

import pytest
import torch
from torch.nn import functional as F

from common.networks.resize import resize_linear

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((5,), (17,)),
        ((3, 4), (12, 15)),
        ((3, 4), (3, 15)),
        ((3, 4), (2, 3)),
        ((5, 1, 3), (5, 7, 24)),
        ((6, 4, 5), (6, 4, 5)),
        ((2, 3, 4), (9, 11, 8)),
    ],
)
def test_values_and_gradients_are_those_of_interpolate(grid, size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = F.interpolate(x, size=size, mode=MODES[len(size)], align_corners=False)
    found = resize_linear(x, size)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((image * weight).sum(), x)[0] for image in (found, expected)), rtol=1e-10, atol=1e-10
    )


def test_half_precision_becomes_single_also_under_autocast():
    x = torch.randn(1, 2, 3, 4).bfloat16()
    expected = F.interpolate(x.float(), size=(12, 13), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resize_linear(x, (12, 13))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_an_export_has_torchs_own_operation():
    class Resize(torch.nn.Module):
        def forward(self, x):
            return resize_linear(x, (8, 9, 7))

    x = torch.randn(1, 2, 4, 3, 7)
    traced = torch.jit.trace(Resize(), x)
    assert "upsample_trilinear3d" in str(traced.graph)
    torch.testing.assert_close(traced(x), Resize()(x))
