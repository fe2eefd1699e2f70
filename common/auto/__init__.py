"""From folders of scans and masks to a model ready to serve: ``python -m common.auto``, or in Python ::

from common.auto import run

result = run(images="/data/scans", masks="/data/masks", output="runs/heart")
result.predict("/data/new")
"""

from .pipeline import Result, run

__all__ = ["Result", "run"]
