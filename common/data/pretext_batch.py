from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that the command line of this package starts without loading torch
    import torch


def prepare_pretext_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`prepare_batch` of MONAI's engines for pretext tasks: the image is the network's input and the loss's target.

    Args:
        batchdata: batch with the `image`, shape (B, C, *spatial).
        device: where the image is moved to.
        non_blocking: whether the copy may overlap with the host.
        kwargs: passed on to `Tensor.to`, such as `memory_format`.

    Raises:
        KeyError: the batch has no `image`.
    """
    if "image" not in batchdata:
        raise KeyError(f"The batch has no 'image', only {sorted(map(str, batchdata))}: name the volume `image`.")
    image = batchdata["image"].to(device=device, non_blocking=non_blocking, **kwargs)
    if hasattr(image, "as_tensor"):  # a MetaTensor: no pretext needs the metadata, and it slows every operation down
        image = image.as_tensor()
    return image, image
