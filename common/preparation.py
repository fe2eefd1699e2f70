"""Record how a network's images were prepared, from the transforms themselves.

Files of encoders and models carry the record. On loading, it is compared field by field with the transforms of the
loading config. So nobody must describe the preparation by hand and keep the text up to date.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ignite.distributed as idist
import numpy as np
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    EnsureTyped,
    Identityd,
    LoadImaged,
    MapTransform,
    Orientationd,
    RandomizableTrait,
    Resized,
    ResizeWithPadOrCropd,
    Spacingd,
    SpatialPadd,
    ToTensord,
    Transform,
)

from .transforms.average_pool import AveragePoold
from .transforms.check_scan import CheckScand
from .transforms.check_volume import CheckVolumed
from .transforms.domain_spacing import DomainSpacingd
from .transforms.select_channel import SelectChanneld

__all__ = [
    "FORMAT_VERSION",
    "PREPARED",
    "Preparation",
    "check_images",
    "check_preparation",
    "compare_preparation",
    "field_text",
    "preparation_record",
    "refuse_preparation",
]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of the record; newer ones are refused."""

CROPS = (CenterSpatialCropd, CropForegroundd, ResizeWithPadOrCropd, SpatialPadd)
"""Transforms that choose a part of the grid: recorded but not compared, since nets see windows anywhere."""
SILENT = (CheckScand, LoadImaged, EnsureChannelFirstd, EnsureTyped, Identityd, ToTensord, SelectChanneld)
"""Transforms that change neither the grid nor a value."""
IDS = {
    "channels": "in_channels",
    "orientation": "orientation",
    "spacing": "spacing",
    "pooling": "pooling",
    "size": "image_size",
    "intensity": "intensity",
    "value_range": "intensity",
    "task": "task",
}
"""Compared fields, and the config id that usually sets each."""
PREPARED = ("spacing", "orientation", "intensity")
"""Fields that are ids of the bundles, too, which ``prepare_as`` sets (``common.weights.prepare``)."""
RANGES = (("b_min", "b_max"), ("minv", "maxv"))
"""Arguments of transforms that scale images to a range."""
NOT_ARGUMENTS = ("allow_missing_keys", "dtype", "lazy")


@dataclass
class Preparation:
    """The deterministic part of a pipeline for one key.

    Attributes:
        channels: channels of the image, as checked by the pipeline.
        orientation: axis codes.
        spacing: in mm, after pooling; a mapping if each domain has its own.
        pooling: voxels per axis that become one; compared only without a spacing, which contains it. Older records lack
            it, and their mappings of spacings are those before pooling.
        size: size that images are resized to.
        intensity: transforms that change values, in order, each with class and arguments, including unknown ones.
        value_range: range that the last of them scales images to; None if it does not.
        crops: transforms that crop or pad, likewise.
        task: name of the task whose classes a model predicts; None for encoders.
        format: version of the record.
    """

    channels: int | None = None
    orientation: str | None = None
    spacing: Any = None
    pooling: int | None = None
    size: Any = None
    intensity: list[dict[str, Any]] | None = field(default_factory=list)
    value_range: list[float] | None = None
    crops: list[dict[str, Any]] = field(default_factory=list)
    task: str | None = None
    format: int = FORMAT_VERSION


def preparation_record(transforms: Any, key: str = "image", task: str | None = None) -> dict[str, Any]:
    """The record of a pipeline, as JSON values.

    Random transforms and those of other keys are left out.

    Args:
        transforms: a ``Compose``, a transform, or a sequence of them; composed ones are expanded.
        key: key of the images.
        task: task whose classes the network predicts.
    """
    made = Preparation(task=task)
    intensity: list[dict[str, Any]] = []
    pooling = 1
    for transform in _flat(transforms):
        if key not in getattr(transform, "keys", (key,)) or isinstance(transform, SILENT):
            continue
        if isinstance(transform, RandomizableTrait):
            continue
        if isinstance(transform, CheckVolumed):
            made.channels = transform.channels if transform.channels is not None else made.channels
        elif isinstance(transform, Orientationd):
            made.orientation = transform.ornt_transform.axcodes
        elif isinstance(transform, DomainSpacingd):
            made.spacing = {name: _pixdim(one) for name, one in transform.resample.items()}
        elif isinstance(transform, Spacingd):
            made.spacing = _pixdim(transform)
        elif isinstance(transform, AveragePoold):
            pooling *= transform.kernel_size
        elif isinstance(transform, Resized):
            made.size = _plain(transform.resizer.spatial_size)
        elif isinstance(transform, CROPS):
            made.crops.append(_step(transform))
        else:
            intensity.append(_step(transform))
    if isinstance(made.spacing, dict):
        made.spacing = {name: _pooled(one, pooling) for name, one in made.spacing.items()}
    elif made.spacing is not None:
        made.spacing = _pooled(made.spacing, pooling)
    made.pooling = pooling
    made.intensity = intensity
    made.value_range = _range(intensity[-1]) if intensity else None
    return json.loads(json.dumps(asdict(made)))


