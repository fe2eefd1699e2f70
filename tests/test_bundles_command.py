"""The bundles that the package carries: found, listed, copied, and in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.bundles import BundleError, bundle_folder, bundle_names, copy, find_bundle

ROOT = Path(__file__).resolve().parents[1]


def test_bundles_are_found_by_name():
    assert bundle_names() == sorted(path.parent.name for path in ROOT.glob("bundles/*/configs"))
    assert bundle_folder("med3d") == ROOT / "bundles" / "med3d"
    with pytest.raises(BundleError, match=r"no bundle 'med3'; the bundles are med3d, "):
        bundle_folder("med3")


def test_a_folder_goes_before_the_name_of_a_bundle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_bundle("med3d") == ROOT / "bundles" / "med3d"
    assert find_bundle("none") == tmp_path / "none"  # whoever asked says what is wrong with it
    (tmp_path / "med3d").mkdir()
    assert find_bundle("med3d") == tmp_path / "med3d"


def test_a_copy_holds_what_belongs_to_the_bundle_and_replaces_nothing(tmp_path, capsys):
    copy("ssl3d", str(tmp_path))
    source = ROOT / "bundles" / "ssl3d"
    assert (tmp_path / "ssl3d" / "configs" / "train.json").read_bytes() == (source / "configs/train.json").read_bytes()
    assert {path.name for path in (tmp_path / "ssl3d").iterdir()} >= {"LICENSE", "docs", "compare.json"}
    with pytest.raises(BundleError, match="exists: choose another folder"):
        copy("ssl3d", str(tmp_path))


@pytest.mark.slow
def test_the_wheel_has_the_bundles_and_nothing_that_runs_wrote(tmp_path):
    """Built as a user's pip does, and looked up from within."""
    project = tmp_path / "project"  # pip builds in place
    for name in ("common", "bundles"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "bundles" / "med3d" / "models").mkdir(exist_ok=True)
    (project / "bundles" / "med3d" / "models" / "model.pt").touch()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*command, "--wheel-dir", str(tmp_path), str(project)], capture_output=True, text=True)
    if "No module named 'setuptools'" in built.stderr:
        pytest.skip("setuptools is not installed here, and pip would fetch it")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    for name in bundle_names():
        assert f"common/bundle_files/{name}/configs/train.json" in names
    assert not [name for name in names if "/models/" in name or name.endswith((".pt", ".ckpt", ".pyc"))]
    code = "import common.bundles as b; print(b.bundle_folder('med3d'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "site" / "common" / "bundle_files" / "med3d")
