from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import nn

from ..networks.foreign import Kind, Source, State
from ..volumes import and_more, first_line
from .adapt import match_position_form
from .soundness import refuse_blank, refuse_unsound
from .source import Foreign

__all__ = ["Filled", "Recognised", "fill", "find_kind", "known_kinds", "nearest_kind", "recognise", "refuse_gaps"]

MODULES = (
    "vit_encoder",
    "swin_encoder",
    "unet_encoders",
    "monai_encoders",
    "dilated_resnet",
    "primus",
    "published_unets",
    "sam_encoder",
    "beit_encoder",
    "swin_slice_encoder",
    "dino_encoder",
    "i3d",
)
"""Modules of ``common.networks`` with tables of checkpoints, in the order of the search."""

DERIVED = ("relative_position_index", "num_batches_tracked", "output_stride")
"""Ends of the names of counters and indices that a network makes itself, and that files may lack, such as those of
PyTorch 0.3, or have from before they were no weights."""

OTHER_SHAPES = ("relative_position_bias_table", "relative_position_index", "patch_embedding.weight")
"""Ends of names of tensors whose shape depends on the window (unknown to converters) or that are inflated later."""


class Filled(NamedTuple):
    """An encoder's tensors from a foreign checkpoint, its architecture, and the left-out tensors by part."""

    state: State
    architecture: dict[str, Any]
    left_out: dict[str, list[str]]


class Recognised(NamedTuple):
    """A foreign checkpoint of a known kind.

    Attributes:
        name: name of the kind.
        kind: the kind.
        state, architecture, left_out: as in ``Filled``, with the tensors of further networks in the file left out, too.
        zeros: names of the kernels and matrices that are 0 throughout.
    """

    name: str
    kind: Kind
    state: State
    architecture: dict[str, Any]
    left_out: dict[str, list[str]]
    zeros: list[str]


def recognise(
    path: str | os.PathLike,
    foreign: Foreign,
    kind: str | None = None,
    leave_out: str | None = None,
    misfit: str = "is not a checkpoint of the kind {}: {}",
) -> Recognised:
    """Find the kind of a checkpoint, and fill an encoder with its tensors.

    Args:
        path: the checkpoint, for errors.
        foreign: what ``read_source`` read from it.
        kind: name of the kind; found from the tensors by default.
        leave_out: as for ``fill``.
        misfit: what to say of a checkpoint that ``fill`` refuses, with places for the kind and the reason.

    Raises:
        ValueError: as ``find_kind``, ``fill``, ``refuse_unsound`` and ``refuse_blank``; or ``leave_out`` is not a
            regular expression.
    """
    tensors = foreign.source.tensors
    try:
        name, known = find_kind(tensors, kind, foreign.name)
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    try:
        state, architecture, left_out = fill(known, foreign.source, leave_out)
    except (KeyError, ValueError, re.error) as error:
        why = str(error)
        if isinstance(error, KeyError):
            why = f"it lacks tensors ({error}), and has such as {', '.join(list(tensors)[:3])}"
        raise ValueError(f"{path} {misfit.format(name, why)}.") from error
    # Of what is taken only: masks of attention that are left out may hold infinities.
    refuse_unsound(path, state)
    zeros = refuse_blank(path, state)
    if foreign.others:
        left_out["networks beside the one that is taken"] = foreign.others
    return Recognised(name, known, state, architecture, left_out, zeros)


def known_kinds() -> Iterator[tuple[str, Kind]]:
    """All kinds with their names, in the order of the search; modules are loaded during iteration."""
    for module in MODULES:
        yield from import_module(f"..networks.{module}", __package__).CHECKPOINTS.items()


def find_kind(tensors: State, kind: str | None = None, file: str = "") -> tuple[str, Kind]:
    """The kind of a checkpoint, by its marks or by name.

    Raises:
        ValueError: no kind has these marks or this name, or the marks are ambiguous.
    """
    for name, known in known_kinds():
        if name == kind or (kind is None and known.fits(tensors)):
            doubt = known.doubt(tensors, file) if kind is None else ""
            if doubt:
                raise ValueError(doubt)
            return name, known
    if kind is not None:
        names = ", ".join(name for name, _ in known_kinds())
        raise ValueError(f"cannot be read as --kind {kind}, which is none of {names}")
    raise ValueError(f"is of no known kind{_unlike(tensors)}")


