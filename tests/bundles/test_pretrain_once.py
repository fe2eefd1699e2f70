"""The bundle end to end, tiny: pre-train, fine-tune, evaluate, infer."""

from __future__ import annotations

import csv
import json
import shlex
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.networks.nets import SwinUNETR
from monai.transforms import Compose, LoadImaged, SaveImaged

from common.checks import first_cause
from common.compare.bundle_config import parsed
from common.compare.settings import read_settings
from common.data import label_names
from common.pretexts import RCR
from common.visualize.panels import CAPTION
from common.weights import convert, read_encoder

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "pretrain_once"
CONFIGS = BUNDLE / "configs"
CLASSES = range(1, 5)
NAMES = label_names("structures4")


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def dice(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    a, b = prediction == label, truth == label
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def volume(path: Path, shape: tuple[int, ...], affine: np.ndarray | None = None, seed: int = 0, labels=None) -> str:
    """A random image, or label image, in the middle of an empty margin."""
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, np.int16)
    inside = tuple(slice(2, n - 2) for n in shape)
    size = tuple(n - 4 for n in shape)
    data[inside] = rng.integers(100, 900, size) if labels is None else rng.choice(labels, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine), path)
    return str(path)


@pytest.fixture(scope="module")
def pretrained(run_bundle, tiny, tmp_path_factory):
    """Folder that MAE pre-training wrote to, and its workflow."""
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, run_bundle("pretrain.json", tiny["unetr"], output_dir=str(folder))


@pytest.fixture(scope="module")
def fine_tuned(run_bundle, tiny, pretrained, tmp_path_factory):
    """Folder that fine-tuning from that encoder wrote to; weights when it began, and its workflow."""
    folder, began = tmp_path_factory.mktemp("fine_tuned"), {}

    def note(workflow):
        encoder = workflow.parser.get_parsed_content("encoder")
        began.update({name: tensor.clone() for name, tensor in encoder.state_dict().items()})

    workflow = run_bundle(
        "train.json",
        tiny["unetr"],
        output_dir=str(folder),
        pretrained_encoder=str(pretrained[0] / "encoder.safetensors"),
        max_epochs=6,
        val_interval=3,
        before=note,
    )
    return folder, began, workflow


@pytest.fixture(scope="module")
def evaluated(run_bundle, tiny, fine_tuned):
    run_bundle("train.json", "evaluate.json", tiny["unetr"], output_dir=str(fine_tuned[0]))
    return fine_tuned[0] / "eval"


@pytest.mark.way("run", bundle="pretrain_once")
def test_pretraining_writes_the_encoder_and_what_it_needs(pretrained):
    folder, workflow = pretrained
    assert visible(folder) == {"encoder.safetensors", "pretrain.ckpt"}
    state, record = read_encoder(folder / "encoder.safetensors")
    encoder = workflow.parser.get_parsed_content("encoder")
    assert set(state) == set(encoder.state_dict())
    assert record["method"] == "MAE" and record["epochs"] in (1, 2)
    made = record["preparation"]
    assert (made["spacing"], made["orientation"], record["spatial_size"]) == ([4.0] * 3, "RAS", [32, 48, 32])
    (step,) = made["intensity"]
    assert step["transform"] == "ScaleForegroundPercentilesd" and made["value_range"] == [0.0, 1.0]
    assert (step["lower"], step["upper"], step["foreground"]) == (5, 95, "tissue")
    assert record["architecture"]["hidden_size"] == 24


def test_tensorboard_shows_images(pretrained, fine_tuned, event_images):
    assert list(event_images(pretrained[0] / "tensorboard")) == ["validation/0"]
    pictures = event_images(fine_tuned[0] / "tensorboard")
    assert list(pictures) == ["validation/0"] and sorted(pictures["validation/0"]) == [3, 6]
    image, label, _ = np.array_split(pictures["validation/0"][6][:-CAPTION], 3, axis=1)  # without the legend
    assert np.ptp(image, axis=2).max() == 0 < np.ptp(label, axis=2).max()  # grey, and colours


