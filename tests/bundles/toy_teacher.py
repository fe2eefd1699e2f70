"""A pretext with a teacher, small enough for tests: the teacher's deepest features, predicted from a noisy image."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ToyTeacher(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.student = encoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = nn.Conv3d(encoder.channels[-1], encoder.channels[-1], 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            target = self.teacher(image)[-1]
        noisy = image + 0.1 * torch.randn_like(image)
        return {"features": self.predictor(self.student(noisy)[-1]), "target": target}


class ToyLoss(nn.Module):
    def forward(self, prediction: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return (prediction["features"] - prediction["target"]).square().mean()
