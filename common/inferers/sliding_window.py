from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import SlidingWindowInferer as MonaiSlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import fall_back_tuple
from torch.nn import functional as F

from ..gathered import drop_pages, gathered
from ..tensors import plain_tensor

__all__ = ["SlidingWindowInferer", "with_meta"]


class SlidingWindowInferer(MonaiSlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer`` whose prediction may be larger than memory: it is ``gathered``.

    Values are the same to the bit. Only the weights of the rows that windows touch are in memory, those of a whole
    volume never. Arguments are MONAI's; with ``buffer_steps``, ``with_coord``, ``device``, ``sw_device`` or
    ``cpu_thresh`` it is MONAI's in every respect, as it is where the network returns several predictions or one of
    another size than its window.
    """

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        plain = not (
            self.buffer_steps or self.with_coord or self.sw_device or self.device or self.cpu_thresh is not None
        )
        if plain and not kwargs.keys() & {"condition", "device", "buffer_steps", "buffer_dim"}:
            image = plain_tensor(inputs)
            made = self._gather(image, network, *args, **kwargs)
            if made is not None:
                return with_meta(made, inputs)
        return super().__call__(inputs, network, *args, **kwargs)

    def _gather(self, image: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch, size = len(image), image.shape[2:]
        roi = fall_back_tuple(self.roi_size, size)
        if len(roi) != len(size):
            return None
        padded = [max(pair) for pair in zip(size, roi, strict=True)]
        before = [(side - given) // 2 for side, given in zip(padded, size, strict=True)]
        if list(size) != padded:
            ends = [(start, side - given - start) for start, side, given in zip(before, padded, size, strict=True)]
            flat = [width for pair in reversed(ends) for width in pair]
            image = F.pad(image, flat, mode=self.padding_mode, value=self.cval)
        overlap = self.overlap if isinstance(self.overlap, Sequence) else [self.overlap] * len(size)
        if len(overlap) != len(size) or not all(0 <= share < 1 for share in overlap):
            return None
        windows = dense_patch_slices(padded, roi, _get_scan_interval(padded, roi, len(size), overlap))
        valid = get_valid_patch_size(padded, roi)
        weight = self.roi_weight_map if tuple(valid) == tuple(roi) else None
        if weight is None:
            weight = compute_importance_map(
                valid, mode=self.mode, sigma_scale=self.sigma_scale, device=image.device, dtype=image.dtype
            )
        weight = torch.as_tensor(weight).to(image.device, image.dtype)
        weight = weight if weight.ndim == image.ndim else weight[None, None]
        total = None
        every = [(number, window) for number in range(batch) for window in windows]
        for start in range(0, len(every), self.sw_batch_size):
            places = [
                (slice(number, number + 1), slice(None), *window)
                for number, window in every[start : start + self.sw_batch_size]
            ]
            made = network(torch.cat([image[place] for place in places]), *args, **kwargs)
            if not isinstance(made, torch.Tensor) or made.shape[2:] != tuple(roi):
                return None
            made = plain_tensor(made)
            if total is None:
                total = gathered((batch, made.shape[1], *padded), image.dtype, image.device)
            made = (made * weight).to(total)
            for place, window in zip(places, made, strict=True):
                total[place] += window
            drop_pages(total)
        assert total is not None
        self._divide(total, weight, windows)
        inside = [slice(start, start + side) for start, side in zip(before, size, strict=True)]
        return total[tuple([slice(None), slice(None), *inside])]

    @staticmethod
    def _divide(total: torch.Tensor, weight: torch.Tensor, windows: Sequence[tuple[slice, ...]]) -> None:
        """By the weights of all windows at a voxel, from one start of windows along the first axis to the next."""
        weight = weight.to(total.device)
        starts = sorted({window[0].start for window in windows})
        for start, stop in zip(starts, [*starts[1:], total.shape[2]], strict=True):
            count = weight.new_zeros(1, 1, stop - start, *total.shape[3:])
            for rows, *others in windows:
                low, high = max(rows.start, start), min(rows.stop, stop)
                if low < high:
                    place = (slice(None), slice(None), slice(low - start, high - start), *others)
                    count[place] += weight[:, :, low - rows.start : high - rows.start]
            total[:, :, start:stop] /= count
            drop_pages(total)


def with_meta(prediction: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The prediction with the metadata of what it was made from, where that has some; its values are not copied."""
    if not isinstance(inputs, MetaTensor):
        return prediction
    made = MetaTensor(prediction)
    made.copy_meta_from(MetaTensor([]).copy_meta_from(inputs, copy_attr=False))
    return made
