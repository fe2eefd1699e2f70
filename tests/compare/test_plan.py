"""The layout of a comparison: which runs, how long, with which labels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.compare.bundle_config import (
    WEIGHTS,
    BundleConfig,
    data_digest,
    drawn_from,
    keeps_best_encoder,
    scans_digest,
)
from common.compare.collect import reference_rows
from common.compare.plan import make_plan
from common.compare.run import INPUT_IDS
from common.compare.settings import CompareError, read_settings
from common.data import load_datalist
from common.data.seen import SeenScans
from common.weights.encoder_file import write_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(plan_of):
    return plan_of


def runs(plan, stage, **given):
    found = [run for run in plan.runs if run.stage == stage]
    return [run for run in found if all(getattr(run, name) == value for name, value in given.items())]


class Ids(dict):
    """Values of a config."""

    ids = property(dict.keys)


def test_items_of_a_domain_that_is_a_number(tmp_path):
    """The number is text where another item has no domain."""
    for number in range(3):
        nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2) + number, np.eye(4)), tmp_path / f"{number}.nii")
    entries = [{"image": f"{number}.nii", "label": number} | ({"domain": 7} if number else {}) for number in range(3)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    data = load_datalist(tmp_path / "list.json", target_domain=7)
    assert [x["label"] for x in drawn_from(Ids(data=data, target_domain=7))] == [1, 2]


def test_one_pretraining_an_arm_and_one_fine_tuning_an_arm_labels_and_seed(plan):
    once = {"scratch": None, "mae": {"pretrain": [], "pretrain_per_seed": False}}
    found = plan(arms=once, labels="1,3", seeds="0,1", probe="age")
    assert [run.arm for run in runs(found, "pretrain")] == ["mae"]
    for stage in ("train", "evaluate", "probe"):
        expected = {(arm, n, s) for arm in ("scratch", "mae") for n in (1, 3) for s in (0, 1)}
        assert {(run.arm, run.labels, run.seed) for run in runs(found, stage)} == expected
    assert {(run.labels, run.seed) for run in runs(found, "infer")} == {(1, 0)}  # fewest labels, first seed
    train = runs(found, "train", arm="mae", labels=1, seed=1)[0]
    encoder = runs(found, "pretrain")[0].folder / "encoder.safetensors"
    assert train.needs == (encoder.with_name("pretrain.json"),)
    assert all(run.needs == (run.folder / "train.json",) for run in runs(found, "evaluate") + runs(found, "infer"))
    assert train.inputs == (encoder,) and train.override["pretrained_encoder"] == str(encoder)
    assert train.override["seed"] == 1 and train.override["resume"] is True
    scratch = runs(found, "train", arm="scratch", labels=1, seed=1)[0]
    same = {key: value for key, value in train.override.items() if key not in ("pretrained_encoder", "output_dir")}
    assert same == {key: value for key, value in scratch.override.items() if key != "output_dir"}


def test_steps_are_equal_whatever_the_number_of_labels(plan):
    found = plan(labels="1,2,3", steps=12)  # batches of two: 1, 1 and 2 steps per epoch
    epochs = {run.labels: run.override["max_epochs"] for run in runs(found, "train", arm="scratch")}
    assert epochs == {1: 12, 2: 12, 3: 6}
    assert {run.steps for run in runs(found, "train")} == {12}
    assert {run.override["val_interval"] for run in runs(found, "train", labels=3)} == {1}
    # by default those of the config's own length with all labels: 2 epochs of 2 steps
    assert {run.steps for run in runs(plan(labels="1,3"), "train")} == {4}


def test_numbers_of_labels_are_those_of_the_target_domain(plan):
    """The paper's protocol: all masks of a source set and n of the target set."""
    found = plan(labels="1", override="target_domain=site_b", steps=6)
    train = runs(found, "train", arm="mae")[0]
    domains = [item["domain"] for item in found.lists(train)["training"]]
    assert domains.count("site_b") == train.labels == 1 and domains.count("site_a") == 2
    assert found.labelled() == {1: (3, 1)}
    assert train.steps == 6 and train.override["max_epochs"] == 3  # two steps a pass over the three
    with pytest.raises(CompareError, match="--labels 3: the training list has only 1 items"):
        plan(labels="3", override="target_domain=site_b")
    arms = {"scratch": None, "source_only": {"override": {"target_masks": 0}}}  # one that leaves the target out
    found = plan(labels="1", override="target_domain=site_b", steps=6, arms=arms, examples=0)
    [train] = runs(found, "train", arm="source_only")
    assert {item["domain"] for item in found.lists(train)["training"]} == {"site_a"}


def test_other_steps_than_asked_for_are_said(plan):
    found = plan(labels="1,3", steps=3)  # with three labels a pass takes two steps
    taken = {run.labels: run.steps for run in runs(found, "train")}
    assert taken == {1: 3, 3: 4}
    (line,) = found.other_steps()
    assert line.startswith("--steps 3: fine-tuning on 3 labels takes 4, ") and "epochs of 2 steps" in line
    assert plan(labels="1,3", steps=4).other_steps() == [] == plan(labels="3").other_steps()
    assert plan(labels="3", equal="epochs", epochs=5).other_steps() == []


def test_equal_epochs_and_extra_steps(plan):
    found = plan(labels="1,3", equal="epochs", epochs=5)
    assert {run.labels: run.steps for run in runs(found, "train")} == {1: 5, 3: 10}
    settings = plan(labels="3", equal="time", steps=4).settings
    longer = make_plan(settings, {("scratch", 3): 6, ("mae", 3): 0})
    assert {run.arm: run.steps for run in runs(longer, "train")} == {"scratch": 10, "mae": 4}


