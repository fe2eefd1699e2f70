from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Activations, AsDiscrete, Invertd

from .scan_grid import ScanGrid

__all__ = ["ScanLabelsd"]


class ScanLabelsd(Invertd):
    """Scores of a network to the label map on the grid of the scan's file.

    What MONAI's ``Activationsd(softmax=True)``, ``Invertd(nearest_interp=False)`` and ``AsDiscreted(argmax=True)`` make
    one after the other, slab by slab: probabilities of all classes on the scan's grid never exist as a whole. Where
    preprocessing has operations that ``ScanGrid`` does not know, it is those three.

    Args:
        keys: predictions, scores (K, *spatial).
        transform: preprocessing that made the network's input; all of it that moves voxels has to be invertible.
        orig_keys: image that the network took.
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
