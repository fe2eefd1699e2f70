from __future__ import annotations

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.compare.probes import (
    Prediction,
    __main__,
    classification_metrics,
    dice_of_voxels,
    knn_probe,
    linear_probe,
    pooled_features,
    regression_metrics,
    run_probes,
    runner,
    targets,
    voxel_features,
)
from common.weights import save_encoder

TRAIN = "bundles/pretrain_once/configs/train.json"


class ToyEncoder(nn.Module):
    """Two convolutions with strides 2 and 4 of unequal axes, and batch norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 3, 2, stride=(2, 1, 2)), nn.BatchNorm3d(3), nn.GELU())
        self.second = nn.Conv3d(3, 5, 2, stride=2)
        self.channels, self.strides = (3, 5), ((2, 1, 2), (4, 2, 4))

    def forward(self, image):
        first = self.first(F.pad(image, (0, 0, 0, 1)))  # so that the kernel fits at the stride 1
        return [first, self.second(first)]


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return ToyEncoder()


@pytest.fixture
def image():
    return torch.randn(1, 1, 8, 6, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rows():
    """Features (60, 12), a number and a class that they hold linearly, and a division into 40 and 20 rows."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 12)).astype(np.float32)
    features[:, 0] *= 3  # the scale must not matter
    number = 50 + 4 * features[:, :3].sum(axis=1)
    features[:, 3:] *= 0.01
    features[:, 3:] += features[:, :1]  # so that neighbours find it, too
    return features, number.astype(np.float64), np.where(features[:, 0] > 0, "patient", "control")


def slow_features(maps, strides, index):
    """Interpolate cell centres by hand, one voxel and axis after the other."""
    rows = []
    for voxel in index.tolist():
        row = []
        for x, stride in zip(maps, strides, strict=True):
            x = x[0]
            for v, s in zip(voxel, stride, strict=True):
                place = min(max((v + 0.5) / s - 0.5, 0), x.shape[1] - 1)
                low = int(place)
                high = min(low + 1, x.shape[1] - 1)
                x = x[:, low] * (low + 1 - place) + x[:, high] * (place - low)
            row.append(x)
        rows.append(torch.cat(row))
    return torch.stack(rows)


def test_voxel_features_are_those_of_a_slow_reference(toy, image):
    index = torch.cartesian_prod(torch.arange(8), torch.arange(6), torch.arange(12))
    features = voxel_features(toy, image, index)
    with torch.no_grad():
        maps = toy.eval()(image)
    assert features.shape == (len(index), 8)
    torch.testing.assert_close(features, slow_features(maps, toy.strides, index))


def test_voxel_features_are_those_of_the_interpolated_map(toy, image):
    index = torch.tensor([[0, 0, 0], [7, 5, 11], [3, 2, 8]])
    with torch.no_grad():
        maps = toy.eval()(image)
    whole = torch.cat([F.interpolate(x, image.shape[2:], mode="trilinear", align_corners=False) for x in maps], dim=1)
    expected = torch.stack([whole[0, :, a, b, c] for a, b, c in index.tolist()])
    torch.testing.assert_close(voxel_features(toy, image, index), expected)


def test_strides_place_the_cells_of_a_map_that_exceeds_the_image():
    class Padded(nn.Module):
        channels, strides = (1,), (4,)

        def forward(self, image):
            return [F.avg_pool2d(image, 4, ceil_mode=True)]

    image = torch.arange(6.0).expand(1, 1, 4, 6).clone()  # the second cell is centred at 5.5 and holds 4.5
    features = voxel_features(Padded(), image, torch.tensor([[0, 1], [3, 2], [0, 5]]))
    torch.testing.assert_close(features[:, 0], torch.tensor([1.5, 1.5 + 3 * 0.5 / 4, 1.5 + 3 * 3.5 / 4]))


def test_pooled_features_hold_all_maps(toy, image):
    images = torch.cat([image, image.flip(2)])
    features = pooled_features(toy, images)
    with torch.no_grad():
        maps = toy.eval()(images)
    torch.testing.assert_close(features, torch.cat([x.mean(dim=(2, 3, 4)) for x in maps], dim=1))


def test_the_encoder_stays_as_it_is(toy, image):
    toy.second.eval()
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    features = [pooled_features(toy, image), voxel_features(toy, image, torch.zeros(1, 3, dtype=torch.long))]
    assert not any(x.requires_grad for x in features)
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy.state_dict().items())
    assert toy.training and toy.first[1].training and not toy.second.training


def test_more_than_one_volume_is_refused(toy, image):
    with pytest.raises(ValueError, match="takes one volume"):
        voxel_features(toy, image.expand(2, -1, -1, -1, -1), torch.zeros(1, 3))


def test_probes_find_a_number(rows):
    features, number, _ = rows
    knn, linear = (
        regression_metrics(probe(features[:40], number[:40], features[40:]), number[40:])
        for probe in (knn_probe, linear_probe)
    )
    assert linear["r2"] > 0.98 and linear["mae"] < 1
    assert knn["r2"] > 0.3