def test_a_repetition_keeps_the_labels_and_changes_the_seed(plan, cohort):
    arms = {"scratch": None, "again": {"seed_offset": 50}}
    found = plan(arms=arms, labels="1")
    again = runs(found, "train", arm="again")[0]
    assert again.override["seed"] == 50 and again.override["data#seed"] == 0
    assert "data#seed" not in runs(found, "infer", arm="again")[0].override  # inference has a list of its own
    lists = []
    for run in runs(found, "train"):
        from common.compare.bundle_config import BundleConfig

        config = BundleConfig(run.files, run.override, found.settings.bundle)
        lists.append([item["image"] for item in config.get("data")["training"]])
    assert lists[0] == lists[1]


def test_pretraining_leaves_out_what_the_folds_of_fine_tuning_hold_out(plan, cohort):
    """Where both read one datalist, for every seed: the draw of the folds is no part of a repetition."""
    same = {"datalist": str(cohort / "structures4.json"), "task": "structures4"}
    folds = {"fold": 1, "data#num_folds": 4}
    found = plan(labels="1", seeds="0,1", override=folds, pretrain_override=same)
    pretraining = runs(found, "pretrain")[0]
    assert pretraining.override["fold"] == 1

    def items(run, section):
        return {x["image"] for x in BundleConfig(run.files, run.override, ROOT).get("data")[section]}

    held_out = [items(run, "validation") for run in runs(found, "train")]
    assert held_out[0] and all(one == held_out[0] for one in held_out)
    assert not held_out[0] & items(pretraining, "training")
    # One that is asked for stays.
    again = plan(labels="1", override=folds, pretrain_override={"fold": 2})
    assert runs(again, "pretrain")[0].override["fold"] == 2


def test_evaluation_alone_may_have_another_test_list(plan, cohort, tmp_path):
    """Trainings are those of a comparison without it; evaluations are others, also if only the folder differs."""
    other = tmp_path / "other"
    shutil.copytree(cohort, other)
    content = json.loads((cohort / "structures4.json").read_text())
    content["test"] = content["test"][:1]
    (other / "one.json").write_text(json.dumps(content))
    elsewhere = {"dataset_dir": str(other), "datalist": str(other / "one.json")}
    for item in content["test"]:  # other scans of the same names, not copies of the scans that were trained on
        scan = nib.load(other / item["image"])
        nib.save(nib.Nifti1Image(scan.get_fdata() + 1, scan.affine), other / item["image"])
    before, after = plan(labels="1"), plan(labels="1", evaluate_override=elsewhere)
    assert [str(Path(item["image"]).parents[0]).startswith(str(other)) for item in after.test] == [True]
    for stage, same in (("pretrain", True), ("train", True), ("evaluate", False)):
        for one, two in zip(runs(before, stage), runs(after, stage), strict=True):
            assert (one.files, one.override, one.data) == (two.files, two.override, two.data) or not same
            assert (one.data == two.data) == same
    (other / "one.json").write_text(json.dumps({"test": content["test"]}))  # as a list of another scanner may be
    from_labels = plan(labels="3", evaluate_override=elsewhere, validation_from_labels=True)
    [judged] = runs(from_labels, "evaluate", arm="scratch")
    assert [item["image"] for item in from_labels.config(judged).get("data")["test"]] == [after.test[0]["image"]]
    (other / "one.json").write_text(json.dumps(content))
    moved = plan(labels="1", evaluate_override={"dataset_dir": str(other)})
    assert runs(moved, "evaluate")[0].data != runs(before, "evaluate")[0].data
    assert not any(key in runs(after, "train")[0].override.items() for key in elsewhere.items())

    content["test"].append(content["training"].pop(0))
    (other / "leak.json").write_text(json.dumps(content))
    for given in (elsewhere, {}):  # a copy in another folder, and the file itself
        leak = given | {"datalist": str((other if given else cohort) / "leak.json")}
        (cohort / "leak.json").write_text(json.dumps(content))
        try:
            with pytest.raises(CompareError, match=r"--evaluate_override: .* in the training list of fine-tun"):
                plan(labels="1", evaluate_override=leak)
        finally:
            (cohort / "leak.json").unlink()
    for given, message in (
        ({"evaluate_override": "datalst=x"}, "--evaluate_override datalst names no id .* datalist"),
        ({"evaluate_override": "seed=3"}, "'seed' cannot be an override"),
        ({"evaluate_override": elsewhere, "folds": 3}, "--folds tests each scan of the datalist"),
    ):
        with pytest.raises(CompareError, match=message):
            plan(labels="1", **given)


def test_a_scan_that_pretraining_cannot_take_is_refused_before_any_run(plan):
    given = {"labels": "1", "try_items": True, "examples": 0}
    assert plan(**given).runs
    with pytest.raises(CompareError, match=r"Pre-training of arm 'mae': .* has 1 channels, but the network takes 2"):
        plan(**given, pretrain_override="in_channels=2")


def test_a_scan_that_is_held_out_is_refused_in_pretraining(plan, cohort, tmp_path):
    test = json.loads((cohort / "structures4.json").read_text())["test"][0]["image"]
    (tmp_path / "other.nii.gz").symlink_to(cohort / test)
    content = json.loads((cohort / "unlabelled.json").read_text())
    content["training"].append({"image": str(tmp_path / "other.nii.gz")})
    (tmp_path / "pool.json").write_text(json.dumps(content))
    leak = {"datalist": str(tmp_path / "pool.json")}
    with pytest.raises(
        CompareError, match=rf"'mae': \S*{Path(test).name} of the pre-training list is also in the test list"
    ):
        plan(labels="1", pretrain_override=leak)
    assert runs(plan(labels="1", pretrain_override=leak, transductive=True), "pretrain")


