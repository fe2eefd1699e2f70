"""Segmentation networks, encoders (views on their sub-modules) and heads over encoders."""

from .heads import EncoderClassifier, EncoderRegressor
from .legacy_patch_merging import LegacyPatchMerging
from .memory_format import ChannelsLastInstanceNorm3d, to_channels_last
from .multi_view import MultiViewClassifier, MultiViewEncoder, MultiViewRegressor, MultiViewSegmenter
from .nnformer import NNFormer, NNFormerEncoder
from .plane_encoder import PlaneEncoder
from .slice_transformer import SliceTransformer
from .swin_encoder import SwinEncoder
from .unetr import UNETR, SeparablePositions
from .vit_encoder import ViTEncoder

__all__ = [
    "UNETR",
    "ChannelsLastInstanceNorm3d",
    "EncoderClassifier",
    "EncoderRegressor",
    "LegacyPatchMerging",
    "MultiViewClassifier",
    "MultiViewEncoder",
    "MultiViewRegressor",
    "MultiViewSegmenter",
    "NNFormer",
    "NNFormerEncoder",
    "PlaneEncoder",
    "SeparablePositions",
    "SliceTransformer",
    "SwinEncoder",
    "ViTEncoder",
    "to_channels_last",
]
