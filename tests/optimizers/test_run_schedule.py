"""Rates against formulas written anew here, at the papers' settings and for runs of any length."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from common.optimizers import CosineSchedule, ExponentialSchedule, PolynomialSchedule, RunSchedule, SawtoothSchedule

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def rates(make, total, base=1.0):
    """Rate of each step of a run, and the one that is set after the last."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], base)
    schedule = make(optimizer)
    schedule.begin(total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def of_bundle(bundle, file, *overlays):
    """The schedule that a config builds, from its optimizer, and the length that it states."""
    folder = BUNDLES / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / name) for name in (file, *overlays)])
    parser["bundle_root"] = str(folder.parent)
    arguments = {key: parser.get_parsed_content(f"lr_scheduler#{key}") for key in parser["lr_scheduler"]
                 if key not in ("_target_", "optimizer")}  # fmt: skip
    kind = {
        "common.optimizers." + one.__name__: one for one in (CosineSchedule, ExponentialSchedule, PolynomialSchedule)
    }
    target = kind[parser["lr_scheduler"]["_target_"]]
    return lambda optimizer: target(optimizer, **arguments), parser.get_parsed_content("max_epochs")


def cosine(step, total, warmup, start):
    if step < warmup:
        return start + (1 - start) * step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize(
    ("bundle", "files", "formula"),
    [
        # UNETR of pretrain_once: MONAI's WarmupCosineSchedule, a twentieth, or half as in the published code.
        ("pretrain_once", ["pretrain.json"], lambda e, n: cosine(e, n, n / 20, 0.1)),
        ("pretrain_once", ["train.json"], lambda e, n: cosine(e, n, n / 20, 0.1)),
        ("pretrain_once", ["pretrain.json", "presets/official_code.json"], lambda e, n: cosine(e, n, 100, 0.1)),
        ("pretrain_once", ["train.json", "presets/official_code_train.json"], lambda e, n: cosine(e, n, 50, 0.1)),
        ("simtrot", ["pretrain.json"], lambda e, n: cosine(e, n, 50, 0.1)),
        ("simtrot", ["train.json"], lambda e, n: (1 - e / n) ** 0.9),  # nnU-Net
        ("med3d", ["pretrain.json"], lambda e, n: 0.99**e),
        ("med3d", ["train.json"], lambda e, n: 0.99**e),
        ("medical_transformer", ["pretrain.json"], lambda e, n: 0.99**e),
        ("medical_transformer", ["train.json"], lambda e, n: 0.99**e),
        ("medical_transformer", ["pretrain.json", "pretrain_transformer.json",
                                 "presets/official_code_transformer.json"], lambda e, n: 0.99**e),
    ],
)  # fmt: skip
def test_the_papers_rates_at_the_papers_epochs(bundle, files, formula):
    make, epochs = of_bundle(bundle, *files)
    found = rates(make, 7 * epochs)[::7]
    assert found == pytest.approx([formula(epoch, epochs) for epoch in range(epochs + 1)], abs=1e-9)


def test_transseg_warms_up_in_20_steps_then_falls_in_a_line():
    make, _ = of_bundle("transseg", "train.json")
    found = rates(make, 25000)
    line = [step / 20 if step < 20 else (25000 - step) / (25000 - 20) for step in range(25001)]
    assert found == pytest.approx(line, abs=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: CosineSchedule(optimizer, warmup=0.1, warmup_start=0.1),
        lambda optimizer: PolynomialSchedule(optimizer, 0.9),
        lambda optimizer: ExponentialSchedule(optimizer, 0.99, 200),
    ],
)
def test_every_length_has_one_shape(make):
    long = rates(make, 1000)
    for total in (10, 100, 500):
        assert rates(make, total) == pytest.approx(long[:: 1000 // total])


def test_groups_keep_their_ratio():
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}, {"params": [nn.Parameter(torch.zeros(1))]}], 0.001
    )
    schedule = PolynomialSchedule(optimizer, 1.0)
    schedule.begin(4)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.075, 0.00075])
    assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("warmup", [-1, 1.0, 2.5, -0.1, True, float("nan")])
def test_a_warm_up_is_a_fraction_or_a_number_of_steps(warmup):
    with pytest.raises(ValueError, match=r"a fraction of all steps .* or a whole number of steps"):
        rates(lambda optimizer: CosineSchedule(optimizer, warmup), 4)


