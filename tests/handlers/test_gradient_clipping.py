from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from common.handlers import GradientClipping


def step(max_norm):
    """Weights after one step of SGD with learning rate 1: minus the gradient that the optimiser saw."""
    net = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(net.weight)
    image = torch.tensor([[3.0, 4.0, 12.0]])
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": image, "label": torch.zeros(1, 1)}],
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), 1.0),
        loss_function=lambda pred, label: (pred - label).sum(),
        train_handlers=[] if max_norm is None else [GradientClipping(max_norm)],
        decollate=False,
    ).run()
    return -net.weight.detach()


def test_the_optimiser_sees_a_gradient_of_that_norm():
    gradient = step(None)
    assert gradient.norm() == pytest.approx(13.0)
    torch.testing.assert_close(step(6.5), gradient / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(20.0), gradient)


def test_scaled_gradients_are_unscaled_first():
    class Scaler:
        def unscale_(self, optimizer):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad /= 1024

    class Trainer:
        network = nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        scaler = Scaler()

    Trainer.network.weight.grad = torch.tensor([[3.0, 4.0]]) * 1024
    GradientClipping(10.0)(Trainer())
    torch.testing.assert_close(Trainer.network.weight.grad, torch.tensor([[3.0, 4.0]]))


def test_norm_out_of_range():
    with pytest.raises(ValueError, match="max_norm must be larger than 0"):
        GradientClipping(0)
