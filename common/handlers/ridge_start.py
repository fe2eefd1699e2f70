from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..evaluation_mode import evaluation_mode
from ..networks.volume_regressor import VolumeRegressor
from ..ridge import ridge
from ..volumes import volume_name

__all__ = ["RidgeStart"]

logger = logging.getLogger(__name__)

FEWEST = 4
"""Items with which the error on left-out ones tells something."""


class RidgeStart:
    """Before the first step, set the head of a network of volumes by ridge regression on the training items.

    The items are seen once each, as they are. The penalty is the one that predicts left-out items best
    (``common.ridge.ridge``); the log states that error. A resumed run keeps the head of its checkpoint. Put this after
    ``TargetScale`` and ``Checkpoint``.

    Args:
        network: the net whose ``features`` and ``head`` are meant, on its device; not wrapped by DDP.
        dataset: the prepared training items, without augmentation: ``image`` (C, *spatial) and the number ``label``.

    Raises:
        ValueError: another network; at the start, if an item's volumes are not finite.
    """

    def __init__(self, network: VolumeRegressor, dataset: Sequence[Any]) -> None:
        if not isinstance(network, VolumeRegressor):
            raise ValueError(
                f"ridge_start is for a VolumeRegressor, not for {type(network).__name__}: list presets/volumes.json "
                "after tasks/age.json, or leave it out."
            )
        self.network, self.dataset = network, dataset

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.iteration > 0:  # resumed
            return
        net = self.network
        device = net.feature_mean.device
        found, truth = [], []
        with evaluation_mode(net):
            for index in range(len(self.dataset)):
                item = self.dataset[index]
                image = torch.as_tensor(item["image"]).as_subclass(torch.Tensor)
                volumes = net.features(image[None].to(device))[0].double().cpu()
                if not volumes.isfinite().all():
                    name = volume_name(item["image"], "image")
                    raise ValueError(
                        f"{name}: its volumes are not finite numbers; check scan and `pretrained_encoder`."
                    )
                found.append(volumes)
                truth.append(float(item["label"]))
        features, target = torch.stack(found), torch.tensor(truth, dtype=torch.float64)
        mean, std = float(net.mean), float(net.std)
        fit = ridge(features, ((target - mean) / std)[:, None])
        with torch.no_grad():
            net.feature_mean.copy_(fit.mean)
            net.feature_std.copy_(fit.std)
            net.head.weight.copy_(fit.weight)
            net.head.bias.copy_(fit.intercept)
        error = float((fit.left_out[:, 0] * std + mean - target).abs().mean())
        left_out = f"; mean absolute error of left-out items {error:.4g}" if len(target) >= FEWEST else ""
        logger.info("ridge regression on the volumes of %d training items%s.", len(target), left_out)
