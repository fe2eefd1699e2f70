from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..data.seen import refuse_seen
from ..networks.foreign import HEADS
from ..networks.norms import refuse_no_statistics
from ..preparation import PREPARED, compare_preparation, field_text, preparation_record, refuse_preparation
from ..volumes import and_more
from .adapt import adapt_channels, match_position_form, resample_positions, token_grid
from .encoder_file import read_encoder
from .inflate import CONVERT_AGAIN, INFLATIONS
from .kind import DERIVED
from .report import TransferReport
from .settings import differing_settings
from .soundness import refuse_blank, refuse_unsound

__all__ = ["compare_architecture", "compare_images", "load_encoder"]

logger = logging.getLogger(__name__)

STATED = ("spacing", "orientation", "value_range")
"""Fields of the images that even files without a record of preparation state."""

ADAPTED = ("name", "in_channels", "grid", "tokens", "slices")
"""Keys of an architecture that need not be equal: loading adapts tensors to them, or compares them itself."""

RESOLUTION = ("patch_size", "strides")
"""Keys that say on which grid an encoder computes. With others, weights that fit by shape are those of another one."""

ADVICE = re.compile(f"{CONVERT_AGAIN}|give spatial_size")
"""Reasons that say what to do."""


def load_encoder(
    encoder: nn.Module | None,
    path: str | os.PathLike | None,
    preprocessing: Any = None,
    spatial_size: Sequence[int] | None = None,
    accept_preparation: bool = True,
    inflation: str = "centring",
    held_out: Sequence[Mapping[str, Any]] | None = None,
    transductive: bool = False,
    task: str | None = None,
) -> TransferReport | None:
    """Fill an encoder from an encoder file, log a transfer report, and refuse a load that does not fill it.

    Every tensor of the encoder comes from the file, unchanged or adapted if that makes sense: the first layer to
    another number of channels, position tables to another token grid, a patch embedding of single slices to windows of
    slices. Every tensor of the file goes into the encoder. A rule of the encoder (see below) can name exceptions,
    tensors to leave random or to leave out; the report lists them. A refused load does not change ``encoder``. Settings
    that weights do not show, such as the number of attention heads, are compared with the file's record, and
    differences are logged; another patch size or other strides are refused.

    Args:
        encoder: filled in place; None where a network has none, which can only train from scratch. It may have
            ``check_weights(state)``, which raises a ``ValueError`` for weights that it must not take. It may have its
            own rules to adapt tensors, ``adapt_weight`` and ``check_inflation`` (see
            ``common.networks.slice_encoder.SliceEncoder``). And it may map parts to regular expressions for names:
            ``fresh_weights``, parts that may be missing from a file as a whole, and ``spare_weights``, parts that may
            be missing from the encoder as a whole.
        path: an encoder file, or None (or "") to train from scratch, which is logged.
        preprocessing: transforms of the images that the encoder will see. They are compared field by field with the
            file's record of the training images (``common.preparation``). A file without such a record gets a line in
            the log.
        spatial_size: size of one input of the encoder, which gives the token grid.
        accept_preparation: log each difference as a warning; False refuses the file.
        inflation: how the weight of a patch embedding for a single slice fills one for several: ``centring``,
            ``average`` (``common.weights.inflate.inflate_depth``), or ``random`` to keep its random values; the bias
            comes from the file. A file for several slices already has its inflation; another one is refused.
        held_out: the validation list. A file trained on scans or subjects of it, or of the test list of the same
            datalist, is refused (``common.data.seen.refuse_seen``).
        transductive: accept such a file, with a warning.
        task: task whose classes the network predicts. If the last layers belong to ``encoder`` (``heads``), a file of
            another task is refused: its tensors may fit, but its classes do not.

    Returns:
        The report, or None from scratch.

    Raises:
        FileNotFoundError, ValueError: as ``read_encoder``; the file lacks a tensor of the encoder, or holds one of
            another shape or one that the encoder lacks; its architecture or the task of its last layers differs; it
            holds unsound tensors (``refuse_unsound``); there is no file and ``encoder`` has frozen norms
            (``refuse_no_statistics``); ``inflation`` is unknown, or other than ``centring`` although file or encoder
            cannot be inflated; it was trained on scans of ``held_out``, or on images prepared in another way and that
            is not accepted.
    """
    if inflation not in (*INFLATIONS, "random"):
        raise ValueError(f"inflation is {inflation!r}; it must be one of {', '.join(INFLATIONS)}, random.")
    if not path:
        if encoder is not None:
            refuse_no_statistics(encoder, "set pretrained_encoder, or norm to batch or group")
        logger.info("no pretrained encoder: training from scratch.")
        return None
    if encoder is None:
        raise ValueError(
            f"pretrained_encoder is {path}, but the network has no encoder that could take it: leave it out."
        )
    state, record = read_encoder(path)
    if held_out is not None:
        lists = {"validation": held_out, "test": getattr(held_out, "lists", {}).get("test", [])}
        refuse_seen(path, record.get("scans"), lists, ("validation", "test"), transductive)
    target = encoder.state_dict()
    state = match_position_form(state, target)
    refuse_unsound(path, state, target)
    zeros = refuse_blank(path, state)
    made_task = (record.get("preparation") or {}).get("task")
    if getattr(encoder, "heads", False) and None not in (task, made_task) and task != made_task:
        raise ValueError(
            f"the last layers of {path} predict the classes of {made_task}, not those of {task}: leave out "
            f"presets/whole_net.json (encoder#heads) to take all but them, or add the task file of {made_task}."
        )
    check: Any = getattr(encoder, "check_weights", None)
    if check is not None:
        try:
            check(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    report = TransferReport(str(path), sizes={name: tensor.numel() for name, tensor in target.items()})
    architecture: dict[str, Any] = getattr(encoder, "architecture", dict)()
    differences = compare_images(path, record, preprocessing)
    made_size = record.get("spatial_size")
    one_size = any("position_embeddings" in name for name in target)  # a ViT's
    if one_size and made_size and spatial_size is not None and list(made_size) != list(spatial_size):
        differences.append(
            f"it was made with spatial_size {list(made_size)}, but the images have {list(spatial_size)}."
        )
    refuse_preparation(path, differences, accept_preparation, "encoder")
    if zeros:
        differences.append(f"{and_more(zeros)}, kernels and matrices, are 0 throughout.")
    settings = compare_architecture(record, encoder)
    report.warnings = [*differences, *settings.values()]
    _check_inflation(path, state, record, encoder, inflation)

    new_state, lacking, surplus = _match(state, target, record, encoder, spatial_size, inflation, report)
    logger.debug("all names of the %s", report.text())
    if lacking or surplus:
        logger.warning("%s", report)
    _refuse_misfit(path, record, encoder, architecture, report, lacking, surplus, settings)
    encoder.load_state_dict(new_state, strict=False)
    logger.info("%s", report)
    for warning in report.warnings:
        logger.warning("%s: %s", path, warning)
    if any(f"(id `{name}`)" in warning for name in PREPARED for warning in differences):
        ids = ", ".join(PREPARED)
        logger.warning("--prepare_as encoder prepares images as those of %s were (%s, as it states them).", path, ids)
    return report


def _match(
    state: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    encoder: nn.Module,
    spatial_size: Sequence[int] | None,
    inflation: str,
    report: TransferReport,
) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    """Find a tensor of the file for each of the encoder, and note in the report what became of both.

    Returns:
        The tensors to load; those of the encoder that should come from the file but cannot, with why; and those of the
        file that no rule leaves out.
    """
    adapt_weight: Any = getattr(encoder, "adapt_weight", None)
    new_state: dict[str, torch.Tensor] = {}
    lacking: dict[str, str] = {}
    for name, tensor in target.items():
        source = state.get(name)
        if source is None:
            fresh = _fresh(name, state, encoder)
            report.new[name] = fresh or "no tensor of this name in the file"
            if fresh is None:
                lacking[name] = report.new[name]
            continue
        found = adapt_weight(name, source, tensor, record, inflation) if adapt_weight else None
        adapted, how = found or _adapt(name, source, tensor, record, encoder, spatial_size)
        if adapted is tensor:
            report.new[name] = report.unused[name] = how
        elif adapted is source:
            new_state[name] = source
            report.loaded.append(name)
        elif adapted is None:
            lacking[name] = report.new[name] = report.unused[name] = how
        else:
            new_state[name] = adapted
            report.adapted[name] = how
    surplus = []
    for name in state.keys() - target.keys():
        spare = _spare(name, target, encoder)
        report.unused[name] = spare or "no tensor of this name in the encoder"
        surplus += [] if spare else [name]
    report.unused = {name: report.unused[name] for name in state if name in report.unused}
    return new_state, lacking, sorted(surplus)


def _refuse_misfit(
    path: str | os.PathLike,
    record: Mapping[str, Any],
    encoder: nn.Module,
    architecture: Mapping[str, Any],
    report: TransferReport,
    lacking: Mapping[str, str],
    surplus: list[str],
    settings: Mapping[str, str],
) -> None:
    """Refuse a file that does not fill the encoder, holds more, or computes something else in it.

    Raises:
        ValueError: with how they differ.
    """
    made = record.get("architecture", {}).get("name")
    same_kind = not made or architecture.get("name", made) == made
    # What to do about it says more than what else differs.
    if same_kind and lacking and all(ADVICE.search(why) for why in lacking.values()):
        name, why = next(iter(lacking.items()))
        raise ValueError(f"{path} ({_describe(record)}) does not fill {name}, which must come from the file ({why}).")
    heads = getattr(encoder, "spare_weights", {}).get(HEADS)
    if heads and lacking and all(re.match(heads, name) for name in lacking):
        raise ValueError(
            f"{path} has no last layers to predict classes: take a file of a pre-training with presets/whole_net.json, "
            "or do without these layers (encoder#heads)."
        )
    if lacking:
        raise ValueError(
            f"{path} ({_describe(record)}) fits {report.covered:.1%} of this encoder ({_describe_encoder(encoder)}), "
            f"not all of it: {_misfit(lacking, report, record, architecture)}; use the network it was made with."
        )
    if not same_kind:  # a plain transformer fits BEiT's layers, but is none
        raise ValueError(
            f"{path} holds a {made}, but this encoder is a {architecture['name']}; use the network it was made with."
        )
    if surplus:
        differing = _differing(record, architecture)
        raise ValueError(
            f"{path} ({_describe(record)}) holds {and_more(surplus)}, which this encoder "
            f"({_describe_encoder(encoder)}) lacks and no rule leaves out"
            f"{f': it was {differing}' if differing else ''}; use the network it was made with."
        )
    for key in RESOLUTION:
        if key in settings:
            raise ValueError(
                f"{path} ({_describe(record)}) fits by shape, but computes something else here: {settings[key][:-1]}; "
                "use the network it was made with."
            )


def compare_images(path: str | os.PathLike, record: Mapping[str, Any], preprocessing: Any) -> list[str]:
    """One sentence for each difference between the images that ``preprocessing`` makes and those of the file's record.

    Older files without a record of preparation, and converted weights, have at most some fields. Intensities described
    in words are logged, not compared.
    """
    if preprocessing is None:
        return []
    used, made = preparation_record(preprocessing), record.get("preparation")
    words = record.get("intensity")
    if made is None:
        made = {name: record.get(name) for name in STATED}
        made["spacing"] = made["spacing"] or record.get("domain_spacings")  # files of med3d
        known = ", ".join(f"{name} {value}" for name, value in made.items() if value is not None) or "nothing"
        logger.info("%s has no record of how its images were prepared; it states %s.", path, known)
    if made.get("intensity") is None and words:
        logger.info(
            "%s: intensities are described in words, %r, so they are not compared; the images have %s.",
            path,
            words,
            field_text(used["intensity"]),
        )
    return compare_preparation(made, used)


def compare_architecture(record: Mapping[str, Any], encoder: nn.Module) -> dict[str, str]:
    """One sentence for each setting, by its key, in which an encoder differs from that of a file."""
    architecture: Any = getattr(encoder, "architecture", dict)
    made, used = record.get("architecture") or {}, architecture()
    return {
        key: f"the encoder was made with {key} {made[key]}, but this one has {used[key]}."
        for key in differing_settings(made, used, ADAPTED)
    }


def _part(name: str, rules: Mapping[str, str], others: Collection[str]) -> str | None:
    """The part of a tensor, by the first rule (a regular expression) that matches its name."""
    what = next((what for what, pattern in rules.items() if re.search(pattern, name)), None)
    return None if what is None or any(re.search(rules[what], other) for other in others) else what


def _fresh(name: str, state: Mapping[str, torch.Tensor], encoder: nn.Module) -> str | None:
    """Why the file may lack a tensor of the encoder, or None."""
    if name.endswith(DERIVED):
        return "made by the network itself"
    part = _part(name, getattr(encoder, "fresh_weights", {}), state)
    return part and f"the file has no {part}"


def _spare(name: str, target: Mapping[str, torch.Tensor], encoder: nn.Module) -> str | None:
    """Why a tensor of the file may be left out, or None."""
    if name.endswith(DERIVED):
        return "made by the network itself"
    part = _part(name, getattr(encoder, "spare_weights", {}), target)
    return part and f"the encoder has no {part}"


def _adapt(
    name: str,
    source: torch.Tensor,
    tensor: torch.Tensor,
    record: Mapping[str, Any],
    encoder: nn.Module,
    spatial_size: Sequence[int] | None,
) -> tuple[torch.Tensor | None, str]:
    """The source tensor in the target's shape and how it was adapted, or None and why not."""
    shapes = f"{tuple(source.shape)} in the file, {tuple(tensor.shape)} in the encoder"
    if name.endswith("position_embeddings") and source.ndim == 3 and source.shape[2] == tensor.shape[2]:
        same = source.shape == tensor.shape
        made = record.get("spatial_size")
        if same and (spatial_size is None or (made and list(made) == list(spatial_size))):
            return source, ""
        patch = record.get("architecture", {}).get("patch_size", [16, 16, 16])
        grid = token_grid(source.shape[1], made, patch)
        new_grid = token_grid(tensor.shape[1], spatial_size, patch)
        if same and (grid == new_grid or (grid is None and not made)):  # no cube: most likely of this very size
            return source, ""
        if same and not made:
            return None, (
                f"it states no spatial_size, and {source.shape[1]} tokens are those of a cube as well as of the grid "
                f"{new_grid}: {CONVERT_AGAIN} `--spatial_size`"
            )
        if grid is None or new_grid is None:
            return None, f"token grids of the position tables unknown ({shapes}); give spatial_size"
        return resample_positions(source, grid, new_grid), f"positions resampled from grid {grid} to {new_grid}"
    if source.shape == tensor.shape:
        return source, ""
    same_but_channels = (
        source.ndim in (4, 5) and source.shape[0] == tensor.shape[0] and source.shape[2:] == tensor.shape[2:]
    )
    had = record.get("architecture", {}).get("in_channels")
    wanted = getattr(encoder, "in_channels", None)
    # The image's in both: a layer further on may have as many in one of them.
    if same_but_channels and had in (None, source.shape[1]) and wanted in (None, tensor.shape[1]) and had != wanted:
        return adapt_channels(source, tensor.shape[1]), f"{source.shape[1]} input channels to {tensor.shape[1]}"
    return None, f"shape differs: {shapes}"


def _check_inflation(
    path: str | os.PathLike,
    state: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    encoder: nn.Module,
    inflation: str,
) -> None:
    """Refuse an inflation that would have no effect: the arms of an ablation would be equal without notice."""
    check: Any = getattr(encoder, "check_inflation", None)
    if check is not None and check(path, state, record, inflation):
        return
    if inflation != INFLATIONS[0]:
        raise ValueError(
            f"inflation is {inflation!r}, but this encoder ({_describe_encoder(encoder)}) has no patch embedding "
            f"that is inflated: leave inflation at {INFLATIONS[0]!r}."
        )


def _differing(record: Mapping[str, Any], architecture: Mapping[str, Any]) -> str:
    """The settings in which the file's encoder differs, if any."""
    made = record.get("architecture") or {}
    differing = [
        f"{key} {made[key]} and not {architecture[key]}"
        for key in differing_settings(made, architecture, ("name", "in_channels"))
    ]
    return f"made with {', '.join(differing)}" if differing and made.get("name") == architecture.get("name") else ""


def _misfit(
    lacking: Mapping[str, str], report: TransferReport, record: Mapping[str, Any], architecture: Mapping[str, Any]
) -> str:
    """How a refused encoder differs: its settings, and the first tensor that does not fit."""
    differing = _differing(record, architecture)
    parts = [f"it was {differing}"] if differing else []
    unfit = next((name for name in lacking if name in report.unused), None)
    if unfit:
        parts.append(f"the first tensor that does not fit is {unfit} ({lacking[unfit]})")
    elif len(report.new) == len(report.sizes):
        parts.append("no tensor of the encoder is in it by name")
    else:
        parts.append(f"it has no tensor {and_more(list(lacking))}")
    return ", ".join(parts)


def _describe(record: Mapping[str, Any]) -> str:
    architecture = record.get("architecture", {})
    return f"{record.get('method', 'unknown method')} on {architecture.get('name', 'unknown architecture')}"


def _describe_encoder(encoder: nn.Module) -> str:
    return type(encoder).__name__
