from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..checkpoint_file import stored_record
from ..fingerprint import Fingerprint, facts_of_volume, fingerprint_in
from ..volumes import VolumeError, volume_name

__all__ = ["CheckScand"]

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "encoders"
"""Weights that come along, by their names. `common.weights` imports this module, so it is not asked."""


class CheckScand(MapTransform):
    """Refuse scans that differ much from the training scans of the network, and warn of those that differ somewhat.

    `common.fingerprint.Fingerprint` holds the rule. Use it right after loading, while volumes are channel first, shape
    (C, *spatial), and as stored; they pass through unchanged. It reads the record of the model's file at the first
    scan, so it works in any pipeline, with or without handlers.

    Args:
        keys: images.
        model: file of the model (`model.pt`, or the traced net beside it if there is no `model.pt`), an encoder file
            with the last layers or the name of an included one, or an exported net with a `record`, such as `OnnxNet`.
            If its record has no fingerprint, nothing is compared, and the log says so once.
        accepted: take scans that would be refused, with a warning.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: a scan is refused (names its file, what was found and what was expected), or the fingerprint is
            damaged.
    """

    def __init__(
        self, keys: KeysCollection, model: Any, accepted: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.model = "the model"
        if isinstance(model, str | os.PathLike):  # a name, or a path of today's folder
            self.model = os.fspath(model) if not Path(model).suffix else os.path.abspath(model)
        self.accepted = accepted
        self._record: Mapping[str, Any] | None = getattr(model, "record", None)
        self._fingerprint: Fingerprint | None = None
        self._is_read = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if not self._is_read:
            self._fingerprint = self._read()
            self._is_read = True
        if self._fingerprint is None:
            return d
        for key in self.key_iterator(d):
            self._check(self._fingerprint, d[key], volume_name(d[key], key))
        return d

    def _check(self, fingerprint: Fingerprint, volume: Any, name: str) -> None:
        try:
            found = fingerprint.differences(facts_of_volume(volume, name))
        except VolumeError as error:
            raise ValueError(f"{name} {error}; repair the file or take it out of the list.") from error
        refused = [one.sentence for one in found if one.severity == "refuse"]
        if refused and not self.accepted:
            raise ValueError(
                f"{name} is unlike the scans that {self.model} was trained on: {', and '.join(refused)}; give "
                "scans of that kind, or accept this one with --accept_scans True."
            )
        if found:
            logger.warning(
                "%s is unlike the scans that the model was trained on, so its mask may be wrong: %s.",
                name,
                ", and ".join(one.sentence for one in found),
            )

    def _read(self) -> Fingerprint | None:
        record = self._record
        if record is None:
            record = _record_of(self.model)
        fingerprint = fingerprint_in(record)
        if fingerprint is None:
            logger.info(
                "%s does not describe the scans that it was trained on, so no scan is compared with them.", self.model
            )
        return fingerprint


def _record_of(model: str) -> Mapping[str, Any]:
    path = Path(model)
    places = (path, path.with_suffix(".ts"), SHIPPED / f"{model}.safetensors")
    file = next((one for one in places if one.is_file()), None)
    return {} if file is None else stored_record(file)  # if there is no file, loading says so
