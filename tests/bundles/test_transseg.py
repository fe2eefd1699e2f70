"""The bundle `transseg`: pre-training of slices, inflation, fine-tuning, evaluation and inference, tiny."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path

import nibabel as nib
import pytest
import torch
from ignite.engine import Events
from transformers import BeitConfig, BeitModel

from common.checks import first_cause
from common.weights import convert, read_encoder

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "transseg" / "configs"
SAMPLE = {
    "image_size": [48, 48],
    "batches_per_epoch": 2,
    "batch_size": 2,
    "max_epochs": 1,
    "val_interval": 1,
    "warmup": 1,
}
TINY = {
    "segmentation_net#encoder#hidden_size": 24,
    "segmentation_net#encoder#mlp_dim": 48,
    "segmentation_net#decoder_channels": 8,
}
ONE_VOLUME = {"train#dataset#data": "$@data['training'][:1]"}


@pytest.fixture
def run(run_bundle):
    def run(*files, **overrides):
        return run_bundle(*files, bundle="transseg", **(SAMPLE | TINY | overrides))

    return run


@pytest.fixture(scope="module")
def pretrained(run_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transseg")
    settings = SAMPLE | TINY | {"bundle": "transseg", "output_dir": str(folder)}
    run_bundle("pretrain.json", "datasets/sample.json", **settings)
    return folder / "encoder.safetensors"


@pytest.mark.way("run", bundle="transseg")
def test_pretraining_of_slices_is_inflated(pretrained, run, tmp_path, caplog):
    state, record = read_encoder(pretrained)
    assert state["patch_embedding.weight"].shape == (24, 1, 8, 8, 1)
    assert record["method"] == "SimMIM" and record["architecture"]["slices"] == 1
    with caplog.at_level(logging.INFO):
        workflow = run(
            "train.json",
            "datasets/sample.json",
            pretrained_encoder=str(pretrained),
            output_dir=str(tmp_path),
            execute=False,
        )
    encoder = workflow.parser.get_parsed_content("encoder")
    made = encoder.patch_embedding.weight.detach()
    assert torch.equal(made[..., 2], state["patch_embedding.weight"][..., 0])
    assert made[..., [0, 1, 3, 4]].abs().max() == 0
    assert "1 slice inflated to 5 (centring)" in caplog.text
    report = caplog.text[caplog.text.index("transfer report") :]
    assert "newly initialised     0" in report and "warning" not in report.lower()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A BEiT of `transformers`, converted as by default."""
    folder = tmp_path_factory.mktemp("hub")
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
    BeitModel(BeitConfig(**sizes, image_size=48, patch_size=8, use_relative_position_bias=True)).save_pretrained(folder)
    convert(folder, folder / "beit.safetensors")
    return folder / "beit.safetensors"


