from .calibration import CalibrationSlope
from .class_accuracy import ClassAccuracy
from .hand_till import HandTillAUC
from .hd95 import HD95
from .representation import effective_rank, feature_std, position_cosines

__all__ = [
    "HD95",
    "CalibrationSlope",
    "ClassAccuracy",
    "HandTillAUC",
    "effective_rank",
    "feature_std",
    "position_cosines",
]
