from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["image_affine", "output_items"]


def output_items(output: Any) -> Sequence[Mapping[str, Any]]:
    """The items of an engine's output with ``image``, ``label`` and ``pred``, from a decollated list or a batch.

    There are none if one of the three is not a tensor, such as a prediction that is a dict.
    """
    if isinstance(output, Mapping):
        keys = ("image", "label", "pred")
        if not all(isinstance(output.get(key), torch.Tensor) for key in keys):
            return []
        output = [{key: output[key][n] for key in keys} for n in range(len(output["image"]))]
    return output


def image_affine(batch: Any, number: int) -> Any:
    """The affine (4, 4) of one image in an engine's batch, decollated or not; None if it has none."""
    one = batch[number] if isinstance(batch, Sequence) else batch
    affine = getattr(one["image"], "affine", None)
    return affine[number] if affine is not None and affine.ndim == 3 else affine