def test_pretraining_without_a_validation_list_keeps_the_last_epoch(run_bundle, tiny, cohort, tmp_path):
    content = json.loads((cohort / "unlabelled.json").read_text())
    (tmp_path / "list.json").write_text(json.dumps({"training": content["training"]}))
    workflow = run_bundle(
        "pretrain.json", tiny["unetr"], output_dir=str(tmp_path / "out"), datalist=str(tmp_path / "list.json")
    )
    state, record = read_encoder(tmp_path / "out/encoder.safetensors")
    assert record["epochs"] == 2
    for name, tensor in workflow.parser.get_parsed_content("encoder").state_dict().items():
        assert torch.equal(state[name], tensor.cpu())


@pytest.mark.way("run", bundle="pretrain_once")
def test_fine_tuning_starts_from_the_encoder(pretrained, fine_tuned):
    state, _ = read_encoder(pretrained[0] / "encoder.safetensors")
    folder, began, workflow = fine_tuned
    assert set(began) == set(state) and all(torch.equal(began[name].cpu(), state[name]) for name in state)
    encoder = workflow.parser.get_parsed_content("encoder")
    assert not torch.equal(encoder.state_dict()["vit.norm.weight"].cpu(), state["vit.norm.weight"])
    assert visible(folder) >= {"model.pt", "train.ckpt"}
    model = torch.load(folder / "model.pt", weights_only=True)
    workflow.parser.get_parsed_content("network_def").load_state_dict(model)


def test_training_from_scratch_says_so(run_bundle, tiny, pretrained, tmp_path, caplog):
    began = {}

    def note(workflow):
        began.update(workflow.parser.get_parsed_content("encoder").state_dict())

    with caplog.at_level("INFO"):
        run_bundle("train.json", tiny["unetr"], output_dir=str(tmp_path), before=note, execute=False)
    assert "training from scratch" in caplog.text
    state, _ = read_encoder(pretrained[0] / "encoder.safetensors")
    assert not any(torch.equal(began[name].cpu(), state[name]) for name in state if name.endswith("qkv.weight"))


@pytest.mark.way("run", bundle="pretrain_once")
def test_evaluation_and_inference_agree(run_bundle, tiny, cohort, fine_tuned, evaluated, tmp_path):
    """Dice of the written label maps on the scans' own grids is what the evaluation says."""
    run_bundle(
        "inference.json",
        tiny["unetr"],
        workflow_type="inference",
        task="structures4",
        model_path=str(fine_tuned[0] / "model.pt"),
        output_dir=str(tmp_path),
    )
    items = json.loads((cohort / "structures4.json").read_text())["test"]
    table = {Path(row["filename"]).name: row for row in rows(evaluated / "val_mean_dice_raw.csv")}
    assert len(table) == len(items) == 2
    for item in items:
        name = Path(item["image"]).name
        image, truth = nib.load(cohort / item["image"]), nib.load(cohort / item["label"])
        output = nib.load(next(tmp_path.rglob(name.replace(".nii.gz", "_seg.nii.gz"))))
        assert output.shape == image.shape and output.get_data_dtype() == np.uint8
        np.testing.assert_allclose(output.affine, image.affine, atol=1e-4)
        prediction, labels = np.asarray(output.dataobj), np.asarray(truth.dataobj)
        assert len(np.unique(prediction)) > 1, "nothing to compare: all background"
        for label in CLASSES:
            assert float(table[name][NAMES[label]]) == pytest.approx(dice(prediction, labels, label), abs=1e-4)


