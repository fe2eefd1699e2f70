"""Update ``metadata.json`` for a network that overlays have changed."""

from __future__ import annotations

import copy
import re
from typing import Any

__all__ = ["described"]

# Ids of `inference.json` that an image's scale comes from.
INTENSITY_IDS = ("intensity", "intensity_range")


def described(metadata: dict[str, Any], config: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Metadata of the changed inference: ``network_data_format`` (MONAI Label reads labels from it) and texts."""
    from monai.bundle import ConfigParser

    from ..data import label_names

    parser = ConfigParser(config=config)

    def number(name: str, inside: str) -> int:
        return int(parser.get_parsed_content(name if name in config else inside))

    channels = number("in_channels", "segmentation_net#in_channels")
    classes = number("num_classes", "segmentation_net#out_channels")
    size = [int(voxels) for voxels in parser.get_parsed_content("roi_size")]
    metadata = copy.deepcopy(metadata)
    image = next(iter(metadata["network_data_format"]["inputs"].values()))
    pred = next(iter(metadata["network_data_format"]["outputs"].values()))
    whole = pred["spatial_shape"] == image["spatial_shape"]
    image["spatial_shape"], pred["spatial_shape"] = size, size if whole else [*size[:-1], pred["spatial_shape"][-1]]
    before = image["num_channels"]
    if channels != before:
        names = ["image"] if channels == 1 else [f"image {index}" for index in range(channels)]
        image |= {"num_channels": channels, "channel_def": {str(index): name for index, name in enumerate(names)}}
    # What the base file says of its images, contrasts and scale, holds no longer, and no config says it of others.
    others = channels != before or any(config.get(key) != base.get(key) for key in INTENSITY_IDS)
    if others and "image_classes" in metadata:
        metadata["image_classes"] = f"{'single-channel' if channels == 1 else f'{channels}-channel'} image"
    task = config.get("task")
    if classes != pred["num_channels"] or task != base.get("task"):
        try:
            known = label_names(str(task))
        except ValueError:  # a task of the user's own
            known = {}
        if len(known) != classes:
            known = dict(enumerate(["background", *(f"class {index}" for index in range(1, classes))]))
        pred |= {"num_channels": classes, "channel_def": {str(index): name for index, name in known.items()}}
        if "label_classes" in metadata:
            metadata["label_classes"] = ", ".join(f"{index} {name}" for index, name in known.items())
        if "pred_classes" in metadata:
            metadata["pred_classes"] = re.sub(r"^\d+ channels", f"{classes} channels", metadata["pred_classes"])
    return metadata
