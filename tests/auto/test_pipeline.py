"""An automatic run from two folders to a packed model, on volumes made up here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock

from common.auto import pipeline, run
from common.auto.look import look
from common.auto.plan import Plan, PlanError, Speed
from common.bundles import bundle_folder
from common.json_files import read_json, write_json
from common.weights.check import encoder_of
from common.weights.encoder_file import write_state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folders(tmp_path) -> Path:
    """Six scans of five subjects with bright cubes, and one scan without a mask."""
    for name in ("scans", "masks"):
        (tmp_path / name).mkdir()
    draw = np.random.default_rng(0)
    for number, name in enumerate(("p1_a", "p1_b", "p2_a", "p3_a", "p4_a", "p5_a", "p6_a")):
        image = draw.normal(100, 10, (16, 20, 16)).astype(np.float32)
        image[:3] = 0  # air
        mask = np.zeros(image.shape, np.uint8)
        mask[4:10, 5:11, 4:10] = 3
        image[mask > 0] += 100 + number
        nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), tmp_path / "scans" / f"{name}.nii.gz")
        if name != "p6_a":
            nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2, 2, 1])), tmp_path / "masks" / f"{name}.nii.gz")
    return tmp_path


def command(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return auto(folder, "--images", "scans", "--masks", "masks", "--output", "out", *options)


def auto(folder: Path, *options: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "common.auto", *options]
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])  # with tests/child
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_two_folders_become_a_model_and_masks_of_what_had_none(folders):
    """All that a user is promised, from another working folder than the repository's."""
    options = ("--subject", "p[0-9]", "--hours", "0.035")
    ended = command(folders, *options, "--plan")
    assert ended.returncode == 0, ended.stderr
    out = folders / "out"
    lists = read_json(out / "datalist.json")
    assert len(lists["unlabelled"]) == 1
    held = {name: {item["subject"] for item in lists[name]} for name in ("training", "validation", "test")}
    assert not held["training"] & held["test"] and not held["training"] & held["validation"]
    plan = read_json(out / "plan.json")
    assert plan["spacing"] == [2.0, 2.0, 2.0] and plan["label_map"] == {"0": [0], "1": [3]}
    write_json(out / "plan.json", plan | {"max_epochs": 2, "val_interval": 1, "batches_per_epoch": 8})
    ended = command(folders, *options)
    assert ended.returncode == 0, ended.stderr + ended.stdout[-2000:]
    assert "Mean Dice on 1 test scans" in ended.stdout
    assert read_json(out / "training" / "train_config.json")["max_epochs"] == 2  # as edited
    (found,) = (out / "predictions").rglob("*.nii.gz")
    assert nib.load(found).shape == (16, 20, 16)
    assert (out / "model" / "configs" / "inference.json").is_file() and (
        out / "model" / "models" / "model.pt"
    ).is_file()
    report = (out / "report.html").read_text()
    assert "Scores by structure" in report and "trial scratch" in report and report.count("data:image/png") >= 3
    later = ("predict", "--model", "out/model", "--images", "scans", "--output", "later")
    ended = auto(folders, *later)
    assert ended.returncode == 0, ended.stderr
    assert len(list((folders / "later").glob("*.nii.gz"))) == 7
    units = np.random.default_rng(1).normal(-500, 400, (16, 20, 16)).astype(np.float32)  # as of a CT
    nib.save(nib.Nifti1Image(units, np.diag([2.0, 2, 2, 1])), folders / "scans" / "p7_a.nii.gz")
    ended = auto(folders, *later)
    assert ended.returncode == 1 and "1 of 8 scans got no label map" in ended.stderr
    assert "p7_a.nii.gz" in ended.stderr and ended.stderr.count("skipped") == 7
    (folders / "scans" / "p7_a.nii.gz").unlink()
    again = command(folders, *options)
    assert again.returncode == 0 and again.stdout.count("done before") == 4
    other = command(folders, "--hours", "1")
    assert other.returncode == 1
    assert "other scans, masks, subjects or names" in other.stderr or "a plan made for --hours" in other.stderr


