from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandFlipd, RandRotate90d, Transform

from common.data import cached_dataset
from common.data.windows import SliceWindows, cut_window

DEPTHS = (6, 2)


def load(item):
    """A volume whose voxels are the number of their slice, plus 100 a volume; the label has the number alone."""
    number = torch.arange(DEPTHS[item["id"]]).float().expand(1, 2, 3, -1)
    return item | {"image": number + 100 * item["id"], "label": number.clone()}


def windows(**arguments):
    return SliceWindows([{"id": 0}, {"id": 1}], load, **({"slices": 5} | arguments))


def values(image):
    assert (image == image[:, :1, :1]).all()
    return image[0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("stride", "index", "expected"),
    [
        (1, 0, [0, 0, 0, 1, 2]),
        (1, 3, [1, 2, 3, 4, 5]),
        (1, 5, [3, 4, 5, 5, 5]),
        (2, 3, [0, 1, 3, 5, 5]),
        (2, 0, [0, 0, 0, 2, 4]),
        (1, 7, [100, 100, 101, 101, 101]),
    ],
)
def test_neighbours_with_repeated_ends(stride, index, expected):
    item = windows(stride=stride)[index]
    assert values(item["image"]) == expected
    assert values(item["label"]) == [expected[2] % 100]
    assert item["id"] == int(index > 5)


def test_one_window_a_slice_in_order():
    data = windows()
    assert len(data) == sum(DEPTHS)
    assert data.windows == [{"volume": v, "slice": i} for v, depth in enumerate(DEPTHS) for i in range(depth)]
    assert [values(data[i]["image"])[2] for i in range(len(data))] == [0, 1, 2, 3, 4, 5, 100, 101]


def test_windows_lie_where_their_slices_do():
    affine = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 8, 7], [0, 0, 0, 1]], dtype=torch.float64)

    def track(item):
        return item | {key: MetaTensor(value, affine=affine) for key, value in load(item).items() if key != "id"}

    data = SliceWindows([{"id": 0}], track, slices=3, stride=2)
    item = data[3]
    for key, numbers in (("image", (1, 3, 5)), ("label", (3,))):
        for k, number in enumerate(numbers):
            lies, expected = (
                a @ torch.tensor([1.0, 2.0, z, 1.0], dtype=a.dtype)
                for a, z in ((item[key].affine, k), (affine, number))
            )
            torch.testing.assert_close(lies, expected)
    flip = RandFlipd(["image", "label"], prob=1.0, spatial_axis=0)
    flipped = SliceWindows([{"id": 0}], track, slices=3, window_transform=flip)
    assert torch.equal(flipped[3]["image"].affine, torch.eye(4, dtype=torch.float64))  # it does not follow flips


def test_targets():
    assert values(windows(target="all")[2]["label"]) == [0, 1, 2, 3, 4]
    assert windows(slices=1)[2]["image"].shape == (1, 2, 3, 1)


def test_transforms_see_the_window_that_is_cut_and_leave_the_cache_alone():
    seen = []

    def transform(item):
        seen.append(tuple(item["image"].shape))
        return item | {"image": item["image"] * 0 - 1}

    data = windows(slices=1, cut_slices=5, window_transform=transform)
    before = data.volumes[0]["image"].clone()
    assert data[3]["image"].shape == (1, 2, 3, 1) and (data[3]["image"] == -1).all()
    assert seen == [(1, 2, 3, 5)] * 2
    assert torch.equal(data.volumes[0]["image"], before)


def test_image_and_label_are_flipped_alike():
    data = windows(target="all", window_transform=RandFlipd(["image", "label"], prob=1.0, spatial_axis=2))
    item = data[3]
    assert values(item["image"]) == values(item["label"]) == [5, 4, 3, 2, 1]


def test_images_without_labels():
    data = SliceWindows([{"id": 0}], load, slices=1, keys=["image"])
    assert values(data[4]["image"]) == [4]
    assert data[4]["label"].shape[-1] == 6  # passed on


