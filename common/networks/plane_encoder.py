from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["PlaneEncoder"]

NORM_SCOPES = ("volume", "slice")
SMALLEST_SLICE = 33
"""Voxels an axis from which the deepest map, of stride 32, has more than one voxel, so that a norm over it is one."""


class PlaneEncoder(nn.Module):
    """2-D ResNet-18 of a quarter of the usual width that turns each slice of a stack into a vector [1, section 3.2].

    Convolutions act within slices; weights are shared by the slices. Instance norms without parameters take their
    statistics over all slices of a volume together (``norm_scope`` "volume", as the published code does: each vector
    then depends a little on all other slices, masked ones too) or over each slice alone ("slice": independent vectors,
    but slices at the rim, nearly empty, are brought to the contrast of the others).

    Args:
        in_channels: channels of the image.
        embed_dim: length of a slice's vector; 64 in the published code, 16 in the paper's text.
        widths: channels of the four stages, of two residual blocks each. The published ones are 16, 32, 64, 128.
        norm_scope: "volume" or "slice".

    ``forward(slices (B, C, N, H, W))`` returns the vectors (B, N, embed_dim) and the maps of the four stages
    (B, width, N, H / s, W / s), s being 4, 8, 16 and 32 and divisions rounded up.

    Raises:
        ValueError: ``norm_scope`` is neither; in ``forward``, slices that "slice" leaves without statistics.

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(
        self,
        in_channels: int = 1,
        embed_dim: int = 64,
        widths: Sequence[int] = (16, 32, 64, 128),
        norm_scope: str = "volume",
    ) -> None:
        super().__init__()
        if norm_scope not in NORM_SCOPES:
            raise ValueError(f'norm_scope is {norm_scope!r}; it has to be "volume" or "slice".')
        self.norm_scope = norm_scope
        # Kernels of one slice in 3-D convolutions, so that 3-D norms see all slices of a volume at once.
        self.stem = nn.Sequential(
            _convolution(in_channels, widths[0], 7, 2),
            nn.InstanceNorm3d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_Block(i, o, 1 if stage == 0 else 2), _Block(o, o, 1))
            for stage, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.project = nn.Linear(widths[-1], embed_dim)

    def forward(self, slices: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        batch, _, count, *size = slices.shape
        if self.norm_scope == "slice":
            if min(size) < SMALLEST_SLICE:
                raise ValueError(
                    f"norm_scope 'slice' needs slices of {SMALLEST_SLICE} voxels an axis or more, not "
                    f"{size[0]} x {size[1]}: pad the images (image_size), or use norm_scope 'volume'."
                )
            slices = slices.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        x = self.stem(slices)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        if self.norm_scope == "slice":
            maps = [m.squeeze(2).unflatten(0, (batch, count)).transpose(1, 2) for m in maps]
        return self.project(maps[-1].mean(dim=(3, 4)).transpose(1, 2)), maps


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, out_channels, 3, stride)
        self.norm1 = nn.InstanceNorm3d(out_channels)
        self.conv2 = _convolution(out_channels, out_channels, 3, 1)
        self.norm2 = nn.InstanceNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _convolution(in_channels, out_channels, 1, stride), nn.InstanceNorm3d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv3d:
    """Within slices; without bias, since a norm follows."""
    kernel_size, padding = (1, kernel, kernel), (0, kernel // 2, kernel // 2)
    return nn.Conv3d(in_channels, out_channels, kernel_size, (1, stride, stride), padding, bias=False)
