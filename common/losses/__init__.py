"""Losses. Those of pretexts take ``(prediction: dict, image)``."""

from .byol import BYOLLoss
from .contrastive import NTXentLoss
from .masked_l1 import MaskedL1Loss
from .masked_reconstruction import MaskedReconstructionLoss
from .rcr import RCRLoss
from .softmax_dice_focal import SoftmaxDiceFocalLoss
from .token_contrast import TokenContrastiveLoss

__all__ = [
    "BYOLLoss",
    "MaskedL1Loss",
    "MaskedReconstructionLoss",
    "NTXentLoss",
    "RCRLoss",
    "SoftmaxDiceFocalLoss",
    "TokenContrastiveLoss",
]
