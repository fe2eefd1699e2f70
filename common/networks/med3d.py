"""Med3D's nets: a dilated ResNet with one of several heads (Chen et al., arXiv 1904.00625)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..precision import without_autocast
from .dilated_resnet import DilatedResNet
from .norms import make_norm, refuse_no_statistics
from .resize import resize_linear

__all__ = [
    "BranchDecoder",
    "DenseASPP",
    "LungDecoder",
    "Med3DNet",
    "MedicalNetHead",
    "MultiBranchNet",
    "PooledClassifier",
]


class Med3DNet(nn.Module):
    """A dilated ResNet and a head on its maps: the nets for Med3D's target tasks (Chen et al., section 3.3).

    Args:
        head: makes the head from the encoder's ``channels``: one of ``BranchDecoder``, ``LungDecoder``, ``DenseASPP``,
            ``PooledClassifier``, ``MedicalNetHead``, with its other arguments already set (``"_mode_": "callable"`` in
            a config).
        depth, in_channels, shortcut, dilations, width, preactivation, checkpointing, norm, output_stride: as in
            ``DilatedResNet``.

    ``forward(image (B, C, D, H, W), **arguments)`` returns the output of the head, usually logits (B, K, D, H, W); the
    arguments go to the head.
    """

    def __init__(
        self,
        head: Callable[[Sequence[int]], nn.Module],
        depth: int = 10,
        in_channels: int = 1,
        shortcut: str = "B",
        dilations: Sequence[int] = (2, 4),
        width: int = 64,
        preactivation: bool = False,
        checkpointing: bool = False,
        norm: str = "batch",
        output_stride: int = 8,
    ) -> None:
        super().__init__()
        self.encoder = DilatedResNet(
            depth, in_channels, shortcut, dilations, width, preactivation, checkpointing, norm, output_stride
        )
        self.head = head(self.encoder.channels)

    def forward(self, image: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.head(self.encoder(image), image.shape[2:], **arguments)


class BranchDecoder(nn.Module):
    """One 1 x 1 x 1 convolution per domain on the encoder's last map, and trilinear upsampling to the image's size.

    This is the decoder of Med3D's pre-training (Chen et al., section 3.2); with one branch, it is that of the coarse
    liver net (section 3.3). Only the requested branch is computed, so the others get no gradient.

    Args:
        channels: those of the encoder's maps.
        classes: number of classes of each branch.

    ``forward(maps, size, branch)`` returns logits (B, ``classes[branch]``, *size) in float32 (float64 stays).
    ``branch`` is optional with one branch.

    Raises:
        ValueError: there is no branch, or the number of a branch is missing or out of range.
    """

    def __init__(self, channels: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        if not classes:
            raise ValueError("A decoder needs at least one branch: give the number of classes of each domain.")
        self.branches = nn.ModuleList(nn.Conv3d(channels[-1], number, 1) for number in classes)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int], branch: int | None = None) -> torch.Tensor:
        if branch is None and len(self.branches) == 1:
            branch = 0
        if branch is None or not 0 <= branch < len(self.branches):
            raise ValueError(
                f"The decoder has branches 0 to {len(self.branches) - 1} but was asked for {branch}: every item needs "
                "the `branch` of its domain (common.data.load_domains gives it)."
            )
        return resize_linear(self.branches[branch](maps[-1]), size)


class MultiBranchNet(nn.Module):
    """Med3D's pre-training net: one encoder, and one branch of a ``BranchDecoder`` per domain.

    Args:
        encoder: returns a list of maps, finest first, and states their ``channels``.
        classes: number of classes of each domain.

    ``forward(image (B, C, D, H, W), branch)`` returns the logits (B, ``classes[branch]``, D, H, W) of one branch; a
    batch holds one domain.

    Raises:
        ValueError: the encoder has frozen norms that nothing has filled: pre-training makes their statistics.
    """

    def __init__(self, encoder: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        refuse_no_statistics(encoder, "pre-train with norm batch or group; frozen is for the transfer")
        self.encoder = encoder
        self.decoder = BranchDecoder(encoder.channels, classes)  # type: ignore[arg-type]

    def forward(self, image: torch.Tensor, branch: int | None = None) -> torch.Tensor:
        return self.decoder(self.encoder(image), image.shape[2:], branch)


class LungDecoder(nn.Module):
    """Three groups of a transposed and a plain convolution, then a 1 x 1 x 1 convolution (Chen et al., section 3.3).

    A group doubles the grid with 3 x 3 x 3 kernels, so three groups undo the encoder's stride of 8. Its first
    convolution has C channels, its second C / 2. The paper gives C = 256 for the first group and only says that the
    channels of the others are doubled "progressively". Doubling would give 2,048 channels at full size, so halving is
    the default. A batch norm and a ReLU follow each of these convolutions; the paper does not mention them.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        features: C of the first group.
        factor: ratio of C from group to group: 0.5, or 2 as in the paper's text.
        norm: ``"batch"`` or ``"group"``; ``"frozen"`` acts as ``"batch"``, since a head has no statistics to keep.

    ``forward(maps, size)`` returns logits (B, num_classes, *size). If the size is no multiple of 8, the far end of the
    grid, which the encoder padded, is cut off.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, features: int = 256, factor: float = 0.5, norm: str = "batch"
    ) -> None:
        super().__init__()
        norm = _of_head(norm)
        inputs, layers = channels[-1], []
        for group in range(3):
            wide = int(features * factor**group)
            half = wide // 2
            layers += [
                nn.ConvTranspose3d(inputs, wide, 3, stride=2, padding=1, output_padding=1, bias=False),
                make_norm(norm, wide),
                nn.ReLU(inplace=True),
                nn.Conv3d(wide, half, 3, padding=1, bias=False),
                make_norm(norm, half),
                nn.ReLU(inplace=True),
            ]
            inputs = half
        self.layers = nn.Sequential(*layers, nn.Conv3d(inputs, num_classes, 1))

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        depth, height, width = size
        return self.layers(maps[-1])[..., :depth, :height, :width]