def test_evaluation_writes_every_measure(evaluated):
    with_background = rows(evaluated / "val_mean_dice_with_background_raw.csv")
    assert len(with_background) == 2 and list(with_background[0])[1:-1] == list(NAMES.values())
    hd95 = rows(evaluated / "val_hd95_raw.csv")
    assert all(0 < float(row[NAMES[label]]) < 500 for row in hd95 for label in CLASSES)
    summary = rows(evaluated / "val_mean_dice_summary.csv")
    raw = rows(evaluated / "val_mean_dice_raw.csv")
    for line in summary[:4]:
        values = [float(row[line["class"]]) for row in raw]
        assert float(line["mean"]) == pytest.approx(sum(values) / 2, abs=1e-3)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """The same scan stored in RAS and in LPS, and an oblique, anisotropic one."""
    folder = tmp_path_factory.mktemp("turned")
    ras = nib.load(volume(folder / "ras.nii.gz", (38, 46, 36)))
    flipped = nib.Nifti1Image(np.asarray(ras.dataobj)[::-1, ::-1], ras.affine @ np.diag([-1, -1, 1, 1]))
    flipped.affine[:2, 3] = ras.affine[:2, 3] + 4.0 * (np.array(ras.shape[:2]) - 1)
    nib.save(nib.Nifti1Image(np.asarray(flipped.dataobj), flipped.affine), folder / "lps.nii.gz")
    angle = 0.3
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = nib.affines.from_matvec(turn @ np.diag([-3.0, 6.0, 2.5]), [10.0, -20.0, 30.0])
    volume(folder / "oblique.nii.gz", (50, 30, 60), affine)
    return folder


def test_inference_keeps_shape_affine_and_orientation(run_bundle, tiny, fine_tuned, turned, tmp_path):
    run_bundle(
        "inference.json",
        tiny["unetr"],
        workflow_type="inference",
        dataset_dir=str(turned),
        datalist="@dataset_dir",
        model_path=str(fine_tuned[0] / "model.pt"),
        output_dir=str(tmp_path),
    )
    outputs = {}
    for name in ("ras", "lps", "oblique"):
        image, output = nib.load(turned / f"{name}.nii.gz"), nib.load(tmp_path / f"{name}_seg.nii.gz")
        assert output.shape == image.shape
        np.testing.assert_allclose(output.affine, image.affine, atol=1e-4)
        outputs[name] = np.asarray(output.dataobj)
    assert len(np.unique(outputs["ras"])) > 1
    np.testing.assert_array_equal(outputs["lps"], outputs["ras"][::-1, ::-1])


def test_inference_keeps_files_of_one_name_apart(run_bundle, tiny, fine_tuned, tmp_path):
    """Many sets keep each subject in a folder of its own, with the same file names in all of them."""
    images = [volume(tmp_path / f"data/sub-{n}/t1.nii.gz", (38, 46, 36), seed=n) for n in range(2)]
    (tmp_path / "data/list.json").write_text(json.dumps({"test": [{"image": image} for image in images]}))
    run_bundle(
        "inference.json",
        tiny["unetr"],
        workflow_type="inference",
        dataset_dir=str(tmp_path / "data"),
        datalist=str(tmp_path / "data/list.json"),
        model_path=str(fine_tuned[0] / "model.pt"),
        output_dir=str(tmp_path / "out"),
    )
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 2


def test_inference_on_one_file_writes_into_the_output_folder(run_bundle, tiny, fine_tuned, turned, tmp_path):
    run_bundle(
        "inference.json",
        tiny["unetr"],
        workflow_type="inference",
        dataset_dir=str(turned / "ras.nii.gz"),
        datalist="@dataset_dir",
        model_path=str(fine_tuned[0] / "model.pt"),
        output_dir=str(tmp_path / "deep/out"),
    )
    assert [path.name for path in tmp_path.rglob("*.nii.gz")] == ["ras_seg.nii.gz"]
    assert (tmp_path / "deep/out/ras_seg.nii.gz").exists()


