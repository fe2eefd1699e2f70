from __future__ import annotations

from monai.losses import DeepSupervisionLoss as MonaiDeepSupervisionLoss

__all__ = ["DeepSupervisionLoss"]


class DeepSupervisionLoss(MonaiDeepSupervisionLoss):
    """MONAI's loss of several resolutions, finest first, as a weighted mean: the weights' sum is 1, as in nnU-Net.

    MONAI's own is the weighted sum. With weights 1, 1/2, 1/4 and so on it is up to twice as large as the loss of a
    network without deep supervision, and so are the steps of SGD. nnU-Net also leaves out the coarsest resolution,
    which has the smallest weight. Arguments are MONAI's; by default each weight is half of the one before.
    """

    def get_weights(self, levels: int = 1) -> list[float]:
        """Weights of the levels."""
        halves = self.weights is None and self.weight_mode == "exp"  # MONAI's end at 1/16
        weights = [0.5**level for level in range(levels)] if halves else super().get_weights(levels)
        return [weight / sum(weights) for weight in weights]