def _unlike(tensors: State) -> str:
    """Why a checkpoint is of no known kind: the nearest one, or what its tensors are."""
    flat = sum(tensor.ndim == 4 for tensor in tensors.values())
    if flat and not any(tensor.ndim == 5 for tensor in tensors.values()):
        return (
            "; it is a network of 2-D images (its kernels have two axes), of which vision transformers alone are read "
            "(BEiT, DINO, DeiT, MAE, Swin)"
        )
    near = nearest_kind(Source(tensors))
    first = ", ".join(list(tensors)[:3])
    return f" (it has tensors such as {first})" if near is None else f"; the nearest is {near[0]}, but {near[1]}"


def fill(kind: Kind, source: Source, leave_out: str | None = None) -> Filled:
    """Put each tensor of a checkpoint into its place in our encoder, or leave it out by a rule of its kind.

    Args:
        kind: kind of the checkpoint.
        source: the checkpoint.
        leave_out: regular expression for names of further tensors that the encoder does not need.

    Raises:
        KeyError, ValueError: a tensor has no place and no rule leaves it out, two tensors have the same place, a place
            stays empty, or a shape differs.
    """
    chosen = {} if leave_out is None else {f"--leave_out {leave_out}": leave_out}
    rules = {what: re.compile(pattern) for what, pattern in {**kind.left_out, **chosen}.items()}
    state: State = {}
    names: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    for name, tensor in source.tensors.items():
        part = next((what for what, rule in rules.items() if rule.search(name)), None)
        if part is not None:
            left_out.setdefault(part, []).append(name)
            continue
        new = kind.rename(name)
        if new in names:
            raise ValueError(f"it holds {names[new]} and {name}, of which only one can be used")
        state[new], names[new] = tensor, name
    try:
        architecture = kind.read(state, source)
        with torch.device("meta"):
            network = kind.network(architecture, state)
    except (RuntimeError, IndexError, ZeroDivisionError) as error:  # what tensors of other shapes lead to
        raise ValueError(f"its tensors do not fit together ({first_line(error)})") from error
    refuse_gaps(state, network, kind.fresh, names)
    return Filled(state, architecture, left_out)


def nearest_kind(source: Source) -> tuple[str, str] | None:
    """The kind that shares most tensor names with a refused checkpoint, and why it does not fit; None if none does."""
    best, found = 0.0, None
    for name, kind in known_kinds():
        state: State = {}
        for own, tensor in source.tensors.items():
            if not any(re.search(rule, own) for rule in kind.left_out.values()):
                state[kind.rename(own)] = tensor
        share = 0.0
        try:
            architecture = kind.read(state, source)
            with torch.device("meta"):
                wanted = kind.network(architecture, state).state_dict()
            share = len(wanted.keys() & state.keys()) / len(wanted)
            fill(kind, source)
        except Exception as error:  # whatever tensors of another kind lead a reader to
            if share > best:
                best, found = share, (name, str(error))
    return found


def refuse_gaps(
    state: State, network: nn.Module, fresh: tuple[str, ...] = (), names: Mapping[str, str] | None = None
) -> None:
    """Refuse converted weights if they would leave a part of the network at its random values.

    Args:
        state: in our names.
        network: network to fill completely.
        fresh: beginnings of names of tensors that may stay random.
        names: names in the checkpoint, by ours.

    Raises:
        ValueError: tensors of ``network`` are missing or have other shapes, or some do not belong to the network.
    """
    wanted = network.state_dict()
    state = match_position_form(state, wanted)
    odd = [(names or {}).get(name, f"{name} (as we call it)") for name in state if name not in wanted]
    missing = [name for name in wanted if name not in state and not name.endswith(DERIVED)]
    missing = [name for name in missing if not (fresh and name.startswith(fresh))]
    if odd:
        raise ValueError(
            f"it holds {and_more(odd)}, which this kind lacks and no rule leaves out; if the encoder does not need "
            "it, give --leave_out with a regular expression of such names"
        )
    if missing:
        raise ValueError(f"{len(missing)} tensors of its network are missing, as we call them {', '.join(missing[:3])}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape and not name.endswith(OTHER_SHAPES):
            raise ValueError(
                f"{name}, as we call it, has the shape {tuple(tensor.shape)}, but the network has "
                f"{tuple(wanted[name].shape)}"
            )
