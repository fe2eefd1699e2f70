from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    Identityd,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandomizableTrait,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    SpatialPadd,
    Transform,
)
from safetensors.torch import load_file

from common.data import cached_dataset
from common.data.cached_dataset import CachedDataset, restore
from common.memory import RUNS_AT_ONCE
from common.transforms import LabelIndicesd, LoadVolumed

BOTH = ["image", "label"]


@pytest.fixture
def items(tmp_path):
    draw = np.random.default_rng(0)
    made = []
    for number in range(3):
        names = {}
        for key, voxels in (
            ("image", draw.normal(100, 20, (14, 16, 12)).astype(np.float32)),
            ("label", draw.integers(0, 4, (14, 16, 12)).astype(np.uint8)),
        ):
            names[key] = str(tmp_path / f"{key}{number}.nii.gz")
            nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1.5, 2.0, 1.0])), names[key])
        made.append({**names, "subject": f"s{number}", "age": 30.5 + number})
    return made


def transforms(*random):
    return Compose(
        [
            LoadVolumed(BOTH, ensure_channel_first=True),
            Orientationd(BOTH, axcodes="RAS", labels=None),
            NormalizeIntensityd("image"),
            SpatialPadd("label", spatial_size=(20, 16, 16), value=-1),
            SpatialPadd("image", spatial_size=(20, 16, 16)),
            *random,
        ]
    )


def pos_neg():
    return [
        LabelIndicesd("label"),
        RandCropByPosNegLabeld(
            BOTH,
            "label",
            (8, 8, 8),
            num_samples=2,
            fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
        ),
        RandGaussianNoised("image", prob=0.5),
    ]


CROPS = {
    "crop": lambda: [RandSpatialCropd(BOTH, (8, 8, 8), random_size=False), RandGaussianNoised("image", prob=0.5)],
    "crops": lambda: [RandSpatialCropSamplesd(BOTH, (8, 8, 8), 2, random_size=False)],
    "positive": pos_neg,
    "whole": lambda: [RandGaussianNoised("image", prob=0.5)],
    "nothing": list,
}


def flat(value):
    """All that an item has, in a form that equality is of bits."""
    if isinstance(value, MetaTensor):
        return [flat(value.as_tensor()), flat(value.meta), flat(value.applied_operations)]
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        return [array.dtype.str, array.shape, array.tobytes()]
    if isinstance(value, dict):
        return {str(name): flat(one) for name, one in value.items() if name != "id"}
    if isinstance(value, list | tuple):
        return [flat(one) for one in value]
    return "NaN" if value != value else value


@pytest.mark.parametrize("crop", CROPS)
def test_all_choices_give_what_monai_gives_to_the_bit(items, tmp_path, crop):
    def drawn(dataset):
        set_rnd(dataset, 7)
        return [flat(dataset[number]) for number in (2, 0, 1, 0)]

    expected = drawn(CacheDataset(items, transforms(*CROPS[crop]()), progress=False))
    for cache in ("memory", "disk", "disk", "none", "auto"):
        dataset = CachedDataset(items, transforms(*CROPS[crop]()), cache, cache_dir=tmp_path / "cache")
        assert drawn(dataset) == expected, cache


def test_batches_of_workers_are_alike(items, tmp_path):
    def batches(cache):
        dataset = CachedDataset(items, transforms(*pos_neg()), cache, cache_dir=tmp_path / "cache")
        torch.manual_seed(3)
        return [flat(dict(batch)) for batch in DataLoader(dataset, batch_size=1, shuffle=True, num_workers=1)]

    assert batches("memory") == batches("disk") == batches("none")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_transforms_do_to_an_item_does_not_reach_the_cache(items, tmp_path, cache):
    def spoil(image):
        image.meta["filename_or_obj"] = "spoilt"
        image.applied_operations[0]["extra_info"]["spoilt"] = True
        return image.zero_()

    before = CachedDataset(items, transforms(), cache, cache_dir=tmp_path / "cache")
    expected = flat(before[0])
    spoilt = Compose([*transforms().transforms, lambda item: item | {"image": spoil(item["image"])}])
    dataset = CachedDataset(items, spoilt, cache, cache_dir=tmp_path / "cache")
    assert dataset[0]["image"].max() == 0
    assert flat(restore(dataset.stored(0))) == expected
    assert flat(before[0]) == expected


