"""Pretext tasks: modules that wrap an encoder and return what their loss needs."""

from .mae import MAE
from .rcr import RCR

__all__ = ["MAE", "RCR"]
