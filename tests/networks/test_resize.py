"""Linear resampling by products with matrices against torch's own kernels, with gradients."""

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision_under_autocast(dtype):
    """Half precision is widened before it is resampled; its gradient comes back in half precision."""
    x = torch.randn(1, 2, 3, 4).to(dtype).requires_grad_()
    wide = x.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    expected = F.interpolate(wide, size=(12, 13), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resize_linear(x, (12, 13))
    assert found.dtype == wide.dtype
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, wide.grad.to(dtype))


def test_channels_last():
    x = torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    expected = F.interpolate(x, size=(8, 5, 13), mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_linear(x, (8, 5, 13)), expected)


@pytest.mark.parametrize(
    ("grid", "size", "quick"),
    [((3, 64), (6, 70), True), ((3, 65), (6, 70), False), ((3, 80), (6, 80), True), ((80, 3), (80, 6), True)],
)
def test_only_short_axes_are_multiplied(grid, size, quick):
    """An axis that keeps its length may be long, such as that of the slices in Medical Transformer."""
    x = torch.randn(1, 1, *grid, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        resize_linear(x, size).sum().backward()
    names = {event.name for event in events.events()}
    assert ("aten::upsample_bilinear2d" in names) == ("aten::upsample_bilinear2d_backward" in names) == (not quick)


def test_an_export_has_torchs_own_operation():
    class Resize(torch.nn.Module):
        def forward(self, x):
            return resize_linear(x, (8, 9, 7))

    x = torch.randn(1, 2, 4, 3, 7)
    traced = torch.jit.trace(Resize(), x)
    exported = torch.export.export(Resize(), (x,), strict=False)
    for graph, run in ((traced.graph, traced), (exported.graph, exported.module())):
        assert "upsample_trilinear3d" in str(graph)
        torch.testing.assert_close(run(x), Resize()(x))
