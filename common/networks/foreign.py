"""Recognise and read checkpoints of other projects: one table (:class:`Kind`) each, beside the network that it fills.

The tables are ``CHECKPOINTS`` in the modules of the networks. ``common.weights.convert`` is the single loader for all
of them and knows none by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["HEADS", "Kind", "Source", "State", "count", "move"]

HEADS = "layer of classes"
"""What messages call the last layers of a segmentation network."""

State = dict[str, torch.Tensor]


class Source(NamedTuple):
    """A foreign checkpoint: its tensors under their original names, and its other content (settings, a plan)."""

    tensors: State
    beside: Mapping[str, Any] = {}

    def settings(self, *names: str) -> Mapping[str, Any]:
        """The settings beside the tensors at these nested names; empty if there are none.

        Raises:
            ValueError: something else has one of the names.
        """
        found: Any = self.beside
        for depth, name in enumerate(names, 1):
            found = found.get(name) or {}
            if not isinstance(found, Mapping):
                raise ValueError(
                    f"{'.'.join(names[:depth])} beside its weights is a {type(found).__name__}, not settings by name"
                )
        return found


@dataclass(frozen=True)
class Kind:
    """A kind of foreign checkpoint, for the loader.

    A rule leaves each tensor out, or gives it the name that it has in our encoder. The checkpoint is refused if a
    tensor fits neither, or if a tensor of the encoder stays empty.

    Args:
        network: builds the encoder of an architecture and its tensors, on the device ``meta``.
        read: reads the architecture for the encoder file from the tensors in our names. It may change them in place
            (split, add, fold), and raises ``KeyError`` or ``ValueError`` if they are not of this kind.
        marks: regular expressions that identify a checkpoint; each must match a tensor, written as its name, its number
            of axes and its shape (``patch_embed.proj.weight 5d 768x1x16x16x16``).
        renames: patterns of names and their replacements, in order.
        left_out: regular expressions for names that the encoder does not need, by part.
        fresh: beginnings of names that no checkpoint of this kind has; these tensors stay random.
        images: for kinds of 2-D images: clues to their normalisation, as triples of a source (``tensor``,
            ``model_type``, ``file``), its pattern, and ``mean`` and ``std``.
        prepared: fields of ``common.preparation.Preparation``, and ``words`` for intensities, that the checkpoint
            states about its images.
        doubt: why a checkpoint with these marks may still be of another kind, and what to do; empty if it cannot.
            Called with the tensors and the name of the file, but not if the user names the kind.
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
        """The name of this tensor in our encoder."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def count(state: Mapping[str, Any], pattern: str) -> int:
    """Number of parts, from the number in the group of ``pattern``: the highest plus one, so a gap is noticed."""
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
