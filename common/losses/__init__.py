"""Losses. The losses of pretexts take ``(prediction: dict, image)``."""

from .byol import BYOLLoss
from .contrastive import NTXentLoss
from .deep_supervision import DeepSupervisionLoss
from .dice_cross_entropy import DiceCrossEntropy
from .drawn_class import DrawnClassLoss
from .label_contrast import LabelContrastLoss
from .masked import MaskedL1Loss, MaskedReconstructionLoss, MaskedVectorsLoss
from .plane_triplet import PlaneTripletLoss
from .predicted_codes import PredictedCodesLoss
from .rcr import RCRLoss
from .restoration import RestorationLoss
from .segmented_labels import SegmentedLabelsLoss
from .softmax_dice_focal import SoftmaxDiceFocalLoss
from .token_contrast import TokenContrastiveLoss
from .voxel_cross_entropy import VoxelCrossEntropy
from .whole_batch import WholeBatchLoss

__all__ = [
    "BYOLLoss",
    "DeepSupervisionLoss",
    "DiceCrossEntropy",
    "DrawnClassLoss",
    "LabelContrastLoss",
    "MaskedL1Loss",
    "MaskedReconstructionLoss",
    "MaskedVectorsLoss",
    "NTXentLoss",
    "PlaneTripletLoss",
    "PredictedCodesLoss",
    "RCRLoss",
    "RestorationLoss",
    "SegmentedLabelsLoss",
    "SoftmaxDiceFocalLoss",
    "TokenContrastiveLoss",
    "VoxelCrossEntropy",
    "WholeBatchLoss",
]
