"""The container of MONAI Label, as far as it can be looked at where no container can be built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "demo" / "Dockerfile").read_text(encoding="utf-8")
SCRIPT = ROOT / "demo" / "label_server.sh"


def test_the_container_copies_what_there_is_and_serves_as_a_user():
    steps = re.sub(r"\\\n", " ", DOCKERFILE)
    copied = [name for line in re.findall(r"^COPY (.*)$", steps, re.MULTILINE) for name in line.split()[:-1]]
    assert {"common", "bundles", "setup.cfg", "demo/label_server.sh"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    order = re.findall(r"^(FROM|RUN|USER|ENTRYPOINT)", steps, re.MULTILINE)
    assert order[0] == "FROM" and order[-1] == "ENTRYPOINT" and "USER" in order
    assert "USER label" in steps and "-p 127.0.0.1:8000:8000" in DOCKERFILE
    assert os.access(SCRIPT, os.X_OK)
    package = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "license_files = LICENSE" in package and "long_description = file: README.md" in package  # both are copied


@pytest.fixture
def serve(tmp_path):
    """Run the script with a `monailabel` that says how it was called, packs in `models`."""
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("there is no sh")
    text = SCRIPT.read_text(encoding="utf-8").replace("/models", str(tmp_path / "models"))
    (tmp_path / "serve.sh").write_text(text)
    tool = tmp_path / "bin" / "monailabel"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    for name in ("skull", "tissue"):
        (tmp_path / "models" / name / "configs").mkdir(parents=True)
    (tmp_path / "apps" / "monaibundle").mkdir(parents=True)  # as `monailabel apps --download` leaves it

    def run(*names: str) -> subprocess.CompletedProcess:
        path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        return subprocess.run(
            [shell, str(tmp_path / "serve.sh"), *names], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


def test_the_script_serves_the_packs_that_are_named_behind_the_guard(serve, tmp_path):
    done = serve("skull", "tissue")
    assert done.returncode == 0, done.stderr
    assert "--conf models skull,tissue --conf zoo_source local" in done.stdout
    assert "--uvicorn_app common.label_guard:app" in done.stdout and "--studies /studies" in done.stdout
    assert (tmp_path / "apps/monaibundle/model/tissue/configs").is_dir()


@pytest.mark.parametrize(("names", "sentence"), [((), "such as: skull tissue"), (("nothing",), "nothing")])
def test_the_script_refuses_what_it_does_not_have(serve, names, sentence):
    done = serve(*names)
    assert done.returncode != 0 and sentence in done.stderr and done.stdout == ""
