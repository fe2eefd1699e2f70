"""MONAI networks for classification or segmentation as encoders of volumes.

They are views, not copies: each holds the modules of a network itself, under their own names.
``common.networks.EncoderUNet`` is a decoder for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from monai.networks.nets import DenseNet, ResNet, SegResNetDS
from torch import nn

from .dilated_resnet import resnet_depth
from .encoder_layers import layer_modules
from .encoder_unet import refuse_decoder
from .foreign import Kind, Source, State, count
from .layer_kinds import layer_kinds

__all__ = ["CHECKPOINTS", "DenseNetEncoder", "ResNetEncoder", "SegResNetDSEncoder"]


class ResNetEncoder(nn.Module):
    """The layers of MONAI's ``ResNet``, with strides where ``DilatedResNet`` has dilations.

    Args:
        network: such as ``monai.networks.nets.resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=2)``.
        decoder: False, as in the encoders of U-Nets without theirs; this one has none.

    ``forward(image (B, C, *spatial))`` returns five maps, finest first: the stem's and those of the four layers.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"(?:conv|bn)1\.", r"layer(\d)\.")

    def __init__(self, network: ResNet, decoder: bool = False) -> None:
        super().__init__()
        refuse_decoder(self, decoder)
        self.conv1, self.bn1, self.act, self.maxpool = network.conv1, network.bn1, network.act, network.maxpool
        self.no_max_pool = network.no_max_pool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.in_channels = self.conv1.in_channels
        self.depth = resnet_depth(self.state_dict())
        width, expansion = self.conv1.out_channels, 4 if self.depth >= 50 else 1
        self.channels = (width, *(width * 2**layer * expansion for layer in range(4)))
        stem = tuple(self.conv1.stride)
        first = stem if self.no_max_pool else tuple(2 * step for step in stem)
        self.strides = (stem, *(tuple(step * 2**layer for step in first) for layer in range(4)))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = self.act(self.bn1(self.conv1(image)))
        maps = [x]
        x = x if self.no_max_pool else self.maxpool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return _resnet(self.state_dict()) | {"stem_stride": list(self.strides[0]), "stem_pool": not self.no_max_pool}


class DenseNetEncoder(nn.Module):
    """The features of MONAI's ``DenseNet``.

    Args:
        network: the classifier.
        decoder: False, as in the encoders of U-Nets without theirs; this one has none.

    ``forward(image (B, C, *spatial))`` returns the map of the stem and those of the dense blocks, finest first, with
    strides 2, 4, 8, 16, 32; the last one passes a norm and a ReLU, as before the classifier.
    """

    layer_names: ClassVar[tuple[str, ...]] = (
        r"features\.(?:conv|norm)0\.",
        r"features\.(?:denseblock|transition)(\d)\.",
        r"features\.norm5\.",
    )

    def __init__(self, network: DenseNet, decoder: bool = False) -> None:
        super().__init__()
        refuse_decoder(self, decoder)
        self.features = network.features
        stem: Any = network.features.conv0
        self.in_channels = stem.in_channels
        widths, width = [], stem.out_channels
        for layers, growth in _blocks(network.features.state_dict(), ""):
            widths.append(width + layers * growth)
            width = widths[-1] // 2
        self.channels = (stem.out_channels, *widths)
        self.strides = tuple((2**level,) * 3 for level in range(1, len(widths) + 2))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        x = image
        for name, module in self.features.named_children():
            x = module(x)
            if name == "relu0" or name.startswith("denseblock"):
                maps.append(x)
        # A transition's norm and ReLU write none of these in place: the norm makes new values.
        return [*maps[:-1], torch.relu(x)]

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return _densenet(self.state_dict())