def test_probes_find_classes(rows):
    features, _, name = rows
    for probe in (knn_probe, linear_probe):
        metrics = classification_metrics(probe(features[:40], name[:40], features[40:]), name[40:])
        assert metrics["accuracy"] >= 0.9 and metrics["auc"] > 0.95


def test_probes_do_not_find_what_is_not_there(rows):
    features, number, name = rows
    order = np.concatenate([np.random.default_rng(4).permutation(40), 40 + np.random.default_rng(5).permutation(20)])
    number, name = number[order], name[order]
    for probe in (knn_probe, linear_probe):
        metrics = classification_metrics(probe(features[:40], name[:40], features[40:]), name[40:])
        assert 0.2 <= metrics["accuracy"] <= 0.8 and 0.2 <= metrics["auc"] <= 0.8
        assert regression_metrics(probe(features[:40], number[:40], features[40:]), number[40:])["r2"] < 0.3


def test_test_rows_are_standardised_with_the_training_rows(rows):
    features, number, _ = rows
    for probe in (knn_probe, linear_probe):
        together = probe(features[:40], number[:40], features[40:]).values
        alone = [probe(features[:40], number[:40], features[i : i + 1]).values[0] for i in range(40, 43)]
        np.testing.assert_allclose(alone, together[:3], rtol=1e-5)


def test_fewer_rows_than_neighbours(rows):
    features, number, _ = rows
    values = knn_probe(features[:3], number[:3], features[40:], k=5).values
    np.testing.assert_allclose(values, np.full(20, number[:3].mean()))


def test_area_of_two_classes_is_the_usual_one():
    score = np.array([0.1, 0.4, 0.35, 0.8])
    prediction = Prediction(np.array(["a", "a", "a", "b"]), np.array(["a", "b"]), np.stack([1 - score, score], axis=1))
    assert classification_metrics(prediction, np.array(["a", "a", "b", "b"])) == {"accuracy": 0.75, "auc": 0.75}
    assert classification_metrics(prediction, np.array(["a", "a", "a", "a"])) == {"accuracy": 0.75}
    assert classification_metrics(prediction, np.array(["a", "a", "c", "c"]))["accuracy"] == 0.5


def test_r2_needs_different_numbers():
    prediction = Prediction(np.array([60.0, 64.0]), np.empty(0), np.empty((2, 0)))
    assert regression_metrics(prediction, np.array([61.0, 61.0])) == {"mae": 2.0}


def test_dice_of_voxels():
    prediction = Prediction(np.array([0, 1, 1, 2, 0]), np.arange(4), np.empty((5, 4)))
    dice = dice_of_voxels(prediction, np.array([0, 1, 0, 1, 1]), num_classes=5)
    assert dice == {"1": pytest.approx(2 * 1 / (2 + 3)), "2": 0.0, "mean": pytest.approx(0.2)}  # neither has 3 and 4


def test_draws_are_balanced_for_training_alone():
    label = np.zeros((10, 10, 10), dtype=np.int64)
    label[:5, :2, :2], label[9, 9, 9] = 1, 2
    index = runner._draw(label, 30, np.random.default_rng(0), balanced=True)
    assert np.bincount(label[tuple(index.T)]).tolist() == [10, 10, 1]
    index = runner._draw(label, 500, np.random.default_rng(0), balanced=False)
    assert len(np.unique(index, axis=0)) == 500
    assert 0 < np.sum(label[tuple(index.T)] == 1) <= 20
    assert len(runner._draw(label, 5000, np.random.default_rng(0), balanced=False)) == 1000


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([61.5, 70.0], None, "f"),
        ([61, 70], None, "f"),
        ([0, 1, 2], None, "U"),
        ([0.0, 0.5], None, "f"),
        ([True, False], None, "U"),
        (["AD", "MCI"], None, "U"),
        ([0, 1, 2], "number", "f"),
        ([61, 70], "class", "U"),
    ],
)
def test_kinds_of_target(values, kind, expected):
    assert targets.as_targets(values, "x", kind).dtype.kind == expected


def test_strange_targets():
    with pytest.raises(ValueError, match="'x' is \\[1\\] for one item"):
        targets.as_targets([1, [1]], "x", None)
    with pytest.raises(ValueError, match="`kind` is 'age'"):
        targets.as_targets([1], "x", "age")
    with pytest.raises(ValueError, match="is not a number for every item"):
        targets.as_targets([1, "two"], "x", "number")


@pytest.fixture
def files(pytestconfig, tiny):
    return [str(pytestconfig.rootpath / TRAIN), tiny["unetr"]]


@pytest.fixture
def probe(files, cohort, tmp_path):
    """Run the probes on the cohort with few voxels, or on another datalist."""

    def run(target, content=None, **arguments):
        overrides = {"dataset_dir": str(cohort), "device": "cpu"} | arguments.pop("overrides", {})
        if content is not None:
            (tmp_path / "datalist.json").write_text(json.dumps(content))
            overrides["datalist"] = str(tmp_path / "datalist.json")
        arguments = {"training_voxels": 60, "test_voxels": 200} | arguments
        return run_probes(files, overrides, target, tmp_path / "out" / "probes.json", **arguments)

    return run


