from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

from ..datalist import DatalistError


def split_by_subject(
    items: Sequence[dict[str, Any]],
    validation: float,
    test: float | Collection[str],
    seed: int = 0,
    label_keys: Sequence[str] = ("label",),
) -> dict[str, list[dict[str, Any]]]:
    """Split items into lists so that no subject is in two of them.

    If only some items have labels, validation and test come from the subjects with labels, and training scans without a
    label form a separate list, `unlabelled`.

    Args:
        items: items with `subject`.
        validation: number of subjects, or their share if below 1; a share of three or more subjects gives at least one.
        test: number of subjects, or their share if below 1; or the subjects themselves, if a set has published test
            subjects. Shares count all subjects with labels (all subjects if there are no labels).
        seed: seed of the draw.
        label_keys: an item has a label if it has all of these keys, such as `("age",)` to predict ages.

    Raises:
        DatalistError: a number is negative, a test subject is missing, or no subject is left for training.
    """
    labelled = [all(key in x for key in label_keys) for x in items]
    some_labelled = any(labelled)
    subjects = sorted({x["subject"] for x, known in zip(items, labelled, strict=True) if known or not some_labelled})
    published = () if isinstance(test, int | float) else sorted(set(test))
    missing = [s for s in published if s not in subjects]
    if missing:
        raise DatalistError(
            f"{len(missing)} of the {len(published)} published test subjects have no scan with a label "
            f"({', '.join(missing)}): complete the folder, or draw others with `test`."
        )
    counts = []
    number = test if isinstance(test, int | float) else len(published)
    for name, value in (("validation", validation), ("test", number)):
        if value < 0:
            raise DatalistError(f"`{name}` is {value}; it must be a number of subjects, or a share below 1.")
        count = round(value * len(subjects)) if value < 1 else int(value)
        # Of three subjects a tenth is one: training without a validation list is refused.
        counts.append(max(count, 1) if value > 0 and len(subjects) > 2 else count)
    if sum(counts) >= len(subjects):
        raise DatalistError(
            f"{counts[0]} validation and {counts[1]} test subjects leave none of {len(subjects)} for training: "
            "lower `validation` or `test`."
        )
    drawn = [s for s in subjects if s not in published]
    random.Random(seed).shuffle(drawn)
    held_out = dict.fromkeys(drawn[: counts[0]], "validation")
    held_out |= dict.fromkeys(published or drawn[counts[0] : sum(counts)], "test")
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for x, known in zip(items, labelled, strict=True):
        section = held_out.get(x["subject"], "training")
        if some_labelled and not known:
            if section == "training":
                lists.setdefault("unlabelled", []).append(x)
            continue  # a scan without label of a held-out subject is of no use for either
        lists[section].append(x)
    return lists
