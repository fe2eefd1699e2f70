from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from ..foreground import PART, RULES, foreground_mask, percentile_of, voxels_in
from ..volumes import volume_name

__all__ = ["NormalizeForegroundd", "ScaleForegroundPercentilesd"]

ROWS = 4


class _ByForeground(MapTransform):
    """The part that both transforms share: each channel is scaled by statistics of its foreground."""

    def __init__(self, keys: KeysCollection, foreground: str | float, allow_missing_keys: bool) -> None:
        super().__init__(keys, allow_missing_keys)
        if isinstance(foreground, str) and foreground not in RULES:
            raise ValueError(f"foreground is one of {', '.join(RULES)}, or a number, not {foreground!r}.")
        self.foreground = foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = torch.as_tensor(d[key])
            image = image.as_tensor() if hasattr(image, "as_tensor") else image
            made: torch.Tensor | None = None
            for number, channel in enumerate(image.float()):
                inside = voxels_in(channel, foreground_mask(channel, self.foreground))
                name = volume_name(d[key], key)
                where = f"{name} (channel {number})" if len(image) > 1 else name
                if inside.numel() == 0:
                    raise ValueError(
                        f"{where} has no foreground ({self.foreground!r}), so its intensities cannot be scaled; repair "
                        "the file "
                        "or take it out of the datalist."
                    )
                scaled = self.scale(inside, where)
                del inside  # before there is another volume
                if made is None:
                    made = torch.empty(image.shape, dtype=torch.float32, device=image.device)
                for source, target in zip(channel.split(ROWS), made[number].split(ROWS), strict=True):
                    target.copy_(scaled(source))
            d[key] = convert_to_dst_type(made, d[key], dtype=torch.float32)[0]
        return d

    def scale(self, inside: torch.Tensor, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """What scales voxels, from the foreground, whose order may be lost."""
        raise NotImplementedError


class ScaleForegroundPercentilesd(_ByForeground):
    """MONAI's ``ScaleIntensityRangePercentilesd`` with percentiles of the foreground of each channel.

    Percentiles of a whole volume depend on how much air surrounds the body: more air means more clipped tissue.
    Percentiles of the foreground do not, so a tissue has one value in any field of view.

    Args:
        keys: images, channel first.
        lower, upper: percentiles of the foreground, 0 to 100, that become ``b_min`` and ``b_max``.
        b_min, b_max: the new range. Air, darker than the foreground, becomes ``b_min`` where it is clipped.
        clip: whether values beyond the range become its ends.
        foreground: ``"tissue"``, ``"nonzero"``, ``"all"`` (MONAI's) or a number, as in ``foreground_mask``.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: percentiles are out of order or ``foreground`` is unknown; an image has no foreground, or both its
            percentiles are equal (names the file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float,
        upper: float,
        b_min: float = 0.0,
        b_max: float = 1.0,
        clip: bool = True,
        foreground: str | float = "tissue",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, foreground, allow_missing_keys)
        check_percentiles(lower, upper)
        self.lower, self.upper, self.b_min, self.b_max, self.clip = lower, upper, b_min, b_max, clip

    def scale(self, inside: torch.Tensor, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        low, high = torch.as_tensor(percentile_of(inside, [self.lower, self.upper])).tolist()
        if not high > low:
            raise ValueError(
                f"The percentiles {self.lower:g} and {self.upper:g} of the foreground of {name} are both "
                f"{low:g}, so "
                "its intensities cannot be scaled; repair the file or take it out of the "
                "datalist."
            )

        def scaled(part: torch.Tensor) -> torch.Tensor:
            made = (part - low) / (high - low) * (self.b_max - self.b_min) + self.b_min
            return made.clamp(self.b_min, self.b_max) if self.clip else made

        return scaled


class NormalizeForegroundd(_ByForeground):
    """Scale each channel to mean 0 and standard deviation 1 of its foreground, after clipping at its percentiles.

    ``foreground="all"`` gives MONAI's ``ClipIntensityPercentilesd`` and ``NormalizeIntensityd``; the values then depend
    on the amount of air.

    Args:
        keys: images, channel first.
        lower, upper: percentiles of the foreground at which intensities are clipped first; None for no clipping. Air,
            darker than the foreground, becomes the least value where it is clipped.
        foreground: ``"tissue"``, ``"nonzero"``, ``"all"`` or a number, as in ``foreground_mask``.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: one percentile is given without the other, they are out of order or ``foreground`` is unknown; an
            image has no foreground, or only one intensity in it (names the file).
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float | None = None,
        upper: float | None = None,
        foreground: str | float = "tissue",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, foreground, allow_missing_keys)
        if lower is not None or upper is not None:
            check_percentiles(lower, upper)
        self.lower, self.upper = lower, upper

    def scale(self, inside: torch.Tensor, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        if self.lower is not None and self.upper is not None:
            low, high = torch.as_tensor(percentile_of(inside, [self.lower, self.upper])).tolist()
        else:
            low, high = -math.inf, math.inf
        inside = inside.clamp_(low, high)
        parts = inside.split(PART)  # in float64, of which a whole volume would be large
        mean = sum(float(part.double().sum()) for part in parts) / inside.numel()
        deviation = math.sqrt(sum(float((part.double() - mean).square().sum()) for part in parts) / inside.numel())
        if not deviation > 0:
            raise ValueError(
                f"The foreground of {name} has only the intensity {mean:g}, so the image cannot be scaled; "
                "repair the file or take it out of the datalist."
            )
        return lambda part: (part.clamp(low, high) - mean) / deviation


def check_percentiles(lower: float | None, upper: float | None) -> None:
    if lower is None or upper is None or not 0 <= lower < upper <= 100:
        raise ValueError(
            f"The percentiles must be a lower and an upper one between 0 and 100, not {lower} and {upper}."
        )