def test_what_cannot_be_done_is_said_before_anything_is(folders, tmp_path):
    scans, masks, out = folders / "scans", folders / "masks", tmp_path / "out"
    with pytest.raises(PlanError, match="--hours is 0; give a number above 0"):
        run(scans, masks, out, hours=0)
    with pytest.raises(PlanError, match="is not a bundle"):
        run(scans, masks, out, bundle=tmp_path)
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(PlanError, match="Another run is working in"):
        run(scans, masks, out)
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="cannot be written"):
        run(scans, masks, tmp_path / "file" / "out")


def test_a_refused_run_removes_only_the_folders_that_it_made(folders):
    given = {"say": lambda line: None}
    for masks, sentence in (("none", "holds no mask"), ("masks", "cannot be split into")):
        (folders / "none").mkdir(exist_ok=True)
        scans = folders / "few"
        scans.mkdir(exist_ok=True)
        (scans / "p1_a.nii.gz").write_bytes((folders / "scans" / "p1_a.nii.gz").read_bytes())
        with pytest.raises(ValueError, match=sentence):
            run(scans, folders / masks, folders / "new" / "out", **given)
        assert not (folders / "new").exists()
    (folders / "out").mkdir()
    with pytest.raises(ValueError, match="cannot be split into"):
        run(folders / "few", folders / "masks", folders / "out", **given)
    assert (folders / "out").is_dir()


def plan_only(folders, output, monkeypatch, scans="scans", masks="masks", **more):
    """A plan without its trial, of a speed that is always the same."""
    monkeypatch.setattr(pipeline, "_trial", lambda plan, *given: Speed(1.0, 0.5, 1.0, {}))
    return run(folders / scans, folders / masks, output, plan_only=True, say=lambda line: None, **more)


def test_an_output_in_the_folder_of_the_scans_is_not_read(folders, monkeypatch):
    """Its label maps would be scans, or masks, to the same command again."""
    out = folders / "scans" / "out"
    plan = plan_only(folders, out, monkeypatch).plan
    for part in ("predictions", "test_predictions"):
        (out / part).mkdir()
        (out / part / "p6_a.nii.gz").write_bytes((folders / "masks" / "p1_a.nii.gz").read_bytes())
    assert plan_only(folders, out, monkeypatch).plan == plan
    assert len(look(folders / "scans", folders / "masks").cases) == 7
    for what in ("scans", "masks"):
        with pytest.raises(PlanError, match="--output is the folder of --"):
            plan_only(folders, folders / what / ".." / what, monkeypatch)
        assert not (folders / what / "datalist.json").exists()


