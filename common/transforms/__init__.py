from .average_pool import AveragePoold
from .bezier import RandomBezier
from .canvas import Canvasd
from .check_volume import CheckVolumed
from .cube_group import CubeGroup, rot90_batch
from .cutout_swap import CutoutSwap
from .grid_mask import random_grid_mask, random_keep_indices, upsample_mask
from .label_regions import LabelRegionsd
from .load_volume import LoadVolumed
from .map_labels import MapLabelsd
from .mirrored_layout import MirroredLayout
from .patchify import patchify, unpatchify
from .spacing import Spacingd
from .target import Targetd
from .texture import RandomTexture, gibbs_noise
from .token_views import TokenViews, noise_mask

__all__ = [
    "AveragePoold",
    "Canvasd",
    "CheckVolumed",
    "CubeGroup",
    "CutoutSwap",
    "LabelRegionsd",
    "LoadVolumed",
    "MapLabelsd",
    "MirroredLayout",
    "RandomBezier",
    "RandomTexture",
    "Spacingd",
    "Targetd",
    "TokenViews",
    "gibbs_noise",
    "noise_mask",
    "patchify",
    "random_grid_mask",
    "random_keep_indices",
    "rot90_batch",
    "unpatchify",
    "upsample_mask",
]
