from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import generate_spatial_bounding_box
from monai.utils import ensure_tuple_rep
from torch import nn

from ..gathered import drop_pages, gathered
from ..preparation import check_images
from ..transforms.largest_component import largest_component
from ..volumes import volume_name
from ..weights.model_file import load_model
from .sliding_window import with_meta

__all__ = ["TwoStageInferer"]

logger = logging.getLogger(__name__)

# Logits of what lies outside of the region: background beyond doubt, and finite, so that a softmax may follow.
OUTSIDE = 20.0
# The first stage has ids of its own: those of the network would change the second one.
GET_COARSE = "train the first stage with configs/tasks/liver_coarse.json, or set coarse_model_path"
FIT_COARSE = "train the first stage for the same task, with configs/tasks/liver_coarse.json"


class TwoStageInferer(Inferer):
    """Find a region with one network, segment it with another, and put the result back in place.

    Liver segmentation as in Chen et al., arXiv 1904.00625, section 3.3: a coarse net on the resized image, a box with a
    margin around its result, and a fine net on that crop.

    Args:
        num_classes: channels of the second network's logits, for images without a region.
        coarse_network: the first stage; channel 0 of its logits is the background.
        coarse_inferer: applies it to a whole image, such as ``ResizedInferer``.
        fine_inferer: applies the second network to a crop; the inferer is called with that network.
        coarse_path: the first network's ``model.pt``, read on the first call; None if its weights are loaded elsewhere.
        preprocessing: transforms of the images. They must match the record of the first network.
        accept_preparation: accept differences, with a line in the log for each.
        margin: voxels added to each side of the box, one number or one per axis.
        min_size: a crop is extended to at least this size, as far as the image reaches; one number or one per axis.
        window: a smaller crop is padded to this size with the image's background, the least value of each channel. Set
            it to the window of ``fine_inferer``, which would pad with 0.
        only_largest: keep only the largest connected part of the first stage's result, without stray voxels.

    ``inferer(inputs (B, C, D, H, W), network)`` returns logits (B, num_classes, D, H, W) in float32, with the metadata
    of the inputs. Outside of the crop they give background. If the first stage finds nothing, the whole image becomes
    background, and a warning names it.
    """

    def __init__(
        self,
        num_classes: int,
        coarse_network: nn.Module,
        coarse_inferer: Callable[..., torch.Tensor],
        fine_inferer: Callable[..., torch.Tensor],
        coarse_path: str | os.PathLike | None = None,
        margin: int | Sequence[int] = 16,
        min_size: int | Sequence[int] = 0,
        window: int | Sequence[int] = 0,
        only_largest: bool = True,
        preprocessing: Any = None,
        accept_preparation: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.coarse_network = num_classes, coarse_network
        self.coarse_inferer, self.fine_inferer = coarse_inferer, fine_inferer
        self.coarse_path = coarse_path
        self.margin, self.min_size = ensure_tuple_rep(margin, 3), ensure_tuple_rep(min_size, 3)
        if min(self.margin + self.min_size) < 0:
            raise ValueError(f"`margin` {margin} and `min_size` {min_size} must be numbers of voxels, 0 or more.")
        self.window = ensure_tuple_rep(window, 3)
        self.only_largest = only_largest
        self.preprocessing, self.accept_preparation = preprocessing, accept_preparation
        self._loaded = coarse_path is None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self._loaded:
            assert self.coarse_path is not None
            load_model(self.coarse_network, self.coarse_path, GET_COARSE, FIT_COARSE, self._judge)
            logger.info("network of the first stage read from %s.", self.coarse_path)
            self._loaded = True
        self.coarse_network.to(inputs.device).eval()
        name = volume_name(inputs, "image")
        images = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        with torch.no_grad():
            found = self.coarse_inferer(images, self.coarse_network).argmax(1) > 0
        logits = gathered((len(images), self.num_classes, *images.shape[2:]), torch.float32, images.device)
        for channel in logits.unbind(1):
            channel.fill_(-OUTSIDE)
            drop_pages(logits)
        logits[:, 0] = OUTSIDE
        for number, mask in enumerate(found):
            box = self._box(mask)
            if box is None:
                logger.warning(
                    "%s: the first stage finds nothing, so the whole image becomes background; check that the scan "
                    "shows the organ, and that orientation, spacing and intensities match the training.",
                    f"{name}, image {number} of the batch" if len(images) > 1 else name,
                )
                continue
            place = (slice(None), *box)
            crop = images[number][place]
            sides = [self._middle(size, side) for size, side in zip(crop.shape[1:], self.window, strict=True)]
            inside = (slice(None), *sides)
            sizes = [max(size, side) for size, side in zip(crop.shape[1:], self.window, strict=True)]
            padded = images[number].flatten(1).amin(1).view(-1, 1, 1, 1).repeat(1, *sizes)
            padded[inside] = crop
            result = self.fine_inferer(padded[None], network, *args, **kwargs)[0].float()
            logits[number][place] = result[inside]
            drop_pages(logits)
        return with_meta(logits, inputs)

    def _judge(self, record: Mapping[str, Any]) -> None:
        check_images(self.coarse_path, record, self.preprocessing, self.accept_preparation)

    @staticmethod
    def _middle(size: int, window: int) -> slice:
        """Where a side of ``size`` voxels lies after padding on both ends to ``window``."""
        start = max(0, window - size) // 2
        return slice(start, start + size)

    def _box(self, mask: torch.Tensor) -> tuple[slice, ...] | None:
        region = largest_component(mask) if self.only_largest else mask
        # Margins are added here, since the box may not leave the image and has a least size.
        starts, ends = generate_spatial_bounding_box(region[None])
        if not any(ends):
            return None
        sides = []
        for start, end, margin, least, size in zip(starts, ends, self.margin, self.min_size, mask.shape, strict=True):
            start, end = max(0, start - margin), min(size, end + margin)
            lacking = max(0, min(least, size) - (end - start))
            start = max(0, min(start - lacking // 2, size - (end - start) - lacking))
            sides.append(slice(start, max(end, start + min(least, size))))
        return tuple(sides)
