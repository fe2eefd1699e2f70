"""Make `docs/matrix.md` of what the tests of the ways of use came to: ``python tests/matrix.py RESULTS.xml PAGE.md``.

The tests are marked ``@pytest.mark.way("packed")``; pytest's XML report says of each its bundle, its way and its
outcome. `make matrix` runs them and calls this.
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

# Each way, and what its tests do.
WAYS = {
    "run": "pre-trained, trained, evaluated and applied to scans, in one process",
    "foreign folder": "the same by `python -m monai.bundle run` from a folder that has nothing to do with the bundle",
    "two processes": "pre-trained, trained and evaluated under `torchrun` (gloo); both processes end with the "
    "same bits. Of `medical_transformer`'s pre-training, only the first stage",
    "packed": "the archive of `common.pack`, unpacked, where `common` cannot be imported: pre-trained, trained and "
    "applied, all in one process",
    "Label infer": "MONAI Label's `BundleInferTask` gives the voxels of `inference.json`, also for a turned "
    "scan with other axes",
    "Label train": "MONAI Label's `BundleTrainTask` trains twice; the second training starts from the weights "
    "of the first",
    "TorchScript": "MONAI's `ckpt_export`; outputs equal the torch net's up to rounding, label maps in all "
    "but fewer than 5 voxels of 10,000",
    "ONNX": "MONAI's `onnx_export`, then `inference_onnx.json`; compared as TorchScript is",
    "DICOM in": "a series, sorted or reversed, gives the same label map as NIfTI, NRRD and MHA files of the volume",
    "DICOM SEG out": "`outputs/dicom_seg.json`; decoded, it is the label map, voxel for voxel",
    "bad files refused": "each with a sentence and without a mask. In inference: files that are missing, "
    "empty or cut off, weights that are missing or of another network. As DICOM: spoilt "
    "series. In MONAI Label: files that are missing or empty, other channels, other "
    "weights, and training labels that are no classes",
}
PACKAGES = ("monai", "torch", "monailabel", "onnx", "onnxruntime", "pydicom", "highdicom")


def outcomes(report: Path) -> dict[tuple[str, str], list[tuple[str, str, str]]]:
    """For each bundle and way its tests: outcome, name, and the reason of a skip."""
    found = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, reason = "passed", ""
        for kind in ("skipped", "failure", "error"):
            entry = case.find(kind)
            if entry is not None:
                outcome, reason = kind, entry.get("message", "")
        for entry in case.iter("property"):
            if entry.get("name") == "way":
                bundle, _, way = entry.get("value", "").partition(": ")
                found[bundle, way].append((outcome, f"{case.get('classname')}.{case.get('name')}", reason))
    return found


def cell(tests: list[tuple[str, str, str]]) -> str:
    """What a way came to with a bundle: the number of tests that passed, if all did."""
    failed = sum(outcome in ("failure", "error") for outcome, _, _ in tests)
    skipped = sum(outcome == "skipped" for outcome, _, _ in tests)
    if not tests:
        return "not tested"
    if failed:
        return f"{failed} of {len(tests)} failed"
    return "not run" if skipped == len(tests) else f"{len(tests) - skipped} passed" + ", rest not run" * bool(skipped)


def page(found: dict[tuple[str, str], list[tuple[str, str, str]]]) -> str:
    """The whole page."""
    bundles = sorted({bundle for bundle, _ in found})
    unknown = sorted({way for _, way in found} - set(WAYS))
    if unknown:
        raise ValueError(f"tests are marked with ways that this table does not have: {', '.join(unknown)}")
    rows = [f"| {way} | " + " | ".join(cell(found[bundle, way]) for bundle in bundles) + " |" for way in WAYS]
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    reasons = sorted(
        {f"- {reason}" for tests in found.values() for outcome, _, reason in tests if outcome == "skipped"}
    )
    return "\n".join(
        [
            "# What works with which bundle",
            "",
            "Written by `make matrix` from the results of the tests, on "
            f"{datetime.date.today()}: Python {platform.python_version()}, {', '.join(packages)}.",
            "Each bundle is run at a size that takes seconds, on the synthetic sample; a cell has the number of its",
            "tests.",
            "",
            "| | " + " | ".join(f"`{bundle}`" for bundle in bundles) + " |",
            "|---" * (len(bundles) + 1) + "|",
            *rows,
            "",
            *(f"- **{way}**: {meaning}." for way, meaning in WAYS.items()),
            *(["", "Not run, because:", "", *reasons] if reasons else []),
            "",
            "The tests are in `tests/bundles/`; `pytest -m way -k NAME` runs those of one bundle. Described elsewhere:",
            "[MONAI Label's server](monai_label.md#what-was-run), [DICOM](dicom.md), [exports](exports.md).",
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(outcomes(Path(sys.argv[1]))), encoding="utf-8")
