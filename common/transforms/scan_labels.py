from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Activations, AsDiscrete, Invertd

from .scan_grid import ScanGrid

__all__ = ["ScanLabelsd"]


class ScanLabelsd(Invertd):
    """Turn a network's scores into a label map on the grid of the scan's file.

    The result is that of MONAI's ``Activationsd(softmax=True)``, ``Invertd(nearest_interp=False)`` and
    ``AsDiscreted(argmax=True)`` in this order. But it is computed slab by slab, so the probabilities of all classes are
    never in memory for the whole grid. If the preprocessing has operations that ``ScanGrid`` does not know, MONAI's
    three transforms run instead.

    Args:
        keys: predictions, scores (K, *spatial).
        transform: preprocessing of the network's input. Each of its transforms that moves voxels must be invertible.
        orig_keys: the network's input image.
        allow_missing_keys: whether items may lack keys.

    Label maps are (1, *spatial) of uint8, or int16 from 257 classes on.
    """

    def __init__(
        self, keys: Any, transform: Any, orig_keys: Any = "image", allow_missing_keys: bool = False, **kwargs: Any
    ) -> None:
        kwargs = {"nearest_interp": False} | kwargs
        super().__init__(keys, transform, orig_keys, allow_missing_keys=allow_missing_keys, **kwargs)
        self._softmax, self._argmax = Activations(softmax=True), AsDiscrete(argmax=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, original in self.key_iterator(d, self.orig_keys):
            dtype = torch.uint8 if len(d[key]) <= 256 else torch.int16
            grid = ScanGrid.of(d[original])
            if grid is None:
                whole = super().__call__({original: d[original], key: self._softmax(d[key])})[key]
                d[key] = torch.as_tensor(self._argmax(whole)).to(dtype)
                continue
            labels = torch.empty(1, *grid.shape, dtype=dtype, device=d[key].device)
            scores = torch.as_tensor(d[key]).detach()
            for rows, probabilities in grid.slabs(scores.as_tensor() if hasattr(scores, "as_tensor") else scores):
                labels[0, rows] = probabilities.argmax(0).to(dtype)
            d[key] = grid.turned(labels)
        return d
