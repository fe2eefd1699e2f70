from __future__ import annotations

import os
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..visualize import AxialView, grey_panel, side_by_side
from .engine_items import image_affine
from .event_file import EventFile

__all__ = ["PretextImages"]

CAPTIONS = ("target", "input", "reconstruction")


class PretextImages:
    """Show target, input and output of a pretext in TensorBoard, once per validation.

    There is one picture per image: target | input | reconstruction, as the middle axial slice of the first channel, in
    grey levels of the target. The images of the validation with most contrast are drawn, since slices at a volume's end
    are empty; they are the same each time. Nothing is drawn for pretexts without ``pictures``, such as contrastive
    ones.

    Args:
        log_dir: folder of the TensorBoard events.
        pretext: the pretext, not wrapped by DDP. Its ``pictures(image, prediction)`` returns these volumes (N, C,
            *spatial) from an image (B, C, *spatial) and the result of ``forward``, without another pass.
        volumes: number of images to draw; 0 draws none, ``True`` is 1.
    """

    def __init__(self, log_dir: str | os.PathLike, pretext: nn.Module, volumes: int = 1) -> None:
        self.events = EventFile(log_dir)
        self.pictures: Any = getattr(pretext, "pictures", None)
        self.volumes = int(volumes)
        self._best: list[tuple[float, torch.Tensor]] = []  # contrast and picture, highest first

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output has ``image`` and ``pred``, the dict that the pretext returns."""
        if self.pictures is not None and self.volumes > 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _begin(self) -> None:
        self._best = []

    @torch.no_grad()
    def _collect(self, engine: Engine) -> None:
        state: Any = engine.state
        image, volumes = state.output["image"], None
        for number, contrast in enumerate(image.float().flatten(1).std(dim=1).tolist()):
            if len(self._best) == self.volumes and not contrast > self._best[-1][0]:
                continue
            volumes = volumes or self.pictures(image, state.output["pred"])
            view = AxialView(image_affine(state.batch, number))
            target, *others = (view(volume[number, :1])[0] for volume in volumes)
            panels = [grey_panel(target), *(grey_panel(other, target) for other in others)]
            picture = side_by_side(panels, CAPTIONS)
            # `sorted` is stable: of equal contrast, the earlier one stays in front.
            self._best = sorted([*self._best, (contrast, picture)], key=lambda one: -one[0])[: self.volumes]

    def __call__(self, engine: Engine) -> None:
        for number, (_, picture) in enumerate(self._best):
            self.events.writer.add_image(f"validation/{number}", picture, engine.state.epoch)
        self._begin()
        self.events.writer.flush()
