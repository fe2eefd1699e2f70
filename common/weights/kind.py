from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..volumes import and_more
from .adapt import match_position_form

__all__ = ["Kind", "Source", "State", "refuse_gaps", "rename"]

State = dict[str, torch.Tensor]

DERIVED = ("relative_position_index", "num_batches_tracked")
"""Ends of the names of counters and indices that a network makes itself, and that files may lack, such as those of
PyTorch 0.3, or have from before they were no weights."""

OTHER_SHAPES = ("relative_position_bias_table", "relative_position_index", "patch_embedding.weight")
"""Ends of the names of tensors whose shape is the window's, which converters may not know, or is inflated later."""


class Source(dict[str, torch.Tensor]):
    """Tensors of a foreign checkpoint that remembers which of them were taken.

    Args:
        tensors: by name.
        left_out: what may be left out: a regular expression of names for each part, such as a head.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], left_out: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self._rules = {what: re.compile(pattern) for what, pattern in left_out.items()}
        self._taken: set[str] = set()

    def take(self, name: str) -> torch.Tensor:
        """The tensor of this name, which counts as used from here on."""
        tensor = self[name]
        self._taken.add(name)
        return tensor

    def renamed(self, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Names by what ``rules`` make of them.

        Raises:
            ValueError: two names become one, so that one tensor would take the other's place.
        """
        names: dict[str, str] = {}
        for name in self:
            new = rename(name, rules)
            if new in names:
                raise ValueError(f"it holds {names[new]} and {name}, of which only one can be used")
            names[new] = name
        return names

    def left_out(self) -> dict[str, list[str]]:
        """Names of the tensors that were not taken, by the part that they are of.

        Raises:
            ValueError: one is of no such part: what is loaded without it may compute something else.
        """
        parts: dict[str, list[str]] = {}
        unknown: list[str] = []
        for name in self:
            if name not in self._taken:
                what = next((what for what, rule in self._rules.items() if rule.search(name)), None)
                (unknown if what is None else parts.setdefault(what, [])).append(name)
        if unknown:
            raise ValueError(
                f"it holds {and_more(unknown)}, which this kind has not and no rule leaves out; if the encoder does "
                "not need it, give --leave_out with a regular expression of such names"
            )
        return parts


@dataclass(frozen=True)
class Kind:
    """A kind of foreign checkpoints.

    Args:
        convert: takes what it uses from a :class:`Source` and returns tensors in the names of our encoder, with the
            encoder's architecture; raises ``KeyError`` or ``ValueError`` for what is not of the kind.
        mark: regular expression of a tensor's name by which a checkpoint is told.
        left_out: regular expressions of names of all else that such checkpoints hold, by what it is.
        network: makes the encoder of an architecture and its tensors, of which every tensor has to be filled.
        fresh: beginnings of names that no checkpoint of the kind has, and that are drawn.
    """

    convert: Callable[[Source], tuple[State, dict[str, Any]]]
    mark: str
    left_out: dict[str, str]
    network: Callable[[Mapping[str, Any], State], nn.Module]
    fresh: tuple[str, ...] = ()


def refuse_gaps(state: State, network: nn.Module, fresh: tuple[str, ...] = ()) -> None:
    """Refuse converted weights of which a part of the network is not there, and would stay as it was drawn.

    Raises:
        ValueError: tensors of ``network`` are missing but for those whose names begin with ``fresh``, or have other
            shapes, or are not the network's.
    """
    wanted = network.state_dict()
    state = match_position_form(state, wanted)
    missing = [name for name in wanted if name not in state and not name.endswith(DERIVED)]
    missing = [name for name in missing if not (fresh and name.startswith(fresh))]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors of its network are not there, as we call them {', '.join(missing[:3])}"
        )
    odd = [name for name in state if name not in wanted]
    if odd:
        raise ValueError(f"it holds {odd[0]}, as we call it, which the network has not")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape and not name.endswith(OTHER_SHAPES):
            raise ValueError(
                f"{name}, as we call it, has the shape {tuple(tensor.shape)} where the network has "
                f"{tuple(wanted[name].shape)}"
            )


def rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """``name`` with each pattern of ``rules`` replaced, in their order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
