from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from common import doctor

ROOT = Path(__file__).resolve().parents[1]


def installed(versions: dict[str, str]):
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    return version


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"monai": "1.6.1", "torch": "2.13.0+cpu"}, []),
        ({"monai": "1.7.0rc1", "torch": "2.10.0"}, []),
        ({"monai": "1.10.0", "torch": "3.0"}, []),
        ({"monai": "1.5.2", "torch": "2.10"}, ["monai 1.5.2 is installed, but this collection needs monai>=1.6.1"]),
        ({"torch": "2.10"}, ["monai is not installed; run `pip install 'monai>=1.6.1'`."]),
        ({"torch": "2.9.1+cu128"}, ["monai is not installed", "torch 2.9.1+cu128 is installed"]),
    ],
)
def test_version_problems(versions, expected):
    needed = [Requirement(text) for text in ("monai>=1.6.1", "torch>=2.10", 'pytest>=8; extra == "dev"')]
    problems = doctor.version_problems(needed, installed(versions))
    assert len(problems) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(problems, expected, strict=True))


@pytest.mark.parametrize("version", ["0.7.0", "0.8.5", "0.8.7", "0.8.8rc1"])
def test_a_monai_label_that_is_open_to_attacks(version):
    warning = doctor.label_warning(installed({"monailabel": version}))
    assert warning.startswith(f"monailabel {version} lets anybody who reaches its server run code")
    assert "monailabel>=0.8.8" in warning and "--host 127.0.0.1" in warning


@pytest.mark.parametrize("versions", [{}, {"monailabel": "0.8.8"}, {"monailabel": "0.9.0"}, {"monailabel": "0.8.10"}])
def test_no_warning_of_a_monai_label_that_is_safe(versions):
    assert doctor.label_warning(installed(versions)) is None


def test_no_pin_keeps_a_user_on_an_unsafe_monai_label():
    lines = (ROOT / "demo/label_constraints.txt").read_text() + (ROOT / "tests/monai_label.txt").read_text()
    pins = [Requirement(line) for line in doctor._requirement_lines(lines) if line.startswith("monailabel")]
    pins += [requirement for requirement in doctor.requirements() if requirement.name == "monailabel"]
    assert len(pins) == 3
    assert all(pin.specifier.contains(version) for pin in pins for version in ("0.8.5", doctor.LABEL_SAFE, "0.9.0"))


def test_requirements_of_a_checkout_are_those_of_setup_cfg():
    needed = {requirement.name: requirement for requirement in doctor.requirements()}
    assert str(needed["monai"].specifier) == ">=1.6.1"
    assert needed["torch"].marker is None
    # an advisory names torch 2.10.0
    assert not needed["torch"].specifier.contains("2.10.0") and needed["torch"].specifier.contains("2.10.1")
    assert str(needed["pytest"].marker) == 'extra == "dev"'


def test_every_extra_says_what_it_is_for():
    extras = {str(r.marker).split('"')[1] for r in doctor.requirements() if r.marker}
    assert extras == set(doctor.EXTRAS)


def test_tested_versions_lie_in_the_ranges():
    pins = [Requirement(line) for line in doctor._requirement_lines((ROOT / "requirements.txt").read_text())]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    assert all(next(iter(pin.specifier)).operator == "==" for pin in pins)
    assert doctor.version_problems(doctor.requirements(), installed(versions)) == []


def test_requirements_of_a_packed_bundle(tmp_path):
    (tmp_path / "requirements.txt").write_text("monai>=1.6.1\n# why\n\ntorch>=2.10\n")
    assert [str(r) for r in doctor.requirements(tmp_path)] == ["monai>=1.6.1", "torch>=2.10"]


def test_requirements_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = another\n")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["monai>=1.6.1", 'pytest; extra == "dev"'])
    assert [r.name for r in doctor.requirements(tmp_path / "common")] == ["monai", "pytest"]


