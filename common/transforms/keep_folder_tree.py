from __future__ import annotations

import os
from pathlib import Path

from monai.data import FolderLayoutBase
from monai.data.utils import create_file_basename

__all__ = ["KeepFolderTree"]


class KeepFolderTree(FolderLayoutBase):
    """Output paths of `SaveVolumed` and `SaveDicomSegd`: the tree of the images below `root`, repeated in `output_dir`.

    An image is a file or the folder of a DICOM series. Data sets with one folder per subject often use the same file
    names in all of them; in one flat folder their predictions would overwrite each other. The output of an image
    outside of `root` goes into `output_dir` itself. Two images with the same output path are refused.

    Args:
        output_dir: folder of all outputs; folders below it are made.
        root: folder of the images, or one image.
        postfix: added after the image's name and an underscore.
        extension: of the file to write.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        root: str | os.PathLike,
        postfix: str = "",
        extension: str = ".nii.gz",
    ) -> None:
        self.output_dir, self.root = Path(output_dir), Path(os.path.abspath(root))
        self.postfix, self.extension = postfix, extension
        self._images: dict[str, Path] = {}  # by output

    def filename(self, subject: str | os.PathLike = "subject", idx: int | None = None, **kwargs) -> str:
        """Path of the output for the image `subject`; `idx` numbers the patches of one image.

        Raises:
            ValueError: another image already has that output.
        """
        image = Path(os.path.abspath(subject))
        inside = image.parent.is_relative_to(self.root)
        folder = self.output_dir / (image.parent.relative_to(self.root) if inside else "")
        # A folder (of a DICOM series) is often named by a number with points in it, whose end is no extension.
        file = f"{image.name}.dcm" if image.is_dir() else image.name
        name = create_file_basename(self.postfix, file, folder, separate_folder=False, patch_index=idx)
        output = f"{name}{self.extension}"
        other = self._images.setdefault(output, image)
        if other != image:
            raise ValueError(
                f"{other} and {image} would both be written to {output}: set the config id `dataset_dir` to a folder "
                "that holds both images, or give them different names."
            )
        return output
