"""Make the JSON files beside this one: features of networks of libraries that the tests do not install.

They hold the names and shapes of a small network's tensors, whose values are ``formula``'s, and a sample of each map of
the library's own forward pass. Run where the libraries are installed (they want torchvision), by name:

    python make.py unets
    python make.py primus    # with timm 1.0.15: later ones cannot make the positions of three axes
    python make.py timm_models
    python make.py repositories  # with STUNet.py, unet3d.py and image_encoder3D.py of theirs in the path
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from formula import formula, sample
from torch import nn
from torch.nn import functional as F

IMAGE = (1, 1, 16, 16, 16)


def write(name: str, library: str, net: nn.Module, image: tuple[int, ...], maps: Any, **more: Any) -> None:
    """Fill a network by the formula and write what ``maps(net, image)`` returns."""
    with torch.no_grad():
        first: dict[int, str] = {}
        for own, tensor in net.state_dict().items():
            first.setdefault(tensor.data_ptr(), own)
            if tensor.is_floating_point():
                tensor.copy_(formula(first[tensor.data_ptr()], tensor.shape))
        found = maps(net.eval(), formula("image", image))
    tensors = {own: [first[t.data_ptr()], list(t.shape)] for own, t in net.state_dict().items()}
    said = library if " " in library else f"{library} {version(library)}"
    content = {"library": said, "image": list(image), "tensors": tensors}
    content["maps"] = [{"shape": list(one.shape), "sample": sample(one)} for one in found]
    text = json.dumps(content | more).replace('], "', '],\n"').replace("}, {", "},\n{")
    (Path(__file__).parent / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def unets() -> None:
    """nnU-Net's residual and plain networks; the stride of one stage is not that of the other axes."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    settings: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "num_classes": 3,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    library = "dynamic_network_architectures"
    residual = ResidualEncoderUNet(n_blocks_per_stage=[1, 2, 2], n_conv_per_stage_decoder=[1, 1], **settings)
    settings["kernel_sizes"] = [[3, 3, 3]] * 3
    plain = PlainConvUNet(n_conv_per_stage=[2, 2, 2], n_conv_per_stage_decoder=[2, 2], **settings)
    for name, net in (("resenc", residual), ("nnunet", plain)):
        write(name, library, net, IMAGE, lambda net, image: [*net.encoder(image), net(image)])


def primus() -> None:
    """Primus as nnssl pre-trains it: layer scale, and a norm inside attention."""
    from dynamic_network_architectures.architectures.primus import Primus

    more: dict[str, Any] = {"eva_depth": 2, "eva_numheads": 2, "init_values": 0.1, "scale_attn_inner": True}
    net = Primus(1, 48, (4, 4, 4), 3, input_shape=(16, 8, 16), **more)

    def maps(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
        tokens = net.down_projection(image)
        features, _ = net.eva(tokens.flatten(2).transpose(1, 2))
        return [features.transpose(1, 2).unflatten(2, tokens.shape[2:]), net(image)]

    write("primus", "dynamic_network_architectures", net, (1, 1, 16, 8, 16), maps)


def timm_models() -> None:
    """2-D models of timm."""
    import timm

    small: dict[str, Any] = {
        "img_size": 40,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 0,
    }
    models = {
        "timm_vit": ("vit_base_patch16_224", small),
        "timm_dinov2": ("vit_small_patch14_dinov2", small),
        "timm_dinov2_registers": ("vit_small_patch14_reg4_dinov2", small),
        "timm_deit": ("deit_base_patch16_224", small),
        "timm_beit": ("beit_base_patch16_224", small),
        "timm_beitv2": ("beitv2_base_patch16_224", small),
    }
    for name, (model, settings) in models.items():
        net = timm.create_model(model, **settings)
        write(name, "timm", net, (1, 1, 40, 40), _blocks, model=model)
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=24, patch_size=2, embed_dim=12, depths=(1, 2, 1), num_heads=(1, 2, 3),
        window_size=3, num_classes=0,
    )  # fmt: skip
    write("timm_swin", "timm", net, (1, 1, 24, 24), _normed_blocks, model="swin_tiny_patch4_window7_224")


def repositories() -> None:
    """Networks that are in no package; in the places of what STU-Net takes from nnU-Net version 1 may stand blanks."""
    import functools

    from image_encoder3D import ImageEncoderViT3D  # uni-medical/SAM-Med3D
    from STUNet import STUNet  # uni-medical/STU-Net
    from unet3d import UNet3D  # MrGiovanni/ModelsGenesis, pytorch/

    net = STUNet(1, 3, [1, 2, 1], [4, 6, 8], [[2, 2, 2]] * 2, [[3, 3, 3]] * 3)
    write("stunet", "STU-Net (uni-medical/STU-Net)", net, IMAGE, _stages)
    net = UNet3D()
    for module in list(net.modules()):  # of an eighth of its width
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv3d | nn.ConvTranspose3d):
                narrow = [max(1, size // 8) for size in (child.in_channels, child.out_channels)]
                sizes = (*narrow, child.kernel_size, child.stride, child.padding)
                setattr(module, name, type(child)(*sizes))
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, type(child)(child.num_features // 8))
    write("genesis", "Models Genesis (MrGiovanni/ModelsGenesis)", net, IMAGE, _genesis)
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    more: dict[str, Any] = {"use_rel_pos": True, "window_size": 3, "global_attn_indexes": [1], "norm_layer": norm}
    net = ImageEncoderViT3D(16, 4, 1, 12, 3, 2, 2.0, 8, **more)
    write("sam_med3d", "SAM-Med3D (uni-medical/SAM-Med3D)", net, IMAGE, _sam)


def _stages(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    maps = [image]
    for stage in net.conv_blocks_context:
        maps.append(stage(maps[-1]))
    return [*maps[1:], net(image)[0]]


def _genesis(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    out = net(image)
    return [net.skip_out64, net.skip_out128, net.skip_out256, net.skip_out512, torch.logit(out)]


def _sam(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    x, maps = net.patch_embed(image) + net.pos_embed, []
    for block in net.blocks:
        x = block(x)
        maps.append(x.permute(0, 4, 1, 2, 3))
    return maps


def _blocks(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    """What each block, or stage, makes of a grey image."""
    return net.forward_intermediates(image.expand(-1, 3, -1, -1), norm=False, intermediates_only=True)


def _normed_blocks(net: Any, image: torch.Tensor) -> list[torch.Tensor]:
    return [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in _blocks(net, image)]


if __name__ == "__main__":
    {"unets": unets, "primus": primus, "timm_models": timm_models, "repositories": repositories}[sys.argv[1]]()