@pytest.mark.parametrize(
    ("preset", "taps", "offsets", "predicted"),
    [
        (None, [0, 0, 1, 0, 0], [-2, -1, 0, 1, 2], [0]),
        ("predict_all", [0, 0, 1, 0, 0], [-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2]),
        ("average_inflation", [0.2] * 5, [-2, -1, 0, 1, 2], [0]),
        ("random_embedding", None, [-2, -1, 0, 1, 2], [0]),
        ("stride_2", [0, 0, 1, 0, 0], [-4, -2, 0, 2, 4], [0]),
        ("stride_3", [0, 0, 1, 0, 0], [-6, -3, 0, 3, 6], [0]),
        ("slices_1", [1], [0], [0]),
        ("slices_11", [0] * 5 + [1] + [0] * 5, range(-5, 6), [0]),
        ("slices_21", [0] * 10 + [1] + [0] * 10, range(-10, 11), [0]),
    ],
)
def test_rows_of_the_ablations(converted, run, tmp_path, preset, taps, offsets, predicted):
    """Table 4: which slices a window has, which of them are predicted, and what the patch embedding starts as."""
    files = ["train.json", "datasets/sample.json"] + ([f"presets/{preset}.json"] if preset else [])
    settings = {"augmentation": [], "output_dir": str(tmp_path), **ONE_VOLUME}
    parser = run(*files, pretrained_encoder=str(converted), execute=False, **settings).parser
    weight = parser.get_parsed_content("encoder").patch_embedding.weight.detach()
    single = read_encoder(converted)[0]["patch_embedding.weight"]
    if taps is None:
        assert (weight[..., 2] - single[..., 0]).abs().min() > 0 and weight[..., 0].abs().min() > 0
    else:
        torch.testing.assert_close(weight, single * torch.tensor(taps))
    dataset = parser.get_parsed_content("train#dataset")
    volume, last = dataset.volumes[0], len(dataset) - 1
    for number in (0, 14, last):
        item = dataset[number]
        for key, wanted in (("image", offsets), ("label", predicted)):
            index = [min(max(number + offset, 0), last) for offset in wanted]
            assert torch.equal(item[key].as_tensor(), volume[key].as_tensor()[..., index])
    if preset == "slices_1":  # trained on the middle of windows of 5 that are zoomed and flipped
        assert dataset.cut_slices == 5


def test_a_file_for_other_slices_is_refused(converted, run, tmp_path):
    five = tmp_path / "five.safetensors"
    convert(converted.parent, five, slices=5)
    with pytest.raises(RuntimeError) as refused:
        run("train.json", "datasets/sample.json", "presets/slices_11.json", pretrained_encoder=str(five), execute=False)
    assert "convert the weights again with `--slices 11`" in str(first_cause(refused.value))


AUGMENTATION = json.loads((CONFIGS / "train.json").read_text())["augmentation"]


@pytest.mark.parametrize("presets", [["predict_all", "stride_2"], ["slices_1"]])
def test_learns_a_batch_and_validates(run, tmp_path, presets):
    """With the paper's augmentation, whose zooms change the number of slices."""
    losses = []

    def repeat_a_batch(workflow):
        batch = next(iter(workflow.trainer.data_loader))
        workflow.trainer.data_loader = [batch] * 30
        workflow.trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"]))
        )

    settings = {"output_dir": str(tmp_path), "augmentation": AUGMENTATION, "learning_rate": 0.01, **ONE_VOLUME}
    overlays = ["datasets/sample.json", *(f"presets/{preset}.json" for preset in presets)]
    workflow = run("train.json", *overlays, before=repeat_a_batch, **settings | {"batches_per_epoch": 30})
    assert len(losses) == 30 and sum(losses[-3:]) / 3 < 0.8 * sum(losses[:3]) / 3
    assert workflow.parser.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"] > 0
    assert (tmp_path / "model.pt").is_file()


class Killed(BaseException):
    pass


def test_a_run_that_is_killed_and_resumed_is_the_uninterrupted_one(run, tmp_path):
    """Windows, the paper's augmentation and a learning rate that goes by steps."""

    def kill_after_first(workflow):
        def die(engine):
            raise Killed

        workflow.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), die)

    def train(folder, **more):
        settings = {
            "max_epochs": 2,
            "augmentation": AUGMENTATION,
            "output_dir": str(tmp_path / folder),
            "device": "cpu",
        }
        run("train.json", "datasets/sample.json", **settings, **ONE_VOLUME, **more)

    train("whole")
    with pytest.raises(Killed):
        train("killed", before=kill_after_first)
    train("killed", resume=True)
    whole, resumed = (torch.load(tmp_path / name / "train.ckpt", weights_only=True) for name in ("whole", "killed"))
    states = [state["objects"]["network"] for state in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])] == []
    assert whole["objects"]["lr_scheduler"] == resumed["objects"]["lr_scheduler"]


