from __future__ import annotations

import os
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..visualize import AxialView, class_legend, grey_panel, mask_panel, side_by_side
from .engine_items import image_affine, output_items
from .event_file import EventFile

__all__ = ["SegmentationImages"]


class SegmentationImages:
    """Show image, label and prediction of validation volumes in TensorBoard, one picture per volume and validation.

    The picture is the axial slice with most labelled voxels (``common.visualize.AxialView``): the image's first channel
    in grey, and the classes of the label and of the prediction over it. A legend has the colour of each class number.
    The volumes are the first of the validation list, in a fixed order. Nothing is drawn if there is one prediction per
    scan, such as an age.

    MONAI's ``TensorBoardImageHandler`` draws the first channel of each as a grey animation through the whole volume;
    for a one-hot mask that is the background.

    Args:
        log_dir: folder of the TensorBoard events.
        num_classes: with the background; sets the colours.
        volumes: number of volumes to draw; 0 draws none, ``True`` is 1.

    Label and prediction are class numbers (1, *spatial), or one channel per class or region (R, *spatial), one-hot, as
    scores, or as nested regions with the smaller ones first: each voxel is drawn as the first channel of the largest
    value. Channel 0 is the background, also for regions: it is not drawn and does not count when a slice is chosen.
    """

    def __init__(self, log_dir: str | os.PathLike, num_classes: int, volumes: int = 1) -> None:
        self.events = EventFile(log_dir)
        self.num_classes = num_classes
        self.volumes = int(volumes)
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output has ``image``, ``label`` and ``pred``, decollated or not."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _begin(self) -> None:
        self._drawn = 0

    def __call__(self, engine: Engine) -> None:
        if self._drawn >= self.volumes:
            return
        state: Any = engine.state
        for number, item in enumerate(output_items(state.output)[: self.volumes - self._drawn]):
            affine = image_affine(state.batch, number)
            picture = self.picture(item["image"], item["label"], item["pred"], affine)
            if picture is None:
                self._drawn = self.volumes  # the others are of the same kind
                return
            self.events.writer.add_image(f"validation/{self._drawn}", picture, state.epoch)
            self._drawn += 1
        self.events.writer.flush()

    def picture(self, image: Any, label: Any, prediction: Any, affine: Any = None) -> torch.Tensor | None:
        """Image | label | prediction over the legend (3, H, W) in 0..1; None if they are not volumes of one size."""
        shapes = {tuple(volume.shape[1:]) for volume in (image, label, prediction) if isinstance(volume, torch.Tensor)}
        if len(shapes) != 1 or len(image.shape) < 3 or not isinstance(prediction, torch.Tensor):
            return None
        view = AxialView(affine)
        index = view.fullest(label[0] > 0 if len(label) == 1 else label[0] == 0)
        grey = grey_panel(view(image[:1], index)[0])
        panels = [grey]
        for mask in (label, prediction):
            # Of a slice, not of the volume, which may be gigabytes.
            one = mask if index is None else mask.narrow(view.axis + 1, index, 1)
            numbers = one if len(one) == 1 else one.float().argmax(0, keepdim=True)
            classes = view(numbers, None if index is None else 0, nearest=True)[0]
            panels.append(mask_panel(grey, classes, self.num_classes))
        row = side_by_side(panels, ("image", "label", "prediction"))
        return torch.cat((row, class_legend(self.num_classes, row.shape[2])), dim=1)