@pytest.mark.parametrize(("given", "crops"), [(None, 4), (1, 1)])
def test_negatives_of_rcr_are_of_other_scans_only_by_choice(run_bundle, tiny, tmp_path, given, crops):
    """By default four crops of each scan of a batch are contrasted, as published; with one crop, all are of others."""
    given = given or json.loads((CONFIGS / "pretrain.json").read_text())["crops_per_volume"]
    workflow = run_bundle(
        "pretrain.json", tiny["swin_unetr"], output_dir=str(tmp_path), crops_per_volume=given, execute=False
    )
    assert isinstance(workflow.parser.get_parsed_content("network_def"), RCR)
    batches = [
        Counter(item["image"].meta["filename_or_obj"] for item in decollate_batch(batch))
        for _ in range(4)
        for batch in workflow.parser.get_parsed_content("train#dataloader")
    ]
    assert max(map(len, batches)) == 2  # scans: the tiny batch_size
    assert {count for batch in batches for count in batch.values()} == {crops}


def test_rcr_on_swin_unetr_and_fine_tuning_from_it(run_bundle, tiny, tmp_path):
    run_bundle("pretrain.json", tiny["swin_unetr"], output_dir=str(tmp_path), fraction=0.5, max_epochs=1)
    state, record = read_encoder(tmp_path / "encoder.safetensors")
    assert record["method"] == "RCR" and record["architecture"]["feature_size"] == 12
    began = {}

    def note(workflow):
        encoder = workflow.parser.get_parsed_content("encoder")
        began.update({name: tensor.clone() for name, tensor in encoder.state_dict().items()})

    run_bundle(
        "train.json",
        tiny["swin_unetr"],
        output_dir=str(tmp_path),
        fraction=0.3,  # one volume
        batch_size=1,
        max_epochs=1,
        pretrained_encoder=str(tmp_path / "encoder.safetensors"),
        before=note,
    )
    assert set(began) == set(state) and all(torch.equal(began[name].cpu(), state[name]) for name in state)
    assert (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("v2", [False, True])
def test_fine_tuning_takes_a_converted_swin_unetr_of_its_version_only(run_bundle, tiny, tmp_path, v2):
    net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), window_size=4, use_v2=v2)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "foreign.pt")
    convert(tmp_path / "foreign.pt", tmp_path / "encoder.safetensors")
    settings = {"pretrained_encoder": str(tmp_path / "encoder.safetensors"), "output_dir": str(tmp_path / "out")}
    settings |= {"execute": False, "segmentation_net#use_v2": v2}
    parser = run_bundle("train.json", tiny["swin_unetr"], **settings).parser
    own = parser.get_parsed_content("encoder").swin.state_dict()
    assert own.keys() == net.swinViT.state_dict().keys()
    assert all(torch.equal(tensor.cpu(), net.swinViT.state_dict()[name]) for name, tensor in own.items())
    with pytest.raises(RuntimeError) as refused:
        run_bundle("train.json", tiny["swin_unetr"], **settings | {"segmentation_net#use_v2": not v2})
    assert "of Swin UNETR V2" in str(first_cause(refused.value))


def test_skull_task(run_bundle, tiny, tmp_path):
    overrides = {"max_epochs": 1, "output_dir": str(tmp_path), "spacing": [6.0] * 3, "image_size": [32, 48, 32]}
    workflow = run_bundle("train.json", tiny["unetr"], "tasks/skull.json", **overrides)
    assert workflow.parser.get_parsed_content("network_def").out.conv.conv.out_channels == 2
    batch = next(iter(workflow.parser.get_parsed_content("validate#dataloader")))
    assert batch["label"].unique().tolist() == [-1, 0, 1]  # -1 is padding


