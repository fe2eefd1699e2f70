from __future__ import annotations

import os
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..visualize import AxialView, grey_panel, side_by_side
from .event_file import EventFile
from .segmentation_images import affine_of

__all__ = ["PretextImages"]


class PretextImages:
    """Show in TensorBoard what a pretext is to restore, what it is given, and what it makes of it, once a validation.

    Of each of the first images of the validation: target | input | reconstruction, the middle axial slice of the first
    channel, in grey levels of the target. Where the pretext has no ``pictures``, as contrastive ones, nothing is drawn.

    Args:
        log_dir: folder of the TensorBoard events.
        pretext: the pretext, not wrapped by DDP. Its ``pictures(image, prediction)`` returns such volumes
            (N, C, *spatial) from an image (B, C, *spatial) and what ``forward`` made of it, without another pass.
        volumes: how many of the first batch are drawn, 0 for none; ``True`` is 1.
    """

    def __init__(self, log_dir: str | os.PathLike, pretext: nn.Module, volumes: int = 1) -> None:
        self.events = EventFile(log_dir)
        self.pictures: Any = getattr(pretext, "pictures", None)
        self.volumes = int(volumes)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output has ``image`` and ``pred``, the dict that the pretext returns."""
        if self.pictures is not None and self.volumes > 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        image = state.output["image"]
        count = min(self.volumes, len(image))  # RCR has two views an image
        volumes = [part[:count] for part in self.pictures(image, state.output["pred"])]
        for number, parts in enumerate(zip(*volumes, strict=True)):
            view = AxialView(affine_of(state.batch, number))
            target, *others = (view(part[:1])[0] for part in parts)
            picture = side_by_side([grey_panel(target), *(grey_panel(other, target) for other in others)])
            self.events.writer.add_image(f"validation/{number}", picture, state.epoch)
        self.events.writer.flush()
