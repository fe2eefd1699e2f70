"""Write the sample's folder once: files of its subjects, splits and datalists."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock
from tqdm import tqdm

from ...files import STALE_ELSEWHERE_SECONDS, cache_folder
from .anatomy import ANATOMY
from .grid import check_spacing
from .lesion import CONTRASTS, LESIONS
from .subject import make_subject, subject_traits
from .tissues import STRUCTURES

logger = logging.getLogger(__name__)

# Raised whenever the same parameters give other bits, so that an older cached cohort is not mistaken for this one.
VERSION = 3


def _splits(subjects: int, unlabelled: int) -> dict[str, list[int]]:
    """Indices of each split: a third to test, a sixth to validation, the rest to training; then the unlabelled."""
    test, validation = max(1, subjects // 3), max(1, subjects // 6)
    bounds = np.cumsum([0, subjects - test - validation, validation, test, unlabelled]).tolist()
    names = ("training", "validation", "test", "unlabelled")
    return {name: list(range(a, b)) for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)}


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)


def _write_subject(subject: dict[str, Any], folder: Path, labelled: bool) -> None:
    kinds = {"t1_brain": "brain_affine", "anatomy": "head_affine"}
    if labelled:
        kinds |= {"t1": "head_affine", "brain_mask": "head_affine"}
        kinds |= dict.fromkeys(("structures4", "lesion_image", "lesion"), "brain_affine")
    for kind, affine in kinds.items():
        _save(subject[kind], subject[affine], folder / kind / f"{subject['subject']}.nii.gz")


def _datalists(splits: dict[str, list[int]], seed: int) -> dict[str, dict[str, Any]]:
    """The four Decathlon datalists, by file name."""

    def items(indices: list[int], image: str, label: str | None) -> list[dict[str, Any]]:
        result = []
        for index in indices:
            traits = subject_traits(index, seed)
            files = {"image": f"{image}/{traits['subject']}.nii.gz"}
            if label is not None:
                files["label"] = f"{label}/{traits['subject']}.nii.gz"
            result.append(files | traits)
        return result

    tasks: dict[str, tuple[str, str, str, dict[int, str], dict[int, str]]] = {
        "structures4": ("t1_brain", "structures4", "Four structures of the brain", {0: "T1w"}, STRUCTURES),
        "skull": ("t1", "brain_mask", "Brain mask of the whole head", {0: "T1w"}, {0: "background", 1: "brain"}),
        "lesion": ("lesion_image", "lesion", "Tumour-like lesion in four contrasts", CONTRASTS, LESIONS),
    }
    lists: dict[str, dict[str, Any]] = {}
    for name, (image, label, description, modality, labels) in tasks.items():
        lists[f"{name}.json"] = {
            "name": f"sample {name}",
            "description": f"{description}; synthetic, made from the MNI152 template",
            "modality": {str(k): v for k, v in modality.items()},
            "labels": {str(k): v for k, v in labels.items()},
            **{split: items(splits[split], image, label) for split in ("training", "validation", "test")},
        }
    lists["unlabelled.json"] = {
        "name": "sample unlabelled",
        "description": "Brains for pre-training, none of them a test subject; synthetic, made from the MNI152 template",
        "modality": {"0": "T1w"},
        "labels": {},
        "training": items(splits["training"] + splits["unlabelled"], "t1_brain", None),
        "validation": items(splits["validation"], "t1_brain", None),
        "test": [],
    }
    lists["anatomy.json"] = {
        "name": "sample anatomy",
        "description": "Label maps to draw images from, none of a test subject; made from the MNI152 template",
        "labels": {str(number): name for number, name in ANATOMY.items()},
        "training": items(splits["training"] + splits["unlabelled"], "anatomy", None),
        "validation": items(splits["validation"], "anatomy", None),
        "test": [],
    }
    return lists


def _is_complete(folder: Path, digest: str) -> bool:
    """Whether ``folder`` holds exactly this cohort.

    Raises:
        FileExistsError: if it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "manifest.json").read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{folder} holds something that is not a finished sample; name another output_dir or remove the folder."
        ) from None
    if found != digest:
        raise FileExistsError(
            f"{folder} holds a sample made with other parameters or by another version (see its manifest.json); "
            "name another output_dir or remove the folder."
        )
    return True


