from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class CutoutSwap:
    """Replace random boxes of each sample with noise, then other boxes with those of another sample of the batch.

    For each sample, both passes draw a target share of the voxels from ``U(0, max_share)`` and take random boxes until
    their volumes reach it; overlaps count twice. A side of a box is drawn from ``[min_size, max_size)`` of the image's
    side (whole voxels, at least 1). The start is drawn so that at least the shortest side fits; boxes are cut off at
    the border. The first pass fills the boxes with Gaussian noise, min-max scaled to 0 .. 1 over the sample; all
    channels share the boxes. The second pass copies its boxes from a sample drawn uniformly from the batch. A sample
    that draws itself keeps the first pass only, as does a batch of one.

    Source: Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022,
    masked volume inpainting, with the published code's numbers; used by Zhang et al., "Pretrain Once and Finetune Many
    Times", BIBM 2023. The published code scales noise per box, and copies from a sample that may already be augmented.
    Here the copy always comes from the unaltered sample, so samples do not depend on their order.

    Boxes come from torch's global CPU generator on any device, noise from the generator of the image's device. Nothing
    waits for the device.

    Args:
        max_share: upper end of the target of each pass, as a share of the voxels, 0 to 1.
        min_size: shortest side of a box as a share of the image's side.
        max_size: end, exclusive, of the sides of a box as a share of the image's side.

    Raises:
        ValueError: when the arguments are not ``0 <= max_share <= 1`` and ``0 < min_size < max_size <= 1``.
    """

    def __init__(self, max_share: float = 0.3, min_size: float = 0.05, max_size: float = 0.25) -> None:
        if not 0 <= max_share <= 1 or not 0 < min_size < max_size <= 1:
            raise ValueError(
                "Cut-out needs 0 <= max_share <= 1 and 0 < min_size < max_size <= 1, got "
                f"max_share={max_share}, min_size={min_size}, max_size={max_size}."
            )
        self.max_share = max_share
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return an altered copy of a floating-point batch (B, C, *spatial); the input stays unchanged.

        Raises:
            ValueError: when the batch has no spatial axis.
        """
        if image.ndim < 3:
            raise ValueError(f"Cut-out takes a batch (B, C, *spatial), got shape {tuple(image.shape)}.")
        noise = torch.randn_like(image)
        low, high = noise.flatten(1).aminmax(dim=1)
        per_sample = (-1,) + (1,) * (image.ndim - 1)
        noise = (noise - low.view(per_sample)) / (high - low).clamp_min(torch.finfo(noise.dtype).tiny).view(per_sample)
        altered = torch.where(self._draw_mask(image), noise, image)
        batch = len(image)
        if batch == 1:
            return altered
        partner = torch.randint(batch, (batch,))
        mask = self._draw_mask(image, active=partner != torch.arange(batch))
        return torch.where(mask, image[partner.to(image.device, non_blocking=True)], altered)

    def _draw_mask(self, image: torch.Tensor, active: torch.Tensor | None = None) -> torch.Tensor:
        """Random boxes as a mask (B, 1, *spatial); samples that are not ``active`` get none."""
        size = image.shape[2:]
        targets = torch.rand(len(image), dtype=torch.float64) * self.max_share * math.prod(size)
        if active is not None:
            targets = targets * active
        starts, ends, used = draw_boxes(targets, size, self.min_size, self.max_size)
        return fill_boxes(
            starts.to(image.device, non_blocking=True),
            ends.to(image.device, non_blocking=True),
            used.to(image.device, non_blocking=True),
            size,
        )


def draw_boxes(
    targets: torch.Tensor, size: Sequence[int], min_size: float, max_size: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw boxes for each sample until their volumes reach its target; overlaps count twice.

    Args:
        targets: (B,) voxels to reach; a target of 0 gets no box.
        size: spatial size of the image in voxels.
        min_size: shortest side as a share of ``size``.
        max_size: end, exclusive, of the sides as a share of ``size``.

    Returns:
        starts and ends (B, K, len(size)) in voxels, ends exclusive, and used (B, K), true for the boxes to take.
    """
    sides = torch.tensor(size)
    shortest = torch.tensor([max(1, int(side * min_size)) for side in size])
    longest = torch.maximum(torch.tensor([int(side * max_size) - 1 for side in size]), shortest)
    # No box is smaller than the shortest sides allow, so this many always reach the largest target.
    count = math.ceil(float(targets.max()) / int(shortest.prod()))
    draws = torch.rand(2, len(targets), count, len(size), dtype=torch.float64)
    starts = (draws[0] * (sides - shortest).clamp_min(1)).long()
    ends = torch.minimum(starts + shortest + (draws[1] * (longest - shortest + 1)).long(), sides)
    volumes = (ends - starts).prod(dim=-1)
    used = volumes.cumsum(dim=1) - volumes < targets[:, None]
    count = int(used.sum(dim=1).max())
    return starts[:, :count], ends[:, :count], used[:, :count]


def fill_boxes(starts: torch.Tensor, ends: torch.Tensor, used: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Mask (B, 1, *size) of the voxels that lie in any used box of their sample.

    Args:
        starts: first voxel (B, K, n) of each box along the n axes.
        ends: end, exclusive, of each box, of the same shape.
        used: (B, K), false for boxes to leave out.
        size: the n sides of the image in voxels.
    """
    inside = []
    for axis, side in enumerate(size):
        position = torch.arange(side, device=starts.device)
        inside.append((starts[..., axis, None] <= position) & (position < ends[..., axis, None]))
    covered = used[..., None]
    for along in inside[:-1]:
        covered = (covered[..., None] & along[:, :, None]).flatten(2)
    # The product over boxes counts the boxes over each voxel, without a tensor of boxes times voxels.
    counts = covered.float().mT @ inside[-1].float()
    return (counts > 0).view(len(starts), 1, *size)