class DenseASPP(nn.Module):
    """Densely connected dilated convolutions on the encoder's last map, in 3-D: the fine liver net's head.

    Yang et al., "DenseASPP for Semantic Segmentation in Street Scenes", CVPR 2018, with the layers of its published
    code (``models/DenseASPP.py``) and 3-D kernels, as in Chen et al., section 3.3. The block of each dilation sees the
    map and the output of the blocks before it.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        hidden, growth: channels between a block's two convolutions, and channels that it adds: 512 and 128, or 128 and
            64 in the smaller published net.
        dilations: one block each.
        dropout: dropout of whole channels, after each block and before the last convolution.
        norm: as in ``LungDecoder``.
        image_size: size of the training images, to fit the dilations to maps of an eighth of it; None keeps the
            dilations. They are meant for maps of 64 cells per side (512 pixels): on each axis a dilation r becomes r *
            cells / 64, rounded, at least 1. So for 24 cells the dilation 24 becomes 9, and no kernel lies outside of
            the map except for its middle.

    ``forward(maps, size)`` returns logits (B, num_classes, *size), upsampled trilinearly, in float32 (float64 stays).
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        hidden: int = 512,
        growth: int = 128,
        dilations: Sequence[int] = (3, 6, 12, 18, 24),
        dropout: float = 0.1,
        norm: str = "batch",
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.dilations: list[tuple[int, int, int]] = [
            (dilation,) * 3 if image_size is None else _fitted(dilation, image_size) for dilation in dilations
        ]
        if image_size is not None:
            # Weights of other dilations have the same shapes and compute something else.
            self.register_buffer("fitted_dilations", torch.tensor(self.dilations))
        inputs = channels[-1]
        self.blocks = nn.ModuleList()
        for number, dilation in enumerate(self.dilations):
            self.blocks.append(_block(inputs, hidden, growth, dilation, _of_head(norm), first=number == 0))
            inputs += growth
        self.classifier = nn.Conv3d(inputs, num_classes, 1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        made = state_dict.get(f"{prefix}fitted_dilations")
        if made is not None and made.tolist() != [list(dilation) for dilation in self.dilations]:
            error_msgs: list[str] = arguments[-1]
            error_msgs.append(
                f"DenseASPP was trained with the dilations {made.tolist()} but now has "
                f"{[list(d) for d in self.dilations]}: set its image_size to that of training (head#image_size, "
                "usually roi_size)."
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The map (B, C, *grid) with the channels of all blocks: (B, C + len(dilations) * growth, *grid)."""
        for block in self.blocks:
            x = torch.cat([F.dropout3d(block(x), self.dropout, self.training), x], dim=1)
        return x

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        x = F.dropout3d(self.features(maps[-1]), self.dropout, self.training)
        return resize_linear(self.classifier(x), size)


