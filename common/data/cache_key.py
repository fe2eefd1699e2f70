"""Keys of cached items: the item, its files, and the transforms with their settings and their code."""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib.metadata
import inspect
import json
import os
import threading
import types
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader

from ..files import file_digest
from .stored_item import NotStorableError

__all__ = ["item_key", "transforms_key"]

PACKAGES = ("monai", "torch", "numpy", "nibabel", "itk")
"""Packages whose version may change the result of transforms."""
PARTED = (".mhd", ".nhdr", ".hdr", ".img")
"""Endings of formats with header and voxels in two files of one name."""


def transforms_key(transforms: Any) -> str:
    """A digest of transforms: their classes, all their attributes, and the code that they run.

    Raises:
        NotStorableError: an attribute has a type that cannot be described.
    """
    return _digest([_describe(transforms, ()), _code()])


def item_key(item: Any, transforms: str, **settings: Any) -> str:
    """A digest of a datalist's item, of its files, and of their transforms.

    A file counts by its real path, its size and its time of change in nanoseconds.

    Args:
        item: of JSON values.
        transforms: digest from `transforms_key`.
        **settings: settings of the cache.
    """
    return _digest([_describe(item, ()), file_stamps(item), transforms, settings])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]


@functools.lru_cache
def _code() -> list[str]:
    """Digest of this package's code that transforms run, with the versions of other packages."""
    root = Path(__file__).resolve().parents[1]
    files = sorted([*root.glob("*.py"), *root.glob("transforms/*.py"), *root.glob("data/*.py")])
    return [file_digest(*files), *(f"{name} {_version(name)}" for name in PACKAGES)]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source(kind: type) -> str | None:
    """Digest of the source file of a class from outside of MONAI and this package."""
    if kind.__module__.partition(".")[0] in ("monai", "builtins", __name__.partition(".")[0]):
        return None
    try:
        return _file_digest(inspect.getfile(kind))
    except (OSError, TypeError):
        return None


_file_digest = functools.lru_cache(file_digest)


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    """A value as JSON, equal for equal values in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if type(value).__module__ == "builtins" or value is None else str(value)
    if id(value) in above:
        return "of itself"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {"mapping": sorted(([str(name), _describe(one, above)] for name, one in value.items()), key=str)}
    if isinstance(value, list | tuple):
        return [_describe(one, above) for one in value]
    if isinstance(value, Set):
        return {"set": sorted((_describe(one, above) for one in value), key=str)}
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        return [array.dtype.str, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, os.PathLike | torch.dtype | torch.device | np.dtype | slice | range):
        return str(value)
    if isinstance(value, types.MethodType):
        return [_describe(value.__self__, above), value.__func__.__qualname__]
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.ModuleType):
        return _described_code(value, above)
    if hasattr(value, "__dict__"):
        state = {n: v for n, v in vars(value).items() if _is_setting(value, n, v)}
        return [_name(type(value)), _source(type(value)), _describe(state, above)]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    if slots:
        state = {name: getattr(value, name, None) for name in slots if name != "__weakref__"}
        return [_name(type(value)), _describe(state, above)]
    raise NotStorableError(f"a value of type {_name(type(value))}")


def _is_setting(owner: Any, name: str, value: Any) -> bool:
    """Whether an attribute changes results.

    Generators of random numbers do not: they are those of parts that random transforms share. Nor does what a transform
    keeps once it ran, a thread's own values and the files that a reader read last. With these, a key would depend on
    what was prepared before.
    """
    if isinstance(value, np.random.RandomState | threading.local):
        return False
    return not (name == "filenames" and isinstance(owner, ImageReader))


def _described_code(value: Any, above: tuple[int, ...]) -> Any:
    if not isinstance(value, types.FunctionType):
        return _name(value)
    code = value.__code__
    constants = [_describe(one, above) for one in code.co_consts if not isinstance(one, types.CodeType)]
    cells = [_describe(cell.cell_contents, above) for cell in value.__closure__ or ()]
    made = [_name(value), _describe(value.__defaults__, above), _describe(value.__kwdefaults__, above), cells]
    return [*made, code.co_code.hex(), constants, list(code.co_names)]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def file_stamps(item: Any) -> list[Any]:
    """Path, size and time of each file that an item or a list of items names, in a fixed order."""
    if isinstance(item, Mapping):
        item = [item[name] for name in sorted(item, key=str)]
    if isinstance(item, list | tuple):
        return [found for one in item for found in file_stamps(one)]
    # A word such as the name of a subject is no file, though one may be called so.
    if not isinstance(item, str | os.PathLike) or os.sep not in str(item) or not os.path.exists(item):
        return []
    path = Path(os.path.realpath(item))
    names = [path]
    if path.is_dir():  # a DICOM series
        names = sorted(one for one in path.rglob("*") if one.is_file())
    elif path.suffix.lower() in PARTED:
        names = sorted(one for one in path.parent.glob(f"{glob.escape(path.stem)}.*") if one.is_file())
    return [[str(one), one.stat().st_size, one.stat().st_mtime_ns] for one in names]
