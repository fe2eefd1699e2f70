"""Draw the picture of ``docs/generator.md``: ``python -m tools.generator_pictures docs/generator.png``.

It shows what the bundle ``ssl3d`` pre-trains on, by the bundle's own configs: label maps of the sample and of random
shapes, each with generated images. A small sample is made on first use.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image

from common.data import make_sample

CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "ssl3d" / "configs"
IMAGES = 5
"""Number of images beside each label map."""


def parsed(*overlays: str) -> ConfigParser:
    """Build the pre-training on the sample with the named overlays."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("pretrain.json", "datasets/sample.json", *overlays)])
    parser["bundle_root"] = str(CONFIGS.parent)
    parser["dataset_dir"] = make_sample(subjects=3, unlabelled=0, progress=False)
    parser["cache"] = "none"
    return parser


def colours(labels: np.ndarray) -> np.ndarray:
    """Colour the labels; the background is black."""
    palette = np.random.default_rng(5).integers(40, 256, (int(labels.max()) + 1, 3), dtype=np.uint8)
    palette[0] = 0
    return palette[labels]


def row(labels: torch.Tensor, images: list[torch.Tensor]) -> np.ndarray:
    """Draw the middle axial slice of a label map (1, *spatial) and of images of it, side by side."""
    middle = labels.shape[-1] // 2
    greys = [(image[0, ..., middle].clamp(0, 1) * 255).byte().numpy() for image in images]
    panels = [colours(labels[0, ..., middle].numpy()), *(np.repeat(grey[..., None], 3, -1) for grey in greys)]
    return np.concatenate([np.pad(np.rot90(panel), ((1, 1), (1, 1), (0, 0))) for panel in panels], 1)


def main(path: str) -> None:
    """Write the picture to a PNG file."""
    torch.manual_seed(8)
    rows = []
    parser = parsed()
    brain, dataset = (parser.get_parsed_content(name) for name in ("pretext", "train#dataset"))
    for number in range(2):
        labels = brain.deformation(dataset[number % len(dataset)]["image"].as_tensor()[None].round().long())
        for change in brain.changes:
            labels = change(labels)
        rows.append(row(labels[0], [brain.contrast(labels)[0] for _ in range(IMAGES)]))
    parser = parsed("pretexts/shapes.json")
    shapes = parser.get_parsed_content("pretext")
    for labels in shapes.shapes(torch.zeros(3, 1, *parser.get_parsed_content("roi_size"))):
        rows.append(row(labels, [shapes.contrast(labels[None])[0] for _ in range(IMAGES)]))
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).convert(
        "P", palette=Image.Palette.ADAPTIVE, colors=128
    ).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