def _fitted(dilation: int, image_size: Sequence[int]) -> tuple[int, int, int]:
    """Fit a dilation for maps of 64 cells per side to maps of an eighth of the image's size."""
    depth, height, width = (max(1, math.floor(dilation * math.ceil(size / 8) / 64 + 0.5)) for size in image_size)
    return depth, height, width


def _of_head(norm: str) -> str:
    return "batch" if norm == "frozen" else norm


def _block(
    inputs: int, hidden: int, growth: int, dilation: tuple[int, int, int], norm: str, first: bool
) -> nn.Sequential:
    """A block; the first one starts without a norm, since its input comes from the encoder's norm and ReLU."""
    return nn.Sequential(
        *([] if first else [make_norm(norm, inputs)]),
        nn.ReLU(),
        nn.Conv3d(inputs, hidden, 1),
        make_norm(norm, hidden),
        nn.ReLU(inplace=True),
        nn.Conv3d(hidden, growth, 3, padding=dilation, dilation=dilation),
    )


class PooledClassifier(nn.Module):
    """Mean over the encoder's last map and a fully connected layer, as 1 x 1 x 1 kernels: the nodule classifier's head.

    Chen et al., section 3.3. ``EncoderClassifier`` differs from it by a layer norm.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.

    ``forward(maps, size)`` returns logits (B, num_classes), computed in single precision even under autocast, so their
    probabilities sum to one.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv3d(channels[-1], num_classes, 1)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int] | None = None) -> torch.Tensor:
        with without_autocast(maps[-1].device):
            mean = maps[-1].mean(dim=(2, 3, 4), keepdim=True, dtype=self.fc.weight.dtype)
            return self.fc(mean).flatten(1).float()


class MedicalNetHead(nn.Module):
    """The head of MedicalNet's published demonstration, ``conv_seg`` in ``models/resnet.py``; not the paper's.

    It has a transposed 2 x 2 x 2 convolution to stride 4, a 3 x 3 x 3 and a 1 x 1 x 1 convolution without bias, with
    norms and ReLUs between them.

    Args:
        channels: those of the encoder's maps.
        num_classes: number of logits.
        features: channels of the first two convolutions.
        norm: as in ``LungDecoder``.

    ``forward(maps, size)`` returns logits (B, num_classes, *size / 4) in training; ``common.losses.VoxelCrossEntropy``
    resamples the label to their grid. In evaluation they are upsampled to ``size``, as in the published test script.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, features: int = 32, norm: str = "batch") -> None:
        super().__init__()
        norm = _of_head(norm)
        self.layers = nn.Sequential(
            nn.ConvTranspose3d(channels[-1], features, 2, stride=2),
            make_norm(norm, features),
            nn.ReLU(inplace=True),
            nn.Conv3d(features, features, 3, padding=1, bias=False),
            make_norm(norm, features),
            nn.ReLU(inplace=True),
            nn.Conv3d(features, num_classes, 1, bias=False),
        )

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        logits = self.layers(maps[-1])
        return logits if self.training else resize_linear(logits, size)
