"""Durations in words."""

from __future__ import annotations

__all__ = ["format_duration"]


def format_duration(seconds: float) -> str:
    """A duration with two digits, such as "85 s", "2.5 min", "47 min", "3.2 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    for size, unit in ((60, "min"), (3600, "h")):
        amount = seconds / size
        if amount < 99.5 or unit == "h":
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
    raise AssertionError