def test_the_smallest_types(items, tmp_path):
    dataset = CachedDataset(items, transforms(*pos_neg()), "disk", cache_dir=tmp_path)
    kept = dataset.stored(0)
    types = {name: kept[name].dtype for name in (*BOTH, "label_fg_indices")}
    assert types == {"image": torch.float32, "label": torch.int8, "label_fg_indices": torch.int32}
    assert restore(kept)["label"].dtype == torch.float32 and restore(kept)["label_fg_indices"].dtype == torch.int64
    values = {
        torch.uint8: [0.0, 255.0],
        torch.int16: [-200.0, 255.0],
        torch.float32: [-0.0, 1.0],  # which no integer is
    }
    for kind, (low, high) in values.items():
        image = torch.full((1, 8, 16, 16), high)
        image[0, 0] = low
        kept = CachedDataset([{"image": image}], [Identityd("image")], "memory").stored(0)["image"]
        assert kept.dtype == kind


def test_float16_is_a_choice_and_gives_the_same_wherever_images_are_kept(items, tmp_path):
    made = [CachedDataset(items, transforms(), c, "float16", tmp_path)[0] for c in ("memory", "disk", "none")]
    exact = CachedDataset(items, transforms(), "none")[0]
    assert flat(made[0]) == flat(made[1]) == flat(made[2]) != flat(exact)
    assert torch.equal(made[0]["image"], exact["image"].half().float()) and torch.equal(
        made[0]["label"], exact["label"]
    )
    large = [{"image": torch.linspace(0, 1e5, 2048).view(1, 2, 32, 32)}]
    with pytest.raises(ValueError, match="'image' has values up to 100000, which float16 cannot hold: set cache_dtype"):
        CachedDataset(large, [Identityd("image")], "none", "float16")[0]


@pytest.mark.parametrize("highest", [2049.0, 32_768.0, 65_535.0, 2.0**24])
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_float16_does_not_round_whole_numbers(tmp_path, highest, cache):
    image = torch.arange(2048.0).view(1, 2, 32, 32)
    image[0, 0, 0, :3] = torch.tensor([highest, highest - 1, -0.0])
    made = CachedDataset([{"image": image}], [Identityd("image")], cache, "float16", tmp_path)[0]["image"]
    assert made.dtype == image.dtype and torch.equal(made, image) and torch.equal(made.signbit(), image.signbit())


def test_a_crop_of_the_disk_reads_the_crop(items, tmp_path):
    """Memory that a process has of a mapped file are the pages that were touched."""
    image = torch.rand(1, 128, 128, 128)
    for crop, most in ((RandSpatialCropd("image", (16, 16, 16), random_size=False), 3e6), (Identityd("image"), 9e6)):
        dataset = CachedDataset([{"image": image}], Compose([Identityd("image"), crop]), "disk", cache_dir=tmp_path)
        item = dataset.transform(dataset.stored(0), start=dataset.first_random, end=dataset.after_crops)
        resident = mapped(tmp_path)
        assert resident < most
        restore(item)
    assert resident == 0 and dataset.stored(0) is not None
    kept = dataset.stored(0)
    kept["image"].sum()
    assert mapped(tmp_path) > 8e6


