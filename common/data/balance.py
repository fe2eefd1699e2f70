from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that the command line of this package starts without loading torch
    import torch

__all__ = ["class_weights"]


def class_weights(
    items: Sequence[Mapping[str, Any]], bounds: Sequence[float], device: torch.device | str = "cpu", key: str = "label"
) -> torch.Tensor:
    """Class weights that make all classes count alike in a cross-entropy: N / (classes x N of the class).

    Args:
        items: training items, each with a number.
        bounds: bounds of the classes, as for ``common.transforms.NumberToClassd``.
        device: device of the loss.
        key: key of the number.

    Returns:
        (classes,), with mean 1 over the items.

    Raises:
        ValueError: a class has no item.
    """
    import torch

    counts = [0] * (len(bounds) + 1)
    for item in items:
        counts[bisect.bisect_right(list(bounds), float(item[key]))] += 1
    if not all(counts):
        raise ValueError(
            f"the training list has {counts} scans of the classes 0 to {len(bounds)}: each class needs a "
            "scan to get a weight; add scans, or set class_weights to null."
        )
    return torch.tensor([len(items) / (len(counts) * count) for count in counts], device=device)
