"""Encoder files: writing, loading with a report, and conversion of foreign checkpoints."""

from .convert import convert
from .encoder_file import read_encoder, save_encoder
from .load import load_encoder
from .report import TransferReport
from .shipped import find_encoder, shipped_encoders

__all__ = [
    "TransferReport",
    "convert",
    "find_encoder",
    "load_encoder",
    "read_encoder",
    "save_encoder",
    "shipped_encoders",
]