def test_a_copy_of_a_held_out_scan_is_refused_in_pretraining(plan, cohort, tmp_path):
    test = cohort / json.loads((cohort / "structures4.json").read_text())["test"][0]["image"]
    shutil.copy(test, tmp_path / "patient.nii.gz")
    content = json.loads((cohort / "unlabelled.json").read_text())
    content["training"].append({"image": str(tmp_path / "patient.nii.gz")})
    (tmp_path / "pool.json").write_text(json.dumps(content))
    leak = {"datalist": str(tmp_path / "pool.json")}
    with pytest.raises(CompareError, match=rf"'mae': \S*{test.name} in test is a copy of \S*patient.nii.gz in pre-tr"):
        plan(labels="1", pretrain_override=leak)
    assert runs(plan(labels="1", pretrain_override=leak, transductive=True), "pretrain")


def test_an_arm_with_lists_of_its_own_is_compared_with_these(plan, cohort):
    """One fold of fine-tuning may hold out what the pre-training of another was trained on."""
    same = {"datalist": str(cohort / "structures4.json"), "task": "structures4"}
    folds = {"data#num_folds": 4}
    arms = {"scratch": None, "mae": {"pretrain": [], "override": {"fold": 2}, "pretrain_override": {"fold": 1}}}
    given = {"labels": "1", "arms": arms, "override": {"fold": 1, **folds}, "pretrain_override": {**same, **folds}}
    with pytest.raises(CompareError, match=r"'mae': \S+ of the pre-training list is also in the validation list"):
        plan(**given)
    found = plan(**given, transductive=True)
    assert {run.override["transductive"] for run in runs(found, "train") + runs(found, "evaluate")} == {True}
    arms["mae"]["override"] = {"fold": 1}
    assert all("transductive" not in run.override for run in plan(**given).runs)


def test_an_arm_with_a_datalist_of_its_own_counts_and_is_told_apart_by_it(plan, cohort, tmp_path):
    """Its labels are of its own list, and its results are not those of the list of all arms, or of an older content."""
    content = json.loads((cohort / "structures4.json").read_text())
    for item in (item for section in content.values() if isinstance(section, list) for item in section):
        item |= {key: str(cohort / item[key]) for key in ("image", "label") if key in item}
    content["training"] = content["training"][:2]

    def planned(labels="2"):
        (tmp_path / "few.json").write_text(json.dumps(content))
        arms = {"scratch": None, "few": {"override": {"datalist": str(tmp_path / "few.json")}}}
        return plan(labels=labels, arms=arms, examples=0)

    found = planned()
    digests = {}
    for stage in ("train", "evaluate"):
        for arm in ("scratch", "few"):
            [run] = runs(found, stage, arm=arm)
            digests[stage, arm] = run.data
            assert len(found.lists(run)["training"]) == 2
        assert digests[stage, "scratch"] != digests[stage, "few"]
    content["training"].reverse()
    changed = planned()
    for (stage, arm), data in digests.items():
        assert (runs(changed, stage, arm=arm)[0].data == data) == (arm == "scratch")
    with pytest.raises(CompareError, match="Arm 'few': its training list has only 2 items, fewer than the 3"):
        planned("3")


def test_a_test_scan_may_not_choose_the_encoder(plan, cohort):
    """Fine-tuning would refuse such an encoder, after hours of pre-training."""
    content = json.loads((cohort / "structures4.json").read_text())
    content["validation"] = [{"image": content.pop("test")[0]["image"]}]
    given = {"labels": "1", "pretrain_override": {"datalist": str(cohort / "chosen.json")}}
    try:
        (cohort / "chosen.json").write_text(json.dumps(content))
        with pytest.raises(CompareError, match=r"'mae': \S+ of the validation list of pre-training, which chooses the"):
            plan(**given)
        assert runs(plan(**given, transductive=True), "pretrain")
    finally:
        (cohort / "chosen.json").unlink()
    chosen = {}
    for path in ROOT.glob("bundles/*/configs/pretrain.json"):
        chosen[path.parts[-3]] = keeps_best_encoder(BundleConfig([str(path)], {}, path.parents[1]))
    assert not chosen["med3d"] and not chosen["simtrot"]  # these keep the last
    assert chosen["pretrain_once"] and chosen["medical_transformer"]


def test_another_scan_of_a_held_out_subject_is_refused_in_pretraining(plan, cohort):
    content = json.loads((cohort / "skull.json").read_text())  # whole heads, where fine-tuning sees brains
    heads = {"datalist": str(cohort / "heads.json")}
    moved = content["test"][0]
    try:
        (cohort / "heads.json").write_text(json.dumps({"training": [*content["training"], moved]}))
        with pytest.raises(
            CompareError, match=rf"{moved['image']} of the pre-training list belongs to the subject of \S+ in"
        ):
            plan(labels="1", pretrain_override=heads | {"validate#dataset#data": []})
    finally:
        (cohort / "heads.json").unlink()


def test_another_encoder_to_start_pretraining_from_is_another_pretraining(tmp_path):
    given = {"bundle": str(ROOT / "bundles/medical_transformer"), "config_file": "datasets/sample.json,tasks/age.json"}
    given |= {"output": str(tmp_path / "out"), "labels": "2", "seeds": "0"}
    for name in "ab":
        write_state({"x": torch.full((1,), float(ord(name)))}, tmp_path / f"{name}.safetensors", {})

    def digest(name):
        arm = {"pretrain": ["pretrain_transformer.json"]}
        arm["pretrain_override"] = {"pretrained_encoder": str(tmp_path / f"{name}.safetensors")}
        [run] = runs(make_plan(read_settings(arms={"scratch": None, "two": arm}, **given)), "pretrain")
        return run.inputs, run.digest()

    assert digest("a")[0] == (tmp_path / "a.safetensors",) and digest("a") == digest("a")
    assert digest("a")[1] != digest("b")[1]


