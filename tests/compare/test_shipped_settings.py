"""The settings files that the bundles ship, but for those of the sample, name files, ids and lists that go together.

Datalists are made up where a settings file looks for them, with scans of which planning reads no more than the header.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.compare.plan import make_plan
from common.compare.settings import CompareError, read_settings

ROOT = Path(__file__).resolve().parents[2]
PLACE = "/workspace/data"
"""Where the configs look for data."""

OWN = sorted(path for path in ROOT.glob("bundles/*/compare*.json") if "sample.json" not in path.read_text())
MANY = {
    "compare_adni_33.json": 600,
    "compare_oasis.json": 360,
    "compare_adni.json": 300,
    "compare_adni_equal.json": 300,
    "compare_ixi_age.json": 100,
    "compare_cc359.json": 100,
}
"""Training items that a settings file needs, if more than 60."""

DOMAINS = {"compare_oasis.json": {"oasis1_orig": "oasis1"}}
"""Domains of datalists that are not named after their file."""


@pytest.fixture
def no_data(copies):
    """Settings files need different numbers of scans."""
    yield
    shutil.rmtree(copies / "data", ignore_errors=True)


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """The bundles' configs and settings, which look for data here and name no encoder file."""
    folder = tmp_path_factory.mktemp("shipped")
    for path in itertools.chain(ROOT.glob("bundles/*/configs/**/*.json"), OWN):
        text = path.read_text().replace(PLACE, str(folder / "data"))
        if path in OWN:
            text = re.sub(r'"encoder": "[\w/]+\.safetensors"', '"encoder": null', text)
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    return folder


def make_list(path: Path, training: int, domain: str, numbers: itertools.count) -> None:
    scan = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes()
    lists: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for section, count in zip(lists, (training, 15, 15), strict=True):
        for number in itertools.islice(numbers, count):
            item = {"subject": f"s{number}", "age": 20.0 + number % 60, "diagnosis": number % 2, "domain": domain}
            for key in ("image", "label"):
                item[key] = f"{key}_{number}.nii"
                (path.parent / item[key]).write_bytes(scan[:-4] + np.float32(number).tobytes())
            lists[section].append(item)
    path.write_text(json.dumps(lists))


@pytest.mark.slow
@pytest.mark.parametrize("path", OWN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_can_be_planned(path, copies, no_data, tmp_path):
    """An error names what is missing, and the test then makes it."""
    numbers = itertools.count()
    for _ in range(30):
        try:
            settings = read_settings(str(copies / path.relative_to(ROOT)), output=str(tmp_path))
            found = make_plan(settings)
            break
        except CompareError as error:
            folder = re.search(r"No dataset folder at (\S+):", str(error))
            datalist = re.search(r"No datalist at (\S+):", str(error))
            if folder:
                Path(folder[1]).mkdir(parents=True)
            elif datalist:
                place = Path(datalist[1])
                place.parent.mkdir(parents=True, exist_ok=True)
                domain = DOMAINS.get(path.name, {}).get(place.stem, place.stem)
                make_list(place, MANY.get(path.name, 60), domain, numbers)
            else:
                raise
    else:
        raise AssertionError("still not planned after 30 missing files")
    for arm in settings.arms:
        for stage in () if arm.scores else ["train", "evaluate", *(["pretrain"] if arm.pretrain else [])]:
            assert any(run.arm == arm.name for run in found.runs if run.stage == stage), (arm, stage)
