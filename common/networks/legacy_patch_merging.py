from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch.nn import functional as F

__all__ = ["LegacyPatchMerging"]


class LegacyPatchMerging(PatchMergingV2):
    """Patch merging as in MONAI up to 1.4, for Swin UNETR weights that were trained with it.

    Up to 1.4 the default ``downsample="merging"`` of MONAI's ``SwinUNETR`` concatenated six of the eight voxels of each
    2 x 2 x 2 block, two of them twice. MONAI 1.5 put the two missing voxels in place of the repeated ones and changed
    the order (issue 8284, pull request 8285). The parameters kept their names and shapes, so old weights load silently
    into the corrected layer and compute something else. Pass this class as ``SwinUNETR(...,
    downsample=LegacyPatchMerging)``. In two dimensions all versions agree.

    ``forward`` takes (B, D, H, W, C) to (B, ceil(D/2), ceil(H/2), ceil(W/2), 2C), or (B, H, W, C) likewise; odd sides
    are padded with zeros at the end.

    Args:
        dim: number of channels C.
        norm_layer: class of the normalisation of the concatenated features.
        spatial_dims: 2 or 3.
    """

    # Offsets (D, H, W) within a block, in the order of the concatenation; (0, 1, 0) and (0, 0, 1) come twice.
    offsets = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4:
            return super().forward(x)
        if x.ndim != 5:
            raise ValueError(f"Patch merging takes (B, D, H, W, C) or (B, H, W, C), got shape {tuple(x.shape)}.")
        _, depth, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in self.offsets], dim=-1)
        return self.reduction(self.norm(x))