def test_requirements_that_nothing_states(tmp_path, monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    with pytest.raises(RuntimeError, match="are unknown"):
        doctor.requirements(tmp_path / "common")


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A folder with a package of ours, a folder to work in, and no finder but that of the import path."""
    # The backport `importlib_metadata`, once imported, as by MLflow, finds distributions in place of the PathFinder.
    backport = [finder for finder in sys.meta_path if type(finder).__module__ == "importlib_metadata"]
    monkeypatch.setattr(sys, "meta_path", [PathFinder, *backport])
    for name in ("ours/common", "work", "site"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ours/common/__init__.py").touch()
    return tmp_path


def problems(search: Path, folder: str = "work", path: tuple[str, ...] = ("site", "ours")) -> list[str]:
    return doctor.import_problems(search / "ours/common", str(search / folder), [str(search / name) for name in path])


def test_no_problem_where_ours_is_found(search):
    assert problems(search) == []
    assert problems(search, folder="ours", path=()) == []


@pytest.mark.parametrize("file", ["common/__init__.py", "common.py"])
def test_stray_module_in_the_working_folder(search, file):
    (search / "work" / file).parent.mkdir(exist_ok=True)
    (search / "work" / file).touch()
    [problem] = problems(search)
    assert problem.startswith(f"{search / 'work' / file.replace('/__init__.py', '')} shadows this collection's package")


def test_stray_folder_without_init_shadows_only_what_no_path_leads_to(search):
    (search / "work" / "common").mkdir()
    assert problems(search) == []
    [problem] = problems(search, path=("site",))  # ours would come from an editable install, asked after the path
    assert "shadows" in problem


def test_working_folder_does_not_count_in_safe_path(search, monkeypatch):
    (search / "work" / "common.py").touch()
    monkeypatch.setattr(doctor, "_safe_path", lambda: True)
    assert problems(search) == []


def test_another_package_earlier_in_the_path(search):
    (search / "site" / "common").mkdir()
    (search / "site" / "common" / "__init__.py").touch()
    found = problems(search, folder="ours")
    assert [problem.split(",")[0] for problem in found] == [f"outside of {search / 'ours'}"]
    assert str(search / "site" / "common") in found[0]


def test_the_unrelated_distribution_over_ours(search, monkeypatch):
    (search / "ours" / "common-0.1.2.dist-info").mkdir()
    (search / "ours" / "common-0.1.2.dist-info" / "METADATA").write_text("Name: common\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(str(search / "ours"))
    [problem] = problems(search)
    assert problem.startswith("PyPI's unrelated package `common` 0.1.2 is installed over")


def test_nothing_to_say_about_this_environment_before_a_run():
    assert doctor.check_run() == []


def test_cache_problem(tmp_path):
    assert doctor.cache_problem(tmp_path / "not" / "yet") is None
    (tmp_path / "file").touch()
    assert "cannot be written; set XDG_CACHE_HOME" in (doctor.cache_problem(tmp_path / "file" / "cache") or "")


def test_command_names_the_stray_package(child_path, tmp_path):
    """As the console script runs: its own folder is first in the path, not the working folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "doctor.py").write_text("from common.doctor import main\nraise SystemExit(main())\n")
    (tmp_path / "work" / "common").mkdir(parents=True)
    (tmp_path / "work" / "common" / "__init__.py").touch()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    environment.update(PYTHONPATH=child_path, XDG_CACHE_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "doctor.py")],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    [sentence] = [line for line in lines if not line.startswith("warning: monailabel")]
    assert [line for line in lines if line != sentence] == [
        f"warning: {text}" for text in [doctor.label_warning()] if text
    ]
    assert sentence.startswith(f"problem: {tmp_path / 'work' / 'common'} shadows this collection's package")
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert {"python", "common", "monai", "torch", "device", "extra", "PYTHONSAFEPATH"} <= set(rows)
    assert str(ROOT / "common") in rows["common"]
