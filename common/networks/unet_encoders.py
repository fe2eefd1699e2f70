"""Convolutional U-Nets as encoders.

They are views, not copies: each holds the modules of a segmentation network itself, under their own names. With
``decoder`` the encoder file includes the decoder, and with ``heads`` the last layers, which turn features into classes;
``forward`` does not run them. If a pretext trains the whole network, the decoder is pre-trained, too. If the pretext is
a segmentation, the last layers predict its classes without fine-tuning. A pretext that trains the encoder alone leaves
the decoder out of the file; fine-tuning accepts that, and the transfer report says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet
from torch import nn

from .encoder_layers import layer_modules
from .foreign import HEADS, Kind, Source, State, count, move
from .layer_kinds import layer_kinds
from .residual_encoder_unet import ResidualEncoderUNet
from .stages import check_size, run_stages

__all__ = [
    "CHECKPOINTS",
    "DynUNetEncoder",
    "MedNeXtEncoder",
    "ResidualUNetEncoder",
    "SegResNetEncoder",
    "plan_of_nnssl",
]


class DynUNetEncoder(nn.Module):
    """The encoder of MONAI's ``DynUNet``.

    Args:
        network: the segmentation network.
        decoder: whether the decoder belongs to the encoder file.
        heads: whether the last layers do, too. A file without them, or for another task, is then refused.

    ``forward(image (B, C, *spatial))`` returns a map (B, C_i, *grid_i) a stage, finest first; each axis of the image is
    a multiple of the last stride.
    """

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^upsamples\."}
    spare_weights = fresh_weights | {HEADS: r"^(output_block|deep_supervision_heads)\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"input_block\.", r"downsamples\.(\d+)\.", r"bottleneck\.")
    deep_maps: ClassVar[str] = r"bottleneck|upsamples\.\d+"
    """Names of the network's modules that return the maps of the bottleneck (if one does) and of the decoder."""

    def __init__(self, network: DynUNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.input_block, self.downsamples, self.bottleneck = (
            network.input_block,
            network.downsamples,
            network.bottleneck,
        )
        if decoder:
            self.upsamples = network.upsamples
        self.heads = heads
        if heads:
            self.output_block = network.output_block
            if network.deep_supervision:
                self.deep_supervision_heads = network.deep_supervision_heads
        self.in_channels, self.channels = network.in_channels, tuple(network.filters)
        self.strides = _cumulative(network.strides, network.spatial_dims)
        self.kernels = [list(_tuple(kernel, network.spatial_dims)) for kernel in network.kernel_size]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_size(image.shape[2:], self.strides[-1])
        return run_stages([self.input_block, *self.downsamples, self.bottleneck], image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "kernel_size": self.kernels}


class SegResNetEncoder(nn.Module):
    """The encoder of MONAI's ``SegResNet``; arguments and result as for :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^up_(layers|samples)\."}
    spare_weights = fresh_weights | {HEADS: r"^conv_final\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"convInit\.", r"down_layers\.(\d+)\.")
    deep_maps: ClassVar[str] = r"up_layers\.\d+"

    def __init__(self, network: SegResNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.convInit, self.down_layers = network.convInit, network.down_layers
        if decoder:
            self.up_layers, self.up_samples = network.up_layers, network.up_samples
        self.heads = heads
        if heads:
            self.conv_final = network.conv_final
        stages, axes = len(network.down_layers), network.spatial_dims
        self.in_channels, self.blocks = network.in_channels, list(network.blocks_down)
        self.channels = tuple(network.init_filters * 2**stage for stage in range(stages))
        self.strides = _cumulative([1] + [2] * (stages - 1), axes)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_size(image.shape[2:], self.strides[-1])
        return run_stages(self.down_layers, self.convInit(image))

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": self.blocks}


class MedNeXtEncoder(nn.Module):
    """The encoder of MONAI's ``MedNeXt``; arguments and result as for :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^(up_blocks|dec_stages)\."}
    spare_weights = fresh_weights | {HEADS: r"^out_(\d|blocks)"}
    layer_names: ClassVar[tuple[str, ...]] = (
        r"stem\.",
        r"(?:enc_stages|down_blocks)\.(\d+)\.",  # a stage with the step to the next
        r"bottleneck\.",
    )
    deep_maps: ClassVar[str] = r"bottleneck|dec_stages\.\d+"

    def __init__(self, network: MedNeXt, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.stem, self.enc_stages, self.down_blocks = network.stem, network.enc_stages, network.down_blocks
        self.bottleneck = network.bottleneck
        if decoder:
            self.up_blocks, self.dec_stages = network.up_blocks, network.dec_stages
        self.heads = heads
        if heads:
            self.out_0 = network.out_0
            if network.do_ds:
                self.out_blocks = network.out_blocks
        weight = network.stem.weight
        self.in_channels, stages = weight.shape[1], len(network.enc_stages) + 1
        self.channels = tuple(weight.shape[0] * 2**stage for stage in range(stages))
        self.strides = _cumulative([1] + [2] * (stages - 1), weight.ndim - 2)
        self.blocks = [len(stage) for stage in (*network.enc_stages, network.bottleneck)]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_size(image.shape[2:], self.strides[-1])
        maps, x = [], self.stem(image)
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            maps.append(stage(x))
            x = down(maps[-1])
        return [*maps, self.bottleneck(x)]

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": self.blocks}


class ResidualUNetEncoder(nn.Module):
    """The encoder of a :class:`ResidualEncoderUNet`; arguments and result as for :class:`DynUNetEncoder`."""

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^decoder\.(transpconvs|stages)\."}
    spare_weights = fresh_weights | {HEADS: r"^decoder\.seg_layers\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"encoder\.stem\.", r"encoder\.stages\.(\d+)\.")
    deep_maps: ClassVar[str] = r"decoder\.stages\.\d+"

    def __init__(self, network: ResidualEncoderUNet, decoder: bool = True, heads: bool = False) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.heads = heads
        names = (["transpconvs", "stages"] if decoder else []) + (["seg_layers"] if heads else [])
        if names:
            self.decoder = nn.ModuleDict({name: getattr(network.decoder, name) for name in names})
        self.in_channels, self.channels = network.encoder.in_channels, network.encoder.channels
        self.strides = network.encoder.strides

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.encoder(image)

    def architecture(self) -> dict[str, Any]:
        """What an encoder file records of the network: name and arguments."""
        return {**_describe(self), "depths": list(self.encoder.blocks)}


def _tuple(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _cumulative(strides: Sequence[int | Sequence[int]], axes: int) -> tuple[tuple[int, ...], ...]:
    """Strides of the maps from the strides of the stages."""
    each = [_tuple(stride, axes) for stride in strides]
    return tuple(tuple(math.prod(s[axis] for s in each[: i + 1]) for axis in range(axes)) for i in range(len(each)))


def _describe(encoder: Any) -> dict[str, Any]:
    return {
        "name": type(encoder).__name__,
        "in_channels": encoder.in_channels,
        "channels": list(encoder.channels),
        "strides": [list(stride) for stride in encoder.strides],
        # Of the encoder alone: a file with a decoder and one without it state the same.
        **layer_kinds(layer_modules(encoder)),
    }


def _read_segresnet(state: State, source: Source) -> dict[str, Any]:
    stem, stages = state["convInit.conv.weight"], count(state, r"down_layers\.(\d+)\.")
    return {
        "name": "SegResNetEncoder",
        "in_channels": stem.shape[1],
        "channels": [stem.shape[0] * 2**stage for stage in range(stages)],
        "strides": [[2**stage] * (stem.ndim - 2) for stage in range(stages)],
        "depths": [count(state, rf"down_layers\.{stage}\.(\d+)\.") - 1 for stage in range(stages)],
    }


def _make_segresnet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    ups = count(state, r"up_layers\.(\d+)\.")
    network = SegResNet(
        init_filters=architecture["channels"][0],
        in_channels=architecture["in_channels"],
        norm="batch" if any(name.endswith(".running_mean") for name in state) else ("group", {"num_groups": 1}),
        blocks_down=architecture["depths"],
        blocks_up=tuple(count(state, rf"up_layers\.{level}\.(\d+)\.") for level in range(ups)) or (1, 1, 1),
    )
    return SegResNetEncoder(network, decoder=ups > 0)


def _steps(source: Source, stages: int) -> list[list[int]]:
    """Strides of the stages of an nnU-Net, from its decoder or the plan beside it; its encoder does not show them.

    Raises:
        ValueError: there is neither of them.
    """
    names = [f"decoder.transpconvs.{stages - 1 - stage}.weight" for stage in range(1, stages)]
    kernels = [source.tensors.get(name) for name in names]  # also where the decoder is left out
    if stages > 1 and all(kernel is not None for kernel in kernels):
        return [[1, 1, 1], *(list(kernel.shape[2:]) for kernel in kernels if kernel is not None)]
    place: tuple[str, ...] = ("nnssl_adaptation_plan", "architecture_plans")
    if not source.settings(*place):
        chosen = str(source.settings("init_args").get("configuration"))
        place = ("init_args", "plans", "configurations", chosen, "architecture")
    plan, strides = source.settings(*place), source.settings(*place, "arch_kwargs").get("strides")
    if strides is None and plan.get("arch_class_name") == "ResEncL":
        strides = [1, 2, 2, 2, 2, 2]
    if strides is None or len(strides) != stages:
        raise ValueError("neither a decoder nor a plan beside the weights shows the strides of its stages")
    return [list(_tuple(stride, 3)) for stride in strides]


def _check_second_names(source: Source) -> None:
    """Check the second names of nnU-Net's tensors: each has two or three names, and only one is read here.

    Raises:
        ValueError: two of them differ.
    """
    for name, tensor in source.tensors.items():
        first = re.sub(r"^decoder\.encoder\.", "encoder.", name)
        first = re.sub(r"\.all_modules\.(\d)\.", lambda m: ".conv." if m[1] == "0" else ".norm.", first)
        if first != name and first in source.tensors and not torch.equal(tensor, source.tensors[first]):
            raise ValueError(f"it holds {first} and, as its second name, {name}, which differ")


def _read_resenc(state: State, source: Source) -> dict[str, Any]:
    _check_second_names(source)
    stages = count(state, r"encoder\.stages\.(\d+)\.")
    first = [state[f"encoder.stages.{stage}.blocks.0.conv1.conv.weight"] for stage in range(stages)]
    return {
        "name": "ResidualUNetEncoder",
        "in_channels": state["encoder.stem.convs.0.conv.weight"].shape[1],
        "channels": [weight.shape[0] for weight in first],
        "strides": [list(stride) for stride in _cumulative(_steps(source, stages), 3)],
        "depths": [count(state, rf"encoder\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
    }


def _own_steps(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Strides of the stages from those of the maps."""
    above = [[1] * len(strides[0]), *strides[:-1]]
    return [tuple(b // a for a, b in zip(*pair, strict=True)) for pair in zip(above, strides, strict=True)]


def _make_resenc(architecture: Mapping[str, Any], state: State) -> nn.Module:
    stages, ups = len(architecture["channels"]), count(state, r"decoder\.stages\.(\d+)\.")
    network = ResidualEncoderUNet(
        architecture["in_channels"],
        1,
        architecture["channels"],
        architecture["depths"],
        _own_steps(architecture["strides"]),
        [tuple(state[f"encoder.stages.{s}.blocks.0.conv1.conv.weight"].shape[2:]) for s in range(stages)],
        [count(state, rf"decoder\.stages\.{level}\.convs\.(\d+)\.") for level in range(ups)] or 1,
    )
    return ResidualUNetEncoder(network, decoder=ups > 0)


def _read_plain(state: State, source: Source) -> dict[str, Any]:
    _check_second_names(source)
    stages = count(state, r"encoder\.stages\.(\d+)\.")
    strides = _cumulative(_steps(source, stages), 3)
    for stage in range(stages):
        place = "input_block" if stage == 0 else "bottleneck" if stage == stages - 1 else f"downsamples.{stage - 1}"
        _move_convolutions(state, f"encoder.stages.{stage}.0.", f"{place}.")
    for level in range(count(state, r"decoder\.stages\.(\d+)\.")):
        _move_convolutions(state, f"decoder.stages.{level}.", f"upsamples.{level}.conv_block.")
        move(state, f"decoder.transpconvs.{level}.", f"upsamples.{level}.transp_conv.conv.")
    places = ["input_block", *(f"downsamples.{stage}" for stage in range(stages - 2)), "bottleneck"]
    weights = [state[f"{place}.conv1.conv.weight"] for place in places]
    ups = [name for name in state if re.match(r"upsamples\.\d+\.conv_block\.conv\d\.", name)]
    for name, coarse in zip(ups, [weights[-1 - int(name.split(".")[1])] for name in ups], strict=True):
        if state[name].ndim == 5 and state[name].shape[2:] != coarse.shape[2:]:
            raise ValueError(
                "its decoder has the kernels of the finer stages, but MONAI's DynUNet has those of the coarser: "
                "give --leave_out '^decoder' to use the encoder alone"
            )
    return {
        "name": "DynUNetEncoder",
        "in_channels": weights[0].shape[1],
        "channels": [weight.shape[0] for weight in weights],
        "strides": [list(stride) for stride in strides],
        "kernel_size": [list(weight.shape[2:]) for weight in weights],
    }


def _move_convolutions(state: State, old: str, new: str) -> None:
    for number in (0, 1):  # two per stage, as in all plans; a third one is left over and refused
        move(state, f"{old}convs.{number}.conv.", f"{new}conv{number + 1}.conv.")
        move(state, f"{old}convs.{number}.norm.", f"{new}norm{number + 1}.")


def _make_dynunet(architecture: Mapping[str, Any], state: State) -> nn.Module:
    strides, kernels = _own_steps(architecture["strides"]), architecture["kernel_size"]
    network = DynUNet(
        3,
        architecture["in_channels"],
        1,
        kernels,
        strides,
        strides[1:],
        architecture["channels"],
        norm_name=("instance", {"affine": True}),
        trans_bias=True,
    )
    return DynUNetEncoder(network, decoder=any(name.startswith("upsamples.") for name in state))


def plan_of_nnssl(source: Source) -> dict[str, Any]:
    """The facts about the images in an nnssl adaptation plan, or in the plan of nnU-Net."""
    plan = source.settings("nnssl_adaptation_plan")
    if not plan:
        return _plan_of_nnunet(source)
    configurations = source.settings("nnssl_adaptation_plan", "pretrain_plan", "configurations")
    one = configurations if "spacing" in configurations else next(iter(configurations.values()), {})
    schemes, size = one.get("normalization_schemes"), plan.get("recommended_downstream_patchsize")
    found = (plan.get("pretrain_plan") or {}).get("foreground_intensity_properties_per_channel") or {}
    rule, unexpressed = _rule_of_nnunet(schemes or [], one.get("use_mask_for_norm") or [], found)
    return {
        "channels": plan.get("pretrain_num_input_channels"),
        "spacing": [float(value) for value in one["spacing"]] if one.get("spacing") else None,
        "size": list(size) if size else None,
        "words": f"{', '.join(schemes)} of nnssl" if schemes else None,
        "rule": rule,
        "unexpressed": unexpressed,
    }


def _plan_of_nnunet(source: Source) -> dict[str, Any]:
    """The facts about the images in the arguments of nnU-Net's trainer, which stand beside its weights."""
    arguments, plans = source.settings("init_args"), source.settings("init_args", "plans")
    one: dict[str, Any] = {}
    name, seen = arguments.get("configuration"), set()
    while name and name not in seen:
        seen.add(name)
        found = source.settings("init_args", "plans", "configurations", name)
        one, name = {**found, **one}, found.get("inherits_from")
    schemes = one.get("normalization_schemes")
    properties = source.settings("init_args", "plans", "foreground_intensity_properties_per_channel")
    rule, unexpressed = _rule_of_nnunet(schemes or [], one.get("use_mask_for_norm") or [], properties)
    order = plans.get("transpose_forward")
    if order and list(order) != sorted(order):
        turned = f"axes are in the order {list(order)} of the file's"
        unexpressed = f"{unexpressed}; {turned}" if unexpressed else turned
    return {
        "channels": len(schemes) if schemes else None,
        "spacing": [float(value) for value in one["spacing"]] if one.get("spacing") else None,
        "size": list(one["patch_size"]) if one.get("patch_size") else None,
        "words": f"{', '.join(schemes)} of nnU-Net" if schemes else None,
        "rule": rule,
        "unexpressed": unexpressed,
    }


def _rule_of_nnunet(
    schemes: list[str], masked: list[bool], properties: Mapping[str, Mapping[str, float]]
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """nnU-Net's normalisation as configs of transforms, and what they do otherwise; None where no transform is like it.

    Args:
        schemes: of the channels, by nnU-Net's names.
        masked: for each channel, whether only voxels inside of the scan's outline count.
        properties: of the training scans' foreground, by channel (``0``, ...), which a CT is scaled by.
    """
    if not schemes or len(set(schemes)) > 1 or len(set(masked)) > 1 or (len(schemes) > 1 and "CT" in schemes[0]):
        return None, None  # channels of several kinds
    first = properties.get("0") or {}
    low, high, mean, deviation = (first.get(n) for n in ("percentile_00_5", "percentile_99_5", "mean", "std"))
    if schemes[0] == "ZScoreNormalization":
        inside = bool(masked and masked[0])
        rule = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": inside, "channel_wise": True}
        return [rule], "voxels of 0 inside of the head or body count, too" if inside else None
    if schemes[0] == "CTNormalization" and None not in (low, high, mean, deviation):
        scaled = {"b_min": (low - mean) / deviation, "b_max": (high - mean) / deviation}  # type: ignore[operator]
        return [
            {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high, **scaled, "clip": True}
        ], None
    if schemes[0] == "NoNormalization":
        return [], None
    return None, None


_SECOND_NAMES = {"second names of tensors": r"\.all_modules\.|^decoder\.encoder\."}
_LAST_LAYERS = {"last layers": r"^decoder\.seg_layers\."}

CHECKPOINTS = {
    "segresnet": Kind(
        _make_segresnet,
        _read_segresnet,
        (r"^convInit\.conv\.weight 5d", r"^down_layers\.0\.1\.conv1\.conv\.weight "),
        left_out={"last layers": r"^conv_final\.", "autoencoder of SegResNetVAE": r"^vae_"},
    ),
    # nnU-Net's ResEnc plans, and those that nnssl pre-trained (OpenMind).
    "resenc": Kind(
        _make_resenc,
        _read_resenc,
        (r"^encoder\.stem\.convs\.0\.conv\.weight 5d", r"^encoder\.stages\.0\.blocks\.0\.conv1\.conv\.weight "),
        left_out=_SECOND_NAMES | _LAST_LAYERS,
        prepared=plan_of_nnssl,
    ),
    # nnU-Net's plain U-Net is MONAI's DynUNet but for the biases of convolutions ahead of an instance norm.
    "nnunet": Kind(
        _make_dynunet,
        _read_plain,
        (r"^encoder\.stages\.0\.0\.convs\.0\.conv\.weight 5d",),
        left_out=_SECOND_NAMES
        | _LAST_LAYERS
        | {"biases that the following norm removes": r"^(en|de)coder\.stages\..*\.conv\.bias$"},
        prepared=plan_of_nnssl,
    ),
}
"""Checkpoints of other projects that fill these encoders."""