def make_sample(
    output_dir: str | os.PathLike | None = None,
    subjects: int = 24,
    unlabelled: int = 24,
    seed: int = 0,
    spacing: float = 2.0,
    progress: bool = True,
) -> str:
    """Make the sample cohort, unless it is there already, and return its folder.

    The folder holds ``t1``, ``t1_brain``, ``brain_mask``, ``anatomy``, ``structures4``, ``lesion_image`` and ``lesion``
    with one NIfTI file per subject (see :func:`make_subject`), and the datalists ``structures4.json`` (of
    ``t1_brain``), ``skull.json`` (of ``t1``), ``lesion.json``, ``unlabelled.json`` (``t1_brain`` of the training,
    validation and further, unlabelled subjects, never of test subjects) and ``anatomy.json`` (label maps of the same).
    Each item has ``subject``, ``age``, ``diagnosis`` and ``domain``. It appears only when complete; processes that
    request it at the same time wait for the first.

    Args:
        output_dir: folder to make; by default one in the cache (``$XDG_CACHE_HOME`` or ``~/.cache``, then
            ``monai-transfer-bundles``), named after the parameters.
        subjects: number of subjects with labels, at least 3: a third for test, a sixth for validation.
        unlabelled: number of further subjects, for pre-training only.
        seed: seed of the cohort; the same seed gives the same bits.
        spacing: voxel size in mm; must divide 4.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: if ``output_dir`` holds anything but this cohort.
        ValueError: if a size or the spacing is out of range.
    """
    if subjects < 3 or unlabelled < 0:
        raise ValueError(f"subjects must be 3 or more and unlabelled 0 or more, got {subjects} and {unlabelled}.")
    check_spacing(spacing)
    parameters = {"subjects": subjects, "unlabelled": unlabelled, "seed": seed, "spacing": float(spacing)}
    digest = hashlib.sha256(json.dumps([VERSION, parameters], sort_keys=True).encode()).hexdigest()
    if output_dir is None:
        output_dir = cache_folder() / f"sample-v{VERSION}-{digest[:12]}"
    folder = Path(output_dir).expanduser().absolute()
    if _is_complete(folder, digest):
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_complete(folder, digest):
            _build(folder, parameters, digest, progress)
    return str(folder)


def _build(folder: Path, parameters: dict[str, Any], digest: str, progress: bool) -> None:
    """Write the cohort to a hidden folder beside ``folder``, then give it its name."""
    seed, spacing = parameters["seed"], parameters["spacing"]
    splits = _splits(parameters["subjects"], parameters["unlabelled"])
    count = parameters["subjects"] + parameters["unlabelled"]
    logger.info("Making the sample cohort of %d subjects in %s (once; later runs reuse it).", count, folder)
    # Not tempfile.mkdtemp: its mode 0700 would shut out others who share the cache.
    _remove_killed(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        for index in tqdm(range(count), desc="sample cohort", unit="subject", disable=not progress):
            labelled = index < parameters["subjects"]
            _write_subject(make_subject(index, seed, spacing, lesion=labelled), temporary, labelled)
        for name, datalist in _datalists(splits, seed).items():
            (temporary / name).write_text(json.dumps(datalist, indent=4) + "\n")
        manifest = {"generator": __package__, "version": VERSION, "digest": digest, "parameters": parameters}
        manifest["source"] = "MNI152 template (ICBM 2009a nonlinear symmetric) as distributed with nilearn"
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
        try:
            os.replace(temporary, folder)
        except OSError:
            # Another machine, which does not see our lock, may have been first.
            if not _is_complete(folder, digest):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_killed(folder: Path) -> None:
    """Remove the remains of killed builds: no build takes a day."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 32}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_ELSEWHERE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
