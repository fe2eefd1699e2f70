from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..precision import without_autocast

__all__ = ["VolumeRegressor"]

SMALLEST = 1e-6
"""Added to shares of the image and to variances, so that a class which the network does not find has finite numbers."""


class VolumeRegressor(nn.Module):
    """Predict one number from how large the classes of a segmentation network are, and how bright.

    Each class but the background, 0, has as features the logarithm of its share of the foreground, and the mean and
    standard deviation of its intensities in each channel, all weighted by its probabilities, so that they have
    gradients. One linear layer reads them, standardised. Probabilities of all K classes are needed once, as in
    segmentation; no map of features is.

    ``common.handlers.RidgeStart`` sets the linear layer by ridge regression before the first step. With a frozen
    network this is the whole fit. Fine-tuning all from there distorts pre-trained features less than from a random
    layer (Kumar et al., ICLR 2022).

    Args:
        network: a segmentation network: image (B, C, *spatial) to logits (B, K, *spatial). Of several outputs, as with
            deep supervision in training, the first one counts.
        in_channels: C.
        num_classes: K, at least 2.
        frozen: whether the network stays as it is; it then computes as in evaluation, and without gradients.
        mean: mean of the target over the training set, in its unit.
        std: standard deviation of the target over the training set, in its unit, larger than 0.
        outputs: of the task, 1; to refuse a task that asks for more.

    ``forward(image (B, C, *spatial))`` returns (B, 1) in the target's unit, in float32. ``mean``, ``std`` and those of
    the features are buffers, so a state dict carries them.

    Raises:
        ValueError: ``std`` is not larger than 0, there are fewer than two classes, or the task asks for classes.
    """

    mean: torch.Tensor
    std: torch.Tensor
    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        in_channels: int,
        num_classes: int,
        frozen: bool = False,
        mean: float = 0.0,
        std: float = 1.0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if not std > 0:
            raise ValueError(f"The standard deviation of the target must be larger than 0, got {std}.")
        if outputs != 1:
            raise ValueError(
                f"Volumes predict one number, such as an age, not {outputs} classes: list tasks/age.json before "
                "presets/volumes.json, or leave the latter out."
            )
        if num_classes < 2:
            raise ValueError(f"Volumes need two classes or more, background and another one, not {num_classes}.")
        self.network, self.frozen = network, frozen
        if frozen:
            network.requires_grad_(False).eval()
        width = (num_classes - 1) * (1 + 2 * in_channels)
        self.head = nn.Linear(width, 1)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(float(value)))
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))

    def train(self, mode: bool = True) -> VolumeRegressor:
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Numbers of a batch's images (B, F): log shares of the classes, then means, then deviations."""
        with torch.no_grad() if self.frozen else nullcontext():
            made: Any = self.network(image)
            if not isinstance(made, torch.Tensor):
                made = made[0]
            elif made.ndim > image.ndim:  # MONAI's DynUNet stacks its outputs in training
                made = made[:, 0]
            with without_autocast(image.device):
                chance = made.float().softmax(1).flatten(2)
                values = image.float().flatten(2)
                powers = torch.cat((torch.ones_like(values[:, :1]), values, values.square()), dim=1)
                sums = torch.bmm(chance, powers.transpose(1, 2))[:, 1:] / chance.shape[2]  # (B, K - 1, 1 + 2 C)
                share, first, second = sums.split([1, values.shape[1], values.shape[1]], dim=2)
                share = share + SMALLEST
                first, second = first / share, second / share
                deviation = (second - first.square()).clamp_min(0).add(SMALLEST).sqrt()
                parts = (share / share.sum(1, keepdim=True)).log(), first, deviation
                return torch.cat([part.flatten(1) for part in parts], dim=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.features(image)
        with without_autocast(image.device):
            scaled = (features - self.feature_mean) / self.feature_std
            return self.head(scaled).float() * self.std + self.mean