def mapped(folder):
    """Bytes of files of a folder that are in this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found, inside = 0, False
    for line in lines:
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def count_loads(monkeypatch):
    loads = []
    call = LoadVolumed.__call__
    monkeypatch.setattr(LoadVolumed, "__call__", lambda self, item: loads.append(item["subject"]) or call(self, item))
    return loads


def test_files_are_made_once_for_the_same_transforms_and_scans(items, tmp_path, monkeypatch):
    loads = count_loads(monkeypatch)

    def loaded(items, transform, *arguments):
        loads.clear()
        CachedDataset(items, transform, "disk", *arguments, cache_dir=tmp_path / "cache")[0]
        return sorted(loads)

    assert loaded(items, transforms()) == ["s0", "s1", "s2"]
    assert loaded(items[::-1], transforms(*CROPS["crop"]())) == []  # what is random is not kept
    used = transforms()
    used(items[2])
    assert loaded(items, used) == []  # what a transform keeps once it ran is no setting
    assert loaded(items, transforms(*pos_neg())) == ["s0", "s1", "s2"]
    other = transforms()
    other.transforms[2].normalizer.nonzero = True
    assert loaded(items, other) == ["s0", "s1", "s2"]
    assert loaded(items, transforms(), "float16") == ["s0", "s1", "s2"]
    os.utime(items[1]["label"], ns=(1, 1))
    assert loaded(items, transforms()) == ["s1"]


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "header", "other"])
def test_damaged_files_are_made_anew(items, tmp_path, monkeypatch, caplog, damage):
    dataset = CachedDataset(items, transforms(), "disk", cache_dir=tmp_path / "cache")
    expected = [flat(dataset[number]) for number in range(3)]
    path, other = dataset.kept.path(0), dataset.kept.path(1)
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-1000] ^= 1
    elif damage == "header":
        content[20] ^= 255
    path.write_bytes({"cut": content[:-1], "empty": b"", "other": other.read_bytes()}.get(damage, content))
    loads = count_loads(monkeypatch)
    again = CachedDataset(items, transforms(), "disk", cache_dir=tmp_path / "cache")
    assert loads == ["s0"] and f"{path} " in caplog.text and "is made anew" in caplog.text
    assert [flat(again[number]) for number in range(3)] == expected


def test_no_bit_of_the_header_can_change_unnoticed(items, tmp_path, caplog):
    """The header holds affines, metadata, operations and small arrays; a bit of each byte in turn, evenly spread."""
    folder = tmp_path / "cache"
    dataset = CachedDataset(items[:1], transforms(), "disk", cache_dir=folder)
    expected, path = flat(dataset[0]), dataset.kept.path(0)
    whole = path.read_bytes()
    end = len(whole[: 8 + int.from_bytes(whole[:8], "little")].rstrip())
    positions = [*range(8), *range(8, end, -(-end // 120)), end - 1, end]
    for number, position in enumerate(positions):
        content = bytearray(whole)
        content[position] ^= 1 << number % 8
        path.write_bytes(content)
        caplog.clear()
        if number % 2:  # damaged during a run
            assert flat(dataset[0]) == expected, position
        assert flat(CachedDataset(items[:1], transforms(), "disk", cache_dir=folder)[0]) == expected, position
        assert f"{path} has " in caplog.text and path.read_bytes() == whole, position


def test_files_of_the_version_without_a_checksum_of_the_header_are_made_anew(items, tmp_path, caplog):
    dataset = CachedDataset(items[:1], transforms(), "disk", cache_dir=tmp_path / "cache")
    expected, path = flat(dataset[0]), dataset.kept.path(0)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = {"record": header["__metadata__"]["record"]}
    header = {name: header[name] for name in sorted(header)}  # the metadata were last
    path.write_bytes(whole[:8] + json.dumps(header).encode().ljust(length) + whole[8 + length :])
    assert flat(CachedDataset(items[:1], transforms(), "disk", cache_dir=tmp_path / "cache")[0]) == expected
    assert f"{path} has no header that can be read; it is made anew." in caplog.text and path.read_bytes() == whole


def test_other_programs_can_open_the_files(items, tmp_path):
    dataset = CachedDataset(items[:1], transforms(), "disk", cache_dir=tmp_path)
    arrays = load_file(dataset.kept.path(0))
    shapes = {tuple(array.shape) for array in arrays.values()}
    assert shapes == {tuple(dataset[0][key].shape) for key in BOTH}


def test_files_that_are_removed_during_a_run_are_made_anew(items, tmp_path):
    dataset = CachedDataset(items, transforms(), "disk", cache_dir=tmp_path / "cache")
    expected = flat(dataset[0])
    dataset.kept.path(0).unlink()
    assert flat(dataset[0]) == expected and dataset.kept.path(0).is_file()


def test_a_full_disk_is_one_sentence(items, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"\.safetensors could not be written \(No space left on device\): set cache_dir"):
        CachedDataset(items, transforms(), "disk", cache_dir=tmp_path / "cache")
    end = time.monotonic() + 10
    while list((tmp_path / "cache").rglob("*.tmp*")) and time.monotonic() < end:
        time.sleep(0.05)  # the other writers end after the first that failed
    assert not list((tmp_path / "cache").rglob("*.tmp*"))


def test_a_missing_scan_is_not_taken_for_a_full_disk(items, tmp_path):
    os.remove(items[1]["image"])
    with pytest.raises(RuntimeError, match="applying transform"):
        CachedDataset(items, transforms(), "disk", cache_dir=tmp_path / "cache")


class Slow(Transform):
    """Makes an item of its number, which it logs. What a process sets of the class is no part of the cache's key."""

    log: Path
    pause: float

    def __call__(self, item):
        with self.log.open("a") as file:
            file.write(str(item["number"]))
        time.sleep(self.pause)
        return item | {"image": torch.full((1, 64, 64, 64), item["number"] + 0.5)}


