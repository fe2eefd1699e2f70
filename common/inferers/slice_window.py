from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers import Inferer

from ..gathered import drop_pages, gathered

__all__ = ["SliceWindowInferer"]


class SliceWindowInferer(Inferer):
    """Predict every slice of volumes from windows of K neighbouring slices (Zhang et al., TransSeg, section 3.3).

    The window of slice i has the slices ``i + stride * o`` for the offsets o from ``-(K // 2)`` to ``K // 2``. The
    first or last slice replaces missing ones, so volumes with fewer than K slices work, too. Slices lie along the last
    axis.

    Windows are not cut out. The network gets runs of slices, ``chunk`` and K - 1 around them, and returns the centre
    slices of all windows of the run, as ``common.networks.transseg.TransSeg`` does. So memory does not grow with the
    number of slices, except for the prediction itself.

    Args:
        slices: K, odd.
        stride: step between slices of a window.
        chunk: slices predicted at a time.
        target: what the network returns: ``"centre"``, the centre slices of a run, or ``"all"``, all slices of a
            window. In the second case windows lie side by side, at least one and as many as fit into ``chunk`` slices.
        device: where the prediction is gathered, such as ``"cpu"`` if the class maps do not fit on the GPU; None uses
            the volume's device.

    ``inferer(inputs (B, C, H, W, D), network)`` returns (B, classes, H, W, D), in float32 even if autocast makes the
    network's output bfloat16.

    Raises:
        ValueError: ``slices`` is even, a number is below 1, or ``target`` is unknown; when called, the network returns
            another number of slices.
    """

    def __init__(
        self,
        slices: int = 5,
        stride: int = 1,
        chunk: int = 8,
        target: str = "centre",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if slices < 1 or slices % 2 == 0 or stride < 1 or chunk < 1:
            raise ValueError(f"slices {slices} must be odd, stride {stride} and chunk {chunk} at least 1.")
        if target not in ("centre", "all"):
            raise ValueError(f"target must be 'centre' or 'all', not {target!r}.")
        self.slices, self.stride, self.chunk, self.target, self.device = slices, stride, chunk, target, device

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if hasattr(inputs, "as_tensor"):
            inputs = inputs.as_tensor()
        depth = inputs.shape[-1]
        prediction = None
        for read, written in self._runs(depth):
            images = [inputs[..., run] for run in read.to(inputs.device)]
            logits = network(torch.cat(images), *args, **kwargs)
            made = torch.cat(logits.split(len(inputs)), dim=-1)
            expected = read.numel() if self.target == "all" else len(written)
            if made.shape[-1] != expected:
                raise ValueError(
                    f"the network returned {made.shape[-1]} slices of {read.shape[-1]}, but {expected} were "
                    "expected: `slices` and `target` must be the same for network and inferer."
                )
            if prediction is None:
                device = inputs.device if self.device is None else torch.device(self.device)
                wide = torch.promote_types(made.dtype, torch.float32)
                # Slices first, so that those of a run lie together.
                prediction = gathered((depth, *made.shape[:-1]), wide, device).movedim(0, -1)
            prediction[..., written] = made[..., : len(written)].to(prediction)
            drop_pages(prediction)
        assert prediction is not None
        return prediction

    def _runs(self, depth: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Slices to read, (runs, length), and slices to write, for each call of the network."""
        half = self.slices // 2
        for first in range(min(self.stride, depth)):
            # With a stride, every stride-th slice makes a volume of its own, whose windows have no gaps.
            own = torch.arange(first, depth, self.stride)
            if self.target == "all":
                step = max(1, self.chunk // self.slices) * self.slices
                for start in range(0, len(own), step):
                    written = own[start : start + step]
                    windows = -(-len(written) // self.slices)
                    read = first + self.stride * torch.arange(start, start + windows * self.slices)
                    yield read.clamp(0, depth - 1).view(windows, self.slices), written
                continue
            for start in range(0, len(own), self.chunk):
                written = own[start : start + self.chunk]
                read = first + self.stride * torch.arange(start - half, start + len(written) + half)
                yield read.clamp(0, depth - 1)[None], written
