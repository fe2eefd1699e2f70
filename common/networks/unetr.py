from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import SABlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import get_conv_layer
from monai.networks.nets import UNETR as MonaiUNETR
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["UNETR", "SeparablePositions"]


class UNETR(MonaiUNETR):
    """UNETR [1] with the skip connections of the paper's figure, and the variants of [2].

    Parameters have the names of ``monai.networks.nets.UNETR``, so state dicts are interchangeable. MONAI reads its
    skips from ``hidden_states_out[3], [6], [9]``, which are the outputs of blocks 4, 7 and 10. [1] (Fig. 1) uses z3, z6
    and z9, the outputs of blocks 3, 6 and 9. ``skip_blocks=(4, 7, 10)`` gives MONAI's function.

    Attention runs through ``scaled_dot_product_attention`` when ``dropout_rate`` is 0 (with it, MONAI's block would
    apply that dropout even in evaluation).

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        img_size: voxels per axis of every input; a multiple of ``patch_size`` per axis.
        num_layers: transformer blocks.
        patch_size: voxels of a patch per axis: 16 as in [1], or 8 for images of 2 mm and coarser. At 2 mm, 16 voxels
            are so large a part of the head that tokens encode little but their place. A net with patches of 8 has one
            upsampling step less: with 12 blocks, z8 and the last tokens meet at a quarter and z4 at half of the
            resolution, and MONAI's ``encoder4`` and ``decoder5`` are left out. If only some axes have 8 (8 x 16 x 16 in
            [3], for thick slices), the first step of each path upsamples only the other axes.
        skip_blocks: the blocks (counted from 1) that feed the skips: three, by default at a quarter, a half and three
            quarters of ``num_layers``; two with patches of 8, by default at a third and two thirds.
        class_token: whether to add a class token, as in the published encoder of [2]; it is dropped before the decoder.
        position: ``"learnable"``, one vector per token, or ``"separable"``, the sum of one vector per position of the
            first axis and one per position of the other two, as in the published encoder of [2]; the class token then
            also has a position.
        norm_eps: epsilon of the layer norms (MONAI 1e-5, published encoder 1e-6).
        freeze_patch_embed: freeze the patch projection, random or loaded, as in the code of [2].
        **kwargs: as in ``monai.networks.nets.UNETR`` (``feature_size``, ``hidden_size``, ``mlp_dim``, ...).

    Input (B, in_channels, *img_size), output (B, out_channels, *img_size).

    Raises:
        ValueError: ``patch_size`` is not 16 or 8 on an axis, ``img_size`` is not a multiple of it, or ``skip_blocks``
            are not that many increasing block numbers.

    References:
        - [1] Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, WACV 2022.
        - [2] Zhang et al., Pretrain Once and Finetune Many Times, BIBM 2023, section III.
        - [3] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning, section 4.2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int] | int,
        num_layers: int = 12,
        patch_size: Sequence[int] | int = 16,
        skip_blocks: Sequence[int] | None = None,
        class_token: bool = False,
        position: str = "learnable",
        norm_eps: float = 1e-5,
        freeze_patch_embed: bool = False,
        **kwargs,
    ) -> None:
        img_size = ensure_tuple_rep(img_size, 3)
        patch = ensure_tuple_rep(patch_size, 3)
        if not set(patch) <= {8, 16}:
            raise ValueError(f"patch_size of UNETR must be 16 or 8, for all axes or for each, not {patch_size}.")
        if any(size % side for size, side in zip(img_size, patch, strict=True)):
            raise ValueError(
                f"UNETR needs an img_size that is a multiple of its patch size {patch_size} on each axis, not "
                f"{img_size}."
            )
        if position not in ("learnable", "separable"):
            raise ValueError(f"position must be 'learnable' or 'separable', not {position!r}.")
        super().__init__(in_channels, out_channels, img_size, **kwargs)
        if patch == (8, 8, 8):
            self._make_finer(in_channels, img_size, **kwargs)
        elif patch != (16, 16, 16):
            self._make_uneven(in_channels, img_size, patch, **kwargs)
        if num_layers > self.num_layers:
            raise ValueError(f"UNETR has at most {self.num_layers} blocks, but num_layers is {num_layers}.")
        self.num_layers = num_layers
        self.img_size = list(img_size)
        self.vit.blocks = self.vit.blocks[:num_layers]
        parts = 3 if patch == (8, 8, 8) else 4
        skips = skip_blocks or [round(num_layers * part / parts) for part in range(1, parts)]
        if len(skips) != parts - 1 or sorted(set(skips)) != list(skips) or not 1 <= skips[0] <= skips[-1] <= num_layers:
            raise ValueError(
                f"skip_blocks must be {parts - 1} increasing block numbers in 1..{num_layers}, not {list(skips)}."
            )
        self.skip_blocks = tuple(skips)
        self.has_class_token = class_token
        if class_token:
            self.vit.cls_token = nn.Parameter(torch.empty(1, 1, self.hidden_size).normal_(std=0.02))
        if position == "separable" and class_token:
            parametrize.register_parametrization(self.vit, "cls_token", PositionedToken())
        if position == "separable":
            positions = SeparablePositions(self.feat_size)
            embedding: Any = self.vit.patch_embedding
            parametrize.register_parametrization(embedding, "position_embeddings", positions)
            for part in embedding.parametrizations.parameters():
                nn.init.trunc_normal_(part, std=0.02)  # the split of a random table is nearly zero
        if freeze_patch_embed:
            self.vit.patch_embedding.patch_embeddings.requires_grad_(False)
        flash = not kwargs.get("dropout_rate") and not kwargs.get("save_attn")
        for module in self.vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
            if isinstance(module, SABlock) and flash:
                module.use_flash_attention = True

    def _make_finer(
        self,
        in_channels: int,
        img_size: Sequence[int],
        feature_size: int = 16,
        norm_name: tuple | str = "instance",
        conv_block: bool = True,
        res_block: bool = True,
        **kwargs,
    ) -> None:
        """Replace the modules that depend on the patch size with their form for patches of 8."""
        self._make_vit(in_channels, img_size, (8, 8, 8), **kwargs)

        def up(features: int, layers: int) -> UnetrPrUpBlock:
            return UnetrPrUpBlock(
                3, self.hidden_size, features, layers, 3, 1, 2, norm_name, conv_block=conv_block, res_block=res_block
            )

        self.encoder2, self.encoder3 = up(2 * feature_size, 1), up(4 * feature_size, 0)
        self.decoder4 = UnetrUpBlock(3, self.hidden_size, 4 * feature_size, 3, 2, norm_name, res_block)
        del self.encoder4, self.decoder5

    def _make_uneven(self, in_channels: int, img_size: Sequence[int], patch_size: Sequence[int], **kwargs) -> None:
        """Replace the modules that depend on the patch size with their form for patches of 8 on some axes."""
        self._make_vit(in_channels, img_size, patch_size, **kwargs)
        step = tuple(side // 8 for side in patch_size)
        blocks: list[Any] = [self.encoder2, self.encoder3, self.encoder4, self.decoder5]
        for block in blocks:
            name = "transp_conv" if block is self.decoder5 else "transp_conv_init"
            old = getattr(block, name).conv
            new = get_conv_layer(
                3, old.in_channels, old.out_channels, kernel_size=step, stride=step, conv_only=True, is_transposed=True
            )
            setattr(block, name, new)

    def _make_vit(self, in_channels: int, img_size: Sequence[int], patch_size: Sequence[int], **kwargs) -> None:
        for name in ("feature_size", "norm_name", "conv_block", "res_block"):  # of the convolutions
            kwargs.pop(name, None)
        self.patch_size = tuple(patch_size)
        self.feat_size = tuple(size // side for size, side in zip(img_size, patch_size, strict=True))
        self.proj_view_shape = [*self.feat_size, self.hidden_size]
        kwargs |= {"hidden_size": self.hidden_size, "mlp_dim": kwargs.get("mlp_dim", 3072)}
        self.vit = ViT(in_channels, img_size, self.patch_size, num_layers=self.num_layers, **kwargs)

    def proj_feat(self, x: torch.Tensor) -> torch.Tensor:
        if self.has_class_token:
            x = x[:, 1:]
        # Not `.contiguous()`: that would force the row-major layout on a net that runs in channels_last_3d.
        return x.reshape([x.size(0)] + self.proj_view_shape).permute(self.proj_axes)  # noqa: RUF005 (for TorchScript)

    def forward(self, x_in: torch.Tensor) -> torch.Tensor:
        if list(x_in.shape[2:]) != self.img_size:
            raise ValueError(
                f"this UNETR needs images of {self.img_size} voxels, not {list(x_in.shape[2:])}: set roi_size to the "
                "size of the crops, and image_size to at least that."
            )
        x, hidden = self.vit(x_in)
        enc1 = self.encoder1(x_in)
        enc2 = self.encoder2(self.proj_feat(hidden[self.skip_blocks[0] - 1]))
        enc3 = self.encoder3(self.proj_feat(hidden[self.skip_blocks[1] - 1]))
        dec3 = self.proj_feat(x)
        if hasattr(self, "decoder5"):  # which TorchScript resolves when it compiles
            dec3 = self.decoder5(dec3, self.encoder4(self.proj_feat(hidden[self.skip_blocks[2] - 1])))
        dec2 = self.decoder4(dec3, enc3)
        dec1 = self.decoder3(dec2, enc2)
        return self.out(self.decoder2(dec1, enc1))


class SeparablePositions(nn.Module):
    """Position table of a 3-D token grid as an outer sum, a parametrization for ``torch.nn.utils.parametrize``.

    ``forward(axial (1, D, C), planar (1, H*W, C)) -> (1, D*H*W, C)``, with ``axial[d] + planar[p]`` in row ``d*H*W +
    p``. The published encoder of Zhang et al. (BIBM 2023) stores its positions like this (10 + 100 vectors for its 10 x
    10 x 10 grid).
    """

    def __init__(self, grid: Sequence[int]) -> None:
        super().__init__()
        self.depth, self.plane = int(grid[0]), math.prod(int(size) for size in grid[1:])

    def forward(self, axial: torch.Tensor, planar: torch.Tensor) -> torch.Tensor:
        return (axial[:, :, None] + planar[:, None]).flatten(1, 2)

    def right_inverse(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split a full table by least squares; exact for an outer sum."""
        table = table.detach().unflatten(1, (self.depth, self.plane))
        axial = table.mean(2)
        return axial, (table - axial[:, :, None]).mean(1)


class PositionedToken(nn.Module):
    """A class token as the sum of a token and its position, a parametrization like ``SeparablePositions``."""

    def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return token + position

    def right_inverse(self, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token, torch.zeros_like(token)
