"""What a frozen encoder's features tell without fine-tuning: ``python -m common.compare.probes``.

A probe is a simple predictor on features that stay as they are (Alain and Bengio, "Understanding intermediate layers
using linear classifier probes", arXiv:1610.01644, 2016). Two are fitted on the training list and judged on the test
list: a linear model and the nearest neighbours, the pair that Caron et al. (ICCV 2021, section 3.2) evaluate with; the
neighbours' votes are not weighted here. Nothing in the encoder changes, so that a difference between two encoders lies
in what their pre-training has put into the features.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, MapTransform, ResizeWithPadOrCropd
from monai.utils import ensure_tuple, ensure_tuple_rep
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from ..checks import override_problem, own_sentence
from ..data.datalist import read_datalist
from ..json_files import write_json
from ..transforms import BackgroundPadd, ClearIgnoredd
from ..weights import load_encoder

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

logger = logging.getLogger(__name__)

# Voxels of all volumes together. With the 3072 features of a UNETR of the paper's size and 34 classes, the linear probe
# then takes seconds and the features 0.7 GB, however long the lists are.
MAX_TRAINING_VOXELS = 20_000
MAX_TEST_VOXELS = 40_000
MAX_STEPS = 100  # of the logistic regression; a bound on its time

Item = dict[str, Any]


class Prediction(NamedTuple):
    """What a probe says about the test rows."""

    values: np.ndarray  # (M,), classes or numbers
    classes: np.ndarray  # (K,), sorted, those of the training rows; none where numbers are predicted
    scores: np.ndarray  # (M, K), probability of each class; (M, 0) where numbers are predicted


def pooled_features(encoder: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Mean over the grid of every map of an encoder, one vector a volume.

    All maps, because pre-training methods leave what is of use at different depths (the last blocks of a masked
    autoencoder serve its reconstruction), and the decoder of a segmentation net, too, is given all of them.

    Args:
        encoder: module that returns a list of maps (B, C_i, *grid_i). It is run in eval mode and without gradients,
            and is afterwards in the mode it was in.
        image: (B, C, *spatial), of a size and on the device that the encoder takes.

    Returns:
        (B, F), F the sum of the maps' channels, float32.
    """
    with _frozen(encoder):
        return torch.cat([x.float().flatten(2).mean(dim=2) for x in encoder(_plain(image))], dim=1)


