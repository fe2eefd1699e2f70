"""Datalists, label maps, and the data sets that they are made from."""

from .balance import class_weights
from .cached_dataset import CachedDataset
from .data_loader import DataLoader
from .datalist import DatalistError, load_datalist
from .domain_batch import prepare_domain_batch
from .domains import domain_classes, domain_datalists, domain_label_maps, domain_spacings, load_domains, median_spacing
from .image_list import list_images
from .label_maps import (
    class_of_label,
    fluid_labels,
    label_map,
    label_names,
    labels_written_in,
    num_classes,
    sided_labels,
    surrounding_labels,
    task_labels,
)
from .pretext_batch import prepare_pretext_batch
from .sample import make_sample

__all__ = [
    "CachedDataset",
    "DataLoader",
    "DatalistError",
    "class_of_label",
    "class_weights",
    "domain_classes",
    "domain_datalists",
    "domain_label_maps",
    "domain_spacings",
    "fluid_labels",
    "label_map",
    "label_names",
    "labels_written_in",
    "list_images",
    "load_datalist",
    "load_domains",
    "make_sample",
    "median_spacing",
    "num_classes",
    "prepare_domain_batch",
    "prepare_pretext_batch",
    "sided_labels",
    "surrounding_labels",
    "task_labels",
]
