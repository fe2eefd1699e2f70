from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection
from monai.data import FolderLayoutBase, NibabelWriter
from monai.transforms import SaveImaged

from ..files import atomic_write

__all__ = ["SaveVolumed"]

EXTENSIONS = (".nii.gz", ".nii")


class SaveVolumed(SaveImaged):
    """Write volumes as NIfTI, each completely or not at all.

    MONAI's ``SaveImaged`` reports any write error as "no suitable writer" and logs it. In the engines the run then ends
    as if nothing had happened, and the part written so far stays. Here a full disk or a folder without permission ends
    the run with the file's name, and a file gets its name only when it is complete. The class derives from
    ``SaveImaged`` so that MONAI Label, which writes its own files, skips it.

    Args:
        keys: volumes (C, *spatial) with their affine; their ``filename_or_obj`` names the image.
        folder_layout: names the files, as ``KeepFolderTree`` does, ending in ``.nii.gz`` or ``.nii``.
        output_dtype: type of the stored voxels.
        allow_missing_keys: whether items may lack keys.

    Raises:
        OSError: a file cannot be written; names it.
        ValueError: the layout names another format.
    """

    def __init__(
        self,
        keys: KeysCollection,
        folder_layout: FolderLayoutBase,
        output_dtype: DtypeLike = np.uint8,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, folder_layout=folder_layout, allow_missing_keys=allow_missing_keys)
        self.folder_layout, self.output_dtype = folder_layout, output_dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            self._save(d[key])
        return d

    def _save(self, volume: Any) -> None:
        path = Path(self.folder_layout.filename(subject=volume.meta["filename_or_obj"]))
        extension = next((end for end in EXTENSIONS if path.name.endswith(end)), None)
        if extension is None:
            raise ValueError(f"{path} is not a NIfTI path: set the layout's extension to .nii.gz.")
        writer = NibabelWriter(output_dtype=self.output_dtype)
        writer.set_data_array(volume, channel_dim=0)
        writer.set_metadata(volume.meta, resample=False)
        with atomic_write(path, suffix=extension) as temporary:
            writer.write(os.fspath(temporary))