def voxel_features(encoder: nn.Module, image: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Features of every map of an encoder at chosen voxels of one volume, interpolated linearly along each axis.

    The centre of a map's cell i lies where its stride s puts it, at the voxel coordinate (i + 0.5) s - 0.5; beyond the
    outermost centres the outermost cell counts. Only the chosen points are interpolated, never a whole map, so that
    memory grows with their number and not with the volume.

    Args:
        encoder: module that returns a list of maps (1, C_i, *grid_i) and states their ``strides``. It is run in eval
            mode and without gradients, and is afterwards in the mode it was in.
        image: one volume (1, C, *spatial), 2-D or 3-D, of a size and on the device that the encoder takes.
        index: (V, dimensions), voxel coordinates in the order of the spatial axes.

    Returns:
        (V, F), F the sum of the maps' channels, float32.

    Raises:
        ValueError: more than one volume, or coordinates of another number of axes.
    """
    dimensions = image.ndim - 2
    if len(image) != 1 or index.ndim != 2 or index.shape[1] != dimensions:
        raise ValueError(
            "voxel_features takes one volume (1, C, *spatial) and one coordinate an axis and voxel, got the shapes "
            f"{tuple(image.shape)} and {tuple(index.shape)}."
        )
    index = index.to(image.device, torch.float32)
    with _frozen(encoder):
        features = [x.float() for x in encoder(_plain(image))]
    strides: Any = encoder.strides
    gathered = []
    for x, stride in zip(features, strides, strict=True):
        extent = torch.tensor(
            [g * s for g, s in zip(x.shape[2:], ensure_tuple_rep(stride, dimensions), strict=True)],
            device=image.device,
        )
        # grid_sample's coordinates run from -1 to 1 between the outer edges of the map, its last axis first.
        points = ((2 * index + 1) / extent - 1).flip(1).view(1, *[1] * (dimensions - 1), len(index), dimensions)
        sampled = F.grid_sample(x, points, mode="bilinear", padding_mode="border", align_corners=False)
        gathered.append(sampled.flatten(2)[0].T)
    return torch.cat(gathered, dim=1)


def knn_probe(features: np.ndarray, targets: np.ndarray, test_features: np.ndarray, k: int = 5) -> Prediction:
    """Vote or mean of the k nearest training rows by cosine distance, of equal weight, on standardised features.

    Args:
        features: training rows (N, F).
        targets: (N,); floating-point numbers are predicted as numbers, anything else as classes.
        test_features: (M, F); standardised with the training rows' mean and standard deviation.
        k: number of neighbours, all N where there are fewer.
    """
    train, test = _standardised(features, test_features)
    settings: Any = {"n_neighbors": min(k, len(train)), "metric": "cosine", "algorithm": "brute"}
    if _is_number(targets):
        return _numbers(KNeighborsRegressor(**settings).fit(train, targets).predict(test))
    return _classes(KNeighborsClassifier(**settings).fit(train, targets), test)


def linear_probe(features: np.ndarray, targets: np.ndarray, test_features: np.ndarray) -> Prediction:
    """Linear model on standardised features: multinomial logistic regression, or ridge regression for numbers.

    The logistic regression has scikit-learn's L2 penalty (C = 1), ends after 100 steps at the latest, and does not
    weigh classes: accuracy counts items as they come, the area under the ROC curve does not depend on it, and voxels
    are sampled with balance. The ridge penalty is the one of 10^-2 ... 10^6 with the least leave-one-out error.

    Args:
        features: training rows (N, F), of at least two classes.
        targets: (N,); floating-point numbers are predicted as numbers, anything else as classes.
        test_features: (M, F); standardised with the training rows' mean and standard deviation.
    """
    train, test = _standardised(features, test_features)
    if _is_number(targets):
        return _numbers(RidgeCV(alphas=np.logspace(-2, 6, 17)).fit(train, targets).predict(test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is a stop by design
        return _classes(LogisticRegression(max_iter=MAX_STEPS).fit(train, targets), test)


def classification_metrics(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    """``accuracy`` and ``auc`` of predicted classes.

    ``auc`` is the area under the ROC curve, of each class against the rest and averaged over those training classes
    that some test rows have and some have not; for two classes this is the usual area. Left out where there is no such
    class.

    Args:
        prediction: of the test rows.
        truth: their classes (M,); one that no training row has counts as mistaken.
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

    ``r2`` compares with the mean of the test rows, so it is below 0 where the probe does worse than that; left out
    where all test rows have the same number.

    Args:
        prediction: of the test rows.
        truth: their numbers (M,).
    """
    metrics = {"mae": float(np.mean(np.abs(prediction.values - truth)))}
    return metrics | ({"r2": float(r2_score(truth, prediction.values))} if len(np.unique(truth)) > 1 else {})


def dice_of_voxels(prediction: Prediction, truth: np.ndarray, num_classes: int) -> dict[str, float]:
    """Dice of sampled voxels by class (as text), all volumes pooled, and their ``mean``; without background, class 0.

    A class that neither the truth nor the prediction has is left out.

    Args:
        prediction: of the voxels.
        truth: their classes (M,), from 0 to ``num_classes`` - 1.
        num_classes: number of classes with background.
    """
    dice = {}
    for number in range(1, num_classes):
        predicted, true = prediction.values == number, truth == number
        if predicted.any() or true.any():
            dice[str(number)] = float(2 * np.sum(predicted & true) / (predicted.sum() + true.sum()))
    return ({"mean": float(np.mean(list(dice.values())))} if dice else {}) | dice


def run_probes(
    config_files: str | Sequence[str],
    overrides: Mapping[str, Any] | None,
    target: str,
    output: str | os.PathLike,
    *,
    encoder: str | os.PathLike | None = None,
    kind: str | None = None,
    neighbours: int = 5,
    training_voxels: int = 2000,
    test_voxels: int = 4000,
) -> dict[str, Any]:
    """Fit both probes on the training list of a bundle's ``train.json`` and write what they reach on the test list.

    From the config come ``encoder``, ``pretrained_encoder``, ``data``, ``validate#preprocessing``, ``roi_size``,
    ``num_classes`` (for label images), ``device`` and ``seed``, which decides the random encoder and the voxels. Images
    are then cropped or padded with 0 around their centre to ``roi_size``, since a ViT takes one size; what lies outside
    of it is neither seen nor judged.

    Label images are predicted voxel by voxel. For training, at most ``training_voxels`` of each volume are drawn, as
    many of each of its classes as there are; of each test volume, at most ``test_voxels`` of the cropped volume without
    balance, the same ones for every encoder with the same seed. The result is the Dice of sampled voxels: it compares
    encoders, and is no substitute for the Dice of a segmentation. Long lists give fewer voxels a volume, so that all
    together are at most 20,000 and 40,000.

    Args:
        config_files: a bundle's ``train.json`` and overlays, later ones win.
        overrides: values by config id, nested ids with ``#``.
        target: "label", or another key of the datalist's items, such as "age" or "diagnosis". Masks are neither needed
            nor read for it. Items without it are left out.
        output: JSON file to write.
        encoder: encoder file, instead of the config's ``pretrained_encoder``; "" for a random encoder.
        kind: "class" or "number", for a target that is no label image. By default text, true or false, and whole
            numbers that all are between 0 and 9 are classes, other numbers are numbers.
        neighbours: k of the nearest neighbours.
        training_voxels: number of voxels a training volume.
        test_voxels: number of voxels a test volume.

    Returns:
        What was written: ``target``, ``labels`` (training items used) and ``rows`` of ``probe`` ("knn" or "linear"),
        ``target``, ``metric`` ("accuracy", "auc", "mae", "r2" or "dice"), ``structure`` ("mean", or a class as text)
        and ``value``.

    Raises:
        ValueError: an override names no id; the target is no number and no text; the training list has fewer than two
            items with it (one, for label images) or all have the same; the test list has none.
        RuntimeError: from MONAI, around an error of the config's components.
    """
    parser = _read(config_files, overrides or {})
    training, test = _split_by_target(parser, target)
    device = torch.device(parser.get_parsed_content("device"))
    seed = int(parser.get_parsed_content("seed"))
    net = _encoder(parser, seed, encoder).to(device)
    # So that the convolutions of a GPU give the same bits each time.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        if target == "label" and isinstance(training[0]["label"], str | list):
            counts = training_voxels, test_voxels
            scores = _probe_voxels(parser, net, device, (training, test), counts, neighbours, seed)
        else:
            scores = _probe_volumes(parser, net, device, (training, test), target, kind, neighbours)
    rows = [
        {"probe": probe, "target": target, "metric": metric, "structure": structure, "value": value}
        for (probe, metric, structure), value in scores.items()
    ]
    content = {"target": target, "labels": len(training), "rows": rows}
    write_json(output, content)
    return content


def main(
    config_file: str | Sequence[str],
    target: str,
    output: str,
    kind: str | None = None,
    neighbours: int = 5,
    training_voxels: int = 2000,
    test_voxels: int = 4000,
    **overrides: Any,
) -> None:
    """Judge the frozen encoder of a bundle's train.json by how well simple predictors on its features do.

    Any further --id value overrides an id of the config: --pretrained_encoder encoder.safetensors (without it the
    encoder is random), --dataset_dir, --seed, and nested ids with #.

    Args:
        config_file: train.json and overlays, as "['a.json','b.json']".
        target: label, or another key of the datalist's items, such as age or diagnosis.
        output: JSON file to write.
        kind: class or number, where the target's values leave it open.
        neighbours: number of nearest neighbours.
        training_voxels: voxels a training volume, for label images.
        test_voxels: voxels a test volume, for label images.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    content = run_probes(
        config_file, overrides, target, output,
        kind=kind, neighbours=neighbours, training_voxels=training_voxels, test_voxels=test_voxels,
    )  # fmt: skip
    print(f"{target}, {content['labels']} training items")
    for row in content["rows"]:
        print(f"{row['probe']:<6}  {row['metric']:<8}  {row['structure']:<4}  {row['value']:.4g}")
    print(f"written to {Path(output).absolute()}")


@contextlib.contextmanager
def _frozen(encoder: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, so that neither weights nor the statistics of batch norms change."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _plain(volume: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 without the metadata of MONAI's transforms, which would pass through an encoder."""
    return (volume.as_tensor() if hasattr(volume, "as_tensor") else volume).float()


def _standardised(features: np.ndarray, test_features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(features)
    return scaler.transform(features), scaler.transform(test_features)


def _is_number(targets: np.ndarray) -> bool:
    return bool(np.issubdtype(targets.dtype, np.floating))


def _numbers(values: np.ndarray) -> Prediction:
    return Prediction(values, np.empty(0), np.empty((len(values), 0)))


def _classes(model: Any, test: np.ndarray) -> Prediction:
    scores = model.predict_proba(test)
    return Prediction(model.classes_[scores.argmax(axis=1)], model.classes_, scores)


def _read(config_files: str | Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """The parser of a config with its overrides, as ``python -m monai.bundle run`` makes it."""
    config = ConfigParser.load_config_files(config_files)
    names = " + ".join(Path(file).name for file in ensure_tuple(config_files))
    problems = [override_problem(key, f"--{key}", config, names) for key in overrides]
    if any(problems):
        raise ValueError("\n".join(filter(None, problems)))
    parser = ConfigParser()
    parser.read_config(config)
    parser.update(dict(overrides))
    parser.resolve_macro_and_relative_ids()
    if "imports" in parser:
        parser.get_parsed_content("imports")
    return parser


def _encoder(parser: ConfigParser, seed: int, path: str | os.PathLike | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the caller's generator goes on as if nothing had been drawn
        torch.manual_seed(seed)
        encoder = parser.get_parsed_content("encoder")
    path = parser.get_parsed_content("pretrained_encoder") if path is None else path
    images, size = (parser.get_parsed_content(name) for name in ("validate#preprocessing", "roi_size"))
    load_encoder(encoder, path, images, size)
    return encoder.requires_grad_(False).eval()


def _split_by_target(parser: ConfigParser, target: str) -> tuple[list[Item], list[Item]]:
    """Training and test items that have the target."""
    written: dict[Any, Any] = {}
    datalist = _datalist(parser)
    if _is_load_datalist(parser):
        if target != "label":
            parser["data#label_key"] = None
            written = _written_targets(parser, target)
        parser["data#required"] = ["training", "test"]  # validation is not used
    data = parser.get_parsed_content("data")
    parts = []
    for name in ("training", "test"):
        # load_datalist keeps a key only where all items of a list have it.
        items = [{**x, target: x.get(target, written.get(ensure_tuple(x["image"])))} for x in data[name]]
        kept = [x for x in items if not _is_missing(x[target])]
        if len(kept) < len(items):
            logger.info(
                "%d of %d %s items have no %r and are left out.", len(items) - len(kept), len(items), name, target
            )
        parts.append(kept)
    training, test = parts
    needed = 1 if target == "label" and training and isinstance(training[0]["label"], str | list) else 2
    for name, items, number in (("training", training, needed), ("test", test, 1)):
        if len(items) < number:
            raise ValueError(
                f"the {name} list of {datalist} has {len(items)} item{'' if len(items) == 1 else 's'} with {target!r}, "
                f"and a probe needs at least {number}; give more items a {target!r}, or choose another target."
            )
    values = {json.dumps(x[target], sort_keys=True) for x in training}
    if needed == 2 and len(values) == 1:
        raise ValueError(
            f"all {len(training)} training items of {datalist} have the same {target!r}, {values.pop()}; a probe needs "
            "at least two classes or numbers."
        )
    return training, test


def _is_load_datalist(parser: ConfigParser) -> bool:
    return str(parser.get("data#_target_")).endswith(".load_datalist")  # a packed bundle has `common` renamed


def _datalist(parser: ConfigParser) -> str:
    """What to call the datalist in an error."""
    return str(parser.get_parsed_content("data#path")) if _is_load_datalist(parser) else "the config id `data`"


def _written_targets(parser: ConfigParser, target: str) -> dict[Any, Any]:
    """The target of every image of the datalist files, by its absolute path or paths."""
    arguments = {
        key: parser.get_parsed_content(f"data#{key}") for key in ("path", "base_dir") if f"data#{key}" in parser
    }
    image_key = parser.get("data#image_key", "image")
    paths = [Path(path) for path in ensure_tuple(arguments["path"])]
    targets = {}
    for path, base_dir in zip(paths, ensure_tuple_rep(arguments.get("base_dir"), len(paths)), strict=True):
        folder = (path.parent if base_dir is None else Path(base_dir)).absolute()
        for entries in read_datalist(path).values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and image_key in entry and target in entry:
                    files = [os.path.normpath(folder / Path(x).expanduser()) for x in ensure_tuple(entry[image_key])]
                    targets[tuple(files)] = entry[target]
    return targets


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _probe_volumes(
    parser: ConfigParser,
    encoder: nn.Module,
    device: torch.device,
    parts: tuple[list[Item], list[Item]],
    target: str,
    kind: str | None,
    neighbours: int,
) -> dict[tuple[str, str, str], float]:
    """Value by (probe, metric, structure) of a target with one value a volume."""
    values = _as_targets([x[target] for part in parts for x in part], target, kind)
    truth, test_truth = values[: len(parts[0])], values[len(parts[0]) :]
    preprocessing = _preprocessing(parser, labels=False)
    features = []
    for part in parts:
        volumes = (preprocessing({k: v for k, v in x.items() if k != "label"})["image"] for x in part)
        features.append(
            np.concatenate([pooled_features(encoder, x[None].to(device)).numpy(force=True) for x in volumes])
        )
    predictions = {
        "knn": knn_probe(features[0], truth, features[1], neighbours),
        "linear": linear_probe(features[0], truth, features[1]),
    }
    metrics = regression_metrics if _is_number(values) else classification_metrics
    return {
        (probe, metric, "mean"): value
        for probe, prediction in predictions.items()
        for metric, value in metrics(prediction, test_truth).items()
    }


def _as_targets(values: Sequence[Any], target: str, kind: str | None) -> np.ndarray:
    """Numbers as float64, classes as text."""
    if kind not in (None, "class", "number"):
        raise ValueError(f"`kind` is {kind!r}; it has to be class or number.")
    strange = next((x for x in values if not isinstance(x, str | int | float)), None)
    if strange is not None:
        raise ValueError(f"the target {target!r} is {strange!r} for one item; it has to be a number or text.")
    numeric = not any(isinstance(x, str | bool) for x in values)
    if kind == "number" and not numeric:
        raise ValueError(f"the target {target!r} is not a number for every item; set `kind` to class.")
    if kind is None:
        kind = "number" if numeric and not all(isinstance(x, int) and 0 <= x <= 9 for x in values) else "class"
    return np.array(values, dtype=np.float64) if kind == "number" else np.array([str(x) for x in values])


def _probe_voxels(
    parser: ConfigParser,
    encoder: nn.Module,
    device: torch.device,
    parts: tuple[list[Item], list[Item]],
    counts: tuple[int, int],
    neighbours: int,
    seed: int,
) -> dict[tuple[str, str, str], float]:
    """Value by (probe, metric, structure) of label images."""
    preprocessing = _preprocessing(parser, labels=True)
    features, classes = [], []
    for part, (items, count, most) in enumerate(
        zip(parts, counts, (MAX_TRAINING_VOXELS, MAX_TEST_VOXELS), strict=True)
    ):
        count = max(1, min(count, most // len(items)))
        rows, labels = [], []
        for number, item in enumerate(items):
            volume = preprocessing(item)
            label = _plain(volume["label"])[0].long().numpy(force=True)
            generator = np.random.default_rng([seed, part, number])
            index = _draw(label, count, generator, balanced=part == 0)
            image = volume["image"][None].to(device)
            rows.append(voxel_features(encoder, image, torch.from_numpy(index)).numpy(force=True))
            labels.append(label[tuple(index.T)])
        features.append(np.concatenate(rows))
        classes.append(np.concatenate(labels))
    if len(np.unique(classes[0])) < 2:
        raise ValueError(
            f"the 'label' of all training items of {_datalist(parser)} has one class only within `roi_size`, "
            f"{classes[0][0]}; a probe needs at least two."
        )
    predictions = {
        "knn": knn_probe(features[0], classes[0], features[1], neighbours),
        "linear": linear_probe(features[0], classes[0], features[1]),
    }
    num_classes = int(parser.get_parsed_content("num_classes"))
    return {
        (probe, "dice", structure): value
        for probe, prediction in predictions.items()
        for structure, value in dice_of_voxels(prediction, classes[1], num_classes).items()
    }


def _draw(label: np.ndarray, count: int, generator: np.random.Generator, balanced: bool) -> np.ndarray:
    """Coordinates (V, dimensions) of at most ``count`` voxels, with balance as many of each class as there are."""
    flat = label.ravel()
    if balanced:
        classes = np.unique(flat)
        each = max(1, count // len(classes))
        places = [np.flatnonzero(flat == number) for number in classes]
        chosen = np.concatenate([generator.choice(x, min(each, len(x)), replace=False) for x in places])
    else:
        chosen = generator.choice(flat.size, min(count, flat.size), replace=False)
    return np.stack(np.unravel_index(chosen, label.shape), axis=1)


def _preprocessing(parser: ConfigParser, labels: bool) -> Compose:
    """The config's transforms without chance, with or without label images, then a crop or padding to ``roi_size``.

    Padding is background, in label images too where training ignores it.
    """
    size = parser.get_parsed_content("roi_size")
    fit = [
        BackgroundPadd("image", size),
        ResizeWithPadOrCropd(["image", "label"], size, mode="constant"),
        ClearIgnoredd("label"),
    ]
    preprocessing = Compose([parser.get_parsed_content("validate#preprocessing"), *fit]).flatten()
    for transform in preprocessing.transforms:
        # Set here and not in the config, whose transforms may be stated in any way.
        if isinstance(transform, MapTransform) and not labels:
            transform.allow_missing_keys = True
    return preprocessing


if __name__ == "__main__":
    try:
        fire.Fire(main, name="python -m common.compare.probes")
    except (ValueError, OSError, RuntimeError) as error:
        # MONAI wraps what a component raises, and says less.
        raise SystemExit(f"error: {own_sentence(error) or error}") from error
