"""Derive what to train from the scans and the machine: one function per rule, each choice with its reason.

The rules are listed with the measurements behind them in ``docs/auto.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..data.label_maps import label_map, label_names
from .machine import Machine
from .study import Study, by_anatomy, of_head_size

__all__ = [
    "Decision",
    "Plan",
    "PlanError",
    "Prior",
    "Speed",
    "add_time",
    "crop_and_network",
    "grid",
    "plan_study",
    "split_sizes",
]

BRAIN_SCHEMES = ("dlmuse", "freesurfer", "malpem", "oasis_seg35")
MANY = 40
"""More labels of a known scheme than this are merged to structures."""
ANISOTROPIC = 3.0
"""Slices this many times thicker than a pixel are not rotated out of their plane (nnU-Net's threshold)."""
SHIPPED = "synthetic_brain"
SHIPPED_TASK = "structures4"
SHIPPED_GRID = 2.0
SHIPPED_CROP = (64, 80, 64)
SMALL_FILTERS = (12, 24, 48, 96, 160)
FULL_FILTERS = (32, 64, 128, 256, 320, 320)
IMAGE_VOXELS = {"cpu": 750_000, "cuda": 16_000_000}
CROP_VOXELS = {"cpu": 330_000, "cuda": 2_100_000}
CROP_VOXELS_PER_GB = 150_000
"""Voxels of a crop per gigabyte of GPU memory, with two crops per step and the full network."""
RATE = {"scratch": 0.004, "encoder": 0.001}
VALIDATIONS = 5
LEARNT = 0.05
"""Mean Dice from which on a trial has learnt enough to compare its starts."""
SHORTEST = 8
"""Least voxels of a crop along an axis when it is cut for memory: at least two at the coarsest level."""
MOST_STEPS = 100_000
EVALUATION_SHARE = 0.3
"""Largest share of the time for validation and test scans."""


class PlanError(ValueError):
    """No plan can be made; the message is one sentence."""


@dataclass(frozen=True)
class Decision:
    """One choice: ``what`` in words, its ``value``, and the ``reason``."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Speed:
    """What a short trial on this machine took.

    Attributes:
        step: seconds per training step, including loading and augmentation.
        volume: seconds to read, segment and score one scan.
        start: seconds until a run starts its work.
        dice: mean Dice on validation scans after the trial's steps, by start.
    """

    step: float
    volume: float
    start: float
    dice: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """An overlay for the bundle's configs, with its reasons.

    Attributes:
        bundle: name of the bundle.
        overlay: the content of ``plan.json``.
        decisions: the reasons, in the order of the rules.
        start: ``scratch`` or the name of an encoder.
        candidates: the starts for a trial to compare.
    """

    bundle: str
    overlay: dict[str, Any]
    decisions: tuple[Decision, ...]
    start: str = "scratch"
    candidates: tuple[str, ...] = ("scratch",)

    def to_json(self) -> dict[str, Any]:
        """JSON values of everything except the overlay, which has a separate file."""
        return {name: value for name, value in asdict(self).items() if name != "overlay"}

    @classmethod
    def from_json(cls, content: dict[str, Any], overlay: dict[str, Any]) -> Plan:
        return cls(
            content["bundle"],
            overlay,
            tuple(Decision(**one) for one in content["decisions"]),
            content["start"],
            tuple(content["candidates"]),
        )

    @property
    def steps(self) -> int:
        return int(self.overlay["max_epochs"] * self.overlay["batches_per_epoch"])


@dataclass(frozen=True)
class Prior:
    """An encoder file from elsewhere that the user chose.

    Attributes:
        file: an encoder file, or a ``model.pt`` of which only the preparation is taken.
        network: name and content of the overlay of a network that it fills; None to take its preparation alone.
        ids: ``spacing``, ``orientation`` and ``intensity``, as far as its record states them and they are wanted.
        stride: voxels of the crop for one of the network's deepest map, by axis.
    """

    file: str
    network: tuple[str, Mapping[str, Any]] | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)
    stride: tuple[int, ...] | None = None


def plan_study(
    study: Study, machine: Machine, crop_share: float = 1.0, task: str | None = None, prior: Prior | None = None
) -> Plan:
    """Plan everything except the number of steps, which needs a trial (:func:`add_time`).

    Args:
        study: the scans.
        machine: the machine to train on.
        crop_share: share of the crop's usual number of voxels, if the usual crop does not fit in memory.
        task: task of the collection (`common.data.label_map`), if the masks follow a known label scheme. By default
            each label is a class, or the classes are the 34 structures if there are too many labels of a known scheme.
        prior: encoder to start from, and by whose record images are prepared.

    Raises:
        PlanError: the labels are not classes of the task.
    """
    facts = [case.facts for case in study.labelled]
    ids = prior.ids if prior is not None else {}
    as_theirs = f"as those of {prior.file} (--prepare_as)" if prior is not None else ""
    decisions = [
        Decision(
            "bundle",
            "ssl3d",
            "its nets fit any voxel size, and its recipe was measured here on sets of several kinds",
        )
    ]
    orientation = ids.get("orientation", "RAS")
    head = prior is None and _may_be_head(study, facts)
    spacing, image, on_shipped_grid, why = _voxels(facts, orientation, machine, head)
    if "spacing" in ids:
        image = [max(1, round(n * old / new)) for n, old, new in zip(image, spacing, ids["spacing"], strict=True)]
        spacing, why = list(ids["spacing"]), as_theirs
    decisions.append(Decision("voxel size", f"{_sizes(spacing)} mm", why))
    if "orientation" in ids:
        decisions.append(Decision("orientation", orientation, as_theirs))
    shipped = on_shipped_grid and crop_share == 1.0
    crop, network, chosen = _crop_and_overlay(image, spacing, machine, crop_share, shipped, prior)
    decisions += chosen
    intensity, why = intensity_rule(study, facts)
    if "intensity" in ids:
        intensity, why = dict(ids["intensity"]), as_theirs
    decisions.append(Decision("intensities", _names_of(intensity), why))
    candidates: tuple[str, ...] = ("scratch", SHIPPED) if shipped else ("scratch",)
    if prior is not None and prior.network is not None:
        candidates = ("scratch", prior.file)
    decisions.append(_start_decision(study, head, candidates, prior))
    classes, why = class_rule(study, task)
    # for the tissues that it knows, the shipped network comes with its last layer
    if candidates[1:] == (SHIPPED,) and classes["task"] == SHIPPED_TASK:
        network["encoder"]["heads"] = True
    decisions.append(Decision("classes", str(len(class_names(classes)) - 1), why))
    overlay: dict[str, Any] = {
        **classes,
        "in_channels": len(study.channels),
        "spacing": spacing,
        "orientation": orientation,
        "intensity": intensity,
        "image_size": crop,
        "roi_size": crop,
        "map_size": crop,
        **network,
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
            "weight_decay": "@weight_decay",
            "fused": True,
        },
        "batch_size": 2,
        "learning_rate": RATE["scratch"],
        "num_workers": 0 if machine.device == "cpu" else min(8, machine.cores),
    }
    thick = _thick_axis(spacing)
    if thick is not None:
        overlay["rotate_range"] = [0.5236 if axis == thick else 0.0 for axis in range(3)]
        overlay["scale_range"] = [[0.0, 0.0] if axis == thick else [-0.3, 0.4] for axis in range(3)]
        decisions.append(
            Decision(
                "augmentation",
                "rotated and scaled within slices only",
                f"a slice is {max(spacing) / min(spacing):.0f} times thicker than a pixel",
            )
        )
    decisions.append(_step_decision())
    return Plan("ssl3d", overlay, tuple(decisions), "scratch", candidates)


def _voxels(
    facts: Sequence[Any], orientation: str, machine: Machine, head: bool
) -> tuple[list[float], list[int], bool, str]:
    """Voxel size in mm, the median shape on that grid, whether it is the grid of ``SHIPPED``, and the reason."""
    spacings = [_along(orientation, by_anatomy(one, one.spacing)) for one in facts]
    shapes = [_along(orientation, by_anatomy(one, one.shape)) for one in facts]
    spacing, image, why = grid(spacings, shapes, machine.device)
    if not head or any(abs(size - SHIPPED_GRID) > 0.15 * SHIPPED_GRID for size in spacing):
        return spacing, image, False, why
    image = [round(n * old / SHIPPED_GRID) for n, old in zip(image, spacing, strict=True)]
    return [SHIPPED_GRID] * 3, image, True, f"{why}, resampled to the grid of {SHIPPED}"


def _crop_and_overlay(
    image: Sequence[int],
    spacing: Sequence[float],
    machine: Machine,
    crop_share: float,
    shipped: bool,
    prior: Prior | None,
) -> tuple[list[int], dict[str, Any], list[Decision]]:
    """Crop, the network's ids, and the decisions on both; ``shipped`` for those of ``SHIPPED``."""
    limit, why = crop_limit(machine, crop_share)
    crop, strides, kernels = crop_and_network(image, spacing, limit, 5 if machine.device == "cpu" else 6)
    filters = wider_filters(int(np.prod(crop))) if machine.device == "cpu" else FULL_FILTERS
    if shipped:
        crop, filters = list(SHIPPED_CROP), SMALL_FILTERS
        strides, kernels = [[1] * 3, *[[2] * 3] * 4], [[3] * 3] * 5
        why = f"the size that {SHIPPED} was trained on"
    filters = filters[: len(strides)]
    if prior is not None and prior.network is not None:
        network = dict(prior.network[1])
        if "roi_size" in network:
            crop, why = list(network.pop("roi_size")), f"the size that {prior.network[0]} takes"
        elif prior.stride is not None:
            whole = [math.ceil(n / step) * step for n, step in zip(crop, prior.stride, strict=True)]
            if whole == list(prior.stride):  # norms need more than one voxel in the deepest map
                whole = [2 * step for step in prior.stride]
            if whole != crop:
                crop, why = whole, f"{why}, in multiples of the {_sizes(prior.stride)} that {prior.network[0]} asks for"
        network.pop("image_size", None)
        choice = Decision("network", prior.network[0], f"{prior.file} fills its encoder (--network)")
    else:
        network = _dynunet(kernels, strides, filters)
        choice = Decision(
            "network",
            f"DynUNet, {len(strides)} level{'s' if len(strides) > 1 else ''}, {filters[0]} to {filters[-1]} channels",
            "levels, strides and kernels follow voxel size and crop as in nnU-Net; "
            + ("nnU-Net's channels" if machine.device == "cuda" else "few channels on a CPU, more for a small crop"),
        )
    return crop, network, [Decision("crop", f"{_sizes(crop)} voxels", why), choice]


def _dynunet(kernels: list[list[int]], strides: list[list[int]], filters: Sequence[int]) -> dict[str, Any]:
    return {
        "segmentation_net": {
            "_target_": "DynUNet",
            "spatial_dims": 3,
            "in_channels": "@in_channels",
            "out_channels": "@num_classes",
            "kernel_size": kernels,
            "strides": strides,
            "upsample_kernel_size": strides[1:],
            "filters": list(filters),
            "norm_name": ["INSTANCE", {"affine": True}],
        },
        "encoder": {"_target_": "common.networks.DynUNetEncoder", "network": "@segmentation_net"},
    }


def _step_decision() -> Decision:
    return Decision(
        "optimiser",
        f"AdamW, rate {RATE['scratch']} from scratch, {RATE['encoder']} from an encoder, two crops per step",
        "in 60 steps on IXI 0.008 and 0.001 were best; runs here are longer",
    )


def class_rule(study: Study, task: str | None) -> tuple[dict[str, Any], str]:
    """The ids that map labels to classes, and the reason.

    Raises:
        PlanError: the label scheme is unknown, or has none of the task's classes.
    """
    scheme = study.label_scheme
    if task is None and scheme in BRAIN_SCHEMES and len(study.labels) > MANY:
        task = "structures34"
        why = f"{len(study.labels)} labels numbered like {scheme}; set --task structures4, or another, to change that"
    elif task is None:
        values = [0, *sorted(study.labels)]
        names = ["background", *(study.labels[value] for value in values[1:])]
        own = {
            "task": "own",
            "label_scheme": "task",
            "num_classes": len(values),
            "label_map": {str(index): [value] for index, value in enumerate(values)},
            "structure_names": {str(index): name for index, name in enumerate(names)},
        }
        return own, "each label of the masks is one"
    else:
        why = "as --task says"
        scheme = scheme or study.possible_scheme
    if scheme is None:
        raise PlanError(
            f"--task {task}: the masks follow no known label scheme; leave out --task, or write a "
            "datalist with `label_scheme` (python -m common.data prepare) and give it as --images."
        )
    try:
        label_map(scheme, task)
    except ValueError as error:
        raise PlanError(f"--task {task}: {error}") from error
    return {"task": task, "label_scheme": scheme}, why


def class_names(overlay: Mapping[str, Any]) -> dict[int, str]:
    """Names of the classes of a plan, including the background."""
    if "structure_names" in overlay:
        return {int(index): name for index, name in overlay["structure_names"].items()}
    return label_names(overlay["task"])


def class_labels(overlay: Mapping[str, Any]) -> dict[int, list[int]]:
    """Class -> labels of the masks in a plan."""
    if "label_map" in overlay:
        return {int(index): list(labels) for index, labels in overlay["label_map"].items()}
    return label_map(overlay["label_scheme"], overlay["task"])


def split_sizes(subjects: int) -> tuple[int, int]:
    """Subjects for validation and for test: a fifth each, at least one and at most 20."""
    part = min(20, max(1, round(subjects / 5)))
    return part, part


def grid(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[float]], device: str
) -> tuple[list[float], list[int], str]:
    """Voxel size in mm, the median shape on that grid, and the reason.

    The voxel size is the median of the scans (nnU-Net's rule). If a median scan has too many voxels for the device,
    voxels grow along the finest axes first.
    """
    spacing = np.median(np.asarray(spacings, float), 0)
    extent = np.median(np.asarray(spacings, float) * np.asarray(shapes, float), 0)
    limit = IMAGE_VOXELS[device]
    reason = "the median of the scans"
    coarse = spacing.copy()
    while np.prod(extent / coarse) > limit:
        coarse = np.maximum(coarse, coarse.min() * 1.02)
    if not np.array_equal(coarse, spacing):
        reason = (
            f"coarser than the median ({_sizes(spacing)} mm): a scan has at most {limit:,} voxels on a {device.upper()}"
        )
    size = [float(f"{value:.3g}") for value in coarse]
    return size, [max(1, round(float(mm / s))) for mm, s in zip(extent, size, strict=True)], reason