def test_structures33_through_the_label_map(run_bundle, tiny, tmp_path):
    """Labels of the file's label scheme are those of the classes after mapping, voxel by voxel."""
    from common.data import label_map

    groups = label_map("oasis_seg35", "structures33")
    known = [0, *(label for group in groups.values() for label in group)]
    items = []
    for n in range(3):
        image = volume(tmp_path / f"data/image{n}.nii.gz", (32, 48, 32), seed=n)
        items.append(
            {"image": image, "label": volume(tmp_path / f"data/label{n}.nii.gz", (32, 48, 32), seed=n, labels=known)}
        )
    content = {"training": items[:2], "validation": items[2:]}
    (tmp_path / "data/structures33.json").write_text(json.dumps(content))
    workflow = run_bundle(
        "train.json",
        tiny["unetr"],
        "tasks/structures33.json",
        label_scheme="oasis_seg35",
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "out"),
        max_epochs=1,
    )
    label = workflow.parser.get_parsed_content("validate#dataset")[0]["label"]
    source = np.asarray(nib.load(items[2]["label"]).dataobj)
    class_of = {value: index for index, group in groups.items() for value in group} | {0: 0}
    expected = np.vectorize(class_of.get)(source)
    inside = (slice(2, -2),) * 3
    padded = np.full(label.shape[1:], -1)
    offsets = [(n - (m - 4)) // 2 for n, m in zip(padded.shape, source.shape, strict=True)]
    padded[tuple(slice(o, o + m - 4) for o, m in zip(offsets, source.shape, strict=True))] = expected[inside]
    np.testing.assert_array_equal(label[0].numpy(), padded)
    assert label.max() == 33


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"fraction": 0.34}, (1, 1)),
        ({"fold": 0, "data#num_folds": 2}, (2, 2)),
        ({"target_domain": "site_b", "target_masks": 0}, (2, 1)),
        ({"target_domain": "site_b", "target_masks": 1}, (3, 1)),
        ({"target_domain": "site_a", "target_masks": 1, "data#required": ["training"]}, (2, 0)),
    ],
)
def test_parts_of_the_training_list(run_bundle, tiny, tmp_path, overrides, expected):
    overrides = {"output_dir": str(tmp_path), "cache": "none", **overrides}
    workflow = run_bundle("train.json", tiny["unetr"], execute=False, **overrides)
    data = workflow.parser.get_parsed_content("data")
    assert (len(data["training"]), len(data["validation"])) == expected
    assert len(workflow.parser.get_parsed_content("train#dataset")) == expected[0]