def build(folder: Path, result: Path, pause: float, dies: bool) -> None:
    fsync, calls = os.fsync, []

    def die(file):
        calls.append(file)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    if dies:
        os.fsync = die
    Slow.log, Slow.pause = folder / "log", pause
    items = [{"number": number} for number in range(4)]
    made = CachedDataset(items, Compose([Slow()]), "disk", cache_dir=folder / "cache")
    result.write_text(str([made[number]["image"].unique().tolist() for number in range(4)]))


def start(tmp_path, pause=0.2, dies=False):
    """A process that builds the cache, and where it writes what it finds there. A fork, which has nothing to import."""
    result = tmp_path / f"result-{len(list(tmp_path.glob('result-*')))}"
    result.touch()
    process = multiprocessing.get_context("fork").Process(target=build, args=(tmp_path, result, pause, dies))
    process.start()
    return process, result


def ended(process, result) -> str:
    process.join(300)
    return result.read_text()


MADE = "[[0.5], [1.5], [2.5], [3.5]]"


def test_two_processes_that_build_at_once_make_each_item_once(tmp_path):
    for one in [start(tmp_path) for _ in range(2)]:
        assert ended(*one) == MADE
    assert sorted((tmp_path / "log").read_text()) == list("0123")


def test_a_killed_process_loses_the_item_that_it_made_alone(tmp_path):
    process, _ = start(tmp_path, pause=0.5)
    while not (tmp_path / "log").is_file() or len((tmp_path / "log").read_text()) < 3:
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    (tmp_path / "log").unlink()
    assert ended(*start(tmp_path, pause=0)) == MADE
    assert (tmp_path / "log").read_text() == "23"


def test_kill_9_while_a_file_is_written_loses_that_file_alone(tmp_path):
    process, result = start(tmp_path, 0, dies=True)
    assert ended(process, result) == "" and process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert len(list((tmp_path / "cache").rglob(".*.tmp-*"))) == 1
    (tmp_path / "log").unlink()
    assert ended(*start(tmp_path, 0)) == MADE
    assert (tmp_path / "log").read_text() == "123"


@pytest.mark.parametrize(
    ("memory", "room", "processes", "choice"),
    [
        (1e9, 1e9, 1, "memory"),
        (3e5, 1e9, 1, "memory"),
        (3e5, 1e9, 8, "disk"),
        (1e4, 1e9, 1, "disk"),
        (1e4, 1e4, 1, "none"),
    ],
)
def test_the_default_is_what_fits_and_the_log_says_why(
    items, tmp_path, monkeypatch, caplog, memory, room, processes, choice
):
    monkeypatch.setattr(cached_dataset, "available_memory", lambda: memory)
    monkeypatch.setattr(cached_dataset, "_room", lambda folder: room)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    loads = count_loads(monkeypatch)
    caplog.set_level(logging.INFO)
    assert CachedDataset(items, transforms(), cache_dir=tmp_path / "cache").cache == choice
    assert f"cache: {choice} (3 items of about 0.0 MB, 0.1 MB" in caplog.text
    assert len(loads) == (1 if choice == "none" else 3)  # the first is not loaded twice
    if choice == "disk":
        loads.clear()
        monkeypatch.setattr(cached_dataset, "_room", lambda folder: 0)
        assert CachedDataset(items, transforms(), cache_dir=tmp_path / "cache").cache == "disk" and loads == []


