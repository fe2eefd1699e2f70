"""Features of a frozen encoder: one vector per volume, or one per voxel."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.nn import functional as F

from ...evaluation_mode import evaluation_mode


def pooled_features(encoder: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Mean over the grid of every map of an encoder, one vector per volume.

    It uses all maps, because useful features lie at different depths for different pre-training methods (the last
    blocks of a masked autoencoder serve its reconstruction). The decoder of a segmentation net also gets all maps.

    Args:
        encoder: module that returns a list of maps (B, C_i, *grid_i). It runs in eval mode and without gradients;
            its mode is restored afterwards.
        image: (B, C, *spatial), of a size and on the device that the encoder takes.

    Returns:
        (B, F), F the sum of the maps' channels, float32.
    """
    with evaluation_mode(encoder):
        return torch.cat([x.float().flatten(2).mean(dim=2) for x in encoder(plain_tensor(image))], dim=1)


def voxel_features(encoder: nn.Module, image: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Features of every map of an encoder at chosen voxels of one volume, interpolated linearly along each axis.

    The centre of a map's cell i lies where its stride s puts it, at the voxel coordinate (i + 0.5) s - 0.5; beyond the
    outermost centres the outermost cell counts. Only the chosen points are interpolated, so memory grows with their
    number, not with the volume.

    Args:
        encoder: module that returns a list of maps (1, C_i, *grid_i) and states their ``strides``. It runs in eval
            mode and without gradients; its mode is restored afterwards.
        image: one volume (1, C, *spatial), 2-D or 3-D, of a size and on the device that the encoder takes.
        index: (V, dimensions), voxel coordinates in the order of the spatial axes.

    Returns:
        (V, F), F the sum of the maps' channels, float32.

    Raises:
        ValueError: there is more than one volume, or coordinates have another number of axes.
    """
    dimensions = image.ndim - 2
    if len(image) != 1 or index.ndim != 2 or index.shape[1] != dimensions:
        raise ValueError(
            "voxel_features takes one volume (1, C, *spatial) and one coordinate per axis and voxel, got the shapes "
            f"{tuple(image.shape)} and {tuple(index.shape)}."
        )
    index = index.to(image.device, torch.float32)
    with evaluation_mode(encoder):
        features = [x.float() for x in encoder(plain_tensor(image))]
    strides: Any = encoder.strides
    gathered = []
    for x, stride in zip(features, strides, strict=True):
        extent = torch.tensor(
            [g * s for g, s in zip(x.shape[2:], ensure_tuple_rep(stride, dimensions), strict=True)],
            device=image.device,
        )
        # grid_sample's coordinates run from -1 to 1 between the outer edges of the map, its last axis first.
        points = ((2 * index + 1) / extent - 1).flip(1).view(1, *[1] * (dimensions - 1), len(index), dimensions)
        sampled = F.grid_sample(x, points, mode="bilinear", padding_mode="border", align_corners=False)
        gathered.append(sampled.flatten(2)[0].T)
    return torch.cat(gathered, dim=1)


def plain_tensor(volume: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 without MONAI's metadata, which would pass through an encoder."""
    return (volume.as_tensor() if hasattr(volume, "as_tensor") else volume).float()
