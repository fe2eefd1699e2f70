"""Predictions in files: the same values, no memory, no files left, and memory where there is no disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from common import gathered
from common.gathered import drop_pages
from common.gathered import gathered as make
from common.inferers import MirroredSlidingWindowInferer, ResizedInferer, SliceWindowInferer, TwoStageInferer

SHAPE = (1, 1, 12, 10, 9)


def scores(image):
    return torch.cat((image.tanh(), image.roll(1, 2), -image), dim=1)


def two_stage():
    return TwoStageInferer(3, torch.nn.Identity(), lambda image, _: scores(image - 1), lambda image, net: net(image))


INFERERS = {
    "mirrored": lambda: MirroredSlidingWindowInferer((4, 5, 6), 2, overlap=0.5, mode="gaussian", mirror_axes=(0, 2)),
    "slices": lambda: SliceWindowInferer(5, chunk=3),
    "resized": lambda: ResizedInferer((6, 6, 6)),
    "two stages": two_stage,
}


def slices(image):
    return scores(image)[..., 2:-2]


@pytest.mark.parametrize("name", INFERERS)
def test_every_inferer_predicts_the_same_in_a_file(name, monkeypatch):
    torch.manual_seed(0)
    image = torch.randn(SHAPE)
    network = slices if name == "slices" else scores
    expected = INFERERS[name]()(image, network)
    monkeypatch.setattr(gathered, "FILE_BYTES", 1)
    found = INFERERS[name]()(image, network)
    assert torch.equal(found, expected)
    assert gathered._files


RESIDENT = """
import os, torch
from common.gathered import drop_pages, gathered
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
made = gathered((8, 64, 64, 4096))
before = resident()
for part in made:
    part.fill_(3)
full = resident() - before
drop_pages(made)
print(full, resident() - before, bool((made[5] == 3).all()))
"""


def test_dropped_pages_take_no_memory_and_keep_their_values(tmp_path):
    full, dropped, same = subprocess.run(
        [sys.executable, "-c", RESIDENT],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert int(full) > 500e6
    assert int(dropped) < 50e6
    assert same == "True"
    assert not list(tmp_path.iterdir())


def test_small_predictions_stay_in_memory():
    made = make((2, 3, 4))
    assert not made.any()
    assert not gathered._files
    drop_pages(made)


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_without_room_on_the_disk_it_is_in_memory(folder, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gathered, "FILE_BYTES", 1)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("" if folder == "full" else "missing")))
    if folder == "full":
        monkeypatch.setattr(os, "posix_fallocate", full)
    made = make((2, 3, 4))
    made += 1
    assert not gathered._files
    assert "set TMPDIR to a folder with room" in caplog.text
    assert str(tmp_path) in caplog.text


def test_a_gpu_without_room_leaves_it_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 10))
    assert make((2, 3), device="cuda").device.type == "cpu"