def compare_preparation(made: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """One sentence for each field that differs between a file's record and a pipeline's.

    A field that one side lacks is no difference, except intensities: an empty list of them counts as known. Ranges of
    values are compared if one side has nothing else about intensities.

    Raises:
        ValueError: the record is of a newer version.
    """
    if (made.get("format") or 0) > FORMAT_VERSION:
        raise ValueError(
            f"the record of how images were prepared has format {made['format']}, but this version reads up "
            f"to {FORMAT_VERSION}; upgrade."
        )
    sentences = []
    for name in IDS:
        there, here = made.get(name), used.get(name)
        if name == "value_range" and made.get("intensity") is not None and used.get("intensity") is not None:
            continue
        if name == "pooling" and (made.get("spacing") is not None or used.get("spacing") is not None):
            continue
        if name == "spacing" and isinstance(there, dict) and "pooling" not in made and used.get("pooling", 1) > 1:
            continue
        if there is None or here is None or _agree(there, here):
            continue
        what = "the task has" if name == "task" else "the images have"
        sentences.append(f"it was made with {name} {field_text(there)}, {what} {field_text(here)} (id `{IDS[name]}`).")
    return sentences


def check_preparation(path: Any, record: Mapping[str, Any], used: Mapping[str, Any], accepted: bool) -> None:
    """Compare the record of a model's file with a pipeline, and log accepted differences and a missing record.

    Args:
        path: path of the file, or a name of the weights for messages.
        record: record of the file, with its
            ``preparation``; empty if it has none.
        used: record of the pipeline.
        accepted: whether differences are accepted.

    Raises:
        ValueError: there are differences that are not accepted; the record is of a newer version.
    """
    made = record.get("preparation")
    if not isinstance(made, Mapping):
        if idist.get_rank() == 0:
            logger.info("%s has no record of how its images were prepared: nothing to compare.", path)
        return
    differences = compare_preparation(made, used)
    refuse_preparation(path, differences, accepted)
    if idist.get_rank() == 0:
        for difference in differences:
            logger.warning("%s: %s The difference is accepted (accept_preparation).", path, difference)


def check_images(
    path: Any, record: Mapping[str, Any], preprocessing: Any, accepted: bool, task: str | None = None
) -> None:
    """``check_preparation`` with the transforms of a pipeline; nothing is compared if they are None.

    Args:
        path, record, accepted: as for ``check_preparation``.
        preprocessing, task: as for ``preparation_record``.

    Raises:
        ValueError: as ``check_preparation``.
    """
    if preprocessing is not None:
        check_preparation(path, record, preparation_record(preprocessing, task=task), accepted)


def refuse_preparation(path: Any, differences: Sequence[str], accepted: bool, what: str = "model") -> None:
    """Refuse the weights of ``path``, trained on images prepared in another way, unless that is ``accepted``.

    Args:
        path: of the file, or what messages call the weights.
        differences: of ``compare_preparation``.
        accepted: whether they are taken over.
        what: by which word ``prepare_as`` knows the weights.

    Raises:
        ValueError: with the differences, of which there are some.
    """
    if differences and not accepted:
        raise ValueError(
            f"{path} was trained on images prepared in another way: {' '.join(differences)} Set these ids, or the "
            f"overlays that set them, as in its training (--prepare_as {what} sets {', '.join(PREPARED[:2])} and "
            f"{PREPARED[2]}), or take the differences over with --accept_preparation True."
        )


def _agree(there: Any, here: Any) -> bool:
    if there == here:
        return True
    if isinstance(there, dict) and here:  # domains that it was made with
        return all(one in there.values() for one in (here.values() if isinstance(here, dict) else [here]))
    return False


def field_text(value: Any) -> str:
    """A field's value as text for messages."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", then ".join(
            f"{one['transform']}({', '.join(f'{k}={v!r}' for k, v in one.items() if k != 'transform')})"
            for one in value
        )
    return "no transform" if value == [] else str(value)


def _range(step: Mapping[str, Any]) -> list[float] | None:
    for low, high in RANGES:
        if step.get(low) is not None and step.get(high) is not None:
            return [float(step[low]), float(step[high])]
    return None


def _flat(transforms: Any) -> Iterator[Any]:
    if isinstance(transforms, Compose):
        transforms = transforms.transforms
    if isinstance(transforms, (list, tuple)):
        for one in transforms:
            yield from _flat(one)
    elif transforms is not None:
        yield transforms


def _pixdim(transform: Spacingd) -> list[float]:
    return [float(value) for value in np.atleast_1d(transform.spacing_transform.pixdim)]


def _pooled(spacing: list[float], pooling: int) -> list[float]:
    return [round(pooling * value, 6) for value in spacing]


def _step(transform: Any) -> dict[str, Any]:
    """Class and arguments of a transform, from its dictionary form and the array transform inside."""
    arguments = _arguments(transform)
    for inner in vars(transform).values() if isinstance(transform, MapTransform) else ():
        if isinstance(inner, Transform):
            arguments = {**_arguments(inner), **arguments}
    name = getattr(transform, "__name__", type(transform).__name__)
    return {"transform": name, **dict(sorted(arguments.items()))}


def _arguments(transform: Any) -> dict[str, Any]:
    names = inspect.signature(type(transform).__init__).parameters
    values = vars(transform) if hasattr(transform, "__dict__") else {}
    kept = [n for n in names if n in values and n not in NOT_ARGUMENTS and not n.endswith(("keys", "key"))]
    return {name: _plain(values[name]) for name in kept}


def _plain(value: Any) -> Any:
    """A value as JSON; other values are named by their class."""
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return getattr(value, "__name__", type(value).__name__)