def test_a_warm_up_longer_than_the_run_is_said(caplog):
    assert rates(lambda optimizer: CosineSchedule(optimizer, 20), 10)[9] == pytest.approx(9 / 20)
    assert "warm-up of 20 steps is longer than the run of 10" in caplog.text


def test_it_has_to_know_the_length():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = CosineSchedule(optimizer)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"use common\.handlers\.LearningRate"):
        schedule.step()


def test_states_of_other_runs_are_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = CosineSchedule(optimizer)
    schedule.begin(8)
    state = json.loads(json.dumps(schedule.state_dict()))
    with pytest.raises(ValueError, match="a run of 9 optimiser steps, but this one has 8"):
        schedule.load_state_dict(state | {"total": 9})
    old = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99).state_dict()
    with pytest.raises(ValueError, match="a schedule by epochs"):
        schedule.load_state_dict(old)
    schedule.load_state_dict(state | {"last_epoch": 4})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    assert isinstance(schedule, RunSchedule)


def parts(total, make, lr=1.0):
    """Rates of an encoder's group and of another, at each step."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "part": part} for part in ("encoder", "decoder")]
    optimizer = torch.optim.SGD(groups, lr)
    schedule = make(optimizer)
    schedule.begin(total)
    found = []
    for _ in range(total):
        found.append((*(group["lr"] for group in optimizer.param_groups), schedule.encoder_rests))
        optimizer.step()
        schedule.step()
    return found


def test_a_sawtooth_by_hand():
    """1000 steps, as nnssl's 1000 epochs: 25 up and 25 down for the decoder, 50 up and 900 down for all."""
    found = parts(1000, lambda one: SawtoothSchedule(one, 0.9, 0.05, 0.05, warmup_start=0.02), 1e-3)
    expected = {
        0: (0, 0.02e-3),
        5: (0, (0.02 + 0.98 * 0.2) * 1e-3),
        25: (0, 1e-3),
        35: (0, 0.6**0.9 * 1e-3),
        49: (0, 0.04**0.9 * 1e-3),
        50: (0.02e-3, 0.02e-3),
        75: (0.51e-3, 0.51e-3),
        100: (1e-3, 1e-3),
        550: (0.5**0.9 * 1e-3, 0.5**0.9 * 1e-3),
        999: ((1 / 900) ** 0.9 * 1e-3, (1 / 900) ** 0.9 * 1e-3),
    }
    for step, (encoder, decoder) in expected.items():
        assert found[step][:2] == pytest.approx((encoder, decoder)), step
    assert [rests for _, _, rests in found] == [True] * 50 + [False] * 950


def test_teeth_in_steps_and_one_shape_for_every_length():
    found = parts(10, lambda one: SawtoothSchedule(one, 1.0, decoder=4, warmup=2, warmup_start=0.0))
    assert [rate for _, rate, _ in found] == pytest.approx([0, 0.5, 1, 0.5, 0, 0.5, 1, 0.75, 0.5, 0.25])
    long, short = (parts(total, lambda one: SawtoothSchedule(one, decoder=0.2, warmup=0.1)) for total in (1000, 100))
    assert [rate for one in short for rate in one] == pytest.approx([rate for one in long[::10] for rate in one])


def test_a_sawtooth_needs_groups_and_lengths(caplog):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    with pytest.raises(ValueError, match=r"give it the groups of common\.optimizers\.parameter_groups"):
        SawtoothSchedule(optimizer)
    with pytest.raises(ValueError, match=r"decoder is 1\.5; it must be a fraction"):
        parts(10, lambda one: SawtoothSchedule(one, decoder=1.5))
    parts(10, lambda one: SawtoothSchedule(one, decoder=6, warmup=5))
    assert "warm-up of 11 steps is longer than the run of 10" in caplog.text


def test_a_state_of_other_settings_is_refused():
    """torch's schedulers take the state's settings, so that a resumed run would not do what its record says."""

    def schedule(**settings):
        one = PolynomialSchedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), **settings)
        one.begin(10)
        return one

    state = schedule(power=0.9, warmup=0.2).state_dict()
    schedule(power=0.9, warmup=0.2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with power 0\.9, but this one has 1\.0"):
        schedule(power=1.0, warmup=0.2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with warmup 0\.2, but this one has 0\.1"):
        schedule(power=0.9, warmup=0.1).load_state_dict(state)
