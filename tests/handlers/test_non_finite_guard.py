from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from torch import nn

from common.handlers import NonFiniteGuard
from common.handlers.non_finite_guard import batch_files


def batch_of(value, names):
    image = MetaTensor(torch.full((2, 1), float(value)), meta={"filename_or_obj": names})
    return {"image": image, "label": torch.zeros(2, 1)}


def trainer_for(batches):
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=2, train_data_loader=batches, network=net, loss_function=nn.MSELoss(),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1), train_handlers=[NonFiniteGuard()],
    )  # fmt: skip
    return trainer, net


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_names_the_files_and_steps_no_further(bad):
    good = batch_of(1, ["a.nii", "b.nii"])
    trainer, net = trainer_for([good, batch_of(bad, ["d.nii", "c.nii", "d.nii"])])
    completed, after_first = [], []
    trainer.add_event_handler(Events.COMPLETED, lambda: completed.append(True))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: after_first.append(net.weight.detach().clone()))
    start = net.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) in epoch 1, iteration 2, for files c.nii, d.nii:"):
        trainer.run()
    assert len(after_first) == 1 and not torch.equal(after_first[0], start)
    assert torch.equal(net.weight, after_first[0]) and not completed


def test_weights_are_looked_at_when_an_epoch_ends():
    trainer, net = trainer_for([batch_of(1, ["a.nii", "b.nii"])])
    trainer.optimizer.step = lambda *args: nn.init.constant_(net.bias, float("inf"))
    with pytest.raises(FloatingPointError, match=r"last step of epoch 1 left bias not finite"):
        trainer.run()


def test_finite_losses_pass():
    trainer, _ = trainer_for([batch_of(1, ["a.nii", "b.nii"])])
    trainer.run()
    assert trainer.state.epoch == 2


@pytest.mark.parametrize(
    ("batch", "files"),
    [
        (batch_of(1, "one.nii"), ["one.nii"]),
        ({"image": torch.zeros(1)}, []),
        ({"label": torch.zeros(1)}, []),
        ([torch.zeros(1)], []),
    ],
)
def test_files_of_a_batch(batch, files):
    assert batch_files(batch) == files