class SegResNetDSEncoder(nn.Module):
    """The encoder of MONAI's ``SegResNetDS``, and of ``SegResNetDS2``, the image encoder of VISTA3D.

    Args:
        network: the segmentation network.
        decoder: False, as in the encoders of U-Nets without theirs; this one has none.

    ``forward(image (B, C, *spatial))`` returns a map per level, finest first.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"encoder\.conv_init\.", r"encoder\.layers\.(\d+)\.")

    def __init__(self, network: SegResNetDS, decoder: bool = False) -> None:
        super().__init__()
        refuse_decoder(self, decoder)
        self.encoder = network.encoder
        self.in_channels = network.encoder.in_channels
        levels = len(network.encoder.layers)
        self.channels = tuple(network.encoder.init_filters * 2**level for level in range(levels))
        strides = [(1, 1, 1)]
        levels_but_last: Any = list(network.encoder.layers)[:-1]
        for level in levels_but_last:
            x, y, z = (a * b for a, b in zip(strides[-1], level["downsample"].stride, strict=True))
            strides.append((x, y, z))
        self.strides = tuple(strides)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        x = self.encoder.conv_init(image)
        levels: Any = self.encoder.layers
        for level in levels:
            x = level["blocks"](x)
            maps.append(x)
            x = level["downsample"](x)
        return maps

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return _segresnet_ds(self.state_dict()) | layer_kinds(layer_modules(self))


def _resnet(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stem = state["conv1.weight"]
    if stem.ndim != 5:
        raise ValueError(f"conv1.weight has the shape {tuple(stem.shape)}, which is no kernel of a 3-D convolution")
    return {
        "name": "ResNetEncoder",
        "depth": resnet_depth(state),
        "in_channels": stem.shape[1],
        "width": stem.shape[0],
        "kernel": list(stem.shape[2:]),
        "shortcut": "B" if any(".downsample." in name for name in state) else "A",
        "bias_downsample": any(name.endswith(".downsample.0.bias") for name in state),
    }


def _make_resnet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    width, depth = architecture["width"], architecture["depth"]
    return ResNetEncoder(
        ResNet(
            "bottleneck" if depth >= 50 else "basic",
            [count(state, rf"layer{layer}\.(\d+)\.") for layer in range(1, 5)],
            [width * 2**layer for layer in range(4)],
            n_input_channels=architecture["in_channels"],
            conv1_t_size=tuple(architecture["kernel"]),
            shortcut_type=architecture["shortcut"],
            bias_downsample=architecture["bias_downsample"],
            feed_forward=False,
        )
    )


def _read_resnet(state: State, source: Source) -> dict[str, Any]:
    # No tensor tells the stride of the stem and whether it pools.
    return _resnet(state) | {"stem_stride": None, "stem_pool": None}


def _blocks(state: Mapping[str, torch.Tensor], prefix: str) -> list[tuple[int, int]]:
    """Layers of each dense block, and the number of channels that each layer adds."""
    return [
        (
            count(state, rf"{prefix}denseblock{block}\.denselayer(\d+)\.") - 1,
            state[f"{prefix}denseblock{block}.denselayer1.layers.conv2.weight"].shape[0],
        )
        for block in range(1, count(state, rf"{prefix}denseblock(\d+)\."))
    ]


def _densenet(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stem = state["features.conv0.weight"]
    blocks = _blocks(state, "features.")
    return {
        "name": "DenseNetEncoder",
        "in_channels": stem.shape[1],
        "init_features": stem.shape[0],
        "growth_rate": blocks[0][1],
        "depths": [layers for layers, _ in blocks],
    }


def _make_densenet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    growth = architecture["growth_rate"]
    bottleneck = state["features.denseblock1.denselayer1.layers.conv1.weight"].shape[0]
    return DenseNetEncoder(
        DenseNet(
            3,
            architecture["in_channels"],
            1,
            architecture["init_features"],
            growth,
            architecture["depths"],
            bn_size=bottleneck // growth,
        )
    )


def _segresnet_ds(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stem = state["encoder.conv_init.weight"]
    levels = count(state, r"encoder\.layers\.(\d+)\.")
    if any(set(tensor.shape[2:]) != {3} for name, tensor in state.items() if name.endswith(".downsample.weight")):
        raise ValueError("it has kernels of anisotropic scans (`resolution`), which are not read")
    return {
        "name": "SegResNetDSEncoder",
        "in_channels": stem.shape[1],
        "init_filters": stem.shape[0],
        "depths": [count(state, rf"encoder\.layers\.{level}\.blocks\.(\d+)\.") for level in range(levels)],
        # Of norms that keep no statistics, VISTA3D's is the instance norm; a group norm has the same tensors.
        "norm": "batch" if any(name.endswith(".running_mean") for name in state) else "instance",
    }


def _make_segresnet_ds(architecture: Mapping[str, Any], state: State) -> nn.Module:
    return SegResNetDSEncoder(
        SegResNetDS(
            3,
            architecture["init_filters"],
            architecture["in_channels"],
            1,
            norm=architecture["norm"],
            blocks_down=architecture["depths"],
        )
    )


CHECKPOINTS = {
    "monai_resnet": Kind(
        _make_resnet,
        _read_resnet,
        (
            r"^layer1\.0\.conv1\.weight 5d",
            r"^conv1\.weight 5d",
            # What no MedicalNet has; the last is a stem inflated from images or trained on videos.
            r"^(fc\.weight|layer\d\.0\.downsample\.0\.bias) |^conv1\.weight 5d (?!\d+x\d+x7x7x7$)",
        ),
        left_out={"classification head": r"^fc\."},
    ),
    "densenet": Kind(
        _make_densenet,
        lambda state, source: _densenet(state),
        (r"^features\.denseblock1\.denselayer1\.layers\.conv1\.weight 5d",),
        left_out={"classification head": r"^class_layers\."},
    ),
    "segresnet_ds": Kind(
        _make_segresnet_ds,
        lambda state, source: _segresnet_ds(state),
        (r"^encoder\.conv_init\.weight 5d", r"^encoder\.layers\.0\.blocks\.0\.conv1\.weight 5d"),
        left_out={"decoder": r"^up_layers(_auto)?\.", "VISTA3D's heads": r"^(class|point)_head\."},
    ),
}
"""Checkpoints of MONAI that fill these encoders."""
