"""Each bundle with each of its schedules, two steps long."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from common.networks.encoder_layers import encoder_layers

# What a schedule makes of the rate: a factor for all, one from layer to layer, and those of the two steps.
STEPS = 2
FALL = ((STEPS - 1) / (STEPS - 0.05 * STEPS)) ** 0.9  # of the second step, behind a warm-up of a tenth of a step
FALL_10 = ((STEPS - 1) / (STEPS - 0.1 * STEPS)) ** 0.9
TOOTH = ((STEPS - 1) / (STEPS - 0.1 * STEPS)) ** 0.9  # a tenth of a step for the decoder, another to warm up
SCHEDULES = {
    "scratch": (1.0, 1.0, (0.02, FALL), (0.02, FALL)),
    "warmup": (0.1, 1.0, (0.02, FALL), (0.02, FALL)),
    "sawtooth": (0.1, 1.0, (0.0, TOOTH), (0.02, TOOTH)),
    "frozen": (0.1, 1.0, (0.02, FALL_10), (0.02, FALL_10)),
    "layer_decay": (1.0, 0.75, (0.02, FALL), (0.02, FALL)),
    "two_rates": (1.0, 1.0, (0.1 * 0.02, 0.1 * FALL), (0.02, FALL)),
}
# An epoch of two steps, of three scans.
TWO_STEPS = {"medical_transformer": {}, "pretrain_once": {"fraction": 0.6}}


# The files are alike in all bundles; what differs are the layers of the encoders.
@pytest.mark.slow_unless(lambda bundle, schedule: bundle == "simtrot" or schedule == "layer_decay")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_steps(run_bundle, small_files, bundle, schedule, tmp_path):
    rates, states = [], []

    def prepare(workflow):
        get = workflow.parser.get_parsed_content
        trainer, encoder, optimizer = workflow.trainer, get("encoder"), get("optimizer")
        names = {name for layer in encoder_layers(encoder) for name in layer}
        kept = {name: value for name, value in encoder.state_dict().items() if name in names or "running" in name}

        def note(engine):
            states.append({name: value.clone() for name, value in kept.items()})

        trainer.add_event_handler(Events.STARTED, note)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        trainer.add_event_handler(
            IterationEvents.MODEL_COMPLETED,
            lambda engine: rates.append([(g["part"], g["depth"], g["lr"]) for g in optimizer.param_groups]),
        )
        depth.append(len(encoder_layers(encoder)))

    depth: list[int] = []
    run_bundle(
        "train.json",
        *small_files[bundle],
        f"schedules/{schedule}.json",
        bundle=bundle,
        before=prepare,
        output_dir=str(tmp_path),
        learning_rate=0.5,
        cache="none",
        **TWO_STEPS.get(bundle, {"batches_per_epoch": STEPS}),
    )
    assert len(rates) == STEPS and (tmp_path / "model.pt").is_file()
    factor, decay, encoder, others = SCHEDULES[schedule]
    for step in range(STEPS):
        for part, layer, rate in rates[step]:
            expected = (
                0.5 * factor * (encoder[step] * decay ** (depth[0] - layer) if part == "encoder" else others[step])
            )
            assert rate == pytest.approx(expected), (step, part, layer)
    assert {part for part, _, _ in rates[0]} >= {"encoder", "head"} and depth[0] >= 3

    moved = [any(not torch.equal(states[0][name], state[name]) for name in states[0]) for state in states[1:]]
    assert moved == {"frozen": [False, False], "sawtooth": [False, True]}.get(schedule, [True, True])
