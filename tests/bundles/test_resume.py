"""A run that is killed and resumed gives the bits of the uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from safetensors.torch import load_file

from common.checkpoint_file import save_checkpoint

HERE = Path(__file__).resolve().parent
KINDS = {"mae": "pretrain", "teacher": "pretrain", "fine_tuning": "train"}
TEACHER = {
    "pretext": {"_target_": "toy_teacher.ToyTeacher", "encoder": "@encoder"},
    "pretext_loss": {"_target_": "toy_teacher.ToyLoss"},
    "+train#handlers": [
        {
            "_target_": "common.handlers.MomentumTeacher",
            "student": "$@network_def.student",
            "teacher": "$@network_def.teacher",
            "momentum": 0.9,
        }
    ],
}
# Volumes of one crop, several steps per epoch, every source of randomness on.
SIZES = {
    "spacing": [6.0] * 3,
    "image_size": [32] * 3,
    "roi_size": [32] * 3,
    "batch_size": 1,
    "max_epochs": 3,
    "fraction": 0.6,  # two steps per epoch
    "train#random_transforms#1#prob": 0.5,
    "train#random_transforms#2#prob": 0.5,
}


class Killed(BaseException):
    pass


def kill_after_second(workflow) -> None:
    """Die when all handlers of the second epoch are through, the checkpoint's included."""

    def die(engine):
        raise Killed

    workflow.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), die)


def kill_inside_second(workflow) -> None:
    """Die after the first of the second epoch's steps."""

    def die(engine):
        if engine.state.epoch == 2 and engine.state.iteration % engine.state.epoch_length == 1:
            raise Killed

    workflow.trainer.add_event_handler(Events.ITERATION_COMPLETED, die)


def kill_before_second_is_saved(workflow) -> None:
    """Die between the second epoch's validation, which may have written a new best, and its checkpoint."""

    def die(engine):
        raise Killed

    handlers = workflow.trainer._event_handlers[Events.EPOCH_COMPLETED]
    workflow.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), die)
    handlers.insert(len(handlers) - 2, handlers.pop())  # ahead of the checkpoint, which stands last


KILLS = {"after": kill_after_second, "inside": kill_inside_second, "before saving": kill_before_second_is_saved}


def config(kind: str, tiny: dict, folder: Path) -> list[str]:
    names = [f"{KINDS[kind]}.json", tiny["unetr"]]
    if kind == "teacher":
        (folder / "teacher.json").write_text(json.dumps(TEACHER))
        names.append(str(folder / "teacher.json"))
    return names


