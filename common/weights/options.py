"""Check what the options of ``convert`` say before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["numbers"]


def numbers(
    option: str, value: Any, count: int, each: str, whole: bool = False, above: float | None = 0, spread: bool = True
) -> list[Any] | None:
    """The numbers of an option; None if it is None.

    Args:
        option: its name in the message, such as ``--spacing``.
        value: a number, which stands for all of them, or a sequence of numbers.
        count: how many there have to be.
        each: what there is one of each for, such as ``axis``.
        whole: whether they are whole numbers.
        above: a number that all are larger than; None for any.
        spread: whether one number may stand for all.

    Raises:
        ValueError: with what to give.
    """
    if value is None:
        return None
    given = [value] * count if spread and isinstance(value, Real) else value
    kind = Integral if whole else Real
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or len(given) != count
        or not all(isinstance(one, kind) and not isinstance(one, bool) and math.isfinite(one) for one in given)
        or (above is not None and min(given) <= above)
    ):
        what = f"{'whole ' if whole else ''}numbers{'' if above is None else f' above {above:g}'}"
        one = f"one number for all {count}, or " if spread else ""
        raise ValueError(f"{option} is {value!r}: give {one}{count} {what}, one per {each}.")
    return list(given)
