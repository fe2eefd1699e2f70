"""Datalists for public data sets: one file a set that finds its scans, labels and table; splitting and writing."""

from .datasets import COLLECTORS, prepare
from .write import merge, write_datalist

__all__ = ["COLLECTORS", "merge", "prepare", "write_datalist"]
