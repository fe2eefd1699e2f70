from __future__ import annotations

import torch

__all__ = ["RandomBezier", "bezier_table", "look_up"]


class RandomBezier:
    """Random monotone intensity maps for a batch on its device, one per sample (Jun et al., section 3.3.1).

    The graph of a map is a cubic Bezier curve from (0, 0) to (1, 1) with two control points drawn in the unit square,
    as in Models Genesis (Zhou et al., MICCAI 2019). Such a curve rises in both coordinates, so each intensity maps to
    exactly one other. With probability ``falling`` a map falls instead, which inverts the contrast. Random numbers come
    from torch's global generator of the device. No call waits for the device.

    Args:
        falling: probability of a falling map; 0.5 in the published code.
        strength: how far the control points lie from the diagonal, as a share of the drawn distance. 1 is the published
            law; 0 changes nothing but for falling maps, which invert.
        keep_background: whether voxels of a channel's least value, such as clipped air and padding, stay as they are.
            The published code maps them too, so a falling map makes the background white.
        size: entries of the look-up tables that stand for the curves; values in between are interpolated.

    ``bezier(image (B, C, *spatial))`` returns a new tensor of the same shape with values in 0..1. Intensities should
    lie in 0..1; others are clipped.

    Raises:
        ValueError: ``strength`` is not from 0 to 1.
    """

    def __init__(
        self, falling: float = 0.5, strength: float = 1.0, keep_background: bool = True, size: int = 1025
    ) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be between 0 and 1, not {strength}.")
        self.falling, self.strength, self.keep_background, self.size = falling, strength, keep_background, size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        control = torch.rand(len(image), 2, 2, device=image.device)
        falls = torch.rand(len(image), device=image.device) < self.falling
        if self.strength < 1:
            diagonal = torch.tensor([[1.0], [2.0]], device=image.device) / 3  # of the identity
            control = torch.lerp(diagonal.expand(2, 2), control, self.strength)
        changed = look_up(image, bezier_table(control, falls, self.size))
        if not self.keep_background:
            return changed
        least = image.amin(tuple(range(2, image.ndim)), keepdim=True)
        return torch.where(image == least, image.clamp(0, 1), changed)


def bezier_table(control: torch.Tensor, falls: torch.Tensor, size: int = 1025) -> torch.Tensor:
    """Values of Bezier maps at ``size`` intensities spaced evenly over 0..1, (B, size).

    Args:
        control: the two inner control points (B, 2, 2), each (x, y) in the unit square.
        falls: (B,), true for maps that take x(t) to y(1 - t) instead of y(t), as the published code does by sorting
            the curve's x alone.
    """
    t = torch.linspace(0, 1, 4 * size, device=control.device)
    basis = torch.stack((3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2))
    x, y = (torch.einsum("bp,pt->bt", control[:, :, axis], basis) + t**3 for axis in (0, 1))
    y = torch.where(falls[:, None], y.flip(1), y)
    grid = torch.linspace(0, 1, size, device=control.device).expand(len(control), size).contiguous()
    above = torch.searchsorted(x.contiguous(), grid).clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = (v.gather(1, index) for v in (x, y) for index in (above - 1, above))
    share = ((grid - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
    return torch.lerp(y0, y1, share)


def look_up(image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Map each intensity (B, C, *spatial) in 0..1 through its sample's table (B, entries), interpolated linearly."""
    last = table.shape[1] - 1
    place = image.flatten(1).clamp(0, 1) * last
    below = place.floor().clamp(max=last - 1)
    index = below.long()
    value = torch.lerp(table.gather(1, index), table.gather(1, index + 1), (place - below).to(table.dtype))
    return value.view_as(image).to(image.dtype)
