from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import DynUNet
from torch import nn

from common.handlers import Checkpoint, FrozenEncoder, LearningRate
from common.networks import DynUNetEncoder
from common.optimizers import PolynomialSchedule, SawtoothSchedule, parameter_groups

KINDS = {
    "SGD": lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, 0.1),
}


class At:
    """A handler of one event."""

    def __init__(self, event, function):
        self.event, self.function = event, function

    def attach(self, engine):
        engine.add_event_handler(self.event, self.function)


def unet():
    """With batch norms and dropout."""
    torch.manual_seed(0)
    net = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[2, 2, 4], norm_name="batch", dropout=0.5)
    return net, DynUNetEncoder(net)


def train(net, encoder, optimizer, schedule, epochs, folder=None, resume=False, before=(), stop=None):
    generator = torch.Generator().manual_seed(1)
    batches = [{"image": torch.rand(2, 1, 8, 8, 8, generator=generator), "label": torch.zeros(2, 8, 8, 8).long()}
               for _ in range(2)]  # fmt: skip
    handlers = [
        LearningRate(schedule),
        *before,
        FrozenEncoder(encoder, schedule if isinstance(schedule, SawtoothSchedule) else None),
    ]
    if folder is not None:
        objects = {"network": net, "optimizer": optimizer, "lr_scheduler": schedule}
        handlers.append(Checkpoint(folder / "train.ckpt", objects, resume))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=batches, network=net, optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(), decollate=False, train_handlers=handlers,
    )  # fmt: skip
    if stop is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, stop)
    trainer.run()
    return trainer


def layers(encoder):
    """State of the encoder without the decoder that goes along in its file."""
    return {name: value.clone() for name, value in encoder.state_dict().items() if not name.startswith("upsamples.")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_stays_bit_by_bit(kind):
    net, encoder = unet()
    before, whole = layers(encoder), copy.deepcopy(net.state_dict())
    optimizer = KINDS[kind](parameter_groups(net, encoder, 0.1, weight_decay=0.1))
    seen = []

    class Watch:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine):
            seen.extend(
                p.grad for group in optimizer.param_groups if group["part"] == "encoder" for p in group["params"]
            )

    train(net, encoder, optimizer, PolynomialSchedule(optimizer, 0.9), 2, before=[Watch()])
    assert seen and all(gradient is None for gradient in seen)
    after = layers(encoder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, whole[name])}
    assert any(name.startswith("upsamples.") and name.endswith("running_mean") for name in moved)
    assert {name.split(".")[0] for name in moved} >= {"upsamples", "output_block"}
    assert all(p.requires_grad for p in net.parameters())


def test_features_are_those_of_evaluation():
    net, encoder = unet()
    image = torch.rand(2, 1, 8, 8, 8)
    with torch.no_grad():
        expected = encoder.eval()(image)[-1]
    frozen = FrozenEncoder(encoder)
    frozen.hold()
    net.train()
    assert torch.equal(encoder(image)[-1], expected)
    frozen.release()
    net.train()
    assert not torch.equal(encoder(image)[-1], expected)


def test_a_sawtooth_moves_the_encoder_in_its_second_tooth():
    net, encoder = unet()
    before, moved = layers(encoder), []

    def watch(engine):
        now = layers(encoder)
        moved.append(any(not torch.equal(now[name], before[name]) for name in before))

    optimizer = KINDS["SGD"](parameter_groups(net, encoder, 0.1, weight_decay=0.1))
    train(net, encoder, optimizer, SawtoothSchedule(optimizer, decoder=3, warmup=1), 4,
          before=[At(Events.ITERATION_COMPLETED, watch)])  # fmt: skip
    assert moved == [False] * 3 + [True] * 5


def test_what_did_not_train_before_does_not_train_after():
    net, encoder = unet()
    net.input_block.requires_grad_(False)
    frozen = FrozenEncoder(encoder)
    frozen.hold()
    frozen.release()
    still = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert still and all(name.startswith("input_block.") for name in still)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("schedule", ["frozen", "sawtooth"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch", [1, 2])
def test_resume_is_exact(tmp_path, schedule, kind, epoch):
    """Killed in the first tooth, or right behind it: 4 steps of 8, two per epoch."""

    def make():
        net, encoder = unet()
        optimizer = KINDS[kind](parameter_groups(net, encoder, 0.1, weight_decay=0.1))
        if schedule == "frozen":
            return net, encoder, optimizer, PolynomialSchedule(optimizer, 0.9, warmup=0.1)
        return net, encoder, optimizer, SawtoothSchedule(optimizer, decoder=0.5, warmup=0.25)

    def kill(engine):
        if engine.state.epoch == epoch:
            raise Killed

    seed = At(Events.EPOCH_STARTED, lambda engine: torch.manual_seed(engine.state.epoch))
    whole = make()
    train(*whole, 4, before=[seed])
    with pytest.raises(Killed):
        train(*make(), 4, tmp_path, before=[seed], stop=kill)
    resumed = make()
    train(*resumed, 4, tmp_path, resume=True, before=[seed])
    expected, found = whole[0].state_dict(), resumed[0].state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first = make()[0].state_dict()
    assert torch.equal(first["input_block.conv1.conv.weight"], found["input_block.conv1.conv.weight"]) == (
        schedule == "frozen"
    )
