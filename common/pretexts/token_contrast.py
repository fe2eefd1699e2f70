from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from ..transforms import TokenViews, cell_of_token

__all__ = ["TokenContrast"]

logger = logging.getLogger(__name__)


class TokenContrast(nn.Module):
    """SimTROT [1]: tokens of two views of a volume, matched by position, for a contrastive loss.

    One view is turned and flipped, the other masked (``views``). Both pass the encoder in one batch, the map of the
    first is brought back to the frame of the second, and every token passes the projector. ``pooled`` averages the maps
    first, which gives SimCLR.

    Args:
        encoder: any encoder with equal strides along the axes that the views turn.
        views: how the two views are made.
        pooled: whether to compare one vector per volume instead of one per token.
        projector_relu: whether the projector ends in a ReLU, as in the published code; features are then never
            negative.
        train_projector: whether to train the projector; the published code has no optimiser for it.
        channel_rows: compare the rows that the published code takes for tokens: its map (B, C, *grid) reshaped to rows
            of length C, each some channels at all positions.

    ``forward(image (B, C, D, H, W))`` returns ``view1`` and ``view2`` (B, T, C'), with T the tokens of the deepest map
    in row-major order (1 if pooled) and C' its channels.

    Raises:
        ValueError: the encoder's strides differ along the turned axes; both ``pooled`` and ``channel_rows``.

    References:
        - [1] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning, section 3.2.
    """

    def __init__(
        self,
        encoder: Any,
        views: TokenViews,
        pooled: bool = False,
        projector_relu: bool = False,
        train_projector: bool = True,
        channel_rows: bool = False,
    ) -> None:
        super().__init__()
        if pooled and channel_rows:
            raise ValueError("pooled compares one vector per volume, channel_rows many: set only one of them.")
        check_views(encoder, views)
        channels = encoder.channels[-1]
        self.encoder = encoder
        self.views = views
        self.pooled = pooled
        self.channel_rows = channel_rows
        self.projector = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        if projector_relu:
            self.projector.append(nn.ReLU())
        self.projector.requires_grad_(train_projector)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second, element = self.views(image)
        first, second = self.encoder(torch.cat((first, second)))[-1].chunk(2)
        first = self.views.restore(first, element)
        return {f"view{n}": self.projector(self._vectors(map)) for n, map in ((1, first), (2, second))}

    def _vectors(self, map: torch.Tensor) -> torch.Tensor:
        if self.channel_rows:
            return map.reshape(len(map), -1, map.shape[1])
        return to_tokens(map, self.pooled)


def to_tokens(map: torch.Tensor, pooled: bool = False) -> torch.Tensor:
    """A map (B, C, *grid) as tokens (B, T, C) in row-major order, or its mean (B, 1, C)."""
    tokens = map.flatten(2).transpose(1, 2)
    return tokens.mean(dim=1, keepdim=True) if pooled else tokens


def check_views(encoder: Any, views: TokenViews) -> None:
    """Refuse views that turn axes with unequal strides of the deepest map; warn where masks hide whole tokens."""
    stride = encoder.strides[-1]
    if views.group and len({stride[axis] for axis in views.group.axes}) > 1:
        raise ValueError(
            f"the views rotate the plane of axes {list(views.group.axes)}, but the encoder's strides "
            f"{list(stride)} differ along them: set turned_axes to axes of equal strides."
        )
    if not views.mask_ratio or len(views.mask_size) != len(stride):
        return  # nothing is masked, or `noise_mask` will refuse it
    cells = math.prod(max(1.0, step / side) for step, side in zip(stride, views.mask_size, strict=True))
    visible = cells * (1 - views.mask_ratio)
    if visible < 0.999:  # a hair below 1, for ratios such as 0.9
        logger.warning(
            "A token of the deepest map covers %.3g mask cells, of which %.2g are left on average, so many tokens see "
            "noise only: set mask_size to %s.",
            cells,
            visible,
            cell_of_token(encoder),
        )