@pytest.fixture
def content(cohort):
    """The cohort's datalist, to be changed."""
    return json.loads((cohort / "structures4.json").read_text())


def values(content):
    return {(x["probe"], x["metric"], x["structure"]): x["value"] for x in content["rows"]}


def test_label(probe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.get_rng_state()
    result = probe("label")
    assert torch.equal(torch.get_rng_state(), generator)
    assert result == json.loads((tmp_path / "out" / "probes.json").read_text())
    assert result["target"] == "label" and result["labels"] == 3
    assert {x["target"] for x in result["rows"]} == {"label"} and {x["metric"] for x in result["rows"]} == {"dice"}
    assert {x["structure"] for x in result["rows"] if x["probe"] == "linear"} == {"mean", "1", "2", "3", "4"}
    # Patches of 16 x 4 mm say where a voxel is: subcortical grey matter is few voxels, all in the middle. The linear
    # probe finds nothing in features of an untrained net by three scans.
    assert values(result)["knn", "dice", "2"] > 0.2
    assert probe("label") == result
    assert probe("label", overrides={"seed": 1}) != result


def test_age_with_an_encoder_file(probe, files, cohort, tmp_path):
    scratch = probe("age", encoder="")
    assert {key[:2] for key in values(scratch)} == {(a, b) for a in ("knn", "linear") for b in ("mae", "r2")}
    encoder = runner._encoder(runner._read(files, {"dataset_dir": str(cohort)}), 7, "")
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"method": "test", "spatial_size": [32, 48, 32]})
    by_argument = probe("age", encoder=tmp_path / "encoder.safetensors")
    by_id = probe("age", overrides={"pretrained_encoder": str(tmp_path / "encoder.safetensors")})
    assert by_argument == by_id != scratch
    # k = 3 of 3 is the mean of the training list, whatever the features.
    assert values(by_id)["knn", "mae", "mean"] == pytest.approx(values(scratch)["knn", "mae", "mean"])


def test_diagnosis_without_masks_and_of_some_items(probe, content, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    for name in ("training", "validation", "test"):
        for item in content[name]:
            item.pop("label")
    for item, diagnosis in zip(content["training"] + content["test"], ["AD", "CN", None, "CN", "AD"], strict=True):
        item["diagnosis"] = diagnosis
    del content["training"][2]["diagnosis"], content["validation"]
    result = probe("diagnosis", content)
    assert result["labels"] == 2 and "1 of 3 training items have no 'diagnosis' and are left out" in caplog.text
    assert {key[:2] for key in values(result)} == {(a, b) for a in ("knn", "linear") for b in ("accuracy", "auc")}


def test_label_that_is_a_number(probe, content):
    for item, label in zip(content["training"] + content["test"], [0, 1, 0, 1, 0], strict=True):
        item["label"] = label
    assert {key[1] for key in values(probe("label", content))} == {"accuracy", "auc"}


def test_too_few_items(probe, content):
    with pytest.raises(ValueError, match=r"training list of .*datalist\.json has 0 items with 'weight'.* at least 2"):
        probe("weight", content)
    for item in content["training"]:
        item["diagnosis"] = 1
    with pytest.raises(ValueError, match=r"all 3 training items of .*datalist\.json have the same 'diagnosis', 1;"):
        probe("diagnosis", content)
    for item in content["test"]:
        item["age"] = None
    with pytest.raises(ValueError, match=r"the test list of .*datalist\.json has 0 items with 'age'"):
        probe("age", content)


def test_masks_of_one_class(probe, content, cohort, tmp_path):
    mask = nib.load(cohort / content["training"][0]["label"])
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), tmp_path / "empty.nii.gz")
    content["training"] = [content["training"][0] | {"label": str(tmp_path / "empty.nii.gz")}]
    with pytest.raises(ValueError, match=r"'label' of all training items of .*datalist\.json has only one class"):
        probe("label", content)


def test_one_training_volume_is_enough_for_voxels(probe, content):
    content["training"] = content["training"][:1]
    assert probe("label", content)["labels"] == 1


def test_override_that_names_no_id(probe):
    with pytest.raises(ValueError, match=r"--sed names no id of train.json \+ unetr.json; did you mean --seed\?"):
        probe("age", overrides={"sed": 3})


def test_command(files, cohort, tmp_path, capsys, monkeypatch):
    import fire

    monkeypatch.chdir(tmp_path)
    fire.Fire(
        __main__.main,
        ["--config_file", str(files), "--target", "age", "--output", "probes.json", "--dataset_dir", str(cohort),
         "--device", "$torch.device('cpu')", "--data#fraction", "0.7"],
    )  # fmt: skip
    assert json.loads((tmp_path / "probes.json").read_text())["labels"] == 2
    printed = capsys.readouterr().out
    assert "age, 2 training items" in printed and f"written to {tmp_path / 'probes.json'}" in printed
