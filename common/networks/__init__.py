"""Segmentation networks, encoders (views on their sub-modules) and heads over encoders."""

from .heads import EncoderClassifier, EncoderRegressor
from .legacy_patch_merging import LegacyPatchMerging
from .swin_encoder import SwinEncoder
from .unetr import UNETR, SeparablePositions
from .vit_encoder import ViTEncoder

__all__ = [
    "UNETR",
    "EncoderClassifier",
    "EncoderRegressor",
    "LegacyPatchMerging",
    "SeparablePositions",
    "SwinEncoder",
    "ViTEncoder",
]