def test_an_encoder_made_elsewhere_is_compared_by_its_record(plan, cohort, tmp_path):
    lists = load_datalist(cohort / "structures4.json")
    path = tmp_path / "theirs.safetensors"
    arms = f"scratch,theirs={path}"

    def save(seen):
        scans = SeenScans({"training": seen}, ("training",)).record()
        write_state({"weight": torch.zeros(1)}, path, {"scans": scans})

    save(lists["training"])
    assert len(runs(plan(labels="1", arms=arms), "train")) == 2
    save([*lists["training"], lists["validation"][0]])
    with pytest.raises(
        CompareError, match=rf"'theirs': {path} was trained on \S+ of the validation list: .*transductive"
    ):
        plan(labels="1", arms=arms)
    assert len(runs(plan(labels="1", arms=arms, transductive=True), "train")) == 2
    path.write_bytes(b"nothing")
    with pytest.raises(CompareError, match=r"'theirs': .* is not a readable safetensors file"):
        plan(labels="1", arms=arms)


def test_a_reference_network_may_start_from_weights(plan, cohort, tmp_path):
    lists = load_datalist(cohort / "structures4.json")
    path = tmp_path / "theirs.safetensors"
    network = ["networks/swin_unetr_small.json"]
    arms = {
        "scratch": None,
        "swin": {"reference": {"network": network}},
        "theirs": {"reference": {"network": network, "encoder": str(path)}},
    }

    def save(seen):
        scans = SeenScans({"training": seen}, ("training",)).record()
        write_state({"weight": torch.zeros(1)}, path, {"scans": scans})

    save(lists["training"])
    found = plan(arms=arms, labels="1,3", tune={"learning_rate": [0.1, 0.2]}, probe="label")
    for run in (run for run in found.runs if run.arm == "theirs"):
        starts = run.stage in ("tune", "train", "probe")
        assert run.override.get("pretrained_encoder") == (str(path) if starts else None), run.stage
        assert (path in run.inputs) == starts and not any("pretrain.json" in str(need) for need in run.needs)
        assert run.files[-1].endswith("networks/swin_unetr_small.json")
    [own], [theirs] = (runs(found, "train", arm=arm, labels=1) for arm in ("swin", "theirs"))
    changed = {"pretrained_encoder", "output_dir"}
    assert {key for key in theirs.override if theirs.override[key] != own.override.get(key)} == changed
    assert {run.stage for run in found.runs if run.arm == "theirs"} >= {"tune", "train", "evaluate", "infer", "probe"}
    reference = found.settings.arms[2]
    assert reference.is_reference and not reference.is_scratch
    assert reference.describe() == f"reference, encoder file {path} with swin_unetr_small.json"
    save([*lists["training"], lists["test"][0]])
    with pytest.raises(CompareError, match=rf"'theirs': {path} was trained on \S+ of the test list: .*transductive"):
        plan(labels="1", arms=arms)


def test_validation_from_the_labels_takes_them_out_of_the_number(plan):
    found = plan(labels="2,3", validation_from_labels=True, steps=6)
    assert found.labelled() == {2: (1, 1), 3: (2, 1)} != plan(labels="2,3").labelled()
    for labels, training in ((2, 1), (3, 2)):
        lists = []
        for arm in ("scratch", "mae"):
            run = runs(found, "train", arm=arm, labels=labels)[0]
            data = BundleConfig(run.files, run.override, ROOT).get("data")
            lists.append({name: {x["image"] for x in data[name]} for name in ("training", "validation")})
            assert run.items == training and ("transductive" in run.override) == (arm == "mae")
        assert lists[0] == lists[1] and not lists[0]["training"] & lists[0]["validation"]
        kept = plan(labels=str(labels)).runs
        run = next(run for run in kept if run.stage == "train" and run.arm == "scratch")
        before = {x["image"] for x in BundleConfig(run.files, run.override, ROOT).get("data")["training"]}
        assert lists[0]["training"] | lists[0]["validation"] == before
    assert "transductive" not in runs(found, "evaluate", arm="mae", labels=2)[0].override
    with pytest.raises(CompareError, match="fewer than two subjects"):
        plan(labels="1", validation_from_labels=True)


@pytest.mark.parametrize(
    ("bundle", "files", "preset", "arms"),
    [
        ("transseg", "datasets/sample.json", "bcv_protocol", {"scratch": None}),
        (
            "simtrot",
            "datasets/sample.json,networks/nnformer_tiny.json",
            "synapse_protocol",
            {
                "scratch": None,
                "simtrot": {
                    "pretrain": ["pretexts/simtrot.json"],
                    "pretrain_override": {"pretrain_datalist": "@datalist"},
                },
            },
        ),
    ],
)
def test_the_published_protocol_validates_on_the_test_list(plan, cohort, tmp_path, bundle, files, preset, arms):
    """No scan is left for validation: those of training are trained on, and the test scans choose the weights.

    Pre-training reads the training list and nothing else.
    """
    content = json.loads((cohort / "structures4.json").read_text())
    content["training"] += content.pop("validation")
    (tmp_path / "all.json").write_text(json.dumps(content))
    given = {"bundle": str(ROOT / "bundles" / bundle), "arms": arms, "labels": "4", "steps": 20, "validations": 2}
    given |= {"datalist": str(tmp_path / "all.json"), "examples": 1}
    with pytest.raises(CompareError, match="the list 'validation' is empty"):
        plan(**given, config_file=files)
    protocol = f"{files},presets/{preset}.json"
    found = plan(**given, config_file=protocol, try_items=True)
    for arm in arms:
        [train], [evaluate] = runs(found, "train", arm=arm), runs(found, "evaluate", arm=arm)
        trained, evaluated = found.config(train), found.config(evaluate)
        assert trained.get("validate#dataset#data") == evaluated.get("validate#dataset#data") == list(found.test)
        assert trained.get("transductive") and evaluated.get("transductive")
    assert len(found.test) == 2 and found.labelled() == {4: (4, 2)} and found.validated_on_test
    assert runs(found, "infer")
    for run in runs(found, "pretrain"):
        lists = found.lists(run)
        scans = {item["image"] for item in lists["training"]}
        assert len(scans) == 4 and scans.isdisjoint(item["image"] for item in found.test) and not lists["validation"]
    with pytest.raises(CompareError, match="`validated_list` names 'test': leave out one"):
        plan(**given, config_file=protocol, validation_from_labels=True)
    assert not plan(**given | {"datalist": None, "labels": "3"}, config_file=files).validated_on_test