@pytest.mark.parametrize("preset", ["source_and_target", "source_and_target_skull"])
def test_source_and_target_presets_take_what_prepare_writes(tmp_path, preset):
    from common.data import DatalistError
    from common.data.prepare import prepare

    for i in range(8):
        for name in ("norm", "orig", "seg35"):
            volume(tmp_path / f"oasis1/OASIS_OAS1_000{i}_MR1/{name}.nii.gz", (4, 4, 4), labels=[0, 1])
        for name in (f"00{i}_S_0000_I{i}", f"MALPEM-00{i}_S_0000_I{i}"):
            volume(tmp_path / f"adni/{name}.nii.gz", (4, 4, 4), labels=[0, 1])
        for name in ("", "_ss"):
            volume(tmp_path / f"cc359/CC000{i}_ge_3_5{i}_M{name}.nii.gz", (4, 4, 4), labels=[0, 1])
    prepare("oasis1", tmp_path / "oasis1", tmp_path / "oasis1/oasis1.json")
    prepare("oasis1", tmp_path / "oasis1", tmp_path / "oasis1/oasis1_orig.json", image="orig")
    for name in ("adni", "cc359"):
        prepare(name, tmp_path / name, tmp_path / f"{name}/{name}.json")

    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", f"presets/{preset}.json")])
    parser["dataset_dir"], parser["target_masks"] = str(tmp_path), 2
    target = parser["target_domain"]
    data, groups = parser.get_parsed_content("data"), parser.get_parsed_content("label_map")
    domains = [x["domain"] for x in data["training"]]
    assert set(domains) == {"oasis1", target} == set(groups) and domains.count(target) == 2
    assert {x["domain"] for x in data["validation"] + data["test"]} == {target}
    assert len(groups[target]) == parser.get_parsed_content("num_classes")
    skull = [Path(x["image"]).name for x in data["training"] if x["domain"] == "oasis1"]
    assert set(skull) == {"orig.nii.gz"}  # the target's scans have their skulls

    # The paper pre-trains on three sets, whichever two fine-tuning reads; nothing that is held out is among them.
    before = ConfigParser()
    names = ("pretrain.json", f"presets/{preset}.json", "presets/three_sets.json")
    before.read_config([str(CONFIGS / name) for name in names])
    before["dataset_dir"] = str(tmp_path)
    seen = before.get_parsed_content("data")["training"]
    assert {x["domain"] for x in seen} == {"oasis1", "adni", "cc359"}
    assert not {x["image"] for x in seen} & {x["image"] for x in data["validation"] + data["test"]}

    parser["source_masks"] = 3
    parser.parse(True)
    assert [x["domain"] for x in parser.get_parsed_content("data")["training"]].count("oasis1") == 3

    # The same preset fits inference, which takes the test lists of both sets.
    applied = ConfigParser()
    applied.read_config([str(CONFIGS / name) for name in ("inference.json", f"presets/{preset}.json")])
    applied["dataset_dir"] = str(tmp_path)
    images = {x["image"] for x in applied.get_parsed_content("data")}
    assert images > {x["image"] for x in data["test"]}

    # One set alone, taken for another label scheme.
    alone = ConfigParser()
    alone.read_config([str(CONFIGS / name) for name in ("train.json", "datasets/oasis1.json")])
    alone["dataset_dir"] = str(tmp_path / "oasis1")
    assert alone.get_parsed_content("data")["training"]
    alone["label_scheme"] = "oasis_seg4"
    alone.parse(True)
    with pytest.raises(RuntimeError) as error:
        alone.get_parsed_content("data")
    assert isinstance(error.value.__cause__, DatalistError)
    assert "config id `label_scheme` is 'oasis_seg4'" in str(error.value.__cause__)


@pytest.mark.parametrize("network", [(), ("networks/swin_unetr.json",)])
@pytest.mark.parametrize("path", sorted(BUNDLE.glob("compare_[aco]*.json")), ids=lambda path: path.stem)
def test_the_papers_settings_pretrain_on_its_three_sets(path, network, tmp_path):
    content = json.loads(path.read_text())
    settings = read_settings(str(path), output=str(tmp_path), config_file=[*content["config_file"], *network])
    arms = [arm for arm in settings.arms if arm.pretrain]
    assert arms
    for arm in arms:
        base, *overlays = arm.pretrain
        config = parsed([base, *settings.config_file, *overlays], {"dataset_dir": "/data"})
        lists = config.get_parsed_content("pretrain_datalist")
        assert lists == [f"/data/{name}.json" for name in ("oasis1/oasis1_orig", "adni/adni", "cc359/cc359")]


@pytest.mark.parametrize("path", sorted(BUNDLE.glob("compare*.json")), ids=lambda path: path.stem)
def test_settings_train_the_patch_projection(path):
    """As the base files do: the trials in which a trained one did worse had patches of eight times the voxels."""
    assert "freeze_patch_embed" not in path.read_text()


def test_the_command_of_the_measured_runs_has_the_frozen_projection_that_they_had(tmp_path):
    page = (BUNDLE / "docs/README.md").read_text()
    command = next(block for block in page.split("```") if "runs/one_mask" in block).split("python -m ")[1]
    words = shlex.split(command.replace("\\\n", " "))
    given = {word[2:]: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}
    override = given["pretrain_override"].replace("$GRID", "")
    settings = read_settings(str(BUNDLE / given["settings"]), output=str(tmp_path), pretrain_override=override)
    assert settings.pretrain_override["freeze_patch_embed"] is True


