"""Segmentation networks, encoders (views on their sub-modules) and heads over encoders.

Import networks for slices from their modules (``transseg``, ``beit_encoder``, ``dino_encoder``,
``swin_slice_encoder``), so the others load without ``transformers``.
"""

from .dilated_resnet import DilatedResNet
from .encoder_unet import EncoderUNet
from .heads import EncoderClassifier, EncoderRegressor
from .i3d import I3DEncoder
from .legacy_patch_merging import LegacyPatchMerging
from .med3d import BranchDecoder, DenseASPP, LungDecoder, Med3DNet, MedicalNetHead, MultiBranchNet, PooledClassifier
from .memory_format import ChannelsLastInstanceNorm3d, to_channels_last
from .monai_encoders import DenseNetEncoder, ResNetEncoder, SegResNetDSEncoder
from .multi_view import MultiViewClassifier, MultiViewEncoder, MultiViewRegressor, MultiViewSegmenter
from .nnformer import NNFormer, NNFormerEncoder
from .norms import FrozenBatchNorm, make_norm
from .onnx_net import OnnxNet
from .padded_convolution import PaddedConv2d, PaddedConv3d, pad_small_images
from .placement import place
from .plane_encoder import PlaneEncoder
from .published_unets import GenesisEncoder, GenesisUNet, STUNet, STUNetEncoder
from .residual_encoder_unet import ResidualEncoder, ResidualEncoderUNet
from .sam_encoder import SamEncoder3D
from .slice_transformer import SliceTransformer
from .strict_loading import require_strict
from .swin_encoder import SwinEncoder
from .swin_unetr import SwinUNETR
from .transformer_unets import SwinUNETREncoder, UNETREncoder
from .unet_encoders import DynUNetEncoder, MedNeXtEncoder, ResidualUNetEncoder, SegResNetEncoder
from .unetr import UNETR, SeparablePositions
from .vit_encoder import ViTEncoder
from .volume_regressor import VolumeRegressor

__all__ = [
    "UNETR",
    "BranchDecoder",
    "ChannelsLastInstanceNorm3d",
    "DenseASPP",
    "DenseNetEncoder",
    "DilatedResNet",
    "DynUNetEncoder",
    "EncoderClassifier",
    "EncoderRegressor",
    "EncoderUNet",
    "FrozenBatchNorm",
    "GenesisEncoder",
    "GenesisUNet",
    "I3DEncoder",
    "LegacyPatchMerging",
    "LungDecoder",
    "Med3DNet",
    "MedNeXtEncoder",
    "MedicalNetHead",
    "MultiBranchNet",
    "MultiViewClassifier",
    "MultiViewEncoder",
    "MultiViewRegressor",
    "MultiViewSegmenter",
    "NNFormer",
    "NNFormerEncoder",
    "OnnxNet",
    "PaddedConv2d",
    "PaddedConv3d",
    "PlaneEncoder",
    "PooledClassifier",
    "ResNetEncoder",
    "ResidualEncoder",
    "ResidualEncoderUNet",
    "ResidualUNetEncoder",
    "STUNet",
    "STUNetEncoder",
    "SamEncoder3D",
    "SegResNetDSEncoder",
    "SegResNetEncoder",
    "SeparablePositions",
    "SliceTransformer",
    "SwinEncoder",
    "SwinUNETR",
    "SwinUNETREncoder",
    "UNETREncoder",
    "ViTEncoder",
    "VolumeRegressor",
    "make_norm",
    "pad_small_images",
    "place",
    "require_strict",
    "to_channels_last",
]