def test_a_reference_is_a_network_or_scores(plan, tmp_path):
    table = tmp_path / "published.csv"
    table.write_text("subject,value,labels\na,0.5,\nb,0.75,3\n")
    arms = {
        "scratch": None,
        "mae": {"pretrain": []},
        "swin": {"reference": {"network": ["networks/swin_unetr_small.json"]}, "against": "mae"},
        "published": {"reference": str(table)},
    }
    found = plan(arms=arms, labels="1,3")
    swin = [run for run in found.runs if run.arm == "swin"]
    assert {run.stage for run in swin} == {"train", "evaluate", "infer"}
    assert all(run.files[-1].endswith("networks/swin_unetr_small.json") for run in swin)
    assert all("pretrained_encoder" not in run.override for run in swin)
    own = runs(found, "train", arm="scratch", labels=1)[0].override
    same = {**runs(found, "train", arm="swin", labels=1)[0].override, "output_dir": own["output_dir"]}
    assert same == own
    assert not any(run.arm == "published" for run in found.runs)
    rows = list(reference_rows(found.settings.arms[-1], found))
    assert [(row["subject"], row["value"], row["labels"]) for row in rows] == [
        ("a", 0.5, 1),
        ("a", 0.5, 3),
        ("b", 0.75, 3),
    ]
    assert {(row["arm"], row["metric"], row["structure"]) for row in rows} == {("published", "val_mean_dice", "mean")}
    assert plan(arms=f"scratch,published={table}", labels="1").settings.arms[1].scores == str(table)
    table.write_text("subject,value\na,good\n")
    with pytest.raises(CompareError, match=r"published.csv, line 2: value, seed or labels is not a number"):
        list(reference_rows(found.settings.arms[-1], found))
    for wrong, sentence in (
        ({"reference": {"net": []}}, "`reference` is a CSV file, or a mapping"),
        ({"reference": "nowhere.csv"}, "there is no .*nowhere.csv"),
        ({"reference": str(table), "pretrain": []}, "a `reference` is a network, .* or scores, and nothing else"),
        ({"reference": str(table), "against": "scratch"}, "a `reference` is a network, .* or scores, and nothing else"),
    ):
        with pytest.raises(CompareError, match=sentence):
            plan(arms={"scratch": None, "it": wrong})
    table.write_text("name,value\n")
    with pytest.raises(CompareError, match="has no column subject"):
        plan(arms=arms)


def test_pretraining_once_a_seed(plan):
    arms = {"scratch": None, "mae": {"pretrain": [], "pretrain_per_seed": True}}
    found = plan(arms=arms, labels="1", seeds="0,1")
    assert [run.override["seed"] for run in runs(found, "pretrain")] == [0, 1]
    for run in runs(found, "train", arm="mae"):
        assert run.inputs[0].parent.name == f"seed-{run.seed}"


def test_pretraining_is_once_a_seed_where_that_costs_less_than_the_fine_tunings(plan, tmp_path):
    def seeds(epochs, **given):
        given = {"seeds": "0,1", "labels": "1,3", "pretrain_override": f"max_epochs={epochs}", **given}
        found = plan(**given)
        arm = next(arm for arm in found.settings.arms if arm.name == "mae")
        made = [run.seed for run in runs(found, "pretrain")]
        assert arm.pretrain_per_seed is (made != [None])
        return made

    items = sum(run.steps * run.batch for run in runs(plan(labels="1,3"), "train", arm="mae"))
    [pretraining] = runs(plan(labels="1", pretrain_override="max_epochs=1"), "pretrain")
    most = items // (pretraining.steps * pretraining.batch)
    assert most > 0 and seeds(most) == [0, 1] and seeds(most + 1) == [None]
    assert seeds(most, seeds="3") == [None], "one seed has one pre-training"
    assert seeds(most, pretrain_override=f"max_epochs={most} seed=7") == [None]
    begun = tmp_path / "out/pretrain/mae/pretrain.json"
    begun.parent.mkdir(parents=True)
    begun.write_text("{}")
    assert seeds(most) == [None], "a folder goes on as it was begun"


def test_digests_tell_what_is_computed_not_where(plan, tmp_path, cohort):
    first = runs(plan(labels="1"), "train")[0]
    assert runs(plan(labels="1", output=str(tmp_path / "elsewhere")), "train")[0].digest() == first.digest()
    assert runs(plan(labels="1", override="learning_rate=0.5"), "train")[0].digest() != first.digest()
    assert runs(plan(labels="1", seeds="3"), "train")[0].digest() != first.digest()
    needs = runs(plan(labels="1"), "train", arm="mae")[0]
    needs.inputs[0].parent.mkdir(parents=True)
    needs.inputs[0].write_bytes(b"one")
    before = needs.digest()
    needs.inputs[0].write_bytes(b"two")
    assert needs.digest() != before
    changed = tmp_path / "changed.json"
    content = json.loads((cohort / "structures4.json").read_text())
    content["training"] = content["training"][:2]
    changed.write_text(json.dumps(content))
    assert runs(plan(labels="1", datalist=str(changed)), "train")[0].digest() != first.digest()


