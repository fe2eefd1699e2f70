"""How checkpoints of other projects are told and read: a table (:class:`Kind`) for each, beside the network it fills.

The tables stand as ``CHECKPOINTS`` in the modules of the networks; ``common.weights.convert`` is the one loader for all
of them and knows none by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Kind", "Source", "State", "count", "move"]

State = dict[str, torch.Tensor]


class Source(NamedTuple):
    """A foreign checkpoint: its tensors in its own names, and what it holds beside them (settings, a plan)."""

    tensors: State
    beside: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Kind:
    """A kind of foreign checkpoints, as the loader reads it.

    Each tensor is left out by a rule, or gets the name that our encoder has for it and fills it. Anything else, and any
    tensor of the encoder that is not filled, refuses the checkpoint.

    Args:
        network: makes the encoder of an architecture and its tensors, on the device ``meta``.
        read: returns the architecture that an encoder file records, read off the tensors in our names, which it may
            change in place (split, add, fold); raises ``KeyError`` or ``ValueError`` for what is not of the kind.
        marks: regular expressions by which a checkpoint is told; each has to fit a tensor, written as its name, its
            number of axes and its shape (``patch_embed.proj.weight 5d 768x1x16x16x16``).
        renames: patterns of names and what they become, in order.
        left_out: regular expressions of names that the encoder does not need, by what they are.
        fresh: beginnings of names that no checkpoint of the kind has, and that are drawn.
        images: for kinds of 2-D images: what tells by which mean and deviation they were normalised, as triples of a
            clue (``tensor``, ``model_type``, ``file``), its pattern, and ``mean`` and ``std``.
        prepared: fields of ``common.preparation.Preparation``, and ``words`` for its intensities, that the checkpoint
            itself says of its images.
        doubt: why a checkpoint that has the marks may be of another kind all the same, with what to do; empty if not.
            Called with the tensors and the name of the file; not asked where the user names the kind.
    """

    network: Callable[[Mapping[str, Any], State], nn.Module]
    read: Callable[[State, Source], dict[str, Any]]
    marks: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    images: tuple[tuple[str, str, Mapping[str, list[float]]], ...] = ()
    prepared: Callable[[Source], dict[str, Any]] = lambda source: {}
    doubt: Callable[[State, str], str] = lambda tensors, file: ""

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether a checkpoint has the marks of this kind."""
        names = [f"{name} {t.ndim}d {'x'.join(map(str, t.shape))}" for name, t in tensors.items()]
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)

    def rename(self, name: str) -> str:
        """What a tensor of this name is called here."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def count(state: Mapping[str, Any], pattern: str) -> int:
    """Parts of which the names tell the number, the group of ``pattern``: one more than the highest, so that one left
    out in between is missed."""
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def move(state: State, old: str, new: str) -> None:
    """Give the tensors whose names begin with ``old`` a new beginning.

    Raises:
        KeyError: there are none.
    """
    names = [name for name in state if name.startswith(old)]
    if not names:
        raise KeyError(old)
    for name in names:
        state[new + name.removeprefix(old)] = state.pop(name)
