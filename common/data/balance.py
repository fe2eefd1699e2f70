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
    """Weights of classes for a cross-entropy, in which all classes count alike: N / (classes x N of the class).

    Args:
        items: of training, with a number each.
        bounds: of the classes, as ``common.transforms.NumberToClassd`` has them.
        device: of the loss.
        key: of the number.

    Returns:
        (classes,), their mean over the items 1.

    Raises:
        ValueError: no item is of one of the classes.
    """
    import torch

    counts = [0] * (len(bounds) + 1)
    for item in items:
        counts[bisect.bisect_right(list(bounds), float(item[key]))] += 1
    if not all(counts):
        raise ValueError(
            f"the training list has {counts} scans of the classes 0 to {len(bounds)}: each needs one to have a weight; "
            "give others, or set class_weights to null."
        )
    return torch.tensor([len(items) / (len(counts) * count) for count in counts], device=device)
