"""Record the scans that a network has seen in its file, and compare them with the scans of an evaluation."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..volumes import and_more
from .copies import SMALLEST, content_digest, content_key, image_files
from .datalist import OTHER_PEOPLE

__all__ = ["SeenScans", "find_seen", "refuse_seen"]

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]

TRAINED = {"pretraining": "was pre-trained on", "training": "was trained on"}
CHOSEN = {"validation": "was chosen by"}

BEGINNING = 1 << 22
"""Bytes of the content compared beside size and checksum: the whole of many scans, several slices of others."""


class SeenScans:
    """Record the scans of a training, in a background thread.

    For each part, the record identifies the files by content (unpacked size and CRC-32, and a SHA-256 of the beginning)
    and holds digests of the subjects, but no names. DICOM series are recorded by their subjects only. For a packed
    file, the first 4 MiB are unpacked; other files are read once.

    Args:
        lists: items by the name of their list, as `load_datalist` gives them.
        used: `training`, and `validation` if it chooses the weights.
        earlier: record of the weights that the training starts from; their training scans become the part
            `pretraining`.
    """

    def __init__(
        self, lists: Mapping[str, Items], used: Sequence[str], earlier: Mapping[str, Any] | None = None
    ) -> None:
        self._lists, self._used, self._earlier = lists, used, earlier or {}
        self._record: dict[str, Any] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._make, name="seen scans", daemon=True)
        self._thread.start()

    def record(self) -> dict[str, Any]:
        """The record as JSON values; waits until it is complete."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._record

    def _make(self) -> None:
        try:
            before = {"pretraining": ("pretraining", "training"), "validation": ("validation",)}
            for part in ("pretraining", "training", "validation"):
                own = [_contents(self._lists, part)] if part in self._used else []
                own += [_part(self._earlier, name) for name in before.get(part, ())]
                if part == "training" and part in self._used:
                    self._say_what_is_both(own[0]["files"])
                merged = {key: sorted({x for found in own for x in found[key]}) for key in ("files", "subjects")}
                if any(merged.values()):
                    self._record[part] = merged
        except Exception as error:  # raised where the record is asked for
            self._error = error

    def _say_what_is_both(self, files: Sequence[str]) -> None:
        """Log scans that are in both trainings: no leak, but no transfer either if the encoder learnt from masks."""
        before = {x for part in TRAINED for x in _part(self._earlier, part)["files"]}
        both = len(before.intersection(files))
        if both:
            logger.info(
                "%d of the %d training scans were already used to train the initial weights: the scores do not "
                "show a transfer to other data.",
                both,
                len(files),
            )


def find_seen(record: Mapping[str, Any] | None, lists: Mapping[str, Items], names: Sequence[str]) -> list[str]:
    """Find scans of the lists `names` in a record; one phrase for each list and part of the record.

    Validation scans may have chosen the weights before, since they choose again; scans of other lists may not.
    """
    phrases = []
    for name in names:
        for part, verb in (TRAINED if name == "validation" else {**TRAINED, **CHOSEN}).items():
            seen = _part(record or {}, part)
            files = _files_in(seen["files"], image_files(lists[name]))
            subjects: Mapping[str, str] = getattr(lists[name], "subjects", {})
            known = set(seen["subjects"])
            others = [image for digest, image in subjects.items() if digest in known and image not in files]
            if files:
                phrases.append(f"{verb} {and_more(files)} of the {name} list")
            if others:
                which = "subject" if len(others) == 1 else "subjects"
                found = f"other scans of the {which} of {and_more(others)} of the {name} list"
                phrases.append(f"{verb} {found} ({OTHER_PEOPLE})")
    return phrases


def refuse_seen(
    path: Any,
    record: Mapping[str, Any] | None,
    lists: Mapping[str, Items],
    names: Sequence[str],
    transductive: bool = False,
) -> list[str]:
    """Refuse weights that have seen the scans that judge them.

    Files are recognised if their content is equal to the byte, packed or not and under any name; subjects, if both
    datalists lie in one folder. Weights without a record, such as foreign ones, are accepted with a line in the log.

    Args:
        path: the file of the weights.
        record: record from `SeenScans`.
        lists: items by the name of their list, as `load_datalist` gives them.
        names: lists that judge the weights.
        transductive: accept them, with a warning in the log.

    Returns:
        the phrases of `find_seen`.

    Raises:
        ValueError: they have seen some, and `transductive` is not set.
    """
    if record is None:
        logger.info("%s has no record of the scans that it was trained on: nothing to compare.", path)
        return []
    phrases = find_seen(record, lists, names)
    if phrases and not transductive:
        raise ValueError(
            f"{path} {', and '.join(phrases)}: take weights that have not seen them, take these scans out of the list, "
            "or set `transductive` to true to go on with a warning."
        )
    for phrase in phrases:
        logger.warning("transductive: %s %s; scores say less about new scans.", path, phrase)
    return phrases


def _contents(lists: Mapping[str, Items], name: str) -> dict[str, list[str]]:
    """Content of each file, `SIZE-CRC-SHA`, and the subjects."""
    keys = {file: content_key(file) for file in image_files(lists.get(name, []))}
    contents = [_content_of(file, key) for file, key in keys.items() if key is not None]
    return {"files": contents, "subjects": list(getattr(lists.get(name), "subjects", {}))}


def _content_of(file: str, key: str) -> str:
    # The size and checksum of a .gz file of several parts are those of its last one, which may be empty.
    whole = int(key.partition("-")[0], 16) < SMALLEST
    return f"{key}-{content_digest(file, None if whole else BEGINNING)}"


def _part(record: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    part = record.get(name)
    part = part if isinstance(part, Mapping) else {}
    return {key: [x for x in part.get(key) or [] if isinstance(x, str)] for key in ("files", "subjects")}


def _files_in(contents: Sequence[str], files: Sequence[str]) -> list[str]:
    """Files with a content among the contents. Only files of equal size and checksum are read."""
    seen = set(contents)
    keys = {content.rpartition("-")[0] for content in contents}
    sizes = {key.partition("-")[0] for key in keys}

    def is_seen(file: str) -> bool:
        key = content_key(file, sizes)
        return key is not None and key in keys and _content_of(file, key) in seen

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [file for file, found in zip(files, pool.map(is_seen, files), strict=True) if found]
