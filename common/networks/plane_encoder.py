from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["PlaneEncoder"]

NORM_SCOPES = ("volume", "slice")
SMALLEST_SLICE = 33
"""Least voxels per axis for a deepest map (stride 32) of more than one voxel, which a norm needs."""


class PlaneEncoder(nn.Module):
    """2-D ResNet-18 at a quarter of the usual width that turns each slice of a stack into a vector [1, section 3.2].

    Convolutions act within slices; all slices share the weights. ``norm_scope`` sets the statistics of the instance
    norms, which have no parameters. "volume" takes them over all slices of a volume, as in the published code; each
    vector then depends a little on all other slices, including masked ones. "slice" takes them over each slice; vectors
    are then independent, but nearly empty slices at the rim are scaled to the contrast of the others.

    Args:
        in_channels: channels of the image.
        embed_dim: length of a slice's vector; 64 in the published code, 16 in the paper's text.
        widths: channels of the four stages, of two residual blocks each. The published ones are 16, 32, 64, 128.
        norm_scope: "volume" or "slice".

    ``forward(slices (B, C, N, H, W))`` returns the vectors (B, N, embed_dim) and the maps of the four stages
    (B, width, N, H / s, W / s), s being 4, 8, 16 and 32 and divisions rounded up.

    Raises:
        ValueError: ``norm_scope`` is unknown; in ``forward``, slices are too small for the statistics of "slice".

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
            raise ValueError(f'norm_scope is {norm_scope!r}; it must be "volume" or "slice".')
        self.norm_scope = norm_scope
        self.stem = _convolution(in_channels, widths[0], 7, 2)
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            _Stage(i, o, 1 if stage == 0 else 2) for stage, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.project = nn.Linear(widths[-1], embed_dim)

    def forward(self, slices: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        volumes, _, count, *size = slices.shape
        if self.norm_scope == "slice" and min(size) < SMALLEST_SLICE:
            raise ValueError(
                f"norm_scope 'slice' needs slices of {SMALLEST_SLICE} voxels per axis or more, not "
                f"{size[0]} x {size[1]}: pad the images (roi_size), or use norm_scope 'volume'."
            )
        # Slices become samples of 2-D convolutions; `together` of them share the statistics of a norm.
        together = count if self.norm_scope == "volume" else 1
        x = slices.transpose(1, 2).flatten(0, 1)
        x = F.relu(_norm(self.stem(x), together))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            x = stage(x, together)
            maps.append(x.reshape(volumes, count, *x.shape[1:]).transpose(1, 2))
        return self.project(x.mean(dim=(2, 3))).reshape(volumes, count, -1), maps


class _Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block1 = _Block(in_channels, out_channels, stride)
        self.block2 = _Block(out_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, together: int) -> torch.Tensor:
        return self.block2(self.block1(x, together), together)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, out_channels, 3, stride)
        self.conv2 = _convolution(out_channels, out_channels, 3, 1)
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = _convolution(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, x: torch.Tensor, together: int) -> torch.Tensor:
        y = F.relu(_norm(self.conv1(x), together))
        y = _norm(self.conv2(y), together)
        return F.relu(y + (x if self.shortcut is None else _norm(self.shortcut(x), together)))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution without bias, since a norm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _norm(x: torch.Tensor, together: int) -> torch.Tensor:
    """Instance norm of slices (V * together, C, H, W) over H, W and the ``together`` slices of a volume.

    The result is row-major for any format of ``x``: on a CPU, torch 2.13's gradient of a strided 1 x 1 convolution with
    few channels, in channels last, corrupts memory.
    """
    if together == 1:
        return _instance_norm(x.contiguous())
    # Not `unflatten`, here and above: behind it torch's older exporter to ONNX fixes the batch.
    stack = x.reshape(-1, together, *x.shape[1:]).transpose(1, 2)
    return _instance_norm(stack.flatten(2, 3)).reshape(stack.shape).transpose(1, 2).flatten(0, 1)


def _instance_norm(x: torch.Tensor) -> torch.Tensor:
    if torch.onnx.is_in_onnx_export():  # the older exporter has to know the number of channels or be given weights
        return F.instance_norm(x, weight=x.new_ones(x.shape[1]), bias=x.new_zeros(x.shape[1]))
    return F.instance_norm(x)
