"""Handlers for ignite engines: reproducible epochs, exact resume, saving, guarding and watching."""

from .best_model_saver import BestModelSaver
from .checkpoint import Checkpoint
from .config_saver import ConfigSaver
from .early_stopping import EarlyStopping
from .encoder_saver import EncoderSaver
from .epoch_seed import EpochSeed
from .frozen_encoder import FrozenEncoder
from .gradient_clipping import GradientClipping
from .learning_rate import LearningRate
from .model_loader import ModelLoader
from .momentum_teacher import MomentumTeacher
from .named_classes import NamedClasses
from .non_finite_guard import NonFiniteGuard
from .output_folder import OutputFolder
from .prediction_table import PredictionTable
from .pretext_images import PretextImages
from .progress_bar import ProgressBar
from .representation_monitor import RepresentationMonitor
from .ridge_start import RidgeStart
from .score_table import ScoreTable
from .segmentation_images import SegmentationImages
from .target_scale import TargetScale

__all__ = [
    "BestModelSaver",
    "Checkpoint",
    "ConfigSaver",
    "EarlyStopping",
    "EncoderSaver",
    "EpochSeed",
    "FrozenEncoder",
    "GradientClipping",
    "LearningRate",
    "ModelLoader",
    "MomentumTeacher",
    "NamedClasses",
    "NonFiniteGuard",
    "OutputFolder",
    "PredictionTable",
    "PretextImages",
    "ProgressBar",
    "RepresentationMonitor",
    "RidgeStart",
    "ScoreTable",
    "SegmentationImages",
    "TargetScale",
]