def test_pretraining_reads_unlabelled_scans_too(tmp_path):
    for name in "ab":
        volume(tmp_path / f"{name}.nii.gz", (4, 4, 4))
    labelled, unlabelled = {"image": "a.nii.gz", "label": "a.nii.gz"}, {"image": "b.nii.gz"}
    for content, expected in (({}, 1), ({"unlabelled": [unlabelled]}, 2)):
        (tmp_path / "unlabelled.json").write_text(json.dumps({"training": [labelled], **content}))
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "pretrain.json"))
        parser["dataset_dir"] = str(tmp_path)
        assert len(parser.get_parsed_content("data")["training"]) == expected


def test_pretraining_takes_several_sets(tmp_path):
    """The paper's 6,010 scans come from three folders, each with the datalist that `prepare` wrote."""
    paths = []
    for name in ("adni", "oasis1"):
        volume(tmp_path / name / "scan.nii.gz", (4, 4, 4), seed=len(name))
        paths.append(tmp_path / name / f"{name}.json")
        paths[-1].write_text(json.dumps({"training": [{"image": "scan.nii.gz"}]}))
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "pretrain.json"))
    parser["dataset_dir"], parser["pretrain_datalist"] = str(tmp_path), [str(path) for path in paths]
    found = [item["image"] for item in parser.get_parsed_content("data")["training"]]
    assert found == [str(path.with_name("scan.nii.gz")) for path in paths]


def test_unlabelled_budget_is_an_override_of_pretraining(run_bundle, tiny, tmp_path):
    overrides = {"output_dir": str(tmp_path), "cache": "none"}
    for extra, expected in (({}, 3), ({"fraction": 0.5}, 2), ({"lists": ["training", "validation"]}, 5)):
        workflow = run_bundle("pretrain.json", tiny["unetr"], execute=False, **overrides, **extra)
        assert len(workflow.parser.get_parsed_content("train#dataset")) == expected


def test_monai_label_finds_what_it_asks_for(tiny, turned, fine_tuned):
    """As MONAI Label 0.8 runs a bundle: inference.json alone, each part by itself, metadata not in the config."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "inference.json"), tiny["unetr"]])
    parser["bundle_root"] = "/nowhere"
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(fine_tuned[0] / "model.pt", weights_only=True))
    preprocessing = parser.get_parsed_content("preprocessing", instantiate=True)
    for transform in preprocessing.transforms:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    postprocessing = parser.get_parsed_content("postprocessing", instantiate=True)
    transforms = [step for step in postprocessing.transforms if not isinstance(step, SaveImaged)]
    assert len(transforms) == len(postprocessing.transforms) - 1

    image = str(turned / "oblique.nii.gz")
    data = {"image": image, "image_path": image, "device": "cpu"}
    for transform in preprocessing.transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in transforms:
        data = transform(data)
    assert tuple(data["pred"].shape[1:]) == nib.load(image).shape

    metadata = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]
    names = next(iter(metadata["outputs"].values()))["channel_def"]
    assert {int(key): name for key, name in names.items()}[0] == "background"
    assert len(next(iter(metadata["inputs"].values()))["spatial_shape"]) == 3


def test_synthseg_trains_on_no_real_image(run_bundle, tiny, tmp_path):
    """With the preset an image is drawn from its mask: another each time, with the mask's own borders."""
    workflow = run_bundle("train.json", tiny["unetr"], "presets/synthseg.json", output_dir=str(tmp_path), max_epochs=1)
    assert (tmp_path / "model.pt").is_file()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    first, second = (dataset[0] for _ in range(2))
    first, second = (item[0] if isinstance(item, list) else item for item in (first, second))
    assert first["image"].shape == first["label"].shape and not torch.equal(first["image"], second["image"])
    assert set(first["label"].unique().tolist()) <= set(range(-1, 5)) and len(first["label"].unique()) > 2
    between = torch.stack([first["image"][first["label"] == c].mean() for c in range(5)]).std()
    assert between > 0.01 and first["image"].min() == 0 and first["image"].max() == 1
    # scaled by percentiles as scans are, so that more than one voxel lies at either end
    assert all((first["image"] == end).sum() > 10 for end in (0, 1))


