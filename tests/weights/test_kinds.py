"""Each kind of foreign checkpoint: told, computing what its library computes, refused when it is another one, trained.

Where a library is at hand its own forward pass is the measure. Of others (``references/make.py``) a sample of their
maps of a network of known weights is.
"""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock
from monai.networks.nets import (
    DenseNet,
    DynUNet,
    MaskedAutoEncoderViT,
    ResNet,
    SegResNet,
    SegResNetDS,
    SegResNetDS2,
    SwinUNETR,
    ViT,
)
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

from common.networks import (
    DenseNetEncoder,
    DilatedResNet,
    DynUNetEncoder,
    EncoderClassifier,
    EncoderUNet,
    GenesisEncoder,
    GenesisUNet,
    I3DEncoder,
    ResidualUNetEncoder,
    ResNetEncoder,
    SamEncoder3D,
    SegResNetDSEncoder,
    SegResNetEncoder,
    STUNet,
    STUNetEncoder,
    SwinEncoder,
    ViTEncoder,
)
from common.networks.beit_encoder import BeitEncoder
from common.networks.dino_encoder import DinoEncoder
from common.networks.primus import Primus, PrimusEncoder
from common.networks.residual_encoder_unet import ResidualEncoderUNet
from common.networks.swin_slice_encoder import SwinSliceEncoder
from common.weights import convert, load_encoder
from common.weights.kind import known_kinds
from common.weights.source import read_source

REFERENCES = Path(__file__).parent / "references"
_shared = runpy.run_path(str(REFERENCES / "formula.py"))
formula, sample = _shared["formula"], _shared["sample"]


LAST = slice(-1, None)


class Case(NamedTuple):
    """A checkpoint of a kind.

    Attributes:
        kind: how it is called.
        checkpoint: what the file holds.
        image: what the library's network saw.
        maps: what it made of it: tensors, or samples of them.
        encoder: makes ours.
        options: of ``convert``.
        taken: which of our maps those are; all by default.
    """

    kind: str
    checkpoint: Any
    image: torch.Tensor
    maps: list[Any]
    encoder: Callable[[], nn.Module]
    options: Mapping[str, Any] = MappingProxyType({})
    taken: slice = slice(None)


def draw(net: nn.Module) -> nn.Module:
    """Draw everything, also what starts at 0 or 1, so that nothing can be mixed up."""
    torch.manual_seed(0)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.2)
    return net.eval()


def seen(net: nn.Module, image: torch.Tensor, modules: list[nn.Module]) -> list[torch.Tensor]:
    """What chosen modules return while a network runs as its library wrote it."""
    found: list[torch.Tensor] = []
    hooks = [module.register_forward_hook(lambda *args: found.append(args[-1].clone())) for module in modules]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    return found


def volume(*size: int) -> torch.Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


def reference(name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[dict[str, Any]]]:
    """State dict, image and maps of a file that ``make.py`` wrote."""
    content = json.loads((REFERENCES / f"{name}.json").read_text(encoding="utf-8"))
    state = {own: formula(first, shape) for own, (first, shape) in content["tensors"].items()}
    return state, formula("image", content["image"]), content["maps"]


def monai_resnet(kernel: Any = 7, stride: Any = 2, **more: Any) -> Case:
    def make() -> ResNet:
        return ResNet("bottleneck", [3, 4, 6, 3], [2, 4, 8, 16], 3, 1, kernel, stride, **more)

    net, image = draw(make()), volume(32, 32, 64)
    maps = seen(net, image, [net.layer1, net.layer2, net.layer3, net.layer4])
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    return Case("monai_resnet", {"state_dict": state}, image, maps, lambda: ResNetEncoder(make()), taken=slice(1, None))


def medicalnet_in_monai() -> Case:
    """Weights without a trace of MONAI, of which the user has to say it."""
    case = monai_resnet(feed_forward=False, bias_downsample=False)
    return case._replace(options={"kind": "monai_resnet"})


def inflated_resnet() -> Case:
    """Of a network of images, whose stem sees three slices and goes on by one."""
    return monai_resnet((3, 7, 7), (1, 2, 2), feed_forward=False, bias_downsample=False)


def densenet() -> Case:
    def make() -> DenseNet:
        return DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(2, 3, 2, 2))

    net, image = draw(make()), volume(32, 32, 64)
    blocks = [getattr(net.features, f"denseblock{number}") for number in (1, 2, 3)]
    maps = seen(net, image, [net.features.relu0, *blocks, net.class_layers.relu])
    return Case("densenet", net.state_dict(), image, maps, lambda: DenseNetEncoder(make()))


