"""Datalists for public data sets: one module per set finds its scans, labels and table; others split and write."""

from .datasets import COLLECTORS, prepare
from .write import merge, write_datalist

__all__ = ["COLLECTORS", "merge", "prepare", "write_datalist"]
