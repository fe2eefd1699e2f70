"""Change the test scans of a datalist in a stated way: another contrast, thick slices, a bias field, noise.

    python experiments/shifted_scans.py --datalist /data/ixi/ixi.json --dataset_dir /data/ixi --output /data/shifted
    python -m common.compare --settings compare_tissues.json --dataset_dir /data/ixi --datalist /data/ixi/ixi.json \\
        --evaluate_override 'dataset_dir=/data/shifted/thick datalist=/data/shifted/thick/datalist.json' \\
        --models_from runs/tissues --output runs/tissues_thick

The models were trained on unchanged scans and stay the same; only the test scans change. Masks and the other lists are
those of the datalist. Background (zeros) stays background. In the formulas, v is an intensity in the foreground, and
p(q) is the q-th percentile of the foreground.

- inverse: p(99.5) + p(0.5) - v, so that white matter is dark and CSF bright, as on T2-weighted scans
- thick: means over slabs of three axial slices, interpolated back to the grid
- bias: v times 2**f; the smooth field f has cosines of half and one period along each axis, and values from -1 to 1
- noise: Rician noise; its standard deviation is 15 % of the foreground's median
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from common.files import common_folder

Array = np.ndarray


def inverse(image: Array, draw: np.random.Generator) -> Array:
    low, high = np.percentile(image[image > 0], [0.5, 99.5])
    return low + high - np.clip(image, low, high)


def thick(image: Array, draw: np.random.Generator, slices: int = 3) -> Array:
    depth = image.shape[2] // slices * slices
    slabs = image[:, :, :depth].reshape(*image.shape[:2], -1, slices).mean(axis=3)
    z = (np.arange(image.shape[2]) - (slices - 1) / 2) / slices  # the centre of slab 0 is slice (slices - 1) / 2
    grid = np.meshgrid(*(np.arange(size) for size in image.shape[:2]), z, indexing="ij")
    return map_coordinates(slabs, grid, order=1, mode="nearest")


def bias(image: Array, draw: np.random.Generator) -> Array:
    field = np.zeros(image.shape)
    for axis, size in enumerate(image.shape):
        place = np.linspace(0, 1, size).reshape([-1 if i == axis else 1 for i in range(3)])
        for periods in (0.5, 1.0):
            field = field + draw.uniform(-1, 1) * np.cos(2 * np.pi * (periods * place + draw.uniform()))
    return image * 2.0 ** (field / np.abs(field).max())


def noise(image: Array, draw: np.random.Generator, share: float = 0.15) -> Array:
    deviation = share * np.median(image[image > 0])
    return np.hypot(image + draw.normal(0, deviation, image.shape), draw.normal(0, deviation, image.shape))


SHIFTS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "inverse": inverse,
    "thick": thick,
    "bias": bias,
    "noise": noise,
}


def shift_scan(image: Array, name: str, identity: str) -> Array:
    """Return a changed copy of a scan (three axes). The draw depends only on ``identity``."""
    image = np.asarray(image, float)
    draw = np.random.default_rng(zlib.crc32(f"{name} {identity}".encode()))
    smallest = image[image > 0].min() * 1e-3  # keeps every foreground voxel above 0
    return np.where(image > 0, np.maximum(SHIFTS[name](image, draw), smallest), 0).astype(np.float32)


def write_scans(datalist: Path, dataset_dir: Path, output: Path, name: str) -> Path:
    """Write the changed test scans and a datalist that names them, and return its path.

    They keep their names, or their paths below their common folder if a name occurs twice.
    """
    content: dict[str, Any] = json.loads(datalist.read_text(encoding="utf-8"))
    folder = output / name
    for section in ("training", "validation", "test"):
        for item in content[section]:
            for key in ("image", "label"):
                if isinstance(item.get(key), str):
                    item[key] = str((dataset_dir / item[key]).resolve())
    files = [item["image"] for item in content["test"]]
    names = [Path(file).name for file in files]
    if len(set(names)) < len(set(files)):
        names = [Path(file).relative_to(common_folder(files)).as_posix() for file in files]
    for item, place in zip(content["test"], names, strict=True):
        scan = nib.load(item["image"])
        changed = shift_scan(scan.get_fdata(), name, place)
        item["image"] = place
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        header = scan.header.copy()
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1, 0)
        nib.save(nib.Nifti1Image(changed, scan.affine, header), folder / item["image"])
    path = folder / "datalist.json"
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("datalist", "dataset_dir", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    arguments = parser.parse_args()
    for name in SHIFTS:
        print(write_scans(arguments.datalist, arguments.dataset_dir, arguments.output, name), flush=True)


if __name__ == "__main__":
    main()
