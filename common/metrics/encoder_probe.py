from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather

from ..ridge import ridge

__all__ = ["EncoderProbe"]

logger = logging.getLogger(__name__)

FEWEST, ENOUGH = 4, 20
"""Scans that a probe needs, and with which it tells something."""


class EncoderProbe(Metric):
    """How well a linear model on an encoder's features tells a known trait of the validation scans; lower is better.

    For pre-training whose own loss is soon at its end, so that it no longer tells encoders apart: as the key metric it
    chooses the encoder, as one more it is logged. Each scan is predicted by a ridge regression on all others
    (``common.ridge.ridge``), so that no further list is needed. The value is the mean absolute error of a number, in
    its unit, or the share of wrong classes, each class counting alike. What chooses an encoder by labels is no longer
    learnt without them: judge it on other scans.

    Args:
        features: called with the images of a batch, as the network gets them, returns vectors (B, F).
        target: key of the items with the trait, such as ``age`` or ``diagnosis``.
        data: the items of the validation list, all of which need the trait.
        kind: ``"number"`` or ``"class"``.

    Raises:
        ValueError: another ``kind``; an item lacks the trait, or it is no number; there are fewer than four items, or
            fewer than two classes.
    """

    def __init__(
        self,
        features: Callable[[torch.Tensor], torch.Tensor],
        target: str,
        data: Sequence[Mapping[str, Any]],
        kind: str = "number",
    ) -> None:
        if kind not in ("number", "class"):
            raise ValueError(f"kind is 'number' or 'class', not {kind!r}.")
        self.features, self.target, self.kind = features, target, kind
        lacking = sum(item.get(target) is None for item in data)
        if lacking or len(data) < FEWEST:
            raise ValueError(
                f"A probe for {target!r} needs {FEWEST} validation scans or more, all of them with it; the validation "
                f"list has {len(data)}, {lacking} of them without it."
            )
        if len(data) < ENOUGH and idist.get_rank() == 0:
            logger.warning("A probe of %d validation scans tells little; %d or more are better.", len(data), ENOUGH)
        self.classes = sorted({str(item[target]) for item in data}) if kind == "class" else []
        if kind == "class" and len(self.classes) < 2:
            raise ValueError(
                f"All validation scans have the same {target!r}, {self.classes[0]}: nothing is told apart."
            )
        if kind == "number":
            self.encoded([item[target] for item in data])
        super().__init__()

    def encoded(self, values: Sequence[Any]) -> torch.Tensor:
        """Values of the trait as numbers, of classes those of their place among the sorted ones."""
        if self.kind == "class":
            return torch.tensor([self.classes.index(str(value)) for value in values], dtype=torch.float64)
        try:
            numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.target!r} holds a value that is no number ({error}): set kind to 'class'."
            ) from error
        if not numbers.isfinite().all():
            raise ValueError(f"{self.target!r} holds a number that is not finite: leave these scans out.")
        return numbers

    def reset(self) -> None:
        self._found: list[torch.Tensor] = []
        self._truth: list[torch.Tensor] = []

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Of the batch itself, since what the network made of it does not name its scans."""
        state: Any = engine.state
        image, values = state.output["image"], state.batch[self.target]
        # As the items name them: classes that are numbers come as tensors from the collated batch.
        found = [value.item() if isinstance(value, torch.Tensor) else value for value in values]
        self.update((self.features(image), self.encoded(found)))

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        found, truth = output
        self._found.append(found.detach().double().cpu())
        self._truth.append(truth.double().cpu())

    def compute(self) -> float:
        found, truth = torch.cat(self._found), torch.cat(self._truth)
        if idist.get_world_size() > 1:
            device = idist.device()
            found, truth = (evenly_divisible_all_gather(part.to(device), concat=True).cpu() for part in (found, truth))
        if len(truth) < FEWEST or not found.isfinite().all():
            return math.nan
        if self.kind == "number":
            return float((ridge(found, truth[:, None]).left_out[:, 0] - truth).abs().mean())
        there = truth.unique()
        predicted = ridge(found, (truth[:, None] == there).double()).left_out.argmax(1)
        wrong = there[predicted] != truth
        return float(torch.stack([wrong[truth == name].double().mean() for name in there]).mean())
