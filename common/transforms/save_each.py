from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

from monai.data import FolderLayoutBase
from monai.transforms import MapTransform

__all__ = ["SaveEach"]


class SaveEach(MapTransform):
    """Base of transforms that write the volume under each key into a file, and pass the item on unchanged."""

    folder_layout: FolderLayoutBase

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self._save(d[key])
        return d

    @abstractmethod
    def _save(self, volume: Any) -> None:
        """Write one volume, completely or not at all."""
