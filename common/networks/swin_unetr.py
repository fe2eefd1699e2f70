from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from monai.utils import ensure_tuple_rep

from .stages import check_size

__all__ = ["SwinUNETR"]


class SwinUNETR(MonaiSwinUNETR):
    """MONAI's Swin UNETR [1] with patches that may differ between the axes, for thick slices.

    With the same patch along all axes it is ``monai.networks.nets.SwinUNETR``. MONAI's takes one number: its last
    upsampling step is 2 along every axis, whatever the patch.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        patch_size: voxels of a patch per axis, 1 or 2: (1, 2, 2) for Synapse in [2], section 4.2.
        feature_size: channels of the first map.
        norm_name: norm of the convolutional blocks.
        kwargs: those of ``monai.networks.nets.SwinUNETR`` for three dimensions.

    Input (B, in_channels, D, H, W), each side a multiple of 16 patches; output (B, out_channels, D, H, W).

    Raises:
        ValueError: ``patch_size`` is not 1 or 2 along an axis; in ``forward``, a side is not a multiple of 16 patches.

    References:
        - [1] Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images.
        - [2] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: Sequence[int] | int = 2,
        feature_size: int = 24,
        norm_name: tuple | str = "instance",
        **kwargs: Any,
    ) -> None:
        patch: Any = ensure_tuple_rep(patch_size, 3)  # MONAI declares a number, but takes one for each axis
        if not set(patch) <= {1, 2}:
            raise ValueError(f"patch_size of Swin UNETR must be 1 or 2, for all axes or for each, not {patch_size}.")
        super().__init__(
            in_channels, out_channels, patch, feature_size=feature_size, norm_name=norm_name, spatial_dims=3, **kwargs
        )
        self.sides = tuple(16 * size for size in patch)
        if set(patch) != {2}:
            self.decoder1 = UnetrUpBlock(3, feature_size, feature_size, 3, patch, norm_name, res_block=True)

    def _check_input_size(self, spatial_shape: Sequence[int]) -> None:
        check_size(spatial_shape, self.sides, "Swin UNETR")