@pytest.mark.parametrize("surroundings", [3, 0])
def test_drawn_images_have_a_skull_where_the_scans_have_one(run_bundle, tiny, tmp_path, surroundings):
    """Around the labels there is tissue of its own contrast; with `--surroundings 0`, all of it is drawn as air is."""
    overrides = {"output_dir": str(tmp_path), "surroundings": surroundings, "spacing": [4.0, 4.0, 4.0]}
    workflow = run_bundle("train.json", tiny["unetr"], "presets/synthseg.json", execute=False, **overrides)
    lines = torch.arange(40.0) - 19.5
    x, y, z = torch.meshgrid(lines, lines, lines, indexing="ij")
    radius = (x * x + y * y + z * z).sqrt()
    scalp, brain = (radius >= 14) & (radius < 18), radius < 10
    image = 0.9 * scalp + 0.5 * brain
    apart = []
    draw = Compose(workflow.parser.get_parsed_content("augmentation")).set_random_state(0)
    for transform in draw.flatten().transforms[1:2]:
        transform.deformation = None  # so that we know where the scalp is
    for _ in range(12):
        made = draw({"image": image[None].clone(), "label": (brain * 1)[None].to(torch.uint8)})
        assert set(made) == {"image", "label"} and set(made["label"].unique().tolist()) == {0, 1}
        apart.append(float((made["image"][0][scalp].mean() - made["image"][0][radius > 19].mean()).abs()))
    assert (max(apart) > 0.3) == (surroundings > 0) and (np.median(apart) > 0.1) == (surroundings > 0), apart


def test_synthseg_mirrors_heads_and_exchanges_their_sides():
    """As the published generator does by default. Left and right labels stay on their side of the head."""
    names = label_names("structures33")
    left, right = (number for number, name in names.items() if name.endswith("Hippocampus"))
    assert names[left].startswith("Left")
    parser = ConfigParser()
    files = ("train.json", "presets/synthseg.json", "tasks/structures33.json")
    parser.read_config([str(CONFIGS / name) for name in files])
    labels, transform, remove = parser.get_parsed_content("augmentation")
    transform.deformation.scaling = transform.deformation.rotation = transform.deformation.shearing = 0
    transform.deformation.velocity = 0
    label = torch.zeros(1, 12, 8, 8)
    label[:, 1:3, 1:4], label[:, 7:11, 2:7] = left, right  # RAS: the left side comes first
    mirrored = label.flip(1)
    mirrored[:, 1:5, 2:7], mirrored[:, 9:11, 1:4] = left, right
    transform.set_random_state(0)
    item = labels({"image": torch.rand(1, 12, 8, 8), "label": label})
    made = [remove(transform(dict(item)))["label"] for _ in range(10)]
    kept = sum(torch.equal(one, label) for one in made)
    assert 0 < kept < 10 and sum(torch.equal(one, mirrored) for one in made) == 10 - kept


def test_mae_predicts_normalised_patches(run_bundle, tiny, tmp_path):
    """With the preset, after the network: targets of mean 0 and deviation 1, whatever the image's intensities."""
    overlays = (tiny["unetr"], "presets/normalised_patches.json")
    workflow = run_bundle("pretrain.json", *overlays, output_dir=str(tmp_path), max_epochs=1)
    assert (tmp_path / "encoder.safetensors").is_file()
    pretext = workflow.parser.get_parsed_content("network_def")
    target = pretext(10 + 5 * torch.randn(1, 1, *workflow.parser.get_parsed_content("roi_size")))["target"]
    torch.testing.assert_close(target.mean(-1), torch.zeros(target.shape[:2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(-1), torch.ones(target.shape[:2]), atol=1e-3, rtol=0)
