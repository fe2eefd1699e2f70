from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from .foreign import HEADS, Kind, Source, State, count
from .stages import check_size

__all__ = ["CHECKPOINTS", "SwinEncoder"]


class SwinEncoder(nn.Module):
    """The Swin transformer of MONAI's ``SwinUNETR`` as an encoder.

    It is a view, not a copy: it holds the module of a segmentation net itself.

    Args:
        swin: the transformer, ``SwinUNETR(...).swinViT``.
        normalize: whether each map passes a layer norm without parameters, as ``SwinUNETR`` does by default.

    ``forward(image (B, C, D, H, W))`` returns five maps with ``feature_size * (1, 2, 4, 8, 16)`` channels and strides
    2, 4, 8, 16, 32 (for patch size 2); each axis of the image is a multiple of the last stride.
    """

    fresh_weights: ClassVar[dict[str, str]] = {"decoder": r"^(en|de)coder\d+\."}  # of `SwinUNETREncoder`
    spare_weights = fresh_weights | {HEADS: r"^out\."}
    layer_names: ClassVar[tuple[str, ...]] = (r"swin\.patch_embed\.", r"swin\.layers(\d)c?\.")

    def __init__(self, swin: SwinTransformer, normalize: bool = True) -> None:
        super().__init__()
        self.swin = swin
        self.normalize = normalize
        projection = swin.patch_embed.proj
        self.patch_size = tuple(projection.kernel_size)
        self.in_channels = projection.in_channels
        self.channels = tuple(swin.embed_dim * 2**stage for stage in range(5))
        self.strides = tuple(tuple(size * 2**stage for size in self.patch_size) for stage in range(5))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        check_size(image.shape[2:], self.strides[-1], "Swin UNETR")
        return self.swin(image, self.normalize)

    def check_weights(self, state: Mapping[str, torch.Tensor]) -> None:
        """Refuse weights of the other version of Swin UNETR.

        Version 2 has a convolution before each stage. Everything else has the same names and shapes, but computes
        something else without it. The convolutions also identify older encoder files, which do not record the version.

        Raises:
            ValueError: only one of file and encoder has them.
        """
        names = state.keys() ^ self.state_dict().keys()
        other = next((name for name in sorted(names) if re.match(r"swin\.layers\dc\.", name)), None)
        if other is not None:
            where = ("the file", "this encoder") if other in state else ("this encoder", "the file")
            raise ValueError(
                f"{where[0]} holds {other}, of Swin UNETR V2, but {where[1]} is of V1, which computes something "
                "else; use the network of the weights."
            )

    def architecture(self) -> dict:
        """Name and arguments of the network, for the record of an encoder file."""
        layers = [getattr(self.swin, f"layers{stage}")[0] for stage in range(1, 5)]
        return {
            "name": "SwinEncoder",
            "in_channels": self.in_channels,
            "patch_size": list(self.patch_size),
            "feature_size": self.swin.embed_dim,
            "depths": [len(layer.blocks) for layer in layers],
            "num_heads": [layer.blocks[0].attn.num_heads for layer in layers],
            "window_size": list(layers[0].window_size),
            "patch_merging": type(layers[0].downsample).__name__,
            "use_v2": hasattr(self.swin, "layers1c"),
        }


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    with torch.device("cpu"):  # it reads values while it is made, which the device `meta` has not
        transformer = SwinTransformer(
            architecture["in_channels"],
            architecture["feature_size"],
            architecture.get("window_size", [7, 7, 7]),
            architecture["patch_size"],
            architecture["depths"],
            architecture["num_heads"],
            use_v2=architecture["use_v2"],
        )
    return SwinEncoder(transformer)


def _read(state: State, source: Source) -> dict[str, Any]:
    projection = state["swin.patch_embed.proj.weight"]
    tables = [state[f"swin.layers{stage}.0.blocks.0.attn.relative_position_bias_table"] for stage in range(1, 5)]
    side = round(len(tables[0]) ** (1 / 3))
    architecture = {
        "name": "SwinEncoder",
        "in_channels": projection.shape[1],
        "patch_size": list(projection.shape[2:]),
        "feature_size": projection.shape[0],
        "depths": [count(state, rf"swin\.layers{stage}\.0\.blocks\.(\d+)\.") for stage in range(1, 5)],
        "num_heads": [table.shape[1] for table in tables],
        "use_v2": any(re.match(r"swin\.layers\dc\.", name) for name in state),
        # Names as MONAI had them only while its patch merging was the old one, such as in model_swinvit.pt.
        "patch_merging": "LegacyPatchMerging"
        if any(".mlp.fc1." in name for name in source.tensors)
        else "PatchMerging",
    }
    if side**3 == len(tables[0]):  # of a cubic window
        architecture["window_size"] = [(side + 1) // 2] * 3
    return architecture


CHECKPOINTS = {
    # The self-supervised transformers of Tang et al. (CVPR 2022), old names and new, and whole Swin UNETRs of both
    # versions, also of VoCo, SuPreM and BrainSegFounder.
    "swin_unetr_ssl": Kind(
        _network,
        _read,
        (r"(^|\.)layers1\.0\.blocks\.0\.attn\.qkv\.weight 2d", r"patch_embed\.proj\.weight 5d"),
        ((r"^((swinViT|swin_vit)\.)?", "swin."), (r"\.mlp\.fc(\d)\.", r".mlp.linear\1.")),
        {
            "Swin UNETR's convolutions": r"^(encoder\d+|decoder\d|out)\.",
            "self-supervised heads": r"^(rotation|contrastive)_(head|pre)\.|^(conv|convTrans3d)\.",
            "final norm": r"^((swinViT|swin_vit)\.)?norm\.",
            "heads of the Universal Model": r"^(organ_embedding$|(text_to_vision|precls_conv|GAP|controller)\.)",
        },
    )
}
"""Checkpoints of other projects that fill a :class:`SwinEncoder`."""
