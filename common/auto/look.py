"""Find scans and masks in what people have, pair them, and check them."""

from __future__ import annotations

import os

from .study import Study

__all__ = ["look"]


def look(images: str | os.PathLike, masks: str | os.PathLike | None = None, subject: str | None = None) -> Study:
    """Find scans and masks, pair them, find out whose they are, and check every file.

    Args:
        images: folder of the scans, or of a layout that holds scans and masks, or a datalist (JSON).
        masks: folder of the masks, where they are not in the layout.
        subject: regular expression that finds the subject in a scan's path below `images`, without its ending: its
            first group, else all that it matches.

    Raises:
        StudyError: nothing there can be trained on.
    """
    raise NotImplementedError