def test_volumes_that_are_not_cached():
    cached, loaded = windows(), windows(cache="none")
    assert all(torch.equal(cached[i]["image"], loaded[i]["image"]) for i in range(len(cached)))


class Load(Transform):
    """A volume of 256 slices of 4 KB and its label, as a deterministic transform."""

    def __call__(self, item):
        image = torch.arange(256.0).expand(1, 32, 32, -1) + 0.25
        return item | {"image": MetaTensor(image.clone()), "label": MetaTensor((image % 3).floor())}


@pytest.mark.parametrize(("room", "slow"), [(1e9, False), (0, True)])
def test_a_warning_says_that_each_window_prepares_its_volume(tmp_path, monkeypatch, caplog, room, slow):
    """Also where nobody asked for ``none``, since nothing else has room."""
    monkeypatch.setattr(cached_dataset, "available_memory", lambda: 0)
    monkeypatch.setattr(cached_dataset, "_room", lambda folder: room)
    caplog.set_level("INFO")
    SliceWindows([{"id": 0}], Load(), cache="auto", cache_dir=tmp_path)
    assert ("cache is none, so each window loads and prepares a whole volume: set cache to disk" in caplog.text) == slow
    assert ("; each is prepared anew each time" in caplog.text) == slow


@pytest.mark.parametrize("transform", [None, RandFlipd(["image", "label"], prob=0.5, spatial_axis=2)])
def test_windows_are_the_same_wherever_volumes_are_kept(tmp_path, transform):
    def made(cache):
        data = SliceWindows([{"id": 0}], Load(), window_transform=transform, cache=cache, cache_dir=tmp_path)
        set_rnd(data, 3)
        return [data[i] for i in (0, 7, 255)]

    for memory, disk, none in zip(*map(made, ("memory", "disk", "none")), strict=True):
        assert memory.keys() == disk.keys() == none.keys() == {"id", "image", "label"}
        for key in ("image", "label"):
            assert memory[key].dtype == torch.float32 and torch.equal(memory[key].affine, disk[key].affine)
            assert torch.equal(memory[key], disk[key]) and torch.equal(memory[key], none[key])


def test_a_window_from_disk_reads_its_slices(tmp_path, monkeypatch):
    loads = []
    call = Load.__call__
    monkeypatch.setattr(Load, "__call__", lambda self, item: loads.append(1) or call(self, item))
    data = SliceWindows([{"id": 0}], Load(), cache="disk", cache_dir=tmp_path)
    assert len(loads) == 1
    volume = data._volume(0)
    cut_window(volume["image"], 100, 5)
    resident = 0
    for block in Path("/proc/self/smaps").read_text().split("VmFlags")[:-1]:
        if str(tmp_path) in block:
            resident += 1024 * int(re.search(r"\nRss: +(\d+)", block)[1])
    assert 5 * 4096 <= resident < 0.5 * volume["image"].nbytes  # whole volumes are read without slices_first
    assert data[100]["image"].unique().tolist() == [98.25, 99.25, 100.25, 101.25, 102.25] and len(loads) == 1


def test_refusals():
    for arguments in ({"slices": 4}, {"slices": 5, "cut_slices": 3}, {"stride": 0}):
        with pytest.raises(ValueError, match="must be odd"):
            windows(**arguments)
    with pytest.raises(ValueError, match="'centre' or 'all'"):
        windows(target="center")


def test_transforms_that_leave_too_few_slices():
    data = windows(window_transform=lambda item: item | {"image": item["image"][..., :2]})
    with pytest.raises(ValueError, match="leave 2 slices of image, but 5 are needed: pad"):
        data[3]


def test_quarter_turns_want_square_slices():
    turn, flip = RandRotate90d(["image", "label"]), RandFlipd(["image", "label"])
    for transform in (turn, Compose([flip, Compose([turn])])):
        with pytest.raises(ValueError, match=r"slices of 2 x 3 are turned by quarters .*image_size"):
            windows(window_transform=transform)
    windows(window_transform=Compose([flip]))


def test_cut_window_keeps_other_axes():
    volume = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(cut_window(volume, 1, 3), volume[..., 0:3])