def wider_filters(voxels: int) -> tuple[int, ...]:
    """Channels for a CPU, chosen so that a step on a smaller crop costs about as much as on the largest crop."""
    first = min(FULL_FILTERS[0], 4 * round(SMALL_FILTERS[0] * math.sqrt(CROP_VOXELS["cpu"] / voxels) / 4))
    return SMALL_FILTERS if first <= SMALL_FILTERS[0] else tuple(min(FULL_FILTERS[-1], first << n) for n in range(5))


def crop_limit(machine: Machine, share: float = 1.0) -> tuple[int, str]:
    """The largest number of voxels of a crop, and why."""
    limit = CROP_VOXELS[machine.device]
    reason = f"up to {limit:,} voxels, for a {machine.device.upper()}"
    if machine.device == "cuda" and machine.gpu_memory_gb is not None:
        fits = int(machine.gpu_memory_gb * CROP_VOXELS_PER_GB)
        if fits < limit:
            limit, reason = fits, f"up to {fits:,} voxels, for {machine.gpu_memory_gb:.0f} GB of GPU memory"
    if share < 1:
        limit, reason = int(limit * share), f"up to {int(limit * share):,} voxels: larger ones did not fit in memory"
    return limit, reason


def crop_and_network(
    image: Sequence[int], spacing: Sequence[float], limit: int, most_levels: int
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Crop, strides and kernel sizes for a median image, by nnU-Net's rule (Isensee et al., 2021, supplement E).

    The crop starts as the whole image. From level to level, an axis is halved while it keeps four voxels and its voxels
    are less than twice as large as the smallest; kernels span an axis while the latter holds. While the crop has too
    many voxels, the axis that is longest relative to the image is cut.

    Args:
        image: shape of the median image on the grid.
        spacing: voxel size in mm.
        limit: largest number of voxels of the crop.
        most_levels: largest number of resolutions.

    Returns:
        crop, a multiple of the whole stride on every axis; strides and kernel sizes of each level, the first stride 1.
    """
    size = np.asarray(image, float)
    while True:
        strides, kernels = _levels(size, spacing, most_levels)
        whole = np.prod(np.asarray(strides), 0)
        crop = (np.ceil(size / whole) * whole).astype(int)
        long = crop > SHORTEST
        if crop.prod() <= limit or not long.any():
            return [int(n) for n in crop], strides, kernels
        axis = int(np.argmax(np.where(long, crop / np.asarray(image), 0)))
        size[axis] = max(SHORTEST, crop[axis] - whole[axis])


def _levels(size: np.ndarray, spacing: Sequence[float], most_levels: int) -> tuple[list[list[int]], list[list[int]]]:
    size, voxel = np.asarray(size, float).copy(), np.asarray(spacing, float).copy()
    strides, kernels = [[1, 1, 1]], []
    while True:
        near = voxel < 2 * voxel.min()
        kernels.append([3 if one else 1 for one in near])
        halved = near & (size >= 8)
        if len(strides) == most_levels or not halved.any():
            return strides, kernels
        strides.append([2 if one else 1 for one in halved])
        size, voxel = np.where(halved, np.ceil(size / 2), size), np.where(halved, voxel * 2, voxel)


def intensity_rule(study: Study, facts: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """The transform that scales intensities, and why."""
    if study.modality == "CT":
        low = float(np.median([one.quantiles[0] for one in facts]))
        high = float(np.median([one.quantiles[-1] for one in facts]))
        low, high = max(-1024.0, 10 * math.floor(low / 10)), 10 * math.ceil(high / 10)
        window = {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        }
        return (
            window,
            f"HU have the same meaning in every CT: the scans' usual range, {low:g} to {high:g}, becomes 0 to 1",
        )
    normal = {
        "_target_": "common.transforms.NormalizeForegroundd",
        "keys": "image",
        "lower": 0.5,
        "upper": 99.5,
        "foreground": "@foreground",
    }
    return normal, "MR intensities have no unit: each scan is scaled by its own foreground"


def _may_be_head(study: Study, facts: Sequence[Any]) -> bool:
    return (
        study.modality == "MR" and len(study.channels) == 1 and study.anisotropy < ANISOTROPIC and of_head_size(facts)
    )


def _start_decision(study: Study, head: bool, candidates: Sequence[str], prior: Prior | None) -> Decision:
    pool = len(study.unlabelled)
    if prior is not None and len(candidates) == 1:
        return Decision("start", "scratch", f"of {prior.file} only the preparation is taken (--network takes weights)")
    if candidates[1:] and candidates[1] != SHIPPED:
        return Decision(
            "start", " or ".join(candidates), "a short trial on the validation scans decides whether the file helps"
        )
    if len(candidates) > 1:
        return Decision(
            "start",
            " or ".join(candidates),
            f"MR volumes of a head's size: a short trial on the validation scans decides whether {SHIPPED} helps",
        )
    if head:
        return Decision(
            "start", "scratch", f"{SHIPPED} is made for voxels of {SHIPPED_GRID:g} mm, which are too coarse here"
        )
    unused = f"; pre-training on the {pool} scans without a mask has not been shown to help here" if pool else ""
    return Decision("start", "scratch", f"no included encoder was made for such scans{unused}")


def _along(orientation: str, values: Sequence[float]) -> tuple[float, ...]:
    """Values in the order left-right, front-back, up-down, in the order of the axes of an orientation."""
    return tuple(values[next(n for n, pair in enumerate(("LR", "PA", "IS")) if code in pair)] for code in orientation)


def _names_of(rule: Mapping[str, Any]) -> str:
    """The transforms of a rule of intensities, by their names."""
    return ", then ".join(one["_target_"].rpartition(".")[2] for one in rule.get("transforms") or [rule])


def _thick_axis(spacing: Sequence[float]) -> int | None:
    thick = int(np.argmax(spacing))
    return thick if spacing[thick] > ANISOTROPIC * min(spacing) else None


def add_time(plan: Plan, speed: Speed, hours: float, counts: dict[str, int]) -> Plan:
    """The plan with its number of steps and its start.

    Args:
        plan: plan without steps and start.
        speed: speed from the trial.
        hours: time for everything.
        counts: scans of ``training``, ``validation``, ``test`` and ``unlabelled``.

    Raises:
        PlanError: the time is too short for one pass over the training scans.
    """
    seconds = hours * 3600
    scored = counts["validation"] * VALIDATIONS + counts["test"] + counts["unlabelled"]
    # test scans are scored by one command and labelled by another
    fixed = 5 * speed.start + (2 * counts["test"] + counts["unlabelled"]) * speed.volume
    validations = max(
        1, min(VALIDATIONS, int(EVALUATION_SHARE * seconds / max(1e-6, counts["validation"] * speed.volume)))
    )
    left = seconds - fixed - validations * counts["validation"] * speed.volume
    steps = min(MOST_STEPS, int(left / speed.step))
    least = max(20, math.ceil(counts["training"] / plan.overlay["batch_size"]))
    if steps < least:
        need = (fixed + validations * counts["validation"] * speed.volume + least * speed.step) / 3600
        raise PlanError(
            f"--hours {hours:g} is too little: one pass over {counts['training']} training scans and scoring {scored} "
            f"take about {need:.2g} hours on this machine."
        )
    steps = round_down(steps)
    epochs = validations * max(1, min(4, steps // (validations * 10)))
    start, why = choose_start(plan, speed)
    overlay = {
        **plan.overlay,
        "batches_per_epoch": max(1, steps // epochs),
        "max_epochs": epochs,
        "val_interval": epochs // validations,
        "learning_rate": RATE["scratch" if start == "scratch" else "encoder"],
    }
    decisions = [one for one in plan.decisions if not (why and one.what == "start")]
    if why:
        decisions.append(Decision("start", start, why))
    decisions.append(
        Decision(
            "steps",
            f"{overlay['batches_per_epoch'] * epochs:,} in {epochs} epochs, {validations} validations",
            f"{hours:g} hours at {speed.step:.2g} s per step and {speed.volume:.2g} s per scored scan, as in a trial",
        )
    )
    return Plan(plan.bundle, overlay, tuple(decisions), start, plan.candidates)


def choose_start(plan: Plan, speed: Speed) -> tuple[str, str]:
    """The start with the best Dice in the trial, and the reason; empty if nothing was compared."""
    if len(speed.dice) < 2:
        return plan.start, ""
    best = max(speed.dice, key=lambda name: speed.dice[name])
    scores = ", ".join(f"{name} {value:.2f}" for name, value in speed.dice.items())
    chosen = next((name for name in speed.dice if name not in ("scratch", SHIPPED)), None)
    if chosen is not None and speed.dice[best] < LEARNT:
        return chosen, f"as you chose; the trial was too short to tell (mean Dice on validation scans: {scores})"
    return best, f"mean Dice on validation scans after the trial's steps: {scores}"


def round_down(steps: int) -> int:
    """Round steps to a tenth of their magnitude, so timing noise rarely changes a plan."""
    unit = 10 ** max(0, len(str(steps)) - 2)
    return max(1, steps // unit * unit)


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
