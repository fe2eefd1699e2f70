from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.transforms import (
    Activations,
    Compose,
    Invertd,
    InvertibleTransform,
    MapTransform,
    Orientation,
    allow_missing_keys_mode,
)

from ..gathered import drop_pages, gathered
from ..tensors import plain_tensor
from ..volumes import format_shape, volume_name
from .scan_grid import ScanGrid


class StoredGridd(MapTransform):
    """Bring a prediction back to the grid of the scan's file, and load the label as stored.

    It comes first in the postprocessing of an evaluation, so the scores are those of the label maps that inference
    writes. The prediction is treated as in `inference.json`: scores become probabilities (softmax), which are
    resampled; a later transform takes the largest. The label is read again and passes only the transforms before the
    first change of its grid, such as the map to classes. So it is never resampled, and the parts that preprocessing cut
    off count.

    Args:
        keys: predictions, scores (C, *spatial).
        transform: preprocessing that made the network's input; every part that moves voxels must be invertible.
        enabled: False returns items unchanged, on the network's grid.
        image_key: image that the network took.
        label_key: label image.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: the label was not loaded from a file, or image and label files differ in shape (names the file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Compose,
        enabled: bool = True,
        image_key: str = "image",
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.enabled, self.image_key, self.label_key = enabled, image_key, label_key
        self._softmax = Activations(softmax=True)
        self._invert = Invertd(keys, transform, image_key, nearest_interp=False, allow_missing_keys=allow_missing_keys)
        self._load = []
        for step in transform.flatten().transforms:
            if isinstance(step, MapTransform) and label_key in step.keys:
                if isinstance(step, InvertibleTransform):
                    break
                self._load.append(step)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if not self.enabled:
            return d
        grid = ScanGrid.of(d[self.image_key])
        for key in self.key_iterator(d):
            if grid is None:
                d |= self._invert({self.image_key: d[self.image_key], key: self._softmax(d[key])})
                continue
            scores = plain_tensor(d[key])
            made = gathered((len(scores), *grid.shape), device=scores.device)
            for rows, probabilities in grid.slabs(scores):
                made[:, rows] = probabilities
                drop_pages(made)
            d[key] = grid.turned(made)
        label = self._stored(d)
        for key in self.key_iterator(d):
            if nib.aff2axcodes(label.affine) != nib.aff2axcodes(
                d[key].affine
            ):  # voxels in another order, as in training
                label = Orientation(axcodes=nib.aff2axcodes(d[key].affine), labels=None)(label)
            if label.shape[1:] != d[key].shape[1:]:
                raise ValueError(
                    f"{volume_name(label, self.label_key)} has the shape {format_shape(label.shape[1:])}, "
                    f"but its image {volume_name(d[key], key)} has {format_shape(d[key].shape[1:])}; put image and "
                    "label on one grid, or set --native False to score on the network's."
                )
            d[self.label_key] = label.to(d[key].device)
        return d

    def _stored(self, d: Mapping[Hashable, Any]) -> Any:
        """The label on the grid of its file, in classes."""
        file = getattr(d[self.label_key], "meta", {}).get("filename_or_obj")
        if not file:
            raise ValueError(
                f"The label under the key {self.label_key!r} was not loaded from a file, so it has no stored "
                "grid to score on: set --native False."
            )
        item = {key: value for key, value in d.items() if not isinstance(value, torch.Tensor)}
        item[self.label_key] = file
        for step in self._load:
            with allow_missing_keys_mode(step):
                item = step(item)
        return item[self.label_key]