@pytest.mark.parametrize(
    ("part", "stages"),
    [("training", {"pretrain", "train"}), ("validation", {"pretrain", "train"}), ("test", {"evaluate", "infer"})],
)
def test_scans_and_masks_that_a_run_reads_tell_it_apart(plan, cohort, tmp_path, part, stages):
    """Masks were corrected, or --dataset_dir named other scans, and the runs counted as done."""

    def scans(folder):
        return {str(run): run.scans for run in plan(labels="1", dataset_dir=str(folder)).runs}

    before = scans(cohort)
    shutil.copytree(cohort, tmp_path / "copy")
    assert scans(tmp_path / "copy") == before
    item = json.loads((cohort / "structures4.json").read_text())[part][0]
    for key, changed in (("label", stages - {"pretrain", "infer"}), ("image", stages)):
        file = tmp_path / "copy" / item[key]
        volume = nib.load(file)
        nib.save(nib.Nifti1Image(np.asanyarray(volume.dataobj)[::-1].copy(), volume.affine), file)
        after = scans(tmp_path / "copy")
        assert {name.partition(",")[0] for name in after if after[name] != before[name]} == changed


def test_the_scans_of_folds_are_those_that_each_reads(plan, cohort, tmp_path):
    def scans(folder):
        runs = plan(arms="scratch", folds=3, labels="1", dataset_dir=str(folder)).runs
        return {(run.stage, run.fold): run.scans for run in runs if run.stage in ("train", "evaluate")}

    before = scans(cohort)
    shutil.copytree(cohort, tmp_path / "copy")
    file = tmp_path / "copy" / json.loads((cohort / "structures4.json").read_text())["test"][0]["label"]
    volume = nib.load(file)
    nib.save(nib.Nifti1Image(np.asanyarray(volume.dataobj)[::-1].copy(), volume.affine), file)
    after = scans(tmp_path / "copy")
    changed = [key for key in before if before[key] != after[key]]
    # tested in one fold, trained on or validated on in the two others
    assert sorted(stage for stage, _ in changed) == ["evaluate", "train", "train"]
    assert len({fold for _, fold in changed}) == 3


def test_weights_that_a_config_reads_tell_a_run_apart(tmp_path):
    config, model = tmp_path / "config.json", tmp_path / "model.pt"
    config.write_text(json.dumps({"coarse_model_path": str(model)}))

    def digest():
        return scans_digest(BundleConfig([str(config)], {}, tmp_path), [])

    found = [digest()]
    for content in (b"one", b"two"):
        model.write_bytes(content)
        found.append(digest())
    assert len(set(found)) == 3


def test_every_id_of_a_bundle_that_names_weights_is_an_input():
    """`coarse_model_path` was none, and a first stage that was trained again went unnoticed."""
    named = set()
    for file in ROOT.glob("bundles/*/configs/**/*.json"):
        content = json.loads(file.read_text())
        ids = content.items() if isinstance(content, dict) else ()
        named |= {key for key, value in ids if re.search(r"\.(pt|ckpt|safetensors)'$", str(value))}
    assert {"model_path", "coarse_model_path"} <= named <= {*WEIGHTS, *INPUT_IDS}


def test_several_processes_go_through_torchrun_and_the_multi_gpu_files(plan, cohort, tmp_path):
    content = json.loads((cohort / "structures4.json").read_text())
    content["validation"] *= 2  # an item for each process
    (tmp_path / "two.json").write_text(json.dumps(content))
    found = plan(labels="3", processes=2, steps=4, datalist=str(tmp_path / "two.json"))
    train = runs(found, "train")[0]
    assert train.files[-1].endswith("multi_gpu_train.json")
    assert train.override["max_epochs"] == 2  # as with one process: two steps per epoch, of 3 items in batches of 2
    command = train.command(found.settings)
    assert "torch.distributed.run" in command and "--nproc_per_node=2" in command
    assert "torch.distributed.run" not in runs(found, "infer")[0].command(found.settings)
    mine = shutil.copytree(found.settings.bundle, tmp_path / "mine")
    (mine / "configs/multi_gpu_train.json").unlink()
    with pytest.raises(CompareError, match=r"mine has no configs/multi_gpu_train\.json"):
        plan(bundle=str(mine), labels="3", processes=2, steps=4, datalist=str(tmp_path / "two.json"))


def test_only_ids_that_inference_has_reach_it(plan):
    found = plan(labels="1", override="weight_decay=0.5 orientation=LPS")
    override = runs(found, "infer")[0].override
    assert override["orientation"] == "LPS" and not {"weight_decay", "fraction", "seed"} & set(override)


