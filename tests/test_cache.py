"""The command that shows and prunes cached volumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from monai.transforms import Compose, Identityd

from common.cache import CacheError, kept_volumes, parse_size, prune, show
from common.command_line import UsageError
from common.data import CachedDataset
from common.files import volumes_folder

DAY = 86_400


def dataset(folder, numbers=(0, 1, 2)):
    items = [{"image": torch.full((1, 16, 16, 16), number + 0.5)} for number in numbers]
    return CachedDataset(items, Compose([Identityd("image")]), "disk", cache_dir=folder)


@pytest.fixture
def made(tmp_path):
    """A cache of three volumes, last used 3, 10 and 40 days ago."""
    data = dataset(tmp_path)
    for number, days in enumerate((10, 40, 3)):
        os.utime(data.kept.path(number), (0, time.time() - days * DAY))
    return data


def there(data):
    return [data.kept.path(number).exists() for number in range(3)]


def test_sizes():
    sizes = {"50GB": 5 * 10**10, "1.5 tb": 15 * 10**11, "800M": 8 * 10**8, "0": 0, "20000": 20000, "2kB": 2000}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "GB", "-1GB", "5 GiB", "5EB", "ten"):
        with pytest.raises(UsageError, match=f"--keep {text}: give a size, such as 50GB"):
            parse_size(text)


def test_what_was_not_used_for_longest_goes_first(made, tmp_path, capsys):
    size = made.kept.path(0).stat().st_size
    assert [one.path for one in kept_volumes(tmp_path)] == [made.kept.path(number) for number in (1, 0, 2)]
    prune(str(3 * size), str(tmp_path))
    assert there(made) == [True, True, True]
    prune(str(3 * size - 1), str(tmp_path))
    assert there(made) == [True, False, True]
    prune(str(size), str(tmp_path))
    assert there(made) == [False, False, True]
    prune("0", str(tmp_path))
    assert there(made) == [False] * 3
    assert "removed 1 volume, 0.0 MB; 2 volumes, 0.0 MB stay" in capsys.readouterr().out


def test_a_run_that_begins_uses_its_volumes(made, tmp_path):
    dataset(tmp_path, (1,))  # the one of 40 days ago
    assert kept_volumes(tmp_path)[-1].path == made.kept.path(1)
    assert kept_volumes(tmp_path)[-1].used > time.time() - 60


def test_a_run_goes_on_while_its_volumes_are_removed(made, tmp_path):
    item = made[0]
    held = made.stored(1)["image"]
    prune("0", str(tmp_path))
    assert held.unique().tolist() == [1.5] and made[0]["image"].equal(item["image"]) and there(made)[0]


def test_other_files_stay(made, tmp_path):
    folder = made.kept.path(0).parent
    others = [tmp_path / "notes.txt", folder / "mine.safetensors", folder / f".{made.kept.path(0).name}.tmp-0-1-a"]
    for one in others:
        one.touch()
    old = folder / f".{made.kept.path(0).name}.tmp-0-1-b"  # what a killed process left, days ago
    old.touch()
    os.utime(old, (0, time.time() - 3 * DAY))
    prune("0", str(tmp_path))
    assert all(one.exists() for one in others) and not old.exists()


def test_show(made, tmp_path, capsys):
    show(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}: 3 volumes, 0.1 MB, ") and lines[0].endswith(" free on its disk")
    assert [line.strip() for line in lines[1:]] == [
        "last used within a week: 1 volume, 0.0 MB",
        "last used within 30 days: 1 volume, 0.0 MB",
        "before: 1 volume, 0.0 MB",
    ]


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(CacheError, match="no/such is no folder: give the cache_dir of your runs"):
        show("no/such")
    data = dataset(tmp_path)

    def refuse(self, missing_ok):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(CacheError, match=r"cannot be removed \(Permission denied\): prune as the user who made it"):
        prune("0", str(tmp_path))
    assert all(there(data))


def test_the_folder_is_that_of_runs_and_may_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    show()
    assert "0 volumes, 0.0 MB" in capsys.readouterr().out
    data = dataset(None)
    assert data.kept.path(0).is_relative_to(volumes_folder()) and len(kept_volumes(volumes_folder())) == 3


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "common.cache", "prune", "--cache_dir", str(tmp_path)]
    ended = subprocess.run([*command, "--keep", "many"], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith("error: --keep many: give a size")
    ended = subprocess.run([*command, "--keep", "50GB"], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.endswith("removed 0 volumes, 0.0 MB; 0 volumes, 0.0 MB stay\n")
