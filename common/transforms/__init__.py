from .average_pool import AveragePoold
from .background_pad import BackgroundPadd
from .bezier import RandomBezier
from .check_scan import CheckScand
from .check_volume import CheckVolumed
from .cube_group import CubeGroup, rot90_batch
from .cutout_swap import CutoutSwap
from .damage import CellMask, GenesisDamage
from .dicom_reader import DicomReader
from .domain_spacing import DomainSpacingd
from .encode_target import EncodeTargetd
from .foreground_intensity import NormalizeForegroundd, ScaleForegroundPercentilesd
from .foreground_volume import ForegroundVolumed
from .grid_mask import random_grid_mask, random_keep_indices, upsample_mask
from .ignored import ClearIgnoredd, LabelIndicesd
from .keep_folder_tree import KeepFolderTree
from .label_regions import LabelRegionsd
from .largest_component import LargestComponentd
from .load_volume import LoadVolumed
from .map_labels import MapLabelsd
from .noise_background import NoiseBackgroundd
from .noise_volume import NoiseVolume
from .number_to_class import NumberToClassd
from .pad_or_crop import PadOrCropd
from .patchify import patchify, unpatchify
from .rand_affine_within import RandAffineWithind
from .rand_region_crop import RandRegionCropd
from .rand_synthetic_image import RandSyntheticImaged
from .random_deformation import RandomDeformation
from .random_folds import RandomFolds
from .random_shapes import RandomShapes
from .random_strip import RandomStrip
from .save_dicom_seg import SaveDicomSegd
from .save_volume import SaveVolumed
from .scan_labels import ScanLabelsd
from .select_channel import SelectChanneld
from .spacing import Spacingd
from .stored_grid import StoredGridd
from .surrounding_labels import SurroundingLabelsd
from .synthetic_contrast import SyntheticContrast
from .texture import RandomTexture, gibbs_noise
from .tiles import cut_tiles, distant_permutations, pad_tiles
from .token_views import TokenViews, cell_of_token, noise_mask

__all__ = [
    "AveragePoold",
    "BackgroundPadd",
    "CellMask",
    "CheckScand",
    "CheckVolumed",
    "ClearIgnoredd",
    "CubeGroup",
    "CutoutSwap",
    "DicomReader",
    "DomainSpacingd",
    "EncodeTargetd",
    "ForegroundVolumed",
    "GenesisDamage",
    "KeepFolderTree",
    "LabelIndicesd",
    "LabelRegionsd",
    "LargestComponentd",
    "LoadVolumed",
    "MapLabelsd",
    "NoiseBackgroundd",
    "NoiseVolume",
    "NormalizeForegroundd",
    "NumberToClassd",
    "PadOrCropd",
    "RandAffineWithind",
    "RandRegionCropd",
    "RandSyntheticImaged",
    "RandomBezier",
    "RandomDeformation",
    "RandomFolds",
    "RandomShapes",
    "RandomStrip",
    "RandomTexture",
    "SaveDicomSegd",
    "SaveVolumed",
    "ScaleForegroundPercentilesd",
    "ScanLabelsd",
    "SelectChanneld",
    "Spacingd",
    "StoredGridd",
    "SurroundingLabelsd",
    "SyntheticContrast",
    "TokenViews",
    "cell_of_token",
    "cut_tiles",
    "distant_permutations",
    "gibbs_noise",
    "noise_mask",
    "pad_tiles",
    "patchify",
    "random_grid_mask",
    "random_keep_indices",
    "rot90_batch",
    "unpatchify",
    "upsample_mask",
]
