"""One child process of a comparison: its command, its config, and what its result depends on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import PLACES
from ..files import file_digest
from ..json_files import read_json
from .bundle_config import parsed
from .settings import Settings
from .tables import plural

STAGES = ("pretrain", "tune", "train", "evaluate", "infer", "probe")

INPUT_IDS = ("pretrained_encoder", "model_path", "datalist", "_meta_")
"""Ids that hold the path of an input file, whose content counts."""


@dataclass
class Run:
    """One child process of a comparison.

    Args:
        stage: one of ``STAGES``.
        files: config files, merged in order.
        override: ids and values, the output folder included.
        folder: output folder; the stages of one fine-tuning share it.
        labels: number of training items, for all stages except pre-training.
        steps, epochs, items, batch: for training: its length, the items that it loads, and those per step; else 0.
        inputs: files from other runs that this run reads.
        needs: outcomes of the runs that must be done before.
        data: SHA-256 of the datalists.
        scans: SHA-256 of the scans and masks that they name (``bundle_config.Read``).
        target: target of a representation probe.
        trial: number of the combination of values, in a tuning run; in a training, of the chosen one.
        tried: of a training on a seed that was tuned on: the folders of its trials, by number. The chosen trial is the
            same training, and its files are copied.
        fold: fold of a cross-validation.
    """

    stage: str
    arm: str
    files: tuple[str, ...]
    override: dict[str, Any]
    folder: Path
    seed: int | None = None
    fraction: float | None = None
    labels: int | None = None
    steps: int = 0
    epochs: int = 0
    items: int = 0
    batch: int = 0
    inputs: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    data: str = ""
    scans: str = ""
    target: str | None = None
    trial: int | None = None
    tried: tuple[Path, ...] = ()
    fold: int | None = None

    @property
    def key(self) -> str:
        """Name of its files in the folder."""
        return f"{self.stage}-{self.target}" if self.target else self.stage

    def __str__(self) -> str:
        parts = [self.stage, self.arm]
        parts += [f"{self.labels} {plural(self.labels, 'label')}"] if self.labels is not None else []
        parts += [f"seed {self.seed}"] * (self.seed is not None)
        parts += [f"fold {self.fold}"] * (self.fold is not None) + [f"trial {self.trial}"] * (self.stage == "tune")
        return ", ".join([*parts, self.target] if self.target else parts)

    @property
    def outcome(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def is_copied(self) -> bool:
        """Whether this training is copied from a trial: one that is still to come, or whose network is still there."""
        folders = self.tried if self.trial is None else self.tried[self.trial : self.trial + 1]
        done = [read_json(folder / "tune.json", {}).get("status") == "done" for folder in folders]
        there = [(folder / "model.pt").is_file() for folder in folders]
        return bool(folders) and all(model or not over for over, model in zip(done, there, strict=True))

    def command(self, settings: Settings) -> list[str]:
        """The command that a user could type."""
        bundle = settings.bundle
        if self.stage == "probe":
            words = [sys.executable, "-m", __package__ + ".probes", "--target", str(self.target)]
            words += ["--output", str(self.folder / f"probe-{self.target}.rows.json")]
        else:
            start = [sys.executable]
            if settings.processes > 1 and self.stage != "infer":
                start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
                start += [f"--nproc_per_node={settings.processes}"]
            words = [*start, "-m", "monai.bundle", "run"]
            words += ["--meta_file", str(bundle / "configs/metadata.json")]
            words += ["--logging_file", str(bundle / "configs/logging.conf")]
        words += ["--config_file", str(list(self.files)), "--bundle_root", str(bundle)]
        for key, value in self.override.items():
            words += [f"--{key}", typed(value)]
        return words

    def config(self) -> dict[str, Any]:
        """The merged files with the overrides."""
        return parsed(self.files, self.override).get()

    def digest(self, stage: str | None = None) -> str:
        """SHA-256 of what determines the result: the config without ids of paths, datalists and input files.

        Args:
            stage: digest of the same run as another stage.
        """
        config = {key: value for key, value in self.config().items() if key not in (*PLACES, *INPUT_IDS)}
        parts = [json.dumps(config, sort_keys=True, default=str), stage or self.key, self.data]
        parts += [file_digest(path) for path in self.inputs]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def made(self, outcome: Mapping[str, Any], digest: str | None = None) -> bool:
        """Whether an outcome is of this run: of its config, its inputs and its data, as far as its record says.

        Records of earlier versions do not say which scans they had. ``digest`` is that of the run, if it is known.
        """
        if self.has_other_scans(outcome):
            return False
        return outcome.get("digest") == (self.digest() if digest is None else digest)

    def has_other_scans(self, outcome: Mapping[str, Any]) -> bool:
        """Whether an outcome's record says that it is of scans or masks with another content."""
        return bool(outcome.get("scans", self.scans) != self.scans)


def typed(value: Any) -> str:
    """Text of a value after ``--id`` that fire reads as the same value."""
    if isinstance(value, str):
        return value
    return "$None" if value is None else repr(value)
