"""Segmentation networks, encoders (views on their sub-modules) and heads over encoders.

Those of slices (``transseg``, ``beit_encoder``, ``dino_encoder``, ``swin_slice_encoder``) are named by their files, so
that the others load without ``transformers``.
"""

from .heads import EncoderClassifier, EncoderRegressor
from .legacy_patch_merging import LegacyPatchMerging
from .memory_format import ChannelsLastInstanceNorm3d, to_channels_last
from .nnformer import NNFormer, NNFormerEncoder
from .swin_encoder import SwinEncoder
from .unetr import UNETR, SeparablePositions
from .vit_encoder import ViTEncoder

__all__ = [
    "UNETR",
    "ChannelsLastInstanceNorm3d",
    "EncoderClassifier",
    "EncoderRegressor",
    "LegacyPatchMerging",
    "NNFormer",
    "NNFormerEncoder",
    "SeparablePositions",
    "SwinEncoder",
    "ViTEncoder",
    "to_channels_last",
]
