"""Compare architectures: the settings of a network as its file of weights states them, and as a network has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["differing_settings", "plain"]


def differing_settings(
    made: Mapping[str, Any] | None, used: Mapping[str, Any] | None, passed: Collection[str] = ()
) -> list[str]:
    """Keys of two architectures with other values; what one of them does not state is no difference.

    Args:
        made, used: architectures, with lists or tuples, and one number for all axes or one for each.
        passed: keys that may differ.
    """
    made, used = made or {}, used or {}
    shared = [key for key in made if key not in passed and None not in (made[key], used.get(key))]
    return [key for key in shared if not _same(plain(made[key]), plain(used[key]))]


def plain(value: Any) -> Any:
    """A value of an architecture with lists for tuples, as JSON has it."""
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) != isinstance(b, list):
        values, number = (a, b) if isinstance(a, list) else (b, a)
        return bool(values) and all(value == number for value in values)
    return a == b
