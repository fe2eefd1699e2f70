"""What a comparison reads from a bundle's config, without building networks or data sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..checks import first_cause
from ..files import file_digest
from ..overlays import merge_files
from .settings import CompareError

WEIGHTS = ("coarse_model_path",)
"""Ids that hold the path of a file of weights, besides `model_path` and `pretrained_encoder`."""


class Read(NamedTuple):
    """What a run reads.

    Args:
        data: SHA-256 of the datalists.
        scans: SHA-256 of the content of the scans and masks that they name, and of weights that no other run made.
    """

    data: str
    scans: str


class BundleConfig:
    """Facts about a config for a comparison: merged files and overrides, without building networks or data sets."""

    def __init__(self, files: Sequence[str], override: Mapping[str, Any], bundle: Path) -> None:
        self.parser = parsed(files, {"bundle_root": str(bundle), **override})
        self.files = [Path(file).name for file in files]

    @property
    def ids(self) -> set[str]:
        """Top-level ids."""
        return set(self.parser.get())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an id with its references resolved; ``default`` if there is none.

        Raises:
            CompareError: it cannot be evaluated; the message has the reason.
        """
        try:
            self.parser[name]
        except (KeyError, IndexError):
            return default
        try:
            return self.parser.get_parsed_content(name)
        except Exception as error:  # MONAI wraps whatever the config's own code raises
            raise CompareError(f"`{name}` of {' + '.join(self.files)}: {first_cause(error)}") from error

    @property
    def metrics(self) -> dict[str, str]:
        """Metric of the evaluation -> ``"higher"`` or ``"lower"``, whichever is better; the first is the main metric.

        Raises:
            CompareError: the config does not state them.
        """
        metrics = self.get("metrics")
        if not isinstance(metrics, dict) or not metrics or set(metrics.values()) - {"higher", "lower"}:
            raise CompareError(
                f"{' + '.join(self.files)} state no `metrics`: a mapping from the evaluation's metrics to "
                '"higher" or "lower", whichever is better, with the main one first.'
            )
        return dict(metrics)

    @property
    def batch(self) -> int:
        """Items of a training step, over all processes."""
        return self.get("train#dataloader#batch_size", 1)

    def steps_per_epoch(self, items: int) -> int:
        """Steps per epoch: ``batches_per_epoch`` if the config states it, else one pass over the items.

        A config with the id set to null takes only whole batches (``common.data.volume_sampler``).
        """
        batches = self.get("batches_per_epoch", 0)
        if batches:
            return batches
        whole = math.floor if batches is None else math.ceil
        return max(1, whole(items / self.batch))


def drawn_from(train: BundleConfig) -> list[dict[str, Any]]:
    """The training items that numbers of labels count: those of the target domain, if there is one."""
    items = train.get("data")["training"]
    target = train.get("target_domain") if "target_domain" in train.ids else None
    # the number of a domain is text if another item of the list has none
    return [item for item in items if target is None or str(item.get("domain")) == str(target)]


def tested_items(evaluate: BundleConfig) -> list[dict[str, Any]]:
    """The items of the list that the evaluation reads."""
    return evaluate.get("data")[evaluate.get("evaluated_list", "test")]


def validated_items(train: BundleConfig) -> list[dict[str, Any]]:
    """The items of the list that chooses the weights of a fine-tuning."""
    return train.get("data")[train.get("validated_list", "validation")]


def keeps_best_encoder(config: BundleConfig) -> bool:
    """Whether a pre-training keeps the encoder of its best validation."""
    handlers = config.parser.get().get("train", {}).get("handlers") or []
    return any("EncoderSaver" in str(x.get("_target_")) and x.get("evaluator") for x in handlers)


def data_digest(config: BundleConfig, name: str = "datalist") -> str:
    """SHA-256 of the datalists that an id names."""
    value = config.get(name)
    paths: list[Any] = [value] if isinstance(value, (str, Path)) else value or []
    # those of several sets, each with what its labels mean (`common.data.domains`)
    files = [path["datalist"] if isinstance(path, Mapping) else path for path in paths]
    return file_digest(*files)


def scans_digest(config: BundleConfig, items: Sequence[Mapping[str, Any]], start: Path | None = None) -> str:
    """SHA-256 of the content of what items name, and of the weights that the config reads, wherever these lie.

    Args:
        start: the encoder file from which the config starts, if any.
    """
    from ..data.contents import contents_digest

    weights = [Path(path) for path in (*(config.get(name) for name in WEIGHTS), start) if path]
    weighed = [file_digest(path) if path.is_file() else "missing" for path in weights]
    return hashlib.sha256("\n".join([contents_digest(items), *weighed]).encode()).hexdigest()


def parsed(files: Sequence[str], override: Mapping[str, Any]) -> Any:
    """MONAI's parser of the merged files with values of ids laid over them."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(merged_files(files))
    parser.update(dict(override))
    return parser


def merged_files(files: Sequence[str]) -> dict[str, Any]:
    """The files merged in order; a file that cannot be read is a :class:`CompareError`."""
    try:
        return merge_files(files)
    except ValueError as error:
        raise CompareError(str(error)) from error
