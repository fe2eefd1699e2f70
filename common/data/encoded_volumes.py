from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..evaluation_mode import evaluation_mode

__all__ = ["EncodedVolumes"]

logger = logging.getLogger(__name__)


class EncodedVolumes(Dataset):
    """Volumes as the encoding vectors of their slices, computed once by a frozen encoder.

    Stage 2 of Medical Transformer would otherwise encode every volume again in every epoch. Vectors for 306 slices of
    64 numbers take 77 KiB per volume. They are computed on the first access to an item, so load the weights before.
    They are computed in evaluation mode, in float32 and without draws from the global random generator. Changed weights
    need a new object.

    Items keep what else they hold, such as an age.

    Args:
        data: items with ``image``.
        transform: loads an item; the same image each time.
        encoder: module with ``encode_planes(image (B, C, X, Y, Z)) -> list of (B, N, d)``.
        device: where to encode.
        num_workers: processes that load volumes in parallel. The loader of the vectors needs none.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        encoder: Any,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.encoder = encoder
        self.device = torch.device(device)
        self.num_workers = num_workers
        self._vectors: list[torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._vectors is None:
            self._vectors = self._encode()
        return {**self.data[index], "image": self._vectors[index]}

    def _encode(self) -> list[torch.Tensor]:
        logger.info("encoding %d volumes once, for all epochs.", len(self.data))
        loader = DataLoader(
            _Loaded(self.data, self.transform),
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # a loader draws a seed, which would shift the training's random numbers
        )
        with evaluation_mode(self.encoder), torch.autocast(self.device.type, enabled=False):
            return [
                torch.cat(self.encoder.encode_planes(image[None].to(self.device, torch.float32)), dim=1)[0].cpu()
                for image in loader
            ]


class _Loaded(Dataset):
    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.transform(self.data[index])["image"]
        return image.as_tensor() if hasattr(image, "as_tensor") else torch.as_tensor(image)
