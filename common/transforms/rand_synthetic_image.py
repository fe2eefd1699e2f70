from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from ..random_state import seeded
from ..volumes import volume_name
from .ignored import IGNORED
from .synthetic_contrast import SyntheticContrast

__all__ = ["RandSyntheticImaged"]


class RandSyntheticImaged(Randomizable, MapTransform):
    """Replace an image by one of random contrast that is drawn from its label map, and deform the label map alike.

    So a network learns anatomy and not a scanner's contrast, from masks alone (SynthSeg: Billot et al., Medical Image
    Analysis 2023). The draw follows MONAI's random state, so that workers and resumed runs repeat.

    Args:
        keys: the images that are replaced; each gets a contrast of its own. An item need not have them.
        label_key: label map (1, *spatial) of the item, 0 or more; -1, which does not count, is drawn as background. It
            is deformed in place of the item's, and what comes from outside of it becomes -1.
        source_key: label map the images are drawn from, on the grid of the label; it may hold more labels than are to
            be segmented (skull, scalp). None draws from ``label_key``.
        deformation: moves label maps; None leaves them as they are.
        contrast: draws images from label maps.
        prob: probability of a synthetic image; otherwise the item stays as it is.

    Raises:
        ValueError: the item has no such label map, it has fewer than two labels or more than one channel, or the source
            is not on its grid.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        label_key: str = "label",
        source_key: str | None = None,
        deformation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        contrast: Callable[[torch.Tensor], torch.Tensor] | None = None,
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        if not 0 <= prob <= 1:
            raise ValueError(f"prob is a probability between 0 and 1, not {prob}.")
        self.label_key, self.source_key, self.prob = label_key, source_key or label_key, prob
        self.deformation = deformation
        self.contrast = contrast or SyntheticContrast()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.R.rand() >= self.prob:
            return d
        for needed in (self.label_key, self.source_key):
            if needed not in d:
                raise ValueError(f"The item has no {needed!r} to draw an image from, only {sorted(map(str, d))}.")
        label = torch.as_tensor(d[self.label_key])
        source = torch.as_tensor(d[self.source_key])
        name = volume_name(d[self.source_key], self.source_key)
        if source.shape[0] != 1 or source.shape != label.shape:
            raise ValueError(
                f"{name} has the shape {list(source.shape)}, the label {list(label.shape)}: images are drawn from "
                "label maps of one channel on one grid."
            )
        if source.clamp_min(0).min() == source.max():
            raise ValueError(
                f"{name} holds no label but {int(source.max())}: images are drawn from two labels or more."
            )
        # One draw of MONAI's generator decides all others, and torch's own goes on as if nothing had happened.
        with seeded(self.R.randint(2**31), label.device):
            counted = label != IGNORED
            label, source = (_plain(part).clamp_min(0) for part in (label, source))
            if self.deformation is not None:
                maps = torch.cat((label, source, _plain(counted).to(label.dtype)))
                label, source, counted = self.deformation(maps[None])[0][:, None]  # 0 where they come from outside
            label = label.where(counted != 0, IGNORED)
            images = {key: self.contrast(source[None])[0] for key in self.keys}
        d[self.label_key] = _like(label, d[self.label_key])
        for key, image in images.items():
            d[key] = _like(image, d.get(key, d[self.label_key]))
        return d


def _plain(volume: torch.Tensor) -> torch.Tensor:
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume


def _like(volume: torch.Tensor, other: Any) -> torch.Tensor:
    """The volume with the metadata of another."""
    if not isinstance(other, MetaTensor):
        return volume
    return MetaTensor(volume, meta=other.meta, applied_operations=other.applied_operations)
