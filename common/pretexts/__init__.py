"""Pretext tasks: modules that wrap an encoder and return what their loss needs."""

from .cpc import CPC
from .exemplar import Exemplar
from .jigsaw import Jigsaw
from .label_contrast import LabelContrast
from .mae import MAE
from .masked_encoding_vectors import MaskedEncodingVectors
from .plane_exemplar import PlaneExemplar
from .rcr import RCR
from .relative_location import RelativeLocation
from .restoration import Restoration
from .rotation import Rotation
from .simmim import SimMIM
from .synthetic_segmentation import SyntheticSegmentation
from .token_byol import TokenBYOL
from .token_contrast import TokenContrast

__all__ = [
    "CPC",
    "MAE",
    "RCR",
    "Exemplar",
    "Jigsaw",
    "LabelContrast",
    "MaskedEncodingVectors",
    "PlaneExemplar",
    "RelativeLocation",
    "Restoration",
    "Rotation",
    "SimMIM",
    "SyntheticSegmentation",
    "TokenBYOL",
    "TokenContrast",
]
