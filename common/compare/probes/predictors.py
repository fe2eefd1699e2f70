"""The two predictors on features, and the metrics of their predictions."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

MAX_STEPS = 100  # of the logistic regression; a bound on its time


class Prediction(NamedTuple):
    """A probe's predictions for the test rows."""

    values: np.ndarray  # (M,), classes or numbers
    classes: np.ndarray  # (K,), sorted, those of the training rows; none where numbers are predicted
    scores: np.ndarray  # (M, K), probability of each class; (M, 0) where numbers are predicted


def knn_probe(features: np.ndarray, targets: np.ndarray, test_features: np.ndarray, k: int = 5) -> Prediction:
    """Vote or mean of the k nearest training rows by cosine distance, of equal weight, on standardised features.

    Args:
        features: training rows (N, F).
        targets: (N,); floating-point numbers are predicted as numbers, anything else as classes.
        test_features: (M, F); standardised with the training rows' mean and standard deviation.
        k: number of neighbours; all N if there are fewer.
    """
    train, test = _standardised(features, test_features)
    settings: Any = {"n_neighbors": min(k, len(train)), "metric": "cosine", "algorithm": "brute"}
    if is_number(targets):
        return _numbers(KNeighborsRegressor(**settings).fit(train, targets).predict(test))
    return _classes(KNeighborsClassifier(**settings).fit(train, targets), test)


def linear_probe(features: np.ndarray, targets: np.ndarray, test_features: np.ndarray) -> Prediction:
    """Linear model on standardised features: multinomial logistic regression, or ridge regression for numbers.

    The logistic regression has scikit-learn's L2 penalty (C = 1), runs at most 100 steps, and does not weight classes:
    accuracy counts all items alike, the area under the ROC curve does not depend on class weights, and voxels are
    sampled with balance. The ridge penalty is the one of 10^-2 ... 10^6 with the least leave-one-out error.

    Args:
        features: training rows (N, F), of at least two classes.
        targets: (N,); floating-point numbers are predicted as numbers, anything else as classes.
        test_features: (M, F); standardised with the training rows' mean and standard deviation.
    """
    train, test = _standardised(features, test_features)
    if is_number(targets):
        return _numbers(RidgeCV(alphas=np.logspace(-2, 6, 17)).fit(train, targets).predict(test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is a stop by design
        return _classes(LogisticRegression(max_iter=MAX_STEPS).fit(train, targets), test)


def classification_metrics(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    """``accuracy`` and ``auc`` of predicted classes.

    ``auc`` is the area under the ROC curve of each class against the rest, averaged over training classes that some but
    not all test rows have. For two classes this is the usual area. It is left out if there is no such class.

    Args:
        prediction: predictions for the test rows.
        truth: their classes (M,); a class without a training row counts as
            an error.
    """
    metrics = {"accuracy": float(np.mean(prediction.values == truth))}
    areas = [
        roc_auc_score(truth == name, prediction.scores[:, column])
        for column, name in enumerate(prediction.classes)
        if 0 < np.sum(truth == name) < len(truth)
    ]
    return metrics | ({"auc": float(np.mean(areas))} if areas else {})


def regression_metrics(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    """``mae``, the mean absolute error in the target's unit, and ``r2``, the coefficient of determination.

    ``r2`` compares with the mean of the test rows, so it is below 0 if the probe does worse than that. It is left out
    if all test rows have the same number.

    Args:
        prediction: predictions for the test rows.
        truth: their numbers (M,).
    """
    metrics = {"mae": float(np.mean(np.abs(prediction.values - truth)))}
    return metrics | ({"r2": float(r2_score(truth, prediction.values))} if len(np.unique(truth)) > 1 else {})


def dice_of_voxels(prediction: Prediction, truth: np.ndarray, num_classes: int) -> dict[str, float]:
    """Dice of sampled voxels by class (as text), all volumes pooled, and their ``mean``; without background, class 0.

    A class that neither the truth nor the prediction has is left out.

    Args:
        prediction: predictions for the voxels.
        truth: their classes (M,), from 0 to ``num_classes`` - 1.
        num_classes: number of classes with background.
    """
    dice = {}
    for number in range(1, num_classes):
        predicted, true = prediction.values == number, truth == number
        if predicted.any() or true.any():
            dice[str(number)] = float(2 * np.sum(predicted & true) / (predicted.sum() + true.sum()))
    return ({"mean": float(np.mean(list(dice.values())))} if dice else {}) | dice


def _standardised(features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(features)
    return scaler.transform(features), scaler.transform(test_features)


def is_number(targets: np.ndarray) -> bool:
    return bool(np.issubdtype(targets.dtype, np.floating))


def _numbers(values: np.ndarray) -> Prediction:
    return Prediction(values, np.empty(0), np.empty((len(values), 0)))


def _classes(model: Any, test: np.ndarray) -> Prediction:
    scores = model.predict_proba(test)
    return Prediction(model.classes_[scores.argmax(axis=1)], model.classes_, scores)
