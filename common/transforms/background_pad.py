from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SpatialPadd

from ..tensors import plain_tensor

__all__ = ["BackgroundPadd"]

NOTE = "background"


class BackgroundPadd(SpatialPadd):
    """Pad an image with its background, the least value of each channel, as MONAI's ``SpatialPadd`` pads with 0.

    After a z-score, 0 is the mean of the tissue, so a border of 0 looks like tissue. The first padding stores the
    background value in the metadata. A later crop of the volume is then padded with the background of the volume, not
    with the darkest tissue of the crop. Use it after intensities are scaled, and do not scale them between two uses.
    Label maps are padded with label 0: the least label of a map that its labels fill is a structure.

    Args:
        keys: images, channel first.
        spatial_size: least size, as for ``SpatialPadd``; a side of 0 or -1 stays as it is.
        method: ``"symmetric"`` or ``"end"``.
        allow_missing_keys: whether items may lack keys.
        interpolation: how the volumes were resampled. ``"nearest"`` says that they are label maps. None takes images.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        method: str = "symmetric",
        allow_missing_keys: bool = False,
        interpolation: str | None = None,
    ) -> None:
        super().__init__(keys, spatial_size, method=method, allow_missing_keys=allow_missing_keys)
        self.spatial_size, self.method, self.interpolation = spatial_size, method, interpolation

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        result = super().__call__(data, lazy=False)
        if self.interpolation == "nearest":
            return result
        for key in self.key_iterator(result):
            before, image = torch.as_tensor(data[key]), result[key]
            noted = before.meta.get(NOTE) if isinstance(before, MetaTensor) else None
            values = before.flatten(1).amin(1).tolist() if noted is None else list(noted)
            if isinstance(image, MetaTensor):
                image.meta = {**image.meta, NOTE: values}
            voxels = torch.as_tensor(plain_tensor(image))
            least = torch.tensor(values, dtype=voxels.dtype, device=voxels.device)
            widths = self.padder.compute_pad_width(before.shape[1:])
            for axis, (start, end) in enumerate(widths):
                size = voxels.shape[axis]
                for first, count in ((0, start), (size - end, end)):
                    if count:
                        border = voxels.narrow(axis, first, count)
                        border.copy_(least.view(-1, *(1,) * (voxels.ndim - 1)).expand_as(border))
        return result