def segresnet() -> Case:
    def make() -> SegResNet:
        return SegResNet(init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 2, 1), blocks_up=(1, 2))

    net, image = draw(make()), volume(8, 12, 16)
    with torch.no_grad():
        maps = net.encode(image)[1]
    return Case("segresnet", {"model": net.state_dict()}, image, maps, lambda: SegResNetEncoder(make()))


def vista3d() -> Case:
    def make(cls: Any = SegResNetDS2) -> nn.Module:
        return cls(init_filters=4, in_channels=1, out_channels=4, norm="instance", blocks_down=(1, 2, 1))

    net, image = draw(make()), volume(8, 12, 16)
    with torch.no_grad():
        maps = net.encoder(image)
    state = {f"image_encoder.{name}": tensor for name, tensor in net.state_dict().items()}
    state |= {"class_head.class_embeddings.weight": torch.zeros(3, 4), "point_head.not_a_point_embed.weight": image[0]}
    return Case("segresnet_ds", state, image, maps, lambda: SegResNetDSEncoder(make(SegResNetDS)))


SMALL = {"features": (4, 6, 8), "strides": (1, (1, 2, 2), 2), "kernel_size": ((1, 3, 3), 3, 3)}


def resenc() -> Case:
    state, image, maps = reference("resenc")
    plan = {
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": [160, 160, 160],
        "pretrain_plan": {"configurations": {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"]}},
        "architecture_plans": {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": None},
    }
    checkpoint = {"network_weights": state, "nnssl_adaptation_plan": plan, "trainer_name": "BaseMAETrainer"}

    def make() -> nn.Module:
        return ResidualUNetEncoder(ResidualEncoderUNet(1, 2, blocks=(1, 2, 2), **SMALL))

    return Case("resenc", checkpoint, image, maps[:3], make)


def nnunet() -> Case:
    state, image, maps = reference("nnunet")

    def make() -> nn.Module:
        kernels, strides = [(3, 3, 3)] * 3, [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
        norm = ("instance", {"affine": True})
        return DynUNetEncoder(
            DynUNet(3, 1, 2, kernels, strides, strides[1:], [4, 6, 8], norm_name=norm, trans_bias=True)
        )

    return Case("nnunet", {"network_weights": state}, image, maps[:3], make)


def primus() -> Case:
    state, image, maps = reference("primus")
    checkpoint = {"network_weights": state, "nnssl_adaptation_plan": {"recommended_downstream_patchsize": [16, 8, 16]}}

    def make() -> nn.Module:
        return PrimusEncoder(Primus(1, 2, (16, 8, 16), 4, 48, 2, 2))

    return Case("primus", checkpoint, image, maps[:1], make, {"num_heads": 2})


def monai_vit() -> Case:
    """Alone or in a whole network, of which the transformer is looked for."""

    def make() -> ViT:
        return ViT(1, (8, 8, 16), 4, 12, 16, 2, 2, qkv_bias=True)

    net, image = draw(make()), volume(8, 8, 16)
    with torch.no_grad():
        last, blocks = net(image)
    maps = [x.transpose(1, 2).unflatten(2, (2, 2, 4)) for x in (blocks[0], last)]
    state = {f"vit.{name}": tensor for name, tensor in net.state_dict().items()}
    encoder = {"encoder1.layer.conv1.conv.weight": image, "decoder5.transp_conv.conv.weight": image}
    return Case("monai_vit", state | encoder, image, maps, lambda: ViTEncoder(make(), [1]), {"num_heads": 2})


def monai_mae() -> Case:
    size: dict[str, Any] = {"hidden_size": 12, "mlp_dim": 16, "num_layers": 2, "num_heads": 2, "qkv_bias": True}
    decoder = {"decoder_hidden_size": 12, "decoder_num_layers": 1, "decoder_num_heads": 2}
    net, image = draw(MaskedAutoEncoderViT(1, (8, 8, 16), 4, masking_ratio=0.5, **size, **decoder)), volume(8, 8, 16)
    with torch.no_grad():
        tokens = torch.cat((net.cls_token.expand(2, -1, -1), net.patch_embedding(image)), dim=1)
        maps = [x[:, 1:].transpose(1, 2).unflatten(2, (2, 2, 4)) for x in seen(net.blocks, tokens, list(net.blocks))]

    def make() -> nn.Module:
        vit = ViT(1, (8, 8, 16), 4, **size)
        vit.cls_token = nn.Parameter(torch.zeros(1, 1, 12))
        return ViTEncoder(vit, [1])

    return Case("monai_mae", net.state_dict(), image, [maps[0], maps[2]], make, {"num_heads": 2})


def bmmae(image_kind: str) -> Case:
    """One transformer of MONAI's blocks for the patches of four kinds of images, of which a file of ours has one."""
    torch.manual_seed(0)
    patches: Any = nn.ModuleDict(
        {one: PatchEmbeddingBlock(1, (8, 8, 16), 4, 12, 2, "conv", "sincos") for one in ("t1", "t1ce", "t2", "flair")}
    )
    blocks, norm = nn.ModuleList(TransformerBlock(12, 16, 2, qkv_bias=True) for _ in range(2)), nn.LayerNorm(12)
    token = nn.Parameter(torch.randn(1, 1, 12))
    for part in (patches, blocks, norm):
        draw(part)
    image = volume(8, 8, 16)
    with torch.no_grad():
        x = blocks[0](torch.cat((token.expand(2, -1, -1), patches[image_kind](image)), dim=1))
        maps = [one[:, 1:].transpose(1, 2).unflatten(2, (2, 2, 4)) for one in (x, norm(blocks[1](x)))]
    state = {
        f"tokenizers.{one}.patch_embedding.{n}": t for one in patches for n, t in patches[one].state_dict().items()
    }
    state |= {f"blocks.{name}": tensor for name, tensor in blocks.state_dict().items()}
    state |= {f"norm.{name}": tensor for name, tensor in norm.state_dict().items()}
    state |= {"cls_token": token.detach(), "decoder.mask_token": torch.zeros(1, 1, 12)}

    def make() -> nn.Module:
        vit = ViT(1, (8, 8, 16), 4, 12, 16, 2, 2, qkv_bias=True)
        vit.cls_token = nn.Parameter(torch.zeros(1, 1, 12))
        return ViTEncoder(vit, [1])

    kind = f"bmmae_{image_kind}"
    return Case(kind, state, image, maps, make, {"num_heads": 2, "kind": kind})


def bmmae_t1() -> Case:
    return bmmae("t1")


def bmmae_t1ce() -> Case:
    return bmmae("t1ce")


def bmmae_t2() -> Case:
    return bmmae("t2")


def bmmae_flair() -> Case:
    return bmmae("flair")


def vit3d() -> Case:
    """3DINO's: blocks of DINOv2, which `transformers` has, on patches of a volume."""
    sizes: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 2, "mlp_ratio": 2, "layer_norm_eps": 1e-6}
    torch.manual_seed(0)
    theirs = nn.ModuleList(Dinov2Layer(Dinov2Config(**sizes)) for _ in range(2))
    embedding = nn.Conv3d(1, 12, 4, 4)
    tokens = nn.ParameterDict({"cls_token": torch.zeros(1, 1, 12), "pos_embed": torch.zeros(1, 17, 12)})
    norm = nn.LayerNorm(12, eps=1e-6)
    for part in (theirs, embedding, tokens, norm):
        draw(part)
    image = volume(8, 8, 16)
    with torch.no_grad():
        x = torch.cat((tokens["cls_token"].expand(2, -1, -1), embedding(image).flatten(2).transpose(1, 2)), dim=1)
        blocks = [theirs[0](x + tokens["pos_embed"])]
        blocks.append(theirs[1](blocks[0]))
        maps = [x[:, 1:].transpose(1, 2).unflatten(2, (2, 2, 4)) for x in (blocks[0], norm(blocks[1]))]
    state = dict(tokens.items()) | {f"norm.{name}": tensor for name, tensor in norm.state_dict().items()}
    state |= {f"patch_embed.proj.{name}": tensor for name, tensor in embedding.state_dict().items()}
    for number, layer in enumerate(theirs):
        own = layer.state_dict()
        for part in ("weight", "bias"):
            joint = [own[f"attention.{one}_proj.{part}"] for one in "qkv"]
            state[f"blocks.{number}.attn.qkv.{part}"] = torch.cat(joint)
            state[f"blocks.{number}.attn.proj.{part}"] = own[f"attention.o_proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"blocks.{number}.{name}.{part}"] = own[f"{name}.{part}"]
        for one in (1, 2):
            state[f"blocks.{number}.ls{one}.gamma"] = own[f"layer_scale{one}.lambda1"]
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    teacher |= {"dino_head.mlp.0.weight": torch.zeros(3, 12)}

    def make() -> nn.Module:
        vit = ViT(1, (8, 8, 16), 4, 12, 24, 2, 2, qkv_bias=True)
        vit.cls_token, vit.norm.eps = nn.Parameter(torch.zeros(1, 1, 12)), 1e-6
        for block in vit.blocks:
            block.norm1.eps = block.norm2.eps = 1e-6
        return ViTEncoder(vit, [1])

    return Case("vit3d", {"teacher": teacher, "iteration": 3}, image, maps, make, {"num_heads": 2})


def swin_unetr(use_v2: bool = False) -> Case:
    """In the wrappers of training code: a teacher beside a student, of DataParallel."""

    def make() -> SwinUNETR:
        return SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), use_v2=use_v2)

    net, image = draw(make()), volume(32, 32, 32)[:1]
    with torch.no_grad():
        maps = net.swinViT(image)
    state = {f"student.module.{name}": tensor + 1 for name, tensor in net.state_dict().items()}
    state |= {f"teacher.module.{name}": tensor for name, tensor in net.state_dict().items()}
    return Case("swin_unetr_ssl", {"net": state}, image, maps, lambda: SwinEncoder(make().swinViT))


def swin_unetr_v2() -> Case:
    return swin_unetr(use_v2=True)


def of_timm(name: str, kind: str, make: Callable[[], nn.Module], **options: Any) -> Case:
    """A 2-D model: a single slice of grey values that need no normalisation."""
    state, image, maps = reference(name)
    options |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    return Case(kind, {"model": state}, image[..., None], maps, make, options)


TOKENS: dict[str, Any] = {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 96, "patch_size": 8}


def slices(encoder: Any, size: int = 40, **more: Any) -> Callable[[], nn.Module]:
    return functools.partial(encoder, 1, (size, size), slices=1, **more)


def timm_vit() -> Case:
    return of_timm("timm_vit", "vit", slices(DinoEncoder, **TOKENS, out_blocks=(1, 2)), num_heads=3)


def timm_deit() -> Case:
    return of_timm("timm_deit", "vit", slices(DinoEncoder, **TOKENS, out_blocks=(1, 2)), num_heads=3)


def timm_dinov2() -> Case:
    return of_timm("timm_dinov2", "dinov2", slices(DinoEncoder, **TOKENS, out_blocks=(1, 2)), num_heads=3)


def timm_dinov2_registers() -> Case:
    make = slices(DinoEncoder, **TOKENS, out_blocks=(1, 2), registers=4)
    return of_timm("timm_dinov2_registers", "dinov2", make, num_heads=3)


def dinov2_registers() -> Case:
    """As `transformers` and the hub have it."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 4}
    config = Dinov2WithRegistersConfig(**sizes, image_size=40, patch_size=8, num_register_tokens=4)
    net, image = draw(Dinov2WithRegistersModel(config)), volume(40, 40)
    with torch.no_grad():
        states = net(image.expand(-1, 3, -1, -1), output_hidden_states=True).hidden_states[1:]
    maps = [x[:, 5:].transpose(1, 2).reshape(2, 24, 5, 5) for x in states]
    options = {"mean": [0.5] * 3, "std": [0.5] * 3, "num_heads": 3}
    make = slices(DinoEncoder, **TOKENS, out_blocks=(1, 2), registers=4)
    return Case("dinov2", net.state_dict(), image[..., None], maps, make, options)


def timm_beit() -> Case:
    return of_timm("timm_beit", "beit", slices(BeitEncoder, **TOKENS, out_blocks=(1, 2)))


def timm_beitv2() -> Case:
    return of_timm("timm_beitv2", "beit", slices(BeitEncoder, **TOKENS, out_blocks=(1, 2)))


def timm_swin() -> Case:
    stages: dict[str, Any] = {"embed_dim": 12, "depths": (1, 2, 1), "num_heads": (1, 2, 3), "window_size": 3}
    return of_timm("timm_swin", "swin", slices(SwinSliceEncoder, 24, patch_size=2, **stages))


def stunet() -> Case:
    state, image, maps = reference("stunet")
    net = functools.partial(STUNet, 1, 3, (4, 6, 8), (1, 2, 1), (2, 2))
    return Case("stunet", {"state_dict": state}, image, maps[:3], lambda: STUNetEncoder(net()))


def genesis() -> Case:
    state, image, maps = reference("genesis")
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    return Case("genesis", {"state_dict": state}, image, maps[:4], lambda: GenesisEncoder(GenesisUNet(1, 1, 4)))


def sam_med3d() -> Case:
    state, image, maps = reference("sam_med3d")
    state = {f"image_encoder.{name}": tensor for name, tensor in state.items()}
    state["mask_decoder.mask_tokens.weight"] = torch.zeros(4, 8)
    make = functools.partial(SamEncoder3D, 1, 16, 4, 12, 3, 2, 24, (3, 0, 3), (1, 2, 3))
    return Case("sam_med3d", {"model_state_dict": state}, image, maps, make)


def i3d() -> Case:
    """Written out here from the published layers: SAME padding, four branches, a head that is left out."""
    net = draw(I3DEncoder(1, 0.125))
    state = {name: tensor for name, tensor in net.state_dict().items() if "num_batches_tracked" not in name}

    def padded(x: torch.Tensor, kernel: Any, stride: Any) -> torch.Tensor:
        pads: list[int] = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
            lacking = max((-(-n // s) - 1) * s + k - n, 0)
            pads += [lacking // 2, lacking - lacking // 2]
        return F.pad(x, pads)

    def unit(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-3).relu()

    def pool(x: torch.Tensor, kernel: Any, stride: Any) -> torch.Tensor:
        return F.max_pool3d(padded(x, kernel, stride), kernel, stride)

    def mixed(x: torch.Tensor, name: str) -> torch.Tensor:
        first = unit(x, f"{name}.b0")
        second = unit(unit(x, f"{name}.b1a"), f"{name}.b1b")
        third = unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        return torch.cat([first, second, third, unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")], 1)

    image = volume(16, 32, 48)
    x = pool(unit(image, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    maps = [unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")]
    x = pool(maps[-1], (1, 3, 3), (1, 2, 2))
    for kernel, blocks in (((3, 3, 3), "3b 3c"), ((2, 2, 2), "4b 4c 4d 4e 4f"), (None, "5b 5c")):
        for block in blocks.split():
            x = mixed(x, f"Mixed_{block}")
        maps.append(x)
        x = pool(x, kernel, (2, 2, 2)) if kernel else x
    head = {"logits.conv3d.weight": torch.zeros(400, 128, 1, 1, 1), "logits.conv3d.bias": torch.zeros(400)}
    return Case("i3d", state | head, image, maps, lambda: I3DEncoder(1, 0.125))


def medicalnet() -> Case:
    """With dilations, of which no tensor tells."""
    beside = runpy.run_path(str(Path(__file__).parents[1] / "networks/test_dilated_resnet.py"))
    net = beside["disturb"](beside["small"](depth=50))
    image = torch.rand(2, 1, 17, 24, 30, generator=torch.Generator().manual_seed(0))
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    maps = [beside["reference"](net.state_dict(), image, [3, 4, 6, 3], "B")]
    options = {"kind": "medicalnet"}
    return Case("medicalnet", {"state_dict": state}, image, maps, lambda: DilatedResNet(50, width=4), options, LAST)


def unetr_mae() -> Case:
    beside = runpy.run_path(str(Path(__file__).with_name("test_convert.py")))
    torch.manual_seed(0)
    net, image = beside["randomise"](beside["Published"]()), beside["image_of"]()
    with torch.no_grad():
        maps = net(image)
    make = functools.partial(beside["unetr"], position="learnable", norm_eps=1e-6)
    options = {"num_heads": beside["HEADS"], "spatial_size": beside["SIZE"]}
    return Case("unetr_mae", {"model": net.state_dict()}, image, maps, make, options)


MAKERS = (
    medicalnet, unetr_mae,
    monai_resnet, medicalnet_in_monai, inflated_resnet, densenet, segresnet, vista3d, resenc, nnunet, primus,
    monai_vit, monai_mae, bmmae_t1, bmmae_t1ce, bmmae_t2, bmmae_flair, vit3d, swin_unetr, swin_unetr_v2, timm_vit,
    timm_deit, timm_dinov2, timm_dinov2_registers, timm_beit, dinov2_registers, timm_beitv2, timm_swin, stunet,
    genesis, sam_med3d, i3d,
)  # fmt: skip
CASES = {make.__name__: make for make in MAKERS}


@pytest.fixture(scope="module", params=CASES)
def case(request: Any) -> Case:
    return CASES[request.param]()


def saved(checkpoint: Any, folder: Path) -> tuple[Path, Path]:
    torch.save(checkpoint, folder / "source.pt")
    return folder / "source.pt", folder / "encoder.safetensors"


def test_it_is_told_from_all_others(case, tmp_path):
    tensors = read_source(saved(case.checkpoint, tmp_path)[0]).source.tensors
    found = [name for name, kind in known_kinds() if kind.fits(tensors)]
    if "kind" in case.options:
        of_bmmae = case.kind.startswith("bmmae")
        asked = "give the --kind of your images, one of bmmae_t1, bmmae_t1ce, bmmae_t2, bmmae_flair"
        assert found == (["bmmae_t1", "bmmae_t1ce", "bmmae_t2", "bmmae_flair"] if of_bmmae else ["medicalnet"])
        with pytest.raises(ValueError, match=asked if of_bmmae else "give --kind medicalnet or --kind monai_resnet"):
            convert(*saved(case.checkpoint, tmp_path))
    else:
        assert found[0] == case.kind


def test_it_computes_what_its_library_computes(case, tmp_path):
    paths = saved(case.checkpoint, tmp_path)
    convert(*paths, **case.options)
    encoder = case.encoder().eval()
    report = load_encoder(encoder, paths[1])
    assert all(name.startswith("norms.") for name in report.new) and not report.unused and not report.warnings, report
    with torch.no_grad():
        found = encoder(case.image)[case.taken]
    assert len(found) == len(case.maps)
    for made, expected in zip(found, case.maps, strict=True):
        made = made[..., 0] if case.image.shape[-1] == 1 else made
        if isinstance(expected, dict):
            assert list(made.shape) == expected["shape"]
            made, expected = torch.tensor(sample(made)), torch.tensor(expected["sample"])
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def holder(checkpoint: Any) -> dict[str, torch.Tensor]:
    """The state dict within a checkpoint."""
    holders = ("state_dict", "model_state_dict", "model", "network_weights", "net", "teacher")
    while True:
        inner = [checkpoint[key] for key in holders if key in checkpoint]
        if not inner:
            return checkpoint
        checkpoint = inner[0]


def mutations(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """What must not load: a weight missing, a part renamed, one more block, and a weight of another width."""
    weights = [name for name, tensor in state.items() if tensor.ndim >= 2 and re.search(r"\d\.", name)]
    other_parts = r"encoder\d|decoder|up_|head|classifier|all_modules|fc|seg_|out|final|neck"
    deep = [name for name in weights if not re.search(other_parts, name)]
    last = deep[-1]
    part = re.match(r".*?\d+\.", deep[len(deep) // 2])
    assert part is not None
    other = part[0][:-1] + "7."
    renamed = {other + n.removeprefix(part[0]) if n.startswith(part[0]) else n: t for n, t in state.items()}
    block = last.rpartition(".")[0]
    return {
        "missing": {name: tensor for name, tensor in state.items() if name != last},
        "renamed": renamed,
        "deeper": state | {re.sub(r"\d+(?=\D*$)", lambda m: str(int(m[0]) + 5), block) + ".weight": state[last]},
        "narrower": state | {last: state[last][: len(state[last]) // 2]},
    }


@pytest.mark.parametrize("mutation", ["missing", "renamed", "deeper", "narrower"])
def test_another_one_is_refused(case, mutation, tmp_path):
    state = mutations(holder(case.checkpoint))[mutation]
    source, output = saved(state, tmp_path)
    with pytest.raises(ValueError, match=r"source\.pt") as raised:
        convert(source, output, **{**case.options, "kind": case.kind})
    assert len(str(raised.value).splitlines()) == 1 and not output.exists()


def test_it_is_fine_tuned(case, tmp_path):
    """One step of a network over it, with a decoder where its maps get coarser or can be made so, changes it."""
    paths = saved(case.checkpoint, tmp_path)
    convert(*paths, **case.options)
    encoder: Any = case.encoder()
    load_encoder(encoder, paths[1])
    image = case.image
    coarser = len(set(encoder.strides)) == len(encoder.strides)
    if image.shape[-1] > 1 and (coarser or len(set(encoder.strides)) == 1):
        fixed = not coarser or case.kind in ("primus", "swin_unetr_ssl")
        image = image if fixed else F.interpolate(image, scale_factor=2)
        net, target = EncoderUNet(encoder, 2, width=4), torch.ones(2, *image.shape[2:], dtype=torch.long)
    else:
        net, target = EncoderClassifier(encoder, 2), torch.ones(2, dtype=torch.long)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    before = {name: tensor.clone() for name, tensor in encoder.named_parameters()}
    logits = net.train()(image[:1].expand(2, -1, -1, -1, -1))
    assert logits.shape == (2, 2, *target.shape[1:])
    F.cross_entropy(logits, target).backward()
    optimizer.step()
    changed = [name for name, tensor in encoder.named_parameters() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 3
    if case.kind in ("monai_resnet", "densenet", "segresnet_ds", "sam_med3d"):  # overlays have this decoder
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["stunet", "genesis", "primus"])
def test_each_parameter_of_their_networks_has_a_gradient(name):
    """One without would stop several processes at their second step."""
    nets = {
        "stunet": lambda: STUNet(1, 3, (4, 6, 8), (1, 2, 1), (2, 2)),
        "genesis": lambda: GenesisUNet(1, 3, 4),
        "primus": lambda: Primus(1, 3, (16, 16, 16), 4, 48, 2, 2),
    }
    net = nets[name]()
    net(torch.randn(2, 1, 16, 16, 16)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_an_adaptation_plan_goes_into_the_record(tmp_path):
    record = convert(*saved(resenc().checkpoint, tmp_path))
    assert record["preparation"]["spacing"] == [1.0, 1.0, 1.0] and record["preparation"]["channels"] == 1
    (step,) = record["preparation"]["intensity"]
    assert step["transform"] == "NormalizeIntensityd" and step["channel_wise"] and not step["nonzero"]
    assert record["intensity"] is None and record["spatial_size"] == [160, 160, 160]


def test_the_plan_of_nnunet_goes_into_the_record(tmp_path):
    """As its trainer keeps it beside the weights; a cascade inherits from the configuration that it refines."""
    full = {"spacing": [3, 1, 1], "patch_size": [16, 64, 64], "normalization_schemes": ["CTNormalization"]}
    configurations = {"3d_fullres": full | {"use_mask_for_norm": [False]}, "3d": {"inherits_from": "3d_fullres"}}
    found = {"0": {"mean": 20.0, "std": 50.0, "percentile_00_5": -80.0, "percentile_99_5": 220.0}}
    plans = {"configurations": configurations, "foreground_intensity_properties_per_channel": found}
    arguments = {"plans": plans | {"transpose_forward": [0, 1, 2]}, "configuration": "3d", "fold": 0}
    beside = {"init_args": arguments, "trainer_name": "nnUNetTrainer", "current_epoch": 1000}
    record = convert(*saved({"network_weights": resenc().checkpoint["network_weights"]} | beside, tmp_path))
    (step,) = record["preparation"]["intensity"]
    assert record["preparation"]["spacing"] == [3.0, 1.0, 1.0] and record["preparation"]["channels"] == 1
    assert (step["transform"], step["a_min"], step["b_min"]) == ("ScaleIntensityRanged", -80.0, -2.0)
    assert record["spatial_size"] == [16, 64, 64] and record["unexpressed"] is None
    arguments["plans"]["transpose_forward"] = [2, 0, 1]
    record = convert(*saved({"network_weights": resenc().checkpoint["network_weights"]} | beside, tmp_path))
    assert record["unexpressed"] == "axes are in the order [2, 0, 1] of the file's"


def test_an_encoder_alone_needs_a_plan(tmp_path):
    """Its strides are told by its decoder or by the plan, and by nothing else."""
    state, image, maps = reference("resenc")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    with pytest.raises(ValueError, match="neither a decoder nor a plan beside the weights shows the strides"):
        convert(*saved(encoder, tmp_path))
    arguments = {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": {"strides": [1, [1, 2, 2], 2]}}
    beside = {"nnssl_adaptation_plan": {"architecture_plans": arguments}}
    paths = saved({"network_weights": encoder} | beside, tmp_path)
    convert(*paths)
    made = ResidualUNetEncoder(ResidualEncoderUNet(1, 2, blocks=(1, 2, 2), **SMALL)).eval()
    assert set(load_encoder(made, paths[1]).new.values()) == {"the file has no decoder"}
    with torch.no_grad():
        assert sample(made(image)[-1]) == pytest.approx(maps[2]["sample"], abs=1e-4)


def test_second_names_that_differ_are_refused(tmp_path):
    state = reference("nnunet")[0]
    name = next(name for name in state if ".all_modules.0.weight" in name)
    with pytest.raises(ValueError, match=r"as its second name, .* which differ"):
        convert(*saved(state | {name: state[name] + 1}, tmp_path))


@pytest.mark.parametrize("name", ["resenc", "nnunet"])
def test_the_decoder_of_nnunet_comes_along(name, tmp_path):
    case, (state, image, maps) = {"resenc": resenc, "nnunet": nnunet}[name](), reference(name)
    paths = saved(case.checkpoint, tmp_path)
    convert(*paths)
    if name == "resenc":
        net = ResidualEncoderUNet(1, 3, blocks=(1, 2, 2), **SMALL)
        load_encoder(ResidualUNetEncoder(net), paths[1])
        head: Any = net.decoder.seg_layers[-1]
    else:
        strides = [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
        norm = ("instance", {"affine": True})
        net = DynUNet(3, 1, 3, [3] * 3, strides, strides[1:], [4, 6, 8], norm_name=norm, trans_bias=True)
        load_encoder(DynUNetEncoder(net), paths[1])
        head = net.output_block.conv.conv
    with torch.no_grad():
        for part in ("weight", "bias"):
            getattr(head, part).copy_(state[f"decoder.seg_layers.1.{part}"])
        assert sample(net.eval()(image)) == pytest.approx(maps[3]["sample"], abs=1e-4)


def test_a_decoder_that_dynunet_cannot_have_is_left_out_by_choice(tmp_path):
    state = reference("nnunet")[0]
    state = {n: t for n, t in state.items() if "all_modules" not in n and not n.startswith("decoder.encoder")}
    for name in state:
        if re.match(r"(encoder\.stages\.0\.0|decoder\.stages\.1)\..*conv\.weight", name):
            state[name] = state[name][:, :, :1]
    paths = saved(state, tmp_path)
    with pytest.raises(ValueError, match=r"MONAI's DynUNet has those of the coarser: give --leave_out '\^decoder'"):
        convert(*paths)
    architecture = convert(*paths, leave_out="^decoder")["architecture"]
    assert architecture["kernel_size"][0] == [1, 3, 3] and architecture["strides"][2] == [2, 4, 4]


def test_primus_decodes_as_its_library_does(tmp_path):
    state, image, maps = reference("primus")
    net = Primus(1, 3, (16, 8, 16), 4, 48, 2, 2)
    missing, odd = net.load_state_dict({n: t for n, t in state.items() if n != "mask_token"}, strict=False)
    assert not missing and not odd
    with torch.no_grad():
        assert sample(net.eval()(image)) == pytest.approx(maps[1]["sample"], abs=1e-4)


def test_positions_of_primus_are_resampled(tmp_path):
    paths = saved(primus().checkpoint, tmp_path)
    convert(*paths, num_heads=2)
    encoder = PrimusEncoder(Primus(1, 2, (16, 16, 16), 4, 48, 2, 2))
    assert load_encoder(encoder, paths[1]).adapted == {
        "eva.pos_embed": "positions resampled from grid [4, 2, 4] to [4, 4, 4]"
    }


def table() -> str:
    """The kinds and the cases that the tests above go through, for the page."""
    rows = ["| kind | fills | checkpoint | told | computes the same as | refused when changed | trained |"]
    rows.append("|---|---|---|---|---|---|---|")
    made_once = {case: make() for case, make in CASES.items()}
    for name, _ in known_kinds():
        cases = {case: made for case, made in made_once.items() if made.kind == name}
        for case, made in cases.items():
            file = REFERENCES / f"{case}.json"
            library = json.loads(file.read_text(encoding="utf-8"))["library"] if file.is_file() else None
            others = {"dinov2_registers": "transformers", "vit3d": "transformers"}
            others |= dict.fromkeys(("i3d", "medicalnet", "unetr_mae"), "a slow copy")
            library = library or others.get(case, "MONAI")
            told = "by `--kind`" if "kind" in made.options else "yes"
            encoder = type(made.encoder()).__name__
            rows.append(f"| `{name}` | `{encoder}` | {case.replace('_', ' ')} | {told} | {library} | yes | yes |")
        assert cases, f"no test is of the kind {name}: write a case of it"
    return "\n".join(rows)


def test_the_page_has_the_table_of_these_tests():
    page = Path(__file__).parents[2] / "docs/weights.md"
    text = page.read_text(encoding="utf-8")
    begin, _, rest = text.partition("test_kinds.py -->\n")
    _, end, after = rest.partition("<!-- end -->")
    made = f"{begin}test_kinds.py -->\n\n{table()}\n\n{end}{after}"
    if os.environ.get("WRITE_TABLE"):
        page.write_text(made, encoding="utf-8")
    assert text == made, "docs/weights.md is not of these tests: run them with WRITE_TABLE=1"


@pytest.mark.parametrize("name", ["stunet", "genesis"])
def test_published_unets_decode_as_their_authors_do(name, tmp_path):
    case, (state, image, maps) = CASES[name](), reference(name)
    paths = saved(case.checkpoint, tmp_path)
    convert(*paths)
    if name == "stunet":
        net: Any = STUNet(1, 3, (4, 6, 8), (1, 2, 1), (2, 2))
        load_encoder(STUNetEncoder(net), paths[1])
        head, last = net.seg_outputs["1"], "seg_outputs.1"
    else:
        net = GenesisUNet(1, 1, 4)
        load_encoder(GenesisEncoder(net), paths[1])
        head, last = net.out_tr["final_conv"], "out_tr.final_conv"
    with torch.no_grad():
        for part in ("weight", "bias"):
            getattr(head, part).copy_(state[f"{last}.{part}"])
        assert sample(net.eval()(image)) == pytest.approx(maps[-1]["sample"], abs=1e-4)
