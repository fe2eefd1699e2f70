"""From folders of scans and masks to a model ready to serve: ``python -m common.auto``, or in Python ::

from common.auto import run

result = run(images="/data/scans", masks="/data/masks", output="runs/heart")
result.predict("/data/new")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Result, run

__all__ = ["Result", "run"]


def __getattr__(name: str) -> Any:
    """`run` and `Result` on first use: the command imports this package even to refuse a misspelt option."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import pipeline

    return getattr(pipeline, name)