def result(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run leaves behind: encoder file, model, and what its last checkpoint holds."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix in (".pt", ".ckpt"):
            content = torch.load(path, weights_only=True)
        else:
            continue
        found[path.name] = content
    return found


def differences(a, b, where: str = "") -> list[str]:
    """Places in which two nested results differ, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [text for key in a for text in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [text for n, pair in enumerate(zip(a, b, strict=True)) for text in differences(*pair, f"{where}/{n}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


@pytest.fixture(scope="module")
def whole(run_bundle, tiny, tmp_path_factory):
    """Folder of the whole run, made once for each kind and number of workers."""
    made = {}

    def run(kind: str, workers: int) -> Path:
        if (kind, workers) not in made:
            made[kind, workers] = folder = tmp_path_factory.mktemp(f"{kind}{workers}")
            run_bundle(*config(kind, tiny, folder), output_dir=str(folder), num_workers=workers, **SIZES)
        return made[kind, workers]

    return run


@pytest.fixture(scope="module")
def uninterrupted(whole):
    """What the whole run leaves behind."""
    return lambda kind, workers: result(whole(kind, workers))


@pytest.fixture(autouse=True)
def toy_teacher(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


# Each kill; in both base files the one that may have written a new best, and workers;
# a teacher's moving average in the middle of an epoch. SimTROT's fine-tuning, below, is killed there without workers.
@pytest.mark.parametrize(
    ("kind", "workers", "kill"),
    [
        ("mae", 0, "after"),
        ("mae", 0, "before saving"),
        ("mae", 2, "inside"),
        ("teacher", 0, "inside"),
        pytest.param("fine_tuning", 2, "before saving", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_is_uninterrupted(run_bundle, tiny, uninterrupted, tmp_path, kind, workers, kill):
    whole = uninterrupted(kind, workers)
    overrides = {"output_dir": str(tmp_path), "num_workers": workers, **SIZES}
    with pytest.raises(Killed):
        run_bundle(*config(kind, tiny, tmp_path), before=KILLS[kill], **overrides)
    saved = torch.load(tmp_path / f"{KINDS[kind]}.ckpt", weights_only=True)["epoch"]
    assert saved == (2 if kill == "after" else 1)
    workflow = run_bundle(*config(kind, tiny, tmp_path), resume=True, **overrides)
    assert workflow.trainer.state.iteration == 3 * workflow.trainer.state.epoch_length
    assert differences(result(tmp_path), whole) == []
    names = {"encoder.safetensors", "pretrain.ckpt"} if KINDS[kind] == "pretrain" else {"model.pt", "train.ckpt"}
    assert set(whole) == names


def test_early_stopping_is_where_it_was_in_a_resumed_run(run_bundle, tiny, tmp_path, caplog):
    """With a rate of 0 the first validation stays the best, also of a run that a kill cuts in between."""
    settings = {**SIZES, "num_workers": 0, "learning_rate": 0.0, "max_epochs": 9, "patience": 3}
    files = config("fine_tuning", tiny, tmp_path)
    with caplog.at_level("INFO"):
        workflow = run_bundle(*files, output_dir=str(tmp_path / "whole"), **settings)
    assert workflow.trainer.state.epoch == 4
    assert "stopped after epoch 4: no better validation since epoch 1 (patience 3)" in caplog.text
    settings["output_dir"] = str(tmp_path / "killed")
    with pytest.raises(Killed):
        run_bundle(*files, before=kill_inside_second, **settings)
    assert run_bundle(*files, resume=True, **settings).trainer.state.epoch == 4
    assert differences(result(tmp_path / "killed"), result(tmp_path / "whole")) == []


def test_the_comparison_sees_another_seed(run_bundle, tiny, uninterrupted, tmp_path):
    run_bundle(*config("mae", tiny, tmp_path), output_dir=str(tmp_path), seed=1, **SIZES)
    assert any("encoder.safetensors" in place for place in differences(result(tmp_path), uninterrupted("mae", 0)))


def test_workers_do_not_change_a_run_without_random_transforms(run_bundle, tiny, tmp_path):
    overrides = {**SIZES, "max_epochs": 1, "train#random_transforms#1#prob": 0, "train#random_transforms#2#prob": 0}
    overrides["image_size"] = overrides["roi_size"]  # one crop to choose from
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        run_bundle(*config("mae", tiny, tmp_path), output_dir=str(folder), num_workers=workers, **overrides)
    assert differences(result(tmp_path / "0"), result(tmp_path / "2")) == []


def test_random_transforms_on_the_device_give_the_same_run(run_bundle, tiny, uninterrupted, tmp_path):
    """On a CPU to the bit, with a thread that prepares batches while the network draws its masks."""
    overrides = {"output_dir": str(tmp_path), "num_workers": 0, "augment_on": "device", "device": "cpu", **SIZES}
    workflow = run_bundle(*config("mae", tiny, tmp_path), **overrides)
    assert workflow.trainer.data_loader.in_thread
    assert differences(result(tmp_path), uninterrupted("mae", 0)) == []


@pytest.mark.parametrize("kind", ["mae", pytest.param("fine_tuning", marks=pytest.mark.slow)])
def test_volumes_kept_on_disk_give_the_run_of_those_in_memory(run_bundle, tiny, tmp_path, caplog, kind):
    """The second run with files makes none, but reads those of the first.

    Training and validation share transforms, which the first run has used when it looks for the files of validation.
    """
    overrides = {**SIZES, "num_workers": 0, "cache_dir": str(tmp_path / "volumes")}

    def run(name, cache):
        caplog.clear()
        with caplog.at_level("INFO", "common.data.cached_dataset"):
            run_bundle(*config(kind, tiny, tmp_path), output_dir=str(tmp_path / name), cache=cache, **overrides)
        log = re.findall(r"cache: (\d+) of (\d+) items made", caplog.text)
        files = {path: path.stat().st_ino for path in (tmp_path / "volumes").rglob("*.safetensors")}
        return result(tmp_path / name), [(int(made), int(items)) for made, items in log], files

    expected, log, files = run("memory", "memory")
    assert not log and not files
    made, log, files = run("first", "disk")
    assert differences(made, expected) == []
    assert len(log) == 2 and all(made == items > 0 for made, items in log)  # of training and validation
    assert len(files) == sum(items for _, items in log)
    made, again, same = run("second", "disk")
    assert differences(made, expected) == []
    assert again == [(0, items) for _, items in log] and same == files  # none is written anew


def test_the_teacher_moves_and_is_saved(uninterrupted):
    network = uninterrupted("teacher", 0)["pretrain.ckpt"]["objects"]["network"]
    names = [name for name in network if name.startswith("student.") and name.endswith("qkv.weight")]
    assert len(names) == 4
    for name in names:
        assert not torch.equal(network[name], network[name.replace("student", "teacher")])


def test_a_finished_run_that_is_resumed_changes_nothing(run_bundle, tiny, whole, tmp_path):
    shutil.copytree(whole("mae", 0), tmp_path / "out")
    overrides = {"output_dir": str(tmp_path / "out"), "num_workers": 0, **SIZES}
    run_bundle(*config("mae", tiny, tmp_path), resume=True, **overrides)
    assert differences(result(tmp_path / "out"), result(whole("mae", 0))) == []


def test_a_run_cannot_be_extended(run_bundle, tiny, whole, tmp_path):
    shutil.copytree(whole("mae", 0), tmp_path / "out")
    overrides = {"output_dir": str(tmp_path / "out"), **SIZES, "max_epochs": 4}
    with pytest.raises(RuntimeError) as caught:
        run_bundle(*config("mae", tiny, tmp_path), resume=True, **overrides)
    assert "max_epochs 3, but this run has 4" in str(caught.value.__cause__)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_kill_during_saving_leaves_the_last_checkpoint(run_bundle, tiny, uninterrupted, tmp_path, monkeypatch):
    """The second checkpoint's temporary file is written, cut to a half, and not yet in place: so lie the files then."""
    names, saves, write_through = config("mae", tiny, tmp_path), [], os.fsync

    def die_in_the_middle(handle):
        if ".ckpt." in os.readlink(f"/proc/self/fd/{handle}"):
            saves.append(handle)
            if len(saves) == 2:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                shutil.copytree(tmp_path / "running", tmp_path / "killed")  # nothing is tidied up after a kill
                raise Killed
        write_through(handle)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", die_in_the_middle)
        run_bundle(*names, output_dir=str(tmp_path / "running"), num_workers=0, **SIZES)
    left = tmp_path / "killed"
    assert len(list(left.glob("*.ckpt.*"))) == 1, "the half-written file"
    assert torch.load(left / "pretrain.ckpt", weights_only=True)["epoch"] == 1
    run_bundle(*names, output_dir=str(left), num_workers=0, resume=True, **SIZES)
    assert differences(result(left), uninterrupted("mae", 0)) == []


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save_checkpoint({"value": 1}, tmp_path / "x.ckpt")

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint({"value": 2}, tmp_path / "x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert torch.load(tmp_path / "x.ckpt", weights_only=True) == {"value": 1}


@pytest.mark.parametrize("kind", [pytest.param("pretrain", marks=pytest.mark.slow), "train"])
def test_simtrot_resumes_with_the_same_bits(run_bundle, tmp_path, kind):
    """B-TROT's teacher and batch norms, and the sampler's order, come back; so does fine-tuning."""
    files = [f"{kind}.json", "datasets/sample.json"] + ["pretexts/btrot.json"] * (kind == "pretrain")
    small = {
        "bundle": "simtrot",
        "batches_per_epoch": 2,
        "max_epochs": 3,
        "val_interval": 1,
        "spacing": [6.0] * 3,
        "image_size": [32] * 3,
        "roi_size": [32] * 3,
        "segmentation_net#depths": [1, 1, 1],
        "segmentation_net#embed_dim": 12,
        "segmentation_net#patch_size": 2,
    }
    run_bundle(*files, output_dir=str(tmp_path / "whole"), **small)
    with pytest.raises(Killed):
        run_bundle(*files, output_dir=str(tmp_path / "killed"), before=kill_inside_second, **small)
    run_bundle(*files, output_dir=str(tmp_path / "killed"), resume=True, **small)
    whole = result(tmp_path / "whole")
    assert len(whole) == 2 and differences(whole, result(tmp_path / "killed")) == []