def test_the_home_folder_is_understood_in_every_option(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    monkeypatch.chdir(folders)
    write_state({"weight": torch.zeros(1)}, folders / "theirs.safetensors", {"preparation": {"spacing": [4.0] * 3}})
    chosen = {
        "pretrained_encoder": "~/theirs.safetensors",
        "network": "segresnet",
        "prepare_as": "~/theirs.safetensors",
    }
    monkeypatch.setattr(pipeline, "_trial", lambda plan, *given: Speed(1.0, 0.5, 1.0, {}))
    run("~/scans", "~/masks", "~/out", plan_only=True, say=lambda line: None, **chosen)
    assert read_json(folders / "out" / "plan.json")["spacing"] == [4.0] * 3 and not (folders / "~").exists()


def test_a_plan_for_another_time_or_a_damaged_one_is_refused(folders, monkeypatch):
    out = folders / "out"
    plan_only(folders, out, monkeypatch)
    with pytest.raises(PlanError, match=r"has a plan made for --hours 1\.0: give the same again"):
        plan_only(folders, out, monkeypatch, hours=2)
    for hours in (float("inf"), float("nan"), -1):
        with pytest.raises(PlanError, match="give a number above 0"):
            plan_only(folders, out, monkeypatch, hours=hours)
    (out / "decisions.json").write_text("{}")
    with pytest.raises(PlanError, match=r"decisions\.json is damaged: remove it and plan\.json"):
        plan_only(folders, out, monkeypatch)


def test_a_plan_takes_over_the_preparation_and_the_weights_of_a_chosen_encoder(folders, monkeypatch):
    theirs = {"spacing": [4.0, 2.0, 2.0], "orientation": "SRA", "intensity": []}
    file, out, said = folders / "theirs.safetensors", folders / "out", []
    write_state({"weight": torch.zeros(1)}, file, {"preparation": theirs, "unexpressed": "each crop is turned"})
    tried = Speed(1.0, 0.5, 1.0, {"scratch": 0.1, str(file): 0.3})
    monkeypatch.setattr(pipeline, "_trial", lambda *given: tried)
    given = {"subject": "p[0-9]", "plan_only": True, "say": said.append}
    chosen = {"pretrained_encoder": file, "network": "segresnet", "prepare_as": "encoder"}
    run(folders / "scans", folders / "masks", out, **given, **chosen)
    plan = read_json(out / "plan.json")
    assert (plan["spacing"], plan["orientation"]) == (theirs["spacing"], "SRA")
    assert plan["intensity"]["_target_"] == "Identityd" and plan["segmentation_net"]["_target_"] == "SegResNet"
    assert any("No id expresses this" in line and "each crop is turned" in line for line in said)
    reasons = [one["reason"] for one in read_json(out / "decisions.json")["plan"]["decisions"]]
    assert reasons.count(f"as those of {file} (--prepare_as)") == 3
    assert f"--pretrained_encoder {file}" in (out / "commands.sh").read_text()
    run(folders / "scans", folders / "masks", out, **given, **chosen)  # takes up the plan again
    with pytest.raises(PlanError, match=r"a plan made for .* --prepare_as encoder"):
        run(folders / "scans", folders / "masks", out, **given)
    with pytest.raises(PlanError, match="was started with other scans, masks, subjects or names"):
        run(folders / "scans", folders / "masks", out, **given | {"subject": "p[0-9]_[ab]"}, **chosen)


def test_a_trial_trains_from_each_start(tmp_path, monkeypatch):
    """Its speed is that of the first."""
    asked = []

    def execute(command, folder, say, title):
        asked.append((command.name, command.options.get("pretrained_encoder"), command.options["batches_per_epoch"]))
        log = folder / "logs" / f"{command.name}.log"
        log.parent.mkdir(exist_ok=True)
        epochs = [f"fine-tuning epoch {number}/3: loss 1.0, {2.0 * len(asked)} s" for number in (1, 2, 3)]
        end = f"Epoch[3] Metrics -- val_mean_dice: 0.{len(asked)} \n"
        end += "SupervisedEvaluator - INFO - Epoch[3] Complete. Time taken: 00:00:06.000\n"
        text = "\n$ python\n> batches_per_epoch: 20\n" + "\n".join([*epochs, end])
        log.write_text("\n$ an earlier run\nEpoch[3] Metrics -- val_mean_dice: 0.9 \n" + text)
        return 30.0

    said = []
    monkeypatch.setattr(pipeline, "execute", execute)
    plan = Plan("ssl3d", {}, (), candidates=("scratch", "synthetic_brain"))
    speed = pipeline._trial(plan, bundle_folder("ssl3d"), tmp_path, 3, said.append)
    assert asked == [("trial_scratch", None, 20), ("trial_synthetic_brain", "synthetic_brain", 20)]
    assert (speed.step, speed.volume, speed.start) == (0.1, 2.0, 18.0)
    assert speed.dice == {"scratch": 0.1, "synthetic_brain": 0.2}
    assert said == [f"  trial from {name}: {step} s per step, 2 s per scan"
                    for name, step in (("scratch", 0.1), ("synthetic_brain", 0.2))]  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"network": "segresnet"}, "--network segresnet is for --pretrained_encoder: give the encoder file, too"),
        ({"pretrained_encoder": "x.safetensors"}, "needs --network.*common.weights check x.safetensors names those"),
        ({"prepare_as": "encoder"}, "--prepare_as encoder does not say which file here"),
        ({"prepare_as": "model"}, "--prepare_as model does not say which file here"),
        ({"pretrained_encoder": "synthetic_brain", "network": "segnet"}, "segnet is no network of ssl3d: give one of"),
        ({"prepare_as": "none.safetensors"}, "none.safetensors"),
        (
            {"pretrained_encoder": "synthetic_brain", "network": "segresnet"},
            "a DynUNetEncoder, but --network segresnet",
        ),
        (
            {"pretrained_encoder": __file__, "network": "segresnet"},
            "test_pipeline.py is not a readable safetensors",
        ),
    ],
)
def test_what_a_chosen_encoder_lacks_is_said(folders, chosen, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        run(folders / "scans", folders / "masks", folders / "out", **chosen)
    assert not (folders / "out").exists()


def test_a_stopped_command_says_how_to_go_on(folders, monkeypatch, capsys):
    from common.auto import __main__ as command_line
    from common.auto import pipeline

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", stop)
    monkeypatch.setattr(sys, "argv", ["auto", "--images", "scans"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 130 and "Repeat the command to go on" in capsys.readouterr().err


def test_an_encoder_of_the_right_kind_but_other_settings_is_refused(tmp_path):
    """With other strides it would compute something else, with other channels its load would fail after the plan."""
    root, file = bundle_folder("ssl3d"), tmp_path / "theirs.safetensors"
    own = encoder_of(root / "configs" / "networks" / "dynunet_small.json").architecture()
    strides = [*own["strides"][:-1], [16, 16, 8]]
    for setting in ({"strides": strides}, {"channels": [4, 8, 16, 32, 64]}):
        write_state({"weight": torch.zeros(1)}, file, {"architecture": {**own, **setting}})
        with pytest.raises(PlanError, match=rf"was made with {next(iter(setting))} .* and not .* of --network dynunet"):
            pipeline.find_prior(root, file, "dynunet_small", None)
    write_state({"weight": torch.zeros(1)}, file, {"architecture": {**own, "in_channels": 3}})
    assert pipeline.find_prior(root, file, "dynunet_small", None).network[0] == "networks/dynunet_small.json"


def test_names_of_labels_on_the_command_line(folders, monkeypatch):
    from common.auto.__main__ import _label_names, main

    assert _label_names("1=right ventricle, 3=box") == {1: "right ventricle", 3: "box"} and _label_names(None) is None
    for given in ("3", "liver=3", "3=", "3=cube, "):
        with pytest.raises(ValueError, match="write label=name"):
            _label_names(given)
    monkeypatch.chdir(folders)
    words = ["--images", "scans", "--masks", "masks", "--output", "out", "--names", "1=ball"]
    monkeypatch.setattr(sys, "argv", ["auto", *words])
    sentence = "error: No mask holds the label 1, which `names` calls ball: the masks have 3."
    with pytest.raises(SystemExit, match=f"^{sentence}"):
        main()


def test_the_plan_is_all_that_compare_has_to_be_given(folders, monkeypatch):
    """With a pretext that reads scans, none of which is of the test part."""
    from common.auto import pipeline
    from common.auto.plan import Speed
    from common.compare.plan import make_plan
    from common.compare.settings import read_settings

    monkeypatch.setattr(pipeline, "_trial", lambda *given: Speed(1.0, 0.5, 1.0))
    out = folders / "out"
    planned = run(folders / "scans", folders / "masks", out, subject="p[0-9]", plan_only=True, say=lambda _: None)
    with pytest.raises(PlanError, match="only a plan yet: run without plan_only first"):
        planned.predict(folders / "scans")
    monkeypatch.chdir(folders)
    given = {"bundle": "ssl3d", "config_file": str(out / "plan.json"), "arms": "scratch,mae", "labels": "2"}
    plan = make_plan(read_settings(None, **given, seeds="0", steps=20, output="compared"))
    stages = [run.stage for run in plan.runs]
    assert stages.count("pretrain") == 1 and stages.count("train") == 2 and stages.count("evaluate") == 2
    lists, seen = read_json(out / "datalist.json"), read_json(out / "unlabelled.json")
    assert [item["image"] for item in plan.test] == [item["image"] for item in lists["test"]]
    images = {item["image"] for items in seen.values() for item in items}
    assert images == {item["image"] for name in ("training", "validation", "unlabelled") for item in lists[name]}
    (pretrain,) = (run for run in plan.runs if run.stage == "pretrain")
    assert str(out) in pretrain.config()["dataset_dir"]


def test_the_last_line_does_not_list_dozens_of_classes():
    few = pipeline._mean({"one": 0.5, "two": math.nan})
    assert few == "0.500 (one 0.500, two nan)"
    many = pipeline._mean({f"label {number}": 0.5 if number < 9 else math.nan for number in range(30)})
    assert many == "0.500 (9 of 30 classes are in these scans; the report has each)"
