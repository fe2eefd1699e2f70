from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import CommonKeys
from torch import nn

from ..evaluation_mode import evaluation_mode
from ..metrics import effective_rank, feature_std, position_cosines, retrieval_rate
from ..transforms import TokenViews

__all__ = ["RepresentationMonitor"]

logger = logging.getLogger(__name__)


class RepresentationMonitor:
    """Watch an encoder's features during pre-training, and warn when they collapse.

    In the last ``batches`` iterations of an epoch the encoder sees the images of the batch once more, in evaluation
    mode and without gradient; modes and random state are restored afterwards. A pretext that draws its own images
    returns them as ``drawn``, and the encoder sees these. It measures the tokens (one vector per
    grid cell) and the pooled features (one vector per image) of the last map. At the end of the epoch it writes to
    ``engine.state.metrics``:

    - ``feature_std``: spread of the L2-normalised tokens; about 1 / sqrt(channels) is healthy, 0 is collapse;
    - ``effective_rank``: number of directions in which tokens vary;
    - ``pooled_feature_std``, ``pooled_effective_rank``: the same for the pooled features, with two images or more.
      Images of one organ are alike, so these values are always small; watch for a fall over the epochs;
    - ``same_position_cosine``, ``other_position_cosine``: mean cosine of tokens of different images of a batch, at the
      same and at different positions; needs two images per batch (``common.metrics.position_cosines``);
    - ``retrieval``: how often a token of the pretext's second view (with texture and mask) is most similar to the token
      of its own image, among all images of the batch (``common.metrics.retrieval_rate``), and ``retrieval_chance``. If
      tokens of different images differ but retrieval is at chance, they were pushed apart without learning the content.
      Only for pretexts with ``views`` of type ``TokenViews``.

    A warning is logged when ``feature_std`` is below ``threshold / sqrt(channels)`` or ``effective_rank`` below 2, or
    when the pooled features are equal to a millionth. Another is logged when tokens encode little but their position
    (``same_position_cosine`` above 0.999, ``other_position_cosine`` below 0.99). Every rank measures its own images;
    rank 0 logs. The measures are ``feature_std`` and ``effective_rank`` of ``common.metrics``.

    Args:
        encoder: module that returns a list of maps (B, C, *grid), finest first; not wrapped by DDP.
        pretext: the pretext, for its ``views``, not wrapped by DDP; None skips ``retrieval``.
        interval: epochs between measurements.
        batches: number of iterations at the end of the epoch to measure.
        max_tokens: tokens used from each batch, evenly spaced; this bounds the cost of the singular values.
        threshold: share of the healthy spread below which tokens count as collapsed.
        image_key: name of the images in the engine's batch.

    Raises:
        ValueError: when ``interval``, ``batches`` or ``max_tokens`` is less than 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pretext: nn.Module | None = None,
        interval: int = 1,
        batches: int = 4,
        max_tokens: int = 512,
        threshold: float = 0.01,
        image_key: str = "image",
    ) -> None:
        if min(interval, batches, max_tokens) < 1:
            raise ValueError(
                "interval, batches and max_tokens of the representation monitor must be at least 1, got "
                f"{interval}, {batches} and {max_tokens}."
            )
        self.encoder = encoder
        views = getattr(pretext, "views", None)
        self.views = views if isinstance(views, TokenViews) else None
        self.interval = interval
        self.batches = batches
        self.max_tokens = max_tokens
        self.threshold = threshold
        self.image_key = image_key
        self._tokens: list[torch.Tensor] = []
        self._pooled: list[torch.Tensor] = []
        self._cosines: list[torch.Tensor] = []
        self._retrieved: list[tuple[float, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer.

        Args:
            engine: trainer whose ``state.batch`` is a dict with the images (B, C, *spatial).
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        if not self._tokens:
            return
        tokens, pooled = torch.cat(self._tokens), torch.cat(self._pooled)
        cosines, retrieved = self._cosines, self._retrieved
        self._forget()
        if not bool(torch.isfinite(tokens).all()):
            logger.warning("Epoch %d: the encoder's features are not finite.", engine.state.epoch)
            return
        measured = {}
        for prefix, features in (("", tokens), ("pooled_", pooled)):
            if len(features) > 1:
                measured[f"{prefix}feature_std"] = float(feature_std(features))
                measured[f"{prefix}effective_rank"] = float(effective_rank(features))
        if cosines:
            same, other = torch.stack(cosines).mean(0).tolist()
            measured |= {"same_position_cosine": same}
            measured |= {} if math.isnan(other) else {"other_position_cosine": other}
        if retrieved:
            rates, chances = zip(*retrieved, strict=True)
            measured |= {"retrieval": fmean(rates), "retrieval_chance": fmean(chances)}
        engine.state.metrics.update(measured)
        if idist.get_rank() > 0:
            return
        healthy = 1 / math.sqrt(tokens.shape[1])
        values = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        values += f"; a healthy feature_std is about {healthy:.4g}"
        logger.info("Epoch %d, encoder features: %s.", engine.state.epoch, values)
        if (
            measured.get("feature_std", 1.0) < self.threshold * healthy
            or measured.get("effective_rank", 2.0) < 2
            or measured.get("pooled_feature_std", 1.0) < 1e-6 * healthy
        ):
            logger.warning(
                "Epoch %d: the encoder's features have collapsed to (nearly) one direction (%s); "
                "lower the learning rate, or look at the loss and its negatives.",
                engine.state.epoch,
                values,
            )
        elif measured.get("same_position_cosine", 0.0) > 0.999 and measured.get("other_position_cosine", 1.0) < 0.99:
            logger.warning(
                "Epoch %d: tokens of different images at one position are alike (cosine %.5f), those at other "
                "positions are not (%.3f): the encoder encodes where a token lies, not its content; make the "
                "views easier to match "
                "(a lower mask_ratio), or punish it more (a larger weight of the loss).",
                engine.state.epoch,
                measured["same_position_cosine"],
                measured["other_position_cosine"],
            )

    def _forget(self) -> None:
        self._tokens, self._pooled, self._cosines, self._retrieved = [], [], [], []

    def _collect(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.epoch_length is None:
            raise ValueError("The representation monitor needs a loader with a length, or an `epoch_length`.")
        left = state.epoch_length - 1 - (state.iteration - 1) % state.epoch_length
        if state.epoch % self.interval or left >= self.batches:
            return
        device = next(self.encoder.parameters()).device
        made = state.output.get(CommonKeys.PRED) if isinstance(state.output, Mapping) else None
        drawn = made.get("drawn") if isinstance(made, Mapping) else None
        image = (state.batch[self.image_key] if drawn is None else drawn).to(device)
        image = image.as_tensor() if isinstance(image, MetaTensor) else image
        masked = None
        own = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(own), evaluation_mode(self.encoder):
            features = self.encoder(image)[-1].flatten(2)
            if self.views and len(features) > 1:
                view = self.views.texture(image) if self.views.texture else image
                masked = self.encoder(self.views.mask(view))[-1].flatten(2)
        tokens = features.transpose(1, 2).flatten(0, 1)
        self._tokens.append(tokens[:: math.ceil(len(tokens) / self.max_tokens)].float().cpu())
        self._pooled.append(features.float().mean(dim=2).cpu())
        if len(features) > 1:
            self._cosines.append(torch.stack(position_cosines(features.transpose(1, 2))).cpu())
        if masked is not None:
            rate = retrieval_rate(masked.transpose(1, 2), features.transpose(1, 2))
            self._retrieved.append((float(rate), 1 / len(features)))
