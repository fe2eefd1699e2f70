"""Run ``common.auto`` on six data sets, as a new user would, and print a table of the results.

    python experiments/auto_sets.py DATA --output runs/auto --hours 0.33

``DATA`` holds any of these: ``hippocampus`` (Task04 of the Decathlon as unpacked), ``acdc`` (``images`` and
``labels``), ``ixi`` (``t1`` and ``labels``, numbered as by DLMUSE), ``ct`` (three scans, each beside its ``_labels``).
Two more sets are made from the sample cohort: folders of DICOM series, and an nnU-Net folder with two contrasts. Each
command gets its folders and no other option. Sets that are done are skipped.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.sample import make_sample
from common.json_files import read_json, write_json
from tools.dicom_series import write_series

DICE = re.compile(r"^Mean Dice on (\d+) test scans: ([\d.]+)", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1 / 3, help="of each set")
    parser.add_argument("--sets", nargs="+", help="names of sets; default: all")
    parser.add_argument("--plan", action="store_true", help="stop with the plans")
    options = parser.parse_args()
    rows = []
    for name, folders in commands(options.data, options.output / "made").items():
        if options.sets and name not in options.sets:
            continue
        words = [sys.executable, "-m", "common.auto", *folders, "--output", str(options.output / name)]
        words += ["--hours", f"{options.hours:g}", *(["--plan"] if options.plan else [])]
        started = time.monotonic()
        ended = subprocess.run(words, capture_output=True, text=True)
        minutes = (time.monotonic() - started) / 60
        (options.output / f"{name}.txt").write_text(ended.stdout + ended.stderr, encoding="utf-8")
        found = DICE.search(ended.stdout)
        last = ended.stderr.strip().splitlines()[-1:] or [""]
        said = f"Dice {found[2]} on {found[1]} test scans" if found else "planned" if not ended.returncode else last[0]
        rows.append({"set": name, "minutes": round(minutes, 1), "commands": 1, "result": said})
        print(f"{name}: {minutes:.1f} min, {said}", flush=True)
    earlier = read_json(options.output / "sets.json", [])
    kept = [row for row in earlier if row["set"] not in {one["set"] for one in rows}]
    write_json(options.output / "sets.json", kept + rows)


def commands(data: Path, made: Path) -> dict[str, list[str]]:
    """Return the folders of each set, as options."""
    pairs = {
        "hippocampus": ["--images", str(data / "hippocampus")],
        "acdc": ["--images", str(data / "acdc" / "images"), "--masks", str(data / "acdc" / "labels")],
        "ixi": ["--images", str(data / "ixi" / "t1"), "--masks", str(data / "ixi" / "labels")],
        "ct": ["--images", str(data / "ct")],
    }
    found = {name: words for name, words in pairs.items() if (data / name).is_dir()}
    found["dicom"] = ["--images", str(_dicom(made) / "series"), "--masks", str(made / "dicom" / "masks")]
    found["nnunet"] = ["--images", str(_nnunet(made))]
    return found


def _sample(made: Path) -> Path:
    return Path(make_sample(made / "sample", subjects=12, unlabelled=4, spacing=4.0, progress=False))


def _dicom(made: Path) -> Path:
    """Write a folder for each scan, with the files of its series. Masks of four tissues are NIfTI files."""
    folder, sample = made / "dicom", _sample(made)
    if not folder.is_dir():
        draft = made / "dicom.part"
        shutil.rmtree(draft, ignore_errors=True)
        for scan in sorted((sample / "t1_brain").glob("*.nii.gz")):
            name = scan.name.removesuffix(".nii.gz")
            image = nib.load(scan)
            tags = {"PatientID": name, "PatientName": name}
            write_series(draft / "series" / name, np.asanyarray(image.dataobj), image.affine, tags)
            mask = sample / "structures4" / scan.name
            if mask.is_file():
                (draft / "masks").mkdir(exist_ok=True)
                shutil.copy(mask, draft / "masks")
        draft.rename(folder)
    return folder


def _nnunet(made: Path) -> Path:
    """Write FLAIR and contrast-enhanced T1 of tumours into nnU-Net's folders, one file per contrast."""
    folder, sample = made / "Dataset001_Lesion", _sample(made)
    if not folder.is_dir():
        draft = made / "nnunet.part"
        shutil.rmtree(draft, ignore_errors=True)
        for part in ("imagesTr", "labelsTr"):
            (draft / part).mkdir(parents=True)
        masks = sorted((sample / "lesion").glob("*.nii.gz"))
        for mask in masks:
            name = mask.name.removesuffix(".nii.gz")
            image = nib.load(sample / "lesion_image" / mask.name)
            for number, contrast in enumerate((0, 2)):
                one = nib.Nifti1Image(np.asanyarray(image.dataobj)[..., contrast], image.affine)
                nib.save(one, draft / "imagesTr" / f"{name}_{number:04d}.nii.gz")
            shutil.copy(mask, draft / "labelsTr")
        content = {
            "channel_names": {"0": "FLAIR", "1": "T1 with contrast agent"},
            "labels": {"background": 0, "oedema": 1, "core": 2, "rim": 3},
            "numTraining": len(masks),
            "file_ending": ".nii.gz",
        }
        write_json(draft / "dataset.json", content)
        draft.rename(folder)
    return folder


if __name__ == "__main__":
    main()
