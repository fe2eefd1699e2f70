from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from filelock import FileLock
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    DeleteItemsd,
    RandCropByLabelClassesd,
    RandCropByPosNegLabeld,
    RandomizableTrait,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    Transform,
)
from monai.transforms.utils import reset_ops_id

from ..files import nearest_existing, size_text, volumes_folder
from ..memory import RUNS_AT_ONCE, available_memory
from .cache_key import item_key, transforms_key
from .stored_item import SMALL, NotStorableError, StoredItemError, read_item, write_item

__all__ = ["CachedDataset"]

logger = logging.getLogger(__name__)

CHOICES = ("auto", "memory", "disk", "gpu", "none")
SHARE = 0.5
"""Of the free memory, or of the free room on a disk, that a set may take where ``auto`` chooses."""
STORED = "stored_types"
"""Key of an item that is stored, with the type that each of its tensors had."""
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


class CachedDataset(Dataset):
    """A data set whose deterministic transforms run once, and whose images are kept in memory, on disk or on a GPU.

    What it gives is the same to the bit wherever the images are kept, except for transforms on a GPU. Tensors of whole
    numbers, as labels are, are kept in the smallest integer type that holds them, and come back as they were.

    - ``memory``: MONAI's ``CacheDataset``, in each process.
    - ``disk``: a file an item, whose arrays are mapped into memory; made once for all processes and runs that do the
      same with the same files. MONAI's ``PersistentDataset`` reads a whole volume where a crop of it is wanted.
    - ``gpu``: ``CacheDataset`` on the device, where the random transforms run, too; for loaders without workers.
    - ``none``: MONAI's ``Dataset``; all transforms run each time.
    - ``auto``: ``memory`` where the set takes half of the free memory at most, otherwise ``disk`` where it takes half
      of the free room at most, otherwise ``none``. The log says which, and why. All processes of a run choose alike,
      by the one with the least room; in a comparison with several runs at a time, each counts on its share of the
      memory.

    The size of the set is that of its first item times their number. Where the first random transform is a crop, the
    crop alone is read and converted: ``RandSpatialCropd``, ``RandSpatialCropSamplesd``, and with indices that were
    made before (``fg_indices_key``, ``indices_key``) ``RandCropByPosNegLabeld`` and ``RandCropByLabelClassesd``. All
    others read the whole image.

    Args:
        data: items, mappings for all but ``memory`` and ``none``.
        transform: of an item; kept is what those before the first random one make.
        cache: one of the above.
        cache_dtype: ``float32``, or ``float16`` for half of the room: images are rounded to it, with each choice of
            ``cache``. Images of whole numbers are not.
        cache_dir: folder for ``disk``; None for ``volumes`` in the folder of what the collection makes
            (``$XDG_CACHE_HOME``, ``~/.cache``). ``python -m common.cache prune`` removes what was not used for long.
        num_workers: threads that fill the cache.
        device: for ``gpu`` and ``augment_on``.
        augment_on: ``device`` moves items to the device ahead of the random transforms, behind crops that look at no
            voxel; for loaders without workers, which prepare batches in a thread (``common.data.DataLoader``). The
            draws are the same.
        slices_first: whether ``disk`` keeps images slice by slice of their last axis, for those who read a few slices.

    Raises:
        ValueError: an unknown choice, ``gpu`` without a GPU or with workers, values that float16 cannot hold, items or
            transforms that ``disk`` cannot keep or describe.
        OSError: the folder cannot be written, such as on a full disk; names it.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Any,
        cache: str = "auto",
        cache_dtype: str = "float32",
        cache_dir: str | os.PathLike | None = None,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        slices_first: bool = False,
        augment_on: str = "cpu",
    ) -> None:
        super().__init__(data, transform)
        self.augment_on = augmenting_device(augment_on, device, num_workers)
        if cache not in CHOICES:
            raise ValueError(f"cache is {cache!r}: give one of {', '.join(CHOICES)}.")
        if cache_dtype not in ("float32", "float16"):
            raise ValueError(f"cache_dtype is {cache_dtype!r}: give float32 or float16.")
        parts = self.transform.transforms
        is_random = [isinstance(part, RandomizableTrait) or not isinstance(part, Transform) for part in parts]
        self.first_random = [*is_random, True].index(True)
        crops = [not _is_crop(part) for part in parts[self.first_random :]]
        self.after_crops = self.first_random + [*crops, True].index(True)
        prepare = _Prepare(self.transform, self.first_random, getattr(torch, cache_dtype))
        folder = Path(cache_dir) if cache_dir is not None else volumes_folder()
        on_disk = _OnDisk(data, prepare, folder, {"cache_dtype": cache_dtype, "slices_first": slices_first})
        self.cache = _choose(on_disk) if cache == "auto" else cache
        self.kept: Dataset = _NotKept(data, prepare)
        if self.cache == "disk":
            on_disk.fill(num_workers)
            self.kept = on_disk
        elif self.cache != "none":
            if self.cache == "gpu":
                prepare.device = _gpu(torch.device(device), num_workers)
            self.kept = _InMemory(data, prepare, num_workers)
        prepare.first = None

    def set_random_state(self, seed: int | None = None, state: Any = None) -> CachedDataset:
        """Of the random transforms, as MONAI's ``set_rnd`` does with its own data sets."""
        self.transform.set_random_state(seed, state)
        return self

    def _transform(self, index: int) -> Any:
        item = self.transform(self.stored(index), start=self.first_random, end=self.after_crops)
        return self.transform(moved(restore(item), self.augment_on), start=self.after_crops)

    def stored(self, index: int) -> Any:
        """An item as it is kept, without the random transforms; ``restore`` gives it, or a part of it, its types.

        Not to be written to.
        """
        return _apart(self.kept[index]) if isinstance(self.kept, _InMemory) else self.kept[index]