def test_a_schedule_lies_over_the_files_of_its_arms_fine_tuning(plan, tmp_path):
    arms = {"scratch": None, "warm": {"pretrain": [], "schedule": "warmup", "override": {"rate_factor": 0.3}}}
    found = plan(labels="1", arms=arms, probe="age", try_items=True)
    for stage in ("train", "evaluate", "probe"):
        scratch, warm = (runs(found, stage, arm=arm)[0] for arm in ("scratch", "warm"))
        assert warm.files == (*scratch.files, str(found.settings.bundle / "configs/schedules/warmup.json"))
        assert warm.override["rate_factor"] == 0.3 and "rate_factor" not in scratch.override
    for stage in ("pretrain", "infer"):
        for run in runs(found, stage):
            assert not any("schedules" in file for file in run.files) and "rate_factor" not in run.override
    several = plan(labels="1", arms={"control": {"schedule": "scratch"}}, processes=1)
    assert several.settings.baseline == "control"
    with pytest.raises(CompareError, match="rate_factor"):
        plan(labels="1", arms={"scratch": {"override": {"rate_factor": 0.3}}})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"fractions": "0.3,0.34,1"},
            "two shares keep the same number of the 3 training items (0.3: 1, 0.34: 1, 1.0: 3)",
        ),
        ({"processes": 2}, "--processes 2: every process needs a validation item, but there are only 1"),
        ({"labels": "4"}, "--labels 4: the training list has only 3 items"),
        ({"dataset_dir": "/nowhere"}, "No dataset folder at /nowhere"),
        ({"overlay": {"metrics": None}}, "state no `metrics`"),
        ({"overlay": {"evaluated_list": "exam"}}, "exam"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(plan, tiny, tmp_path, given, sentence):
    if "overlay" in given:
        (tmp_path / "overlay.json").write_text(json.dumps(given["overlay"]))
        given = {"config_file": [tiny["unetr"], str(tmp_path / "overlay.json")]}
    with pytest.raises(CompareError) as error:
        plan(**given)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"override": "label_schem=dlmuse"},
            r"--override label_schem names no id of train.json \+ \S+; did you mean label_scheme?",
        ),
        ({"override": "train#dataloader#batchsize=1"}, "did you mean train#dataloader#batch_size?"),
        ({"override": "amp=none"}, "--override amp is read as the text 'none', not as None: write None"),
        ({"override": "model_pth=x"}, "--override model_pth names no id of train.json"),  # of evaluation alone, then
        (
            {"pretrain_override": "max_epoch=1"},
            "--pretrain_override max_epoch names no id of pretrain.json .* max_epochs?",
        ),
        (
            {"arms": {"scratch": None, "a": {"override": {"lr": 1}}}},
            "--override lr names .* did you mean learning_rate?",
        ),
    ],
)
def test_overrides_that_a_run_would_refuse(plan, given, sentence):
    with pytest.raises(CompareError, match=sentence):
        plan(**given)


@pytest.mark.parametrize("section", ["training", "test"])
def test_masks_of_another_label_scheme_are_refused_before_any_run(plan, cohort, tmp_path, section):
    content = json.loads((cohort / "structures4.json").read_text())
    content.pop("label_scheme", None)
    first = cohort / content[section][0]["label"]
    mask = nib.load(first)
    label = np.asarray(mask.dataobj).copy()
    label[0, 0, 0] = 77
    nib.save(nib.Nifti1Image(label, mask.affine), tmp_path / "mask.nii.gz")
    content[section][0]["label"] = str(tmp_path / "mask.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps(content))
    given = {"datalist": str(tmp_path / "list.json"), "labels": "1"}
    assert plan(**given).runs
    with pytest.raises(
        CompareError, match=f"^{tmp_path}/mask.nii.gz has labels that no class names .77.: set the"
    ) as e:
        plan(**given, try_items=True)
    assert len(str(e.value).splitlines()) == 1
    plan(**given, try_items=True, override="unknown_labels=0")
    with pytest.raises(CompareError, match="has labels that no class names"):
        plan(
            **given,
            try_items=True,
            override="unknown_labels=0",
            arms={"scratch": None, "a": {"override": {"unknown_labels": "error"}}},
        )


def test_epochs_of_a_stated_length():
    """`batches_per_epoch` decides where a config has it; null is one pass in whole batches."""
    from common.compare.bundle_config import BundleConfig

    bundle = ROOT / "bundles" / "simtrot"
    files = [str(bundle / "configs" / name) for name in ("train.json", "datasets/sample.json")]

    def steps(items, **override):
        return BundleConfig(files, override, bundle).steps_per_epoch(items)

    assert (steps(1), steps(12)) == (6, 6)
    assert [steps(items, batches_per_epoch=None) for items in (1, 2, 5)] == [1, 1, 2]


def test_a_second_stage_starts_from_the_arm_before(cohort, tmp_path):
    arms = {
        "scratch": None,
        "exemplar": {"pretrain": []},
        "both": {"pretrain": ["pretrain_transformer.json"], "pretrain_from": "exemplar"},
    }

    def make(**given):
        arguments = {
            "bundle": str(ROOT / "bundles/medical_transformer"),
            "arms": arms,
            "output": str(tmp_path / "out"),
            "config_file": "tasks/age.json,datasets/sample.json",
            "dataset_dir": str(cohort),
            "seeds": "0",
        }
        return make_plan(read_settings(**{**arguments, **given}))

    found = make()
    first, second = (runs(found, "pretrain", arm=arm)[0] for arm in ("exemplar", "both"))
    encoder = first.folder / "encoder.safetensors"
    assert second.inputs == (encoder,) and second.needs == (encoder.with_name("pretrain.json"),)
    assert second.override["pretrained_encoder"] == str(encoder) and "pretrained_encoder" not in first.override
    assert runs(found, "train", arm="both")[0].inputs == (second.folder / "encoder.safetensors",)
    assert not runs(found, "infer"), "an age is no image to show"
    for steps, seeds in ((1, [None]), (100_000, [0, 1])):
        found = make(seeds="0,1", pretrain_override="max_epochs=9", steps=steps)
        for arm in ("exemplar", "both"):
            assert [run.seed for run in runs(found, "pretrain", arm=arm)] == seeds
    assert runs(found, "pretrain", arm="both", seed=1)[0].inputs[0].parent.name == "seed-1"
    with pytest.raises(CompareError, match=r"'both': `pretrain_from` must name an earlier arm"):
        make(arms=dict(reversed(arms.items())))
    with pytest.raises(CompareError, match="set `pretrain_per_seed` for both or for none"):
        make(arms={**arms, "both": {**arms["both"], "pretrain_per_seed": True}})


@pytest.mark.parametrize("per_seed", [False, True])
def test_an_arm_may_fine_tune_from_the_encoder_of_another(plan, per_seed):
    arms = {
        "scratch": None,
        "mae": {"pretrain": [], "pretrain_per_seed": per_seed},
        "slower": {"encoder_of": "mae", "schedule": "layer_decay"},
    }
    found = plan(arms=arms, labels="1", seeds="0,1")
    assert {run.arm for run in runs(found, "pretrain")} == {"mae"}, "the encoder is not trained again"
    for seed in (0, 1):
        [own], [borrowed] = (runs(found, "train", arm=arm, seed=seed) for arm in ("mae", "slower"))
        assert own.inputs == borrowed.inputs and own.needs == borrowed.needs != ()
        assert own.override["pretrained_encoder"] == borrowed.override["pretrained_encoder"]
        assert own.folder != borrowed.folder and Path(borrowed.files[-1]).name == "layer_decay.json"
        assert (own.inputs[0].parent.name == f"seed-{seed}") == per_seed
    assert not found.settings.arms[2].is_scratch
    for wrong, message in (
        ({"encoder_of": "scratch"}, "'slower': `encoder_of` must name an earlier arm with pre-training; 'scratch'"),
        ({"encoder_of": "mea"}, "must name an earlier arm with pre-training; 'mea' is not one"),
        ({"encoder_of": "mae", "pretrain": []}, "has both `encoder_of` and `pretrain`: choose one"),
        ({"encoder_of": "mae", "pretrain_override": {"max_epochs": 1}}, "has both `encoder_of` and `pretrain_overr"),
        ({"encoder_of": "mae", "pretrain_per_seed": True}, "has both `encoder_of` and `pretrain_per_seed`"),
    ):
        with pytest.raises(CompareError, match=message):
            plan(arms={**arms, "slower": wrong}, labels="1")
    with pytest.raises(CompareError, match="'slower': `encoder_of` must name an earlier arm"):
        plan(arms=dict(reversed(arms.items())), labels="1")


def test_the_digest_of_a_pretraining_has_its_own_datalists(tmp_path):
    """A bundle may pre-train on others than it fine-tunes on, and on several."""
    lists = [tmp_path / f"{name}.json" for name in "abc"]
    for path in lists:
        path.write_text(path.name)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"datalist": str(lists[0]), "pretrain_datalist": [str(path) for path in lists[1:]]}))

    def digests():
        parsed = BundleConfig([str(config)], {}, tmp_path)
        return data_digest(parsed), data_digest(parsed, "pretrain_datalist")

    before = digests()
    lists[2].write_text("changed")
    after = digests()
    assert before[0] == after[0] and before[1] != after[1]
    lists[0].write_text("changed")
    assert digests()[0] != after[0] and digests()[1] == after[1]


