from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable

from ..random_state import seeded
from ..volumes import volume_name
from .ignored import IGNORED, signed
from .synthetic_contrast import SyntheticContrast

__all__ = ["RandSyntheticImaged"]


class RandSyntheticImaged(Randomizable, MapTransform):
    """Replace an image with one of random contrast drawn from its label map, and deform the label map with it.

    A network so learns anatomy, not a scanner's contrast, from masks alone (SynthSeg: Billot et al., Medical Image
    Analysis 2023). The draw follows MONAI's random state, so workers and resumed runs repeat it.

    Args:
        keys: the images to replace; each gets its own contrast. An item need not have them.
        label_key: label map (1, *spatial) of the item, 0 or more; -1, which does not count, is drawn as background. The
            deformed map replaces the item's; voxels from outside of it become -1. Bytes become int16 in every item.
        source_key: label map that the images are drawn from, on the grid of the label. It may hold more labels than the
            network segments (skull, scalp). None draws from ``label_key``.
        deformation: moves label maps, as ``common.transforms.RandomDeformation`` does; None leaves them as they are.
            The labels of its ``sided`` are those of the source: a label map of other numbers keeps them, so do not
            mirror if its classes have sides, unless ``source_extends_label``.
        contrast: draws images from label maps.
        normalize: the transform that normalises the ``image`` of an item, such as
            ``common.transforms.NormalizeForegroundd``; None leaves images in 0..1.
        prob: probability of a synthetic image; otherwise the item stays as it is.
        domains: names of the domains whose items get synthetic images; other items stay unchanged. None takes items of
            all domains.
        domain_key: key of an item that names its domain.
        keep_uniform: keep items with fewer than two labels unchanged, such as crops of air, instead of refusing them.
        source_extends_label: the source has the label's numbers, and others where the label has none. Then both have
            their sides exchanged when they are mirrored.

    Raises:
        ValueError: the item has no such label map, it has fewer than two labels or more than one channel, or the source
            is not on its grid; ``domains`` are given but the item names none.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        label_key: str = "label",
        source_key: str | None = None,
        deformation: Callable[..., torch.Tensor] | None = None,
        contrast: Callable[[torch.Tensor], torch.Tensor] | None = None,
        normalize: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
        prob: float = 1.0,
        domains: Sequence[str] | None = None,
        domain_key: str = "domain",
        keep_uniform: bool = False,
        source_extends_label: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be a probability between 0 and 1, not {prob}.")
        self.label_key, self.source_key, self.prob = label_key, source_key or label_key, prob
        self.one_numbering = source_extends_label or self.source_key == label_key
        self.deformation = deformation
        self.contrast, self.normalize = contrast or SyntheticContrast(), normalize
        self.domains, self.domain_key = None if domains is None else tuple(domains), domain_key
        self.keep_uniform = keep_uniform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.label_key in d:
            d[self.label_key] = signed(d[self.label_key])  # in items that stay, too: a batch has one type
        if self.domains is not None:
            if d.get(self.domain_key) in (None, ""):
                raise ValueError(
                    f"The item has no {self.domain_key!r}, but only domains {', '.join(self.domains)} get drawn "
                    "images: read the items with common.data.load_domains."
                )
            if d[self.domain_key] not in self.domains:
                return d
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
                f"{name} has the shape {list(source.shape)}, the label {list(label.shape)}: both must have one "
                "channel and lie on one grid."
            )
        if source.clamp_min(0).min() == source.clamp_min(0).max():
            if self.keep_uniform:
                return d
            raise ValueError(f"{name} holds no label but {int(source.max())}: an image needs at least two labels.")
        # One draw of MONAI's generator decides all others, and torch's own goes on as if nothing had happened.
        with seeded(self.R.randint(2**31), label.device):
            counted, dtype = label != IGNORED, label.dtype
            label, source = (_plain(part).clamp_min(0) for part in (label, source))
            if self.deformation is not None:
                maps = torch.cat((label, source, _plain(counted).to(label.dtype)))[None]
                swapped = [0, 1] if self.one_numbering else [1]
                label, source, counted = self.deformation(maps, swapped=swapped)[0][:, None]  # 0 from outside
            label = label.to(dtype).where(counted != 0, IGNORED)
            images = {key: self.contrast(source[None])[0] for key in self.keys}
        if self.normalize is not None:
            images = {key: torch.as_tensor(self.normalize({"image": image})["image"]) for key, image in images.items()}
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
