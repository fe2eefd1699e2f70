from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist

from ..data.seen import SeenScans
from ..weights.encoder_file import read_record

__all__ = ["start_scans_record"]


def start_scans_record(
    scans: Mapping[str, Sequence[Mapping[str, Any]]] | None, used: Sequence[str], earlier: str | os.PathLike | None
) -> SeenScans | None:
    """Start to record the scans that a training uses, in the background, for the file that it will write.

    Args:
        scans: items by the name of their list; None records nothing.
        used: the lists for training or for choosing the weights.
        earlier: encoder file that the training starts from; its scans are added to the record. None for none.

    Returns:
        the unfinished record. None if there is nothing to record, and on all ranks except 0, since they write no file.
    """
    if scans is None or idist.get_rank() != 0:
        return None
    return SeenScans(scans, used, read_record(earlier).get("scans") if earlier else None)
