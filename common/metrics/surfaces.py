"""Distances between the surfaces of masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics.utils import get_edge_surface_distance

__all__ = ["of_distances", "volume_spacing"]


def of_distances(
    y_pred: torch.Tensor, y: torch.Tensor, spacing: Sequence[float], statistic: Callable[[np.ndarray], float]
) -> torch.Tensor:
    """A statistic of the distances in mm from each surface to the other, both lists together.

    Args:
        y_pred, y: one-hot prediction and truth (B, C, *spatial).
        spacing: mm per voxel and axis.
        statistic: number of an array of distances.

    Returns:
        (B, C) in float64; NaN where a mask is empty.
    """
    found = torch.full(y.shape[:2], math.nan, dtype=torch.float64, device=y.device)
    for sample, label in np.ndindex(*y.shape[:2]):
        masks = y_pred[sample, label], y[sample, label]
        if all(bool(mask.any()) for mask in masks):
            _, distances, _ = get_edge_surface_distance(*masks, spacing=list(spacing), symmetric=True)
            both = np.concatenate([np.asarray(torch.as_tensor(x).cpu()) for x in distances])
            found[sample, label] = statistic(both)
    return found


def volume_spacing(y: torch.Tensor, metric: str) -> list[float]:
    """Spacing of a volume, mm per voxel and axis.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(y, MetaTensor) or y.affine.ndim != 2:
        raise ValueError(
            f"{metric} has no `spacing` and the truth carries none (an affine): give {metric} the `spacing` in mm."
        )
    return [float(size) for size in torch.linalg.norm(y.affine[:3, :3].double(), dim=0)]
