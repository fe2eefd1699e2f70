"""Handlers for ignite engines: reproducible epochs, exact resume, saving, guarding and watching."""

from .best_model_saver import BestModelSaver
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .encoder_saver import EncoderSaver
from .epoch_seed import EpochSeed
from .gradient_clipping import GradientClipping
from .model_loader import ModelLoader
from .momentum_teacher import MomentumTeacher
from .named_classes import NamedClasses
from .non_finite_guard import NonFiniteGuard
from .output_folder import OutputFolder
from .prediction_table import PredictionTable
from .progress_bar import ProgressBar
from .representation_monitor import RepresentationMonitor
from .target_scale import TargetScale

__all__ = [
    "BestModelSaver",
    "Checkpoint",
    "EarlyStopping",
    "EncoderSaver",
    "EpochSeed",
    "GradientClipping",
    "ModelLoader",
    "MomentumTeacher",
    "NamedClasses",
    "NonFiniteGuard",
    "OutputFolder",
    "PredictionTable",
    "ProgressBar",
    "RepresentationMonitor",
    "TargetScale",
]
