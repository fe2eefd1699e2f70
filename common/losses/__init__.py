"""Losses. Those of pretexts take ``(prediction: dict, image)``."""

from .contrastive import NTXentLoss
from .masked_reconstruction import MaskedReconstructionLoss
from .rcr import RCRLoss

__all__ = ["MaskedReconstructionLoss", "NTXentLoss", "RCRLoss"]
