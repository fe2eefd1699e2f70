from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..networks.sync_batch_norm import needs_several_values
from ..transforms import TokenViews
from .token_contrast import check_views, to_tokens

__all__ = ["TokenBYOL"]


class TokenBYOL(nn.Module):
    """B-TROT [1]: the student predicts, token by token, the output of a slowly moving teacher for the other view.

    The views are those of ``TokenContrast``. Student (encoder and projector) and teacher see both views. Both bring the
    map of the turned view back before they project it. ``pooled`` averages the maps first, which gives BYOL [2].
    ``common.handlers.MomentumTeacher`` moves ``teacher`` towards ``student`` after each step. The teacher's encoder is
    always in evaluation mode, without stochastic depth and dropout, so its targets depend on its weights alone. Its
    projector uses batch statistics, as in [2].

    Args:
        encoder: any encoder with equal strides along the axes that the views turn.
        views: how the two views are made.
        pooled: whether to compare one vector per volume instead of one per token.
        hidden_size: hidden units of projector and predictor; by default the encoder's deepest channels, as in the
            published code.
        out_size: length of the projections.

    ``forward(image (B, C, D, H, W))`` returns ``prediction1``, ``prediction2``, ``target1`` and ``target2``
    (B, T, out_size).

    Raises:
        ValueError: the encoder's strides differ along the turned axes; in ``forward``, training with a single vector,
            since the projector's batch norm then has no statistics.

    References:
        - [1] Hu et al., Enhancing 3D Transformer Segmentation Model for Medical Image with Token-level Representation
          Learning, section 3.2.
        - [2] Grill et al., Bootstrap Your Own Latent, NeurIPS 2020.
    """

    def __init__(
        self,
        encoder: Any,
        views: TokenViews,
        pooled: bool = False,
        hidden_size: int | None = None,
        out_size: int = 256,
    ) -> None:
        super().__init__()
        check_views(encoder, views)
        hidden_size = hidden_size or encoder.channels[-1]
        self.views = views
        self.pooled = pooled
        self.student = _Branch(encoder, _perceptron(encoder.channels[-1], hidden_size, out_size))
        self.predictor = _perceptron(out_size, hidden_size, out_size)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> TokenBYOL:
        super().train(mode)
        self.teacher.encoder.eval()
        return self

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second, element = self.views(image)
        both = torch.cat((first, second))
        prediction = [self._perceive(self.predictor, view) for view in self._project(self.student, both, element)]
        with torch.no_grad():
            target = self._project(self.teacher, both, element)
        return {
            "prediction1": prediction[0],
            "prediction2": prediction[1],
            "target1": target[0],
            "target2": target[1],
        }

    def _project(self, branch: _Branch, views: torch.Tensor, element: torch.Tensor) -> list[torch.Tensor]:
        first, second = branch.encoder(views)[-1].chunk(2)
        maps = (self.views.restore(first, element), second)
        # One view at a time, since the batch norm's statistics are those of a view.
        return [self._perceive(branch.projector, to_tokens(map, self.pooled)) for map in maps]

    def _perceive(self, perceptron: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        if self.training and tokens.shape[0] * tokens.shape[1] < 2 and needs_several_values(perceptron):
            raise ValueError("BYOL's batch norm needs two vectors: set batch_size to 2 or more.")
        return perceptron(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])


class _Branch(nn.Module):
    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector


def _perceptron(in_size: int, hidden_size: int, out_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_size, hidden_size), nn.BatchNorm1d(hidden_size), nn.ReLU(), nn.Linear(hidden_size, out_size)
    )
