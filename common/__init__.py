"""Code shared by the bundles of this collection; their configs name it by import path."""

__version__ = "0.1.0"