@pytest.fixture(scope="module")
def tuned(run_bundle, cohort, tmp_path_factory):
    """Fine-tuned a little, evaluated, and applied to the test scans."""
    folder = tmp_path_factory.mktemp("transseg")
    settings = SAMPLE | TINY | {"bundle": "transseg", "output_dir": str(folder), "learning_rate": 0.003}
    run_bundle("train.json", "datasets/sample.json", **settings | {"batches_per_epoch": 12, "batch_size": 4})
    run_bundle("train.json", "evaluate.json", "datasets/sample.json", **settings)
    shape = {key: value for key, value in settings.items() if key in ("image_size", "bundle") or key in TINY}
    shape |= {"output_dir": str(folder / "predictions"), "model_path": str(folder / "model.pt")}
    run_bundle("inference.json", "datasets/sample.json", workflow_type="inference", **shape)
    return folder


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def test_tensorboard_shows_images(pretrained, tuned, event_images):
    for folder, legend in ((pretrained.parent, 0), (tuned, 14)):
        found = event_images(folder / "tensorboard")
        assert list(found) == ["validation/0"]
        # Three panels under a caption: 160 by 192 mm of a scan, whatever square its slices are resized to.
        height, width = next(iter(found["validation/0"].values())).shape[:2]
        assert (height - 14 - legend) / ((width - 4) / 3) == pytest.approx(192 / 160, rel=0.03)


@pytest.mark.way("run", bundle="transseg")
def test_evaluation_has_a_row_a_subject_and_pooled_scores(tuned, cohort):
    test = json.loads((cohort / "structures4.json").read_text())["test"]
    table = rows(tuned / "eval/val_mean_dice_raw.csv")
    assert len(table) == len(test) == 2
    assert "cortex" in table[0]
    text = (tuned / "eval/metrics.csv").read_text()
    for name in (
        "val_mean_dice_scored",
        "val_pooled_dice",
        "val_pooled_dice_with_background",
        "val_pooled_dice_scored",
    ):
        assert name in text
    values = dict(re.split(r"[\t,]", line)[:2] for line in text.strip().splitlines())
    assert float(values["val_mean_dice"]) == pytest.approx(float(values["val_mean_dice_scored"]), abs=1e-5)
    by_class = [float(row["dice"]) for row in rows(tuned / "eval/pooled_dice.csv")]
    assert len(by_class) == 4 and float(values["val_pooled_dice"]) == pytest.approx(sum(by_class) / 4, abs=1e-5)
    assert 0 < float(values["val_pooled_dice"]) < 1 and 0 < float(values["val_pooled_dice_with_background"]) < 1


@pytest.mark.way("run", bundle="transseg")
def test_predictions_lie_on_the_scans_grids(tuned, cohort):
    for item in json.loads((cohort / "structures4.json").read_text())["test"]:
        image = nib.load(cohort / item["image"])
        path = next((tuned / "predictions").rglob(f"{Path(item['image']).name.removesuffix('.nii.gz')}_seg.nii.gz"))
        prediction = nib.load(path)
        assert prediction.shape == image.shape
        assert abs(prediction.affine - image.affine).max() < 1e-4
        assert set(prediction.get_fdata().astype(int).ravel()) <= set(range(5))


def test_another_network_s_encoder_is_refused(pretrained, run_bundle, tmp_path):
    with pytest.raises(RuntimeError) as refused:
        run_bundle(
            "train.json",
            "datasets/sample.json",
            "networks/swin_small.json",
            bundle="transseg",
            pretrained_encoder=str(pretrained),
            output_dir=str(tmp_path),
            execute=False,
        )
    assert "use the network it was made with" in str(first_cause(refused.value))


def test_learning_rate_rises_and_falls_by_the_step(run, tmp_path):
    workflow = run("train.json", "datasets/sample.json", output_dir=str(tmp_path), execute=False, batches_per_epoch=40)
    optimizer, scheduler = (workflow.parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    rates = []
    scheduler.begin(40)
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0 and max(rates) == rates[1] == pytest.approx(0.001)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
