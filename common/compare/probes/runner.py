"""Probe a bundle's encoder: read its config, compute features, fit predictors and judge them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, MapTransform, ResizeWithPadOrCropd
from torch import nn

from ...checks import override_problem
from ...json_files import write_json
from ...overlays import merge_files, parse_files
from ...random_state import seeded
from ...transforms import BackgroundPadd, ClearIgnoredd
from ...weights import load_encoder
from .features import plain_tensor, pooled_features, voxel_features
from .predictors import classification_metrics, dice_of_voxels, is_number, knn_probe, linear_probe, regression_metrics
from .targets import Item, as_targets, datalist_name, split_by_target

# Voxels of all volumes together. With the 3072 features of a UNETR of the paper's size and 34 classes, the linear probe
# then takes seconds and the features 0.7 GB, however long the lists are.
MAX_TRAINING_VOXELS = 20_000
MAX_TEST_VOXELS = 40_000


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
    """Fit both probes on the training list of a bundle's ``train.json`` and write their scores on the test list.

    The config gives ``encoder``, ``pretrained_encoder``, ``data``, ``validate#preprocessing``, ``roi_size``,
    ``num_classes`` (for label images), ``device`` and ``seed``, which decides the random encoder and the voxels. Images
    are then cropped or padded with 0 around their centre to ``roi_size``, since a ViT takes one size; voxels outside
    are neither seen nor judged.

    Label images are predicted voxel by voxel. For training, at most ``training_voxels`` of each volume are drawn,
    balanced over its classes as far as possible. Of each cropped test volume, at most ``test_voxels`` are drawn without
    balance, the same ones for every encoder with the same seed. The result is the Dice of sampled voxels: it compares
    encoders but is no substitute for the Dice of a segmentation. Long lists give fewer voxels per volume, so the totals
    are at most 20,000 and 40,000.

    Args:
        config_files: a bundle's ``train.json`` and overlays, later ones win.
        overrides: values by config id, nested ids with ``#``.
        target: "label", or another key of the datalist's items, such as "age" or "diagnosis". Other keys need no masks.
            Items without the target are left out.
        output: JSON file to write.
        encoder: encoder file, instead of the config's ``pretrained_encoder``; "" for a random encoder.
        kind: "class" or "number", for a target that is not a label image. By default text, true or false, and whole
            numbers from 0 to 9 are classes; other numbers are numbers.
        neighbours: k of the nearest neighbours.
        training_voxels: number of voxels per training volume.
        test_voxels: number of voxels per test volume.

    Returns:
        The written content: ``target``, ``labels`` (training items used) and ``rows`` of ``probe`` ("knn" or "linear"),
        ``target``, ``metric`` ("accuracy", "auc", "mae", "r2" or "dice"), ``structure`` ("mean", or a class as text)
        and ``value``.

    Raises:
        ValueError: an override names no id; the target is neither a number nor text; the training list has fewer than
            two items with it (one for label images) or all are equal; the test list has none.
        RuntimeError: from MONAI, around an error of the config's components.
    """
    parser = _read(config_files, overrides or {})
    training, test = split_by_target(parser, target)
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


def _read(config_files: str | Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """The parser of a config with its overrides, as in ``python -m monai.bundle run``."""
    files = parse_files(config_files)
    config = merge_files(files)
    names = " + ".join(Path(file).name for file in files)
    problems = [override_problem(key, f"--{key}", config, names, value=value) for key, value in overrides.items()]
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
    with seeded(seed):
        encoder = parser.get_parsed_content("encoder")
    path = parser.get_parsed_content("pretrained_encoder") if path is None else path
    images, size = (parser.get_parsed_content(name) for name in ("validate#preprocessing", "roi_size"))
    load_encoder(encoder, path, images, size)
    return encoder.requires_grad_(False).eval()


def _probe_volumes(
    parser: ConfigParser,
    encoder: nn.Module,
    device: torch.device,
    parts: tuple[list[Item], list[Item]],
    target: str,
    kind: str | None,
    neighbours: int,
) -> dict[tuple[str, str, str], float]:
    """Value by (probe, metric, structure) of a target with one value per volume."""
    values = as_targets([x[target] for part in parts for x in part], target, kind)
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
    metrics = regression_metrics if is_number(values) else classification_metrics
    return {
        (probe, metric, "mean"): value
        for probe, prediction in predictions.items()
        for metric, value in metrics(prediction, test_truth).items()
    }


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
            label = plain_tensor(volume["label"])[0].long().numpy(force=True)
            generator = np.random.default_rng([seed, part, number])
            index = _draw(label, count, generator, balanced=part == 0)
            image = volume["image"][None].to(device)
            rows.append(voxel_features(encoder, image, torch.from_numpy(index)).numpy(force=True))
            labels.append(label[tuple(index.T)])
        features.append(np.concatenate(rows))
        classes.append(np.concatenate(labels))
    if len(np.unique(classes[0])) < 2:
        raise ValueError(
            f"the 'label' of all training items of {datalist_name(parser)} has only one class within "
            f"`roi_size`, {classes[0][0]}; a probe needs at least two."
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
    """Draw coordinates (V, dimensions) of at most ``count`` voxels, optionally balanced over the classes."""
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
    """The config's deterministic transforms, with or without label images, then a crop or padding to ``roi_size``.

    Padding is background, even in label images whose padding training ignores.
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
