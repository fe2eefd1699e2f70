from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..score import score_masks
from .empty_masks import Empty, MeanOfCases, check_empty
from .surfaces import volume_spacing

__all__ = ["NSD"]


class NSD(MeanOfCases):
    """Normalised surface Dice of each volume and class, as in ``python -m common.score``.

    It is the share of the voxels of both surfaces that lie within ``tolerance`` mm of the other surface. MONAI's
    ``SurfaceDiceMetric`` counts subvoxels or weights surface elements, and has another rule for empty masks.

    Args:
        tolerance: largest distance in mm that counts as correct.
        spacing: mm per voxel and axis; None reads it from each volume, if the truth is a ``MetaTensor``.
        include_background: whether channel 0 counts.
        empty: score of a structure in neither mask: `leave_out` of the mean (NaN), or `perfect`, 1. A missed or
            invented structure scores 0 (``empty_masks.py`` says more).

    Takes one-hot prediction and truth (B, C, *spatial), returns (B, C) or (B, C - 1) per batch. ``aggregate`` is the
    mean over volumes of the mean over structures; NaN if none counts in any volume.

    Raises:
        ValueError: the tolerance is below 0, the rule is unknown, or the truth has no spacing and none is given.
    """

    def __init__(
        self,
        tolerance: float = 1.0,
        spacing: Sequence[float] | None = None,
        include_background: bool = False,
        empty: Empty = "leave_out",
    ) -> None:
        super().__init__()
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < float("inf"):
            raise ValueError(f"The tolerance of NSD must be 0 mm or more, not {tolerance!r}.")
        self.tolerance, self.spacing, self.include_background = tolerance, spacing, include_background
        self.empty = check_empty(empty, "NSD")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        assert y is not None
        spacing = self.spacing or volume_spacing(y, "NSD")
        prediction, truth = (torch.as_tensor(mask).bool().numpy(force=True) for mask in (y_pred, y))
        first = 0 if self.include_background else 1
        found = np.full((len(truth), truth.shape[1] - first), np.nan, np.float32)
        for sample, label in np.ndindex(*found.shape):
            masks = truth[sample, label + first], prediction[sample, label + first]
            found[sample, label] = score_masks(*masks, spacing, self.tolerance, empty=self.empty)["nsd"]
        return torch.as_tensor(found, device=y.device)