def _apart(value: Any) -> Any:
    """A copy of a value that has the same voxels and nothing else in common with it."""
    if isinstance(value, MetaTensor):
        made = MetaTensor(value.as_tensor())
        made.__dict__ = deepcopy(value.__dict__)
        return made
    if isinstance(value, Mapping):
        return {name: _apart(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_apart(one) for one in value]
    return value if isinstance(value, torch.Tensor) else deepcopy(value)


def restore(item: Any) -> Any:
    """A stored item, a part of it that was cut out, or several of these, with types and memory of their own."""
    if isinstance(item, list):
        return [restore(one) for one in item]
    if not isinstance(item, Mapping) or STORED not in item:
        return item
    types = item[STORED]
    return {name: _restored(value, types.get(name)) for name, value in item.items() if name != STORED}


def augmenting_device(augment_on: str, device: torch.device | str, num_workers: int) -> torch.device | None:
    """Where items move to ahead of random transforms; None where they stay.

    Raises:
        ValueError: another word, or workers, which cannot use a GPU.
    """
    if augment_on not in ("cpu", "device"):
        raise ValueError(f"augment_on is {augment_on!r}: give cpu or device.")
    if augment_on == "device" and num_workers:
        raise ValueError("augment_on is device, where workers of a loader cannot compute: set num_workers to 0.")
    return torch.device(device) if augment_on == "device" else None


def moved(item: Any, device: torch.device | None) -> Any:
    """An item, or several, with its tensors on a device; None leaves it."""
    if device is None:
        return item
    if isinstance(item, torch.Tensor):
        return item.to(device, non_blocking=True)
    if isinstance(item, Mapping):
        return {name: moved(one, device) for name, one in item.items()}
    return [moved(one, device) for one in item] if isinstance(item, list) else item


def _restored(value: Any, kind: Any) -> Any:
    if isinstance(value, list | tuple):
        kinds = kind if isinstance(kind, list) else [None] * len(value)
        return type(value)(_restored(one, two) for one, two in zip(value, kinds, strict=True))
    if isinstance(value, Mapping):
        return {name: _restored(one, None) for name, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty(value.shape, dtype=kind or value.dtype, device=value.device)
    made.copy_(value.as_tensor() if isinstance(value, MetaTensor) else value)
    if not isinstance(value, MetaTensor):
        return made
    return MetaTensor(made).copy_meta_from(value)


def _is_crop(part: Any) -> bool:
    """Whether a transform cuts a part out and looks at no voxel."""
    if isinstance(part, RandCropByPosNegLabeld):
        return bool(part.fg_indices_key and part.bg_indices_key and part.image_key is None)
    if isinstance(part, RandCropByLabelClassesd):
        return bool(part.indices_key and part.image_key is None)
    return type(part) in (DeleteItemsd, RandSpatialCropd, RandSpatialCropSamplesd)


class _Prepare(Transform):
    """The deterministic transforms, and the types that items are kept in."""

    def __init__(self, transform: Compose, end: int, dtype: torch.dtype) -> None:
        self.transform, self.end, self.dtype = transform, end, dtype
        self.device: torch.device | None = None
        self.first: tuple[Any, Any] | None = None
        """An item that was prepared already, to be given once."""

    def __call__(self, item: Any) -> Any:
        if self.first is not None and item is self.first[0]:
            made, self.first = self.first[1], None
        else:
            made = self.transform(item, end=self.end, threading=True)
        if not isinstance(made, Mapping) or STORED in made:
            return made
        pairs = {name: self._narrow(value, name) for name, value in made.items()}
        return {name: value for name, (value, _) in pairs.items()} | {
            STORED: {name: kind for name, (_, kind) in pairs.items() if kind}
        }

    def _narrow(self, value: Any, name: Any) -> tuple[Any, Any]:
        """The value as it is kept, and the type that it has to have again."""
        if isinstance(value, list) and any(isinstance(one, torch.Tensor) for one in value):
            pairs = [self._narrow(one, name) for one in value]
            return [one for one, _ in pairs], [kind for _, kind in pairs]
        if not isinstance(value, torch.Tensor):
            return value, None
        kept = value.contiguous()
        if value.numel() > SMALL:
            kept = _narrowed(kept, self.dtype, name)
        if self.device is not None:
            kept = kept.to(self.device)
        return kept, value.dtype if kept.dtype != value.dtype else None


def _narrowed(value: torch.Tensor, dtype: torch.dtype, name: Any) -> torch.Tensor:
    plain = value.as_tensor() if isinstance(value, MetaTensor) else value
    if plain.dtype == torch.int64:  # indices, with which one goes on to compute
        limits = torch.iinfo(torch.int32)
        fits = plain.min() >= limits.min and plain.max() <= limits.max
        return value.to(torch.int32) if fits else value
    if plain.dtype not in (torch.float32, torch.float64, torch.int32, torch.int16):
        return value
    low, high = plain.min().item(), plain.max().item()
    for kind in INTEGERS:
        limits = torch.iinfo(kind)
        if kind.itemsize < plain.dtype.itemsize and limits.min <= low and high <= limits.max:
            whole = plain.to(kind)
            # Whole numbers alone, and no -0, which no integer is.
            if torch.equal(whole.to(plain.dtype), plain) and not (plain.signbit() & (whole == 0)).any():
                return value.to(kind)
            break
    if plain.dtype != torch.float32 or dtype == torch.float32:
        return value
    half = value.to(dtype)
    if torch.equal(plain.round(), plain) and not torch.equal(half.to(plain.dtype), plain):
        return value  # whole numbers that need all of float32: no integer type of half its size holds them
    if torch.isfinite(plain).all() and not torch.isfinite(half).all():
        most = max(high, -low)
        raise ValueError(f"{name!r} has values up to {most:g}, which float16 cannot hold: set cache_dtype to float32.")
    return half


def _gpu(device: torch.device, num_workers: int) -> torch.device:
    if device.type == "cpu":
        raise ValueError("cache is gpu, and the device is the CPU: set cache to memory.")
    if num_workers:
        raise ValueError("cache is gpu, which workers of a loader cannot read: set num_workers to 0.")
    return device


class _NotKept(Dataset):
    """Prepares items each time."""

    def __init__(self, data: Sequence[Any], prepare: _Prepare) -> None:
        super().__init__(data, ())
        self.prepare = prepare

    def _transform(self, index: int) -> Any:
        return self.prepare(self.data[index])


class _InMemory(CacheDataset):
    """MONAI's, of prepared items, which are handed out as they are kept."""

    def __init__(self, data: Sequence[Any], prepare: _Prepare, num_workers: int) -> None:
        self.prepare = prepare
        super().__init__(data, (), num_workers=num_workers, progress=False)

    def _load_cache_item(self, idx: int) -> Any:
        return self.prepare(self.data[idx])


def _choose(on_disk: _OnDisk) -> str:
    """The choice for `auto`, which the log explains."""
    count = len(on_disk.data)
    if count == 0:
        return "none"
    size = on_disk.size_of_first()
    is_made = size is not None
    if size is None:
        prepare, item = on_disk.prepare, on_disk.data[0]
        prepare.first = (item, prepare(item))
        size = _size(prepare.first[1])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * int(os.environ.get(RUNS_AT_ONCE, 1))
    size, memory, room, is_made = _agreed(size, available_memory(), _room(on_disk.folder), is_made)
    needed = f"{count} items of about {size_text(size)}, {size_text(size * count)}"
    needed += f" in each of {processes} processes" if processes > 1 else ""
    if memory is None or size * count * processes <= SHARE * memory:
        choice, why = "memory", "fit into half of the free memory"
    elif is_made or size * count <= SHARE * room:
        choice, why = "disk", f"are more than half of the free memory; files lie in {on_disk.folder}"
    else:
        choice = "none"
        why = f"are more than half of the free memory and of the {size_text(room)} free at {on_disk.folder}; "
        why += "each is prepared anew each time"
    if idist.get_rank() == 0:
        free = "" if memory is None else f", {size_text(memory)}"
        logger.info("cache: %s (%s, %s%s).", choice, needed, why, free)
    return choice


def _agreed(size: int, memory: int | None, room: int, is_made: bool) -> tuple[int, int | None, int, bool]:
    """What the choice follows from, alike in all processes of a run: the largest item, the least memory and room.

    Processes with choices of their own would fill a disk for some and the memory for others.
    """
    if idist.get_world_size() == 1:
        return size, memory, room, is_made
    own = torch.tensor([[-size, math.inf if memory is None else memory, room, is_made]], dtype=torch.float64)
    every = idist.all_gather(own)
    assert isinstance(every, torch.Tensor)
    least = every.cpu().amin(0).tolist()
    return -int(least[0]), None if math.isinf(least[1]) else int(least[1]), int(least[2]), bool(least[3])


def _size(value: Any) -> int:
    """Bytes of all tensors in a value."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_size, values))


def _room(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which may not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


class _OnDisk(_NotKept):
    """Prepared items in a folder, each in a file named by what it was made from."""

    def __init__(self, data: Sequence[Any], prepare: _Prepare, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(data, prepare)
        self.folder, self.settings = folder, settings
        self.transforms = ""
        self.keys: dict[int, str] = {}

    def key(self, index: int) -> str:
        if not self.transforms:
            self.transforms = transforms_key(self.prepare.transform.transforms[: self.prepare.end])
        if index not in self.keys:
            self.keys[index] = item_key(self.data[index], self.transforms, **self.settings)
        return self.keys[index]

    def path(self, index: int) -> Path:
        return self.folder / self.key(index)[:2] / f"{self.key(index)}.safetensors"

    def size_of_first(self) -> int | None:
        """Bytes of the first item's file; None where there is none."""
        try:
            return self.path(0).stat().st_size
        except (OSError, NotStorableError):
            return None

    def fill(self, num_workers: int) -> None:
        """Make what is missing or damaged. Processes of a run begin at different items, and check a part each."""
        rank, processes = idist.get_rank(), idist.get_world_size()
        began = time.perf_counter()
        count = len(self.data)
        with _to_be_kept():
            for index in range(count):
                self.key(index)
        order = [(number + rank * count // processes) % count for number in range(count)]
        with ThreadPool(max(1, num_workers)) as pool:
            made = sum(pool.imap(lambda index: self._ensure(index, index % processes == rank), order))
        took = time.perf_counter() - began
        logger.info("cache: %d of %d items made in %s, the others were there (%.1f s).", made, count, self.folder, took)

    def _transform(self, index: int) -> Any:
        index = index % len(self.data)
        try:
            return read_item(self.path(index), self.key(index))
        except (FileNotFoundError, StoredItemError):  # removed or damaged since
            self._ensure(index, True)
            return read_item(self.path(index), self.key(index))

    def _ensure(self, index: int, check: bool) -> bool:
        """Whether an item had to be made."""
        if self._is_there(index, check):
            return False
        path = self.path(index)
        with _writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.parent / ".lock")
            lock.acquire()
        try:
            if self._is_there(index, check):  # made while this process waited
                return False
            item = reset_ops_id(self.prepare(self.data[index]))
            with _writable(path), _to_be_kept():
                write_item(path, item, self.key(index), self.settings["slices_first"])
        finally:
            lock.release()
        return True

    def _is_there(self, index: int, check: bool) -> bool:
        path = self.path(index)
        try:
            read_item(path, self.key(index), check)
        except FileNotFoundError:
            return False
        except StoredItemError as error:
            logger.warning("cache: %s %s; it is made anew.", path, error)
            return False
        with suppress(OSError):  # a cache that may only be read
            os.utime(path)  # its last use, by which `common.cache` prunes
        return True


@contextmanager
def _to_be_kept() -> Iterator[None]:
    try:
        yield
    except NotStorableError as error:
        raise ValueError(f"cache is disk, and there is {error}, which it cannot keep: set cache to memory.") from None


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        advice = "set cache_dir to a folder with room, or cache to memory or none"
        raise OSError(error.errno, f"{path} could not be written ({os.strerror(error.errno)}): {advice}") from error
