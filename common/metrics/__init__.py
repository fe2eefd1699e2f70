from .calibration import CalibrationSlope
from .class_accuracy import ClassAccuracy
from .comparison import is_higher, is_lower
from .dice import ClassDice, PooledDice
from .encoder_probe import EncoderProbe
from .hand_till import HandTillAUC
from .hd95 import HD95
from .liver import ASSD, RVD, VOE
from .nsd import NSD
from .representation import effective_rank, feature_std, position_cosines, retrieval_rate

__all__ = [
    "ASSD",
    "HD95",
    "NSD",
    "RVD",
    "VOE",
    "CalibrationSlope",
    "ClassAccuracy",
    "ClassDice",
    "EncoderProbe",
    "HandTillAUC",
    "PooledDice",
    "effective_rank",
    "feature_std",
    "is_higher",
    "is_lower",
    "position_cosines",
    "retrieval_rate",
]
