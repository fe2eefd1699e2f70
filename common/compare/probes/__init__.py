"""Judge a frozen encoder's features without fine-tuning: ``python -m common.compare.probes``.

A probe is a simple predictor on fixed features (Alain and Bengio, "Understanding intermediate layers using linear
classifier probes", arXiv:1610.01644, 2016). Two are fitted on the training list and judged on the test list: a linear
model and the nearest neighbours, the pair that Caron et al. (ICCV 2021, section 3.2) evaluate with; the neighbours'
votes are not weighted here. The encoder does not change, so a difference between two encoders comes from the features
that pre-training gave them.
"""

from .features import pooled_features, voxel_features
from .predictors import (
    Prediction,
    classification_metrics,
    dice_of_voxels,
    knn_probe,
    linear_probe,
    regression_metrics,
)
from .runner import run_probes

__all__ = [
    "Prediction",
    "classification_metrics",
    "dice_of_voxels",
    "knn_probe",
    "linear_probe",
    "pooled_features",
    "regression_metrics",
    "run_probes",
    "voxel_features",
]