def choose_on_a_rank(rank: int, folder: Path, memory: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    idist.sync()
    cached_dataset.available_memory = lambda: memory
    items = [{"image": torch.rand(1, 16, 16, 16)} for _ in range(2)]
    made = CachedDataset(items, Compose([Identityd("image")]), "auto", cache_dir=folder / "cache")
    (folder / f"choice-{rank}").write_text(made.cache)
    dist.destroy_process_group()


@pytest.mark.parametrize("poor", [0, 1])
def test_processes_of_a_run_choose_alike(tmp_path, poor):
    """One has memory for the set, the other has not."""
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(2):
        arguments = (rank, tmp_path, 1000 if rank == poor else 10**9)
        started.append(context.Process(target=choose_on_a_rank, args=arguments))
        started[-1].start()
    for process in started:
        process.join(60)
    assert [(tmp_path / f"choice-{rank}").read_text() for rank in range(2)] == ["disk", "disk"]


def test_runs_at_a_time_share_the_memory(items, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cached_dataset, "available_memory", lambda: 10**6)
    for runs, choice in ((1, "memory"), (8, "disk")):
        monkeypatch.setenv(RUNS_AT_ONCE, str(runs))
        assert CachedDataset(items, transforms(), cache_dir=tmp_path / "cache").cache == choice
    assert "0.1 MB in each of 8 processes, are more than half of the free memory" in caplog.text


def test_images_are_kept_on_the_device():
    items = [{"image": torch.rand(1, 16, 16, 16)}]
    crop = [Identityd("image"), RandSpatialCropd("image", (8, 8, 8), random_size=False)]
    dataset = CachedDataset(items, crop, "gpu", device="meta")
    assert dataset[0]["image"].device.type == "meta" and dataset[0]["image"].shape == (1, 8, 8, 8)


class Where(Transform, RandomizableTrait):
    """Notes where images are, and their size."""

    def __call__(self, item):
        return item | {"where": (item["image"].device.type, tuple(item["image"].shape))}


def test_items_move_to_the_device_between_crop_and_augmentation():
    crop = RandSpatialCropSamplesd("image", (8, 8, 8), 2, random_size=False)
    items = [{"image": torch.rand(1, 16, 16, 16), "subject": "s0"}]
    for augment_on, device in (("cpu", "cpu"), ("device", "meta")):
        transform = Compose([Identityd("image"), crop, Where()])
        dataset = CachedDataset(items, transform, "memory", device="meta", augment_on=augment_on)
        assert [one["where"] for one in dataset[0]] == [(device, (1, 8, 8, 8))] * 2
        assert dataset[0][0]["subject"] == "s0" and dataset.stored(0)["image"].device.type == "cpu"


@pytest.mark.parametrize("crop", CROPS)
def test_augmentation_on_the_device_draws_the_same(items, crop):
    found = []
    for augment_on in ("cpu", "device"):
        dataset = CachedDataset(items, transforms(*CROPS[crop]()), "memory", augment_on=augment_on)
        set_rnd(dataset, 7)
        found.append([flat(dataset[number]) for number in (2, 0, 1, 0)])
    assert found[0] == found[1]


def test_refusals(tmp_path):
    image = {"image": torch.zeros(1, 4, 4, 4)}
    crop = [Identityd("image")]
    with pytest.raises(ValueError, match=r"cache is 'ram': give one of auto, memory"):
        CachedDataset([image], crop, "ram")
    with pytest.raises(ValueError, match="augment_on is 'gpu': give cpu or device"):
        CachedDataset([image], crop, augment_on="gpu")
    with pytest.raises(ValueError, match="augment_on is device, where workers of a loader cannot compute: set num_w"):
        CachedDataset([image], crop, num_workers=2, augment_on="device")
    with pytest.raises(ValueError, match="cache_dtype is 'int8'"):
        CachedDataset([image], crop, cache_dtype="int8")
    with pytest.raises(ValueError, match="the device is the CPU: set cache to memory"):
        CachedDataset([image], crop, "gpu", num_workers=0)
    with pytest.raises(ValueError, match="workers of a loader cannot read: set num_workers to 0"):
        CachedDataset([image], crop, "gpu", num_workers=1, device="cuda")
    with pytest.raises(ValueError, match=r"a value of type builtins.object, which it cannot keep: set cache"):
        CachedDataset([{"image": torch.zeros(1), "x": object()}], crop, "disk", cache_dir=tmp_path)
