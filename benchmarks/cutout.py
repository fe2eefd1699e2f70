"""Cut-out with noise and swap: masks for the whole batch against a loop over boxes.

On a CPU the loop touches only the voxels of its boxes, so it wins at large sizes. Both take little of a training step.
The masks are meant for an accelerator, on which the loop starts several kernels for each box of each sample.
"""

from __future__ import annotations

import torch
from timing import Row, compare

from common.transforms import CutoutSwap


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [(2, 16)] if quick else [(2, 32), (2, 64), (2, 96), (8, 96)]
    return [_row(batch, side, 1 if quick else 25, device) for batch, side in cases]


def _row(batch: int, side: int, repeats: int, device: torch.device) -> Row:
    image = torch.rand(batch, 1, side, side, side, device=device)
    ours = CutoutSwap()
    name = f"cut-out, {batch} crops of {side}^3 (baseline: one box at a time)"
    return compare(name, lambda: loop_over_boxes(image), lambda: ours(image), repeats)


def loop_over_boxes(image: torch.Tensor) -> torch.Tensor:
    image = image.clone()
    for index, sample in enumerate(image):
        for start, end in _boxes(sample):
            box = (slice(None), *map(slice, start, end))
            noise = torch.randn_like(sample[box])
            sample[box] = (noise - noise.min()) / (noise.max() - noise.min())
        partner = int(torch.randint(len(image), ()))
        if partner != index:
            for start, end in _boxes(sample):
                box = (slice(None), *map(slice, start, end))
                sample[box] = image[partner][box]
    return image


def _boxes(sample):
    size = sample.shape[1:]
    volume, target = 0, float(torch.rand(())) * 0.3 * sample[0].numel()
    while volume < target:
        start, end, box = [], [], 1
        for side in size:
            shortest = max(1, int(0.05 * side))
            longest = max(shortest + 1, int(0.25 * side))
            start.append(int(torch.randint(0, side - shortest, ())))
            end.append(min(start[-1] + int(torch.randint(shortest, longest, ())), side))
            box *= end[-1] - start[-1]
        volume += box
        yield start, end
