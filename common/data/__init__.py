"""Datalists, label maps and the data sets that they come from."""

from .datalist import DatalistError, load_datalist
from .image_list import list_images
from .label_maps import label_map, label_names
from .pretext_batch import prepare_image
from .sample import make_sample

__all__ = [
    "DatalistError",
    "label_map",
    "label_names",
    "list_images",
    "load_datalist",
    "make_sample",
    "prepare_image",
]
