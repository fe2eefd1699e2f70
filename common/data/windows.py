from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, RandRotate90, RandRotate90d, apply_transform
from torch.utils.data import Dataset

from ..tensors import plain_tensor
from .cached_dataset import CachedDataset, moved, restore

__all__ = ["SliceWindows", "cut_window"]

logger = logging.getLogger(__name__)


class SliceWindows(Dataset):
    """Windows of K neighbouring slices, one for each slice of volumes that are prepared once.

    The window of slice i has the slices ``i + stride * o`` for the offsets o from ``-(K // 2)`` to ``K // 2``; at the
    ends the first or last slice is repeated (Zhang et al., TransSeg, section 3.3). Slices lie along the last axis. The
    published code writes each window to a separate file, which takes K times the space.

    Args:
        data: items, as for ``CachedDataset``.
        transform: deterministic transforms of a volume; their result is cached. ``disk`` stores it slice by slice, so a
            window reads only its slices. With ``none`` each volume is loaded once for its number of slices, and again
            for each window, with all transforms of the whole volume; a warning says so, since ``auto`` may choose it.
        slices: K, odd.
        stride: step between slices of a window.
        target: ``"centre"`` keeps the centre slice of the label, ``"all"`` all its slices.
        window_transform: transforms of a window, such as random zooms and flips along all three axes.
        cut_slices: slices to cut for ``window_transform``; the K in the middle are kept afterwards. None cuts K. A net
            of single slices, for example, trains on the middle of 5 slices after zooms and flips along them.
        keys: images to cut; others are passed on.
        label_key: the label, if it is one of them.
        **kwargs: passed to ``CachedDataset``: ``cache``, ``cache_dir``, ``num_workers``, ``augment_on``
            (where ``window_transform`` runs), ...

    The metadata of a window are the file name and its affine. With ``window_transform`` the affine is the unit matrix,
    since zooms and flips are not tracked.

    Items hold an image (C, H, W, K) and a label (1, H, W, 1) or (1, H, W, K), unless the transforms change that.
    ``windows`` has a mapping for each, with ``volume``, the number of its item, and ``slice``.

    Raises:
        ValueError: the number of slices is even or above ``cut_slices``, the stride is below 1, ``target`` is unknown,
            or slices with quarter turns are not square; on access, ``window_transform`` leaves too few slices.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Callable,
        slices: int = 5,
        stride: int = 1,
        target: str = "centre",
        window_transform: Callable | None = None,
        cut_slices: int | None = None,
        keys: Sequence[str] = ("image", "label"),
        label_key: str = "label",
        **kwargs: Any,
    ) -> None:
        cut_slices = slices if cut_slices is None else cut_slices
        if slices < 1 or slices % 2 == 0 or cut_slices % 2 == 0 or cut_slices < slices or stride < 1:
            raise ValueError(
                f"slices ({slices}) and cut_slices ({cut_slices}) must be odd, cut_slices at least slices, and "
                f"stride ({stride}) at least 1."
            )
        if target not in ("centre", "all"):
            raise ValueError(f"target must be 'centre' or 'all', not {target!r}.")
        self.data = data
        self.volumes = CachedDataset(data, transform, slices_first=True, **kwargs)
        if self.volumes.cache == "none" and len(data) and idist.get_rank() == 0:
            logger.warning(
                "cache is none, so each window loads and prepares a whole volume: set cache to disk, and cache_dir to "
                "a folder with room."
            )
        self.slices, self.stride, self.target = slices, stride, target
        self.window_transform, self.cut_slices = window_transform, cut_slices
        self.keys, self.label_key = tuple(keys), label_key
        shapes = [tuple(self._volume(number)[self.keys[0]].shape) for number in range(len(data))]
        oblong = next((shape for shape in shapes if shape[-3] != shape[-2]), None)
        if oblong is not None and turns(window_transform):
            raise ValueError(
                f"slices of {oblong[-3]} x {oblong[-2]} are turned by quarters and would not fit one batch: make them "
                "square (image_size), or leave the quarter turns (RandRotate90d) out of the augmentation."
            )
        self.windows = [{"volume": number, "slice": i} for number, shape in enumerate(shapes) for i in range(shape[-1])]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        window = self.windows[index]
        volume = self._volume(window["volume"])
        cut = dict(volume)
        for key in self.keys:
            whole = plain_tensor(volume[key])
            cut[key] = cut_window(whole, window["slice"], self.cut_slices, self.stride)
        item: Any = moved(restore(cut), self.volumes.augment_on)
        if self.window_transform is not None:
            with untracked():
                item = apply_transform(self.window_transform, item)
        for key in self.keys:
            kept = 1 if key == self.label_key and self.target == "centre" else self.slices
            first = (item[key].shape[-1] - kept) // 2
            if first < 0:
                raise ValueError(
                    f"the transforms of windows leave {item[key].shape[-1]} slices of {key}, but {kept} are needed: "
                    "pad to cut_slices (SpatialPadd), for example after a zoom along the slices."
                )
            made = item[key][..., first : first + kept]
            if isinstance(volume[key], MetaTensor):
                meta = {"filename_or_obj": volume[key].meta.get("filename_or_obj", "")}
                made = MetaTensor(made, affine=self._affine(volume[key], window["slice"], kept), meta=meta)
            item[key] = made
        return item

    def _volume(self, number: int) -> Mapping[str, Any]:
        """The cached volume, to read only its slices; a transform that cannot be cached runs on the volume."""
        if self.volumes.first_random == len(self.volumes.transform.transforms):
            return self.volumes.stored(number)
        return self.volumes[number]

    def _affine(self, volume: MetaTensor, centre: int, slices: int) -> torch.Tensor | None:
        """Affine of the window around a slice, so pictures have the scan's proportions; None if unknown."""
        if self.window_transform is not None:
            return None
        affine = volume.affine.clone()
        affine[:3, 3] += (centre - self.stride * (slices // 2)) * affine[:3, 2]
        affine[:3, 2] *= self.stride
        return affine


def turns(transform: Callable | None) -> bool:
    """Whether one of the transforms may rotate slices by quarter turns."""
    parts = transform.flatten().transforms if isinstance(transform, Compose) else (transform,)
    return any(isinstance(part, RandRotate90 | RandRotate90d) for part in parts)


@contextmanager
def untracked() -> Iterator[None]:
    """Remove MONAI's tracking of voxel positions: windows do not need it, and it takes half of their time."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def cut_window(volume: torch.Tensor, centre: int, slices: int, stride: int = 1) -> torch.Tensor:
    """Window (..., slices) around a slice of a volume (..., D); the volume's end slices are repeated beyond it."""
    half = slices // 2
    index = torch.arange(centre - stride * half, centre + stride * half + 1, stride).clamp(0, volume.shape[-1] - 1)
    return volume[..., index]
