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
    """Begin, beside the training, the record of the scans that it uses, for the file that it will write.

    Args:
        scans: items by the name of their list; None where nothing is to be recorded.
        used: the lists that the weights are trained on or chosen by.
        earlier: encoder file that the training starts from, whose scans are taken over; None for none.

    Returns:
        the record in the making; None where there is nothing to record, and on all ranks but 0, which write no file.
    """
    if scans is None or idist.get_rank() != 0:
        return None
    return SeenScans(scans, used, read_record(earlier).get("scans") if earlier else None)
