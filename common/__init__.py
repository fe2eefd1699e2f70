"""Code shared by the bundles of this collection. The bundles' configs name it by import path."""

__version__ = "0.1.0"
