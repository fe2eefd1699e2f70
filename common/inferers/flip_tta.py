from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..gathered import drop_pages
from .sliding_window import SlidingWindowInferer

__all__ = ["MirroredSlidingWindowInferer"]


ROWS = 8


class MirroredSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's sliding windows, averaged over mirror images of each window, as in nnU-Net.

    Args:
        mirror_axes: spatial axes to mirror, from 0; n axes need 2 ** n passes instead of one. Empty for none.
        *args, **kwargs: as in ``monai.inferers.SlidingWindowInferer``.

    It averages class probabilities (softmax over axis 1) and returns their logarithm, so a later softmax or argmax
    works as usual. Without mirrored axes it returns the network's output unchanged.

    Raises:
        ValueError: when called, an axis is not an axis of the image.
    """

    def __init__(self, *args: Any, mirror_axes: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mirror_axes = tuple(mirror_axes)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.mirror_axes:
            return super().__call__(inputs, network, *args, **kwargs)
        if not all(0 <= axis < inputs.ndim - 2 for axis in self.mirror_axes):
            raise ValueError(
                f"mirror_axes {self.mirror_axes} are not all axes of an image of {tuple(inputs.shape[2:])} voxels."
            )
        flips = [
            [axis + 2 for axis in axes]
            for count in range(len(self.mirror_axes) + 1)
            for axes in itertools.combinations(self.mirror_axes, count)
        ]

        def mirrored(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            total = torch.zeros((), device=window.device)
            for axes in flips:
                logits = network(window.flip(axes), *args, **kwargs)
                total = total + F.softmax(logits.float(), dim=1).flip(axes)
            return total / len(flips)

        probability: Any = super().__call__(inputs, mirrored, *args, **kwargs)
        values = probability.as_tensor() if hasattr(probability, "as_tensor") else probability
        for rows in values.split(ROWS, dim=2):  # in place: a prediction may be larger than memory
            rows.clamp_(min=torch.finfo(torch.float32).tiny).log_()
            drop_pages(values)
        return probability
