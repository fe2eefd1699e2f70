from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch.nn import functional as F

from ..gathered import drop_pages, gathered
from .sliding_window import with_meta

__all__ = ["ResizedInferer"]


class ResizedInferer(Inferer):
    """Resize whole images to one size for the network, and resize its logits back.

    Args:
        spatial_size: size that the network sees. Images are averaged over its cells, like ``Resized`` with the mode
            ``area`` in training, so no voxel is skipped. Logits are resized trilinearly.

    ``inferer(inputs (B, C, *spatial), network)`` returns logits (B, K, *spatial) in float32, with the metadata of the
    inputs.
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        super().__init__()
        self.spatial_size = tuple(spatial_size)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        image = F.interpolate(image, self.spatial_size, mode="area")
        logits = network(image, *args, **kwargs).float()
        made = gathered((*logits.shape[:2], *inputs.shape[2:]), logits.dtype, logits.device)
        for number in range(logits.shape[1]):  # a class at a time, so that all are never in memory
            part = logits[:, number : number + 1]
            made[:, number : number + 1] = F.interpolate(part, inputs.shape[2:], mode="trilinear", align_corners=False)
            drop_pages(made)
        return with_meta(made, inputs)
