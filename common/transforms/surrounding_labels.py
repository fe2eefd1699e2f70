from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch.nn import functional as F

from ..foreground import foreground_mask
from ..tensors import plain_tensor
from ..volumes import format_shape, volume_name
from .ignored import signed

__all__ = ["SurroundingLabelsd"]

BINS = 256
ROUNDS = 50


class SurroundingLabelsd(MapTransform):
    """Label what a scan shows around its labelled structures, such as skull and scalp, by intensity.

    Masks of a brain say nothing of the head around it. Images that are drawn from such masks alone have no tissue
    there, unlike scans with a skull. So the scan is asked: its head is what lies between tissue along every axis, and
    the unlabelled part of the head is split into groups of similar intensity (k-means). The darkest group is mostly
    bone, fluid and air inside the head. The groups stand for the labels of skull and scalp in the label maps of
    SynthSeg (Billot et al., Medical Image Analysis 2023).

    Args:
        keys: scans (C, *spatial), of which the first channel is used; each needs its own ``output_key``.
        label_key: label map (1, *spatial) on the same grid; values below 1 are unlabelled.
        output_key: key of the new map (1, *spatial). It holds the labels, then ``first``, ``first + 1``, ... from dark
            to bright in the surroundings, and 0 or -1 elsewhere, as the label map does.
        groups: number of groups; with 0 the new map is the label map, for skull-stripped scans.
        first: number of the first group, above all labels.
        allow_missing_keys: whether items may lack the scan.

    Raises:
        ValueError: ``groups`` is negative; the item has no label map; the scan is not on the label map's grid, or a
            label is not below ``first`` (names the file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        output_key: str,
        groups: int,
        first: int,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys names {len(self.keys)} scans; one label map of surroundings comes from one scan.")
        if groups < 0:
            raise ValueError(f"groups is {groups}; it must be 0 (no surroundings) or more.")
        self.label_key, self.output_key, self.groups, self.first = label_key, output_key, groups, first

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if self.label_key not in d:
                raise ValueError(
                    f"The item has no {self.label_key!r} whose surroundings to label, only {sorted(map(str, d))}."
                )
            image, label = (torch.as_tensor(plain_tensor(d[name])) for name in (key, self.label_key))
            name = volume_name(d[self.label_key], self.label_key)
            if label.shape[0] != 1 or label.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{name} has the shape {format_shape(label.shape)} and its scan {format_shape(image.shape)}: the "
                    "label map must have one channel and lie on the scan's grid."
                )
            if int(label.max()) >= self.first:
                raise ValueError(
                    f"{name} holds the label {int(label.max())}; `first` must be larger, not {self.first}."
                )
            made = signed(label)
            if self.groups:
                made = made.clone()
                made[0] = self._with_surroundings(image[0].float(), made[0])
            d[self.output_key] = convert_to_dst_type(made, d[self.label_key], dtype=made.dtype)[0]
        return d

    def _with_surroundings(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # Air is the least value, whatever was added to the image since it was scaled.
        signal = image - image.min()
        labelled = label > 0
        tissue = foreground_mask(signal) | labelled
        head = tissue.clone()
        head |= torch.stack([_between(tissue, axis) for axis in range(tissue.ndim)]).all(0)
        around = head & ~labelled
        values = signal[around]
        if values.numel():
            limits = split_intensities(values, self.groups).to(values.device)
            label[around] = (self.first + torch.bucketize(values, limits)).to(label.dtype)
        return label


def split_intensities(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Limits between ``groups`` groups of values, which are 0 or more, by k-means on their histogram."""
    width = float(values.max()) / BINS or 1.0
    counts = torch.bincount((values / width).long().clamp(max=BINS - 1), minlength=BINS).cpu().double()
    middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
    # Spread over the range and not over the voxels, most of which may be dark.
    centres = (torch.arange(groups, dtype=torch.float64) + 0.5) / groups * BINS * width
    for _ in range(ROUNDS):
        member = F.one_hot(torch.bucketize(middles, (centres[1:] + centres[:-1]) / 2), groups).double()
        total = member.T @ counts
        moved = torch.where(total > 0, member.T @ (counts * middles) / total.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return ((centres[1:] + centres[:-1]) / 2).to(values.dtype)


def _between(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """Which voxels have voxels of the mask on both sides along an axis."""
    before = mask.cumsum(axis, dtype=torch.int32) > 0
    return before & (mask.flip(axis).cumsum(axis, dtype=torch.int32) > 0).flip(axis)