@pytest.mark.parametrize("bundle", ["simtrot", "pretrain_once", "medical_transformer"])
def test_patience_is_in_validations_and_of_every_bundle(plan, bundle):
    """The first has no such id, the others have it, the last with its own length, in epochs."""
    given = {"bundle": str(ROOT / "bundles" / bundle), "arms": "scratch", "labels": "2", "steps": 40, "patience": 3}
    given |= {"config_file": "datasets/sample.json"} if bundle != "pretrain_once" else {}
    [train] = runs(plan(**given, validations=8), "train")
    config = train.config()
    handlers = [one for one in config["train"]["handlers"] if one["_target_"] == "common.handlers.EarlyStopping"]
    assert len(handlers) == 1 and handlers[0]["patience"] == "@patience"
    assert config["patience"] == 3 * config["val_interval"] > 0
    [train] = runs(plan(**given | {"patience": None}), "train")
    assert (train.config().get("patience") is None) == (bundle != "medical_transformer")
    if bundle == "medical_transformer":  # its own rule: 30 epochs, of which each fifth validates
        [train] = runs(plan(**given | {"patience": None}, validations=2), "train")
        assert train.config()["patience"] == 6 * train.config()["val_interval"] > train.epochs
        [train] = runs(plan(**given | {"patience": None}, validations=8, override="patience=3"), "train")
        assert train.config()["patience"] == 3  # what a user sets is in epochs
    with pytest.raises(CompareError, match="--patience 8 ends no fine-tuning of 8 validations"):
        plan(**given | {"patience": 8}, validations=8)
    with pytest.raises(CompareError, match="beside --patience"):
        plan(**given, validations=8, override="patience=3")


MED3D = {"bundle": str(ROOT / "bundles/med3d"), "config_file": "datasets/sample.json"}


def test_frozen_norms_from_scratch_are_refused(plan):
    """Before the other arms pre-train; the arm with an encoder may have them."""
    sentence = "norm is frozen, but the net starts from random weights.* set norm to batch or group in"
    with pytest.raises(CompareError, match=f"^Arm 'scratch': {sentence} this arm's override.$"):
        plan(**MED3D, arms="scratch,med3d", override="norm=frozen")
    with pytest.raises(CompareError, match=f"^Pre-training of arm 'med3d': {sentence} its pretrain_override.$"):
        plan(**MED3D, arms="scratch,med3d", pretrain_override="norm=frozen")
    reference = {"scratch": None, "wide": {"reference": {"network": ["networks/resnet10_small.json"]}}}
    reference["wide"]["override"] = {"norm": "frozen"}
    with pytest.raises(CompareError, match=f"Arm 'wide': {sentence}"):
        plan(**MED3D, arms=reference)
    with pytest.raises(CompareError, match=f"Arm 'scratch': {sentence}"):
        plan(**MED3D, arms="scratch", tune={"norm": ["batch", "frozen"]})
    found = plan(**MED3D, arms={"scratch": None, "frozen": {"pretrain": [], "override": {"norm": "frozen"}}})
    assert {run.override.get("norm") for run in runs(found, "train", arm="frozen")} == {"frozen"}
    assert {run.override.get("norm") for run in found.runs if run.arm == "scratch" or run.stage == "pretrain"} == {None}
