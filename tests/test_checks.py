from __future__ import annotations

import hashlib
import io
import json
import logging
import pydoc
import sys
import threading
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fire.core
import monai.bundle
import numpy as np
import pytest
import torch
from fire.inspectutils import FullArgSpec
from ignite.engine import Engine
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler
from monai.networks.nets import ViT
from monai.transforms import RandFlipd
from torch._utils import ExceptionWrapper

from common import checks, doctor
from common.handlers import NonFiniteGuard
from common.networks import OnnxNet, ViTEncoder

TRAIN = {
    "bundle_root": ".",
    "dataset_dir": "data",
    "output_dir": "runs",
    "max_epochs": 10,
    "val_interval": 2,
    "amp": True,
    "normalise": True,
    "network_def": {"_target_": "UNet", "channels": [4, 8]},
    "train": {"dataloader": {"_target_": "DataLoader", "batch_size": 2}, "handlers": [{"_target_": "StatsHandler"}]},
    "elsewhere": {"_target_": "$not.to.be.found"},
    "run": ["$None"],
}

TRACKING = {
    "handlers_id": {"trainer": {"id": "train#trainer", "handlers": "train#handlers"}},
    "configs": {"experiment_name": "y", "trainer": {"_target_": "MLFlowHandler", "output_transform": "$len"}},
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Let this process look like the command, in a folder with configs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the check sets it; put back afterwards
    monkeypatch.setattr(checks.overrides, "find_spec", lambda name: object())  # whether or not mlflow is there
    Path("tracking.json").write_text(json.dumps(TRACKING))
    Path("train.json").write_text(json.dumps(TRAIN))
    Path("sample.json").write_text(json.dumps({"sample_size": 4, "train#dataloader#batch_size": 1}))

    def run(*arguments: str) -> None:
        main = Path(monai.bundle.__file__).with_name("__main__.py")
        monkeypatch.setattr(sys, "argv", [str(main), "run", *arguments])

    return run


FILES = ("--config_file", "['train.json','sample.json']")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config_file", "train.json", "--max_epochs", "3"),
        ("--config_file=train.json", "--max_epochs=3"),
        ("--config-file=train.json", "--max-epochs=3"),
        (*FILES, "--sample_size", "8"),
        (*FILES, "--train#dataloader#batch_size", "4"),
        (*FILES, "--train::dataloader::num_workers", "0"),
        (*FILES, "--train#handlers#0#tag_name", "x"),
        (*FILES, "--train#handlers#0#_disabled_", "True"),
        (*FILES, "--train#dataloader#pin_memory", "True"),  # of torch's class, which MONAI's passes it on to
        (*FILES, "--train#dataloader#xyz", "True"),  # cannot be known: the class takes any
        (*FILES, "--network_def#strides", "[2]"),
        (*FILES, "--elsewhere#anything", "1"),
        (*FILES, "--network_def#channels#1", "16"),
        (*FILES, "--nonormalise"),
        (*FILES, "--amp"),
        (*FILES, "--val_interval", "-1"),
        (*FILES, "--run_id", "run", "--init_id", "initialize", "--final_id", "finalize", "--meta_file", "m.json"),
        (*FILES, "--workflow_type", "train", "--logging_file", "False", "--workflow_name", "ConfigWorkflow"),
        (*FILES, "--tracking", "mlflow", "--experiment_name", "x"),
        (*FILES, "--tracking", "tracking.json", "--experiment_name", "x"),
        (*FILES, "--tracking", "{'configs': {'experiment_name': 'y'}}", "--experiment_name", "x"),
        (*FILES, "--max_epochs", "3", "--", "--verbose"),
        ("run", *FILES),
    ],
)
def test_accepts_names_of_the_config_and_of_the_runner(command, arguments):
    command(*arguments)
    checks.check_overrides()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--epoch", "1"), "--epoch names no id of train.json; did you mean --max_epochs?"),
        (("--epochs=1",), "--epochs names no id of train.json; did you mean --max_epochs?"),
        (("--weights", "w"), "--weights names no id of train.json; its top-level ids are bundle_root, dataset_dir,"),
        (("--data", "d"), "--data names no id of train.json; did you mean --dataset_dir?"),
        (("--max-epoch", "1"), "--max_epoch names no id of train.json; did you mean --max_epochs?"),
        (("--noresume",), "--noresume names no id of train.json"),
        (("--normalise",), "--normalise without a value is read as `--rmalise False`; write `--normalise True`."),
        (("--experiment_name", "x"), "--experiment_name names no id of train.json"),
        (
            ("--tracking", "tracking.json", "--trainer#iteration_log", "1"),
            "--trainer#iteration_log names no id of train.json; did you mean --train?",
        ),
        (("--trian#dataloader", "1"), "--trian#dataloader names no id of train.json; did you mean --train?"),
        (
            ("--train#dataloadr", "1"),
            "--train#dataloadr names no id of train.json; did you mean --train#dataloader?",
        ),
        (
            ("--train#dataloadr#batch_size", "1"),
            "--train#dataloadr#batch_size names no id of train.json; did you mean --train#dataloader?",
        ),
        (("--train#handlers#3#tag", "x"), "--train#handlers#3#tag names no id of train.json; `train#handlers` is a"),
        (
            ("--train#dataloader#batchsize", "1"),
            "--train#dataloader#batchsize names no argument of `train#dataloader` (DataLoader) in train.json; "
            "did you mean --train#dataloader#batch_size?",
        ),
        (
            ("--train#dataloader#prefetch_facto", "1"),
            "--train#dataloader#prefetch_facto names no argument of `train#dataloader` (DataLoader) in train.json; "
            "did you mean --train#dataloader#prefetch_factor?",
        ),
        (
            ("--train#handlers#0#xyz", "1"),
            "--train#handlers#0#xyz names no argument of `train#handlers#0` (StatsHandler) in train.json; its "
            "arguments are iteration_log, ",
        ),
        (("--max_epochs#a", "1"), "--max_epochs#a names no id of train.json; `max_epochs` has no parts."),
    ],
)
def test_refuses_a_name_that_would_do_nothing(command, arguments, sentence):
    command("--config_file", "train.json", *arguments)
    with pytest.raises(SystemExit) as caught:
        checks.check_overrides()
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"data": {"path": "@datalist"}}, ""),
        ({"pretrain_datalist": "@datalist"}, ""),
        (
            {"pretrain_datalist": "other.json"},
            "--datalist changes nothing: train.json reads the id `pretrain_da",
        ),
    ],
)
def test_a_datalist_that_is_not_read_is_told(command, caplog, config, expected):
    """Data sets name the unlabelled scans of their own for pre-training."""
    Path("train.json").write_text(json.dumps(TRAIN | {"datalist": "a.json"} | config))
    command("--config_file", "train.json", "--datalist", "b.json")
    checks.check_overrides()
    assert expected in caplog.text and bool(expected) == bool(caplog.records)


TEXTS = {
    "cache": "memory",
    "data": {"_target_": "common.data.load_datalist", "path": "a.json"},
    "loss": {"_target_": "torch.nn.L1Loss"},
    "dataset": {"cache": "@cache"},
    "names": ["a", "b"],
    "flags": [True, True],
    "device": "$'cpu'",
    "resume": None,
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--amp", "false"), "--amp is read as the text 'false', not as False: write False (false without"),
        (("--amp=FALSE",), "--amp is read as the text 'FALSE', not as False: write False (false without"),
        (("--resume", "none"), "--resume is read as the text 'none', not as None: write None (null without"),
        (("--max_epochs", "null"), "--max_epochs is read as the text 'null', not as None: write None"),
        (
            ("--train#dataloader#pin_memory", "true"),
            "--train#dataloader#pin_memory is read as the text 'true', not as True",
        ),
        (("--data#pool_test", "false"), "--data#pool_test is read as the text 'false', not as False: write"),
        (("--data#fold", "none"), "--data#fold is read as the text 'none', not as None: write None"),
        (("--network_def", "{'_target_': 'UNet', 'bias': false}"), "--network_def is read as the text 'false'"),
        (("--flags", "[True, false]"), "--flags is read as the text 'false', not as False: write False"),
        (("--device", "none"), "--device is read as the text 'none', not as None: write None"),
        (("--elsewhere#anything", "false"), "--elsewhere#anything is read as the text 'false', not as False"),
        (("--args_file", "args.json"), "`amp` in args.json is read as the text 'false', not as False: write"),
        (("--amp", "False"), None),
        (("--cache", "none"), None),
        (("--dataset#cache", "none"), None),
        (("--data#check", "none"), None),
        (("--loss#reduction", "none"), None),
        (("--loss", "{'_target_': 'torch.nn.L1Loss', 'reduction': none}"), None),
        (("--names", "[none, true]"), None),
        (("--output_dir", "false"), None),
    ],
)
def test_a_word_for_a_truth_value_is_refused_where_the_id_holds_no_text(command, arguments, sentence):
    """fire leaves `false` a text, and `--amp false` turned the mixed precision on."""
    Path("train.json").write_text(json.dumps(TRAIN | TEXTS))
    Path("args.json").write_text(json.dumps({"amp": "false", "normalise": False}))
    command("--config_file", "train.json", *arguments)
    if sentence is None:
        checks.check_overrides()
        return
    with pytest.raises(SystemExit) as caught:
        checks.check_overrides()
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_names_each_unknown_override_and_all_files(command):
    command(*FILES, "--epoch", "1", "--max_epochs", "2", "--lr", "3")
    with pytest.raises(SystemExit) as caught:
        checks.check_overrides()
    lines = str(caught.value).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["--epoch", "--lr"]
    assert "names no id of train.json + sample.json; " in lines[0]


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_loaded(command, tmp_path):
    Path("runs").touch()  # output_dir of the config
    command(*FILES)
    with pytest.raises(SystemExit, match=r"^output_dir is runs, and runs is a file: give a folder\.$"):
        checks.check_overrides()
    command(*FILES, "--output_dir", "runs/a")
    with pytest.raises(SystemExit, match=r"^output_dir is runs/a, and runs is a file: give a folder\.$"):
        checks.check_overrides()
    command(*FILES, "--output_dir", "others/a")
    checks.check_overrides()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"orientation": "XYZ"}, r"orientation is XYZ: give three capital letters, .* such as RAS\."),
        ({"orientation": "ras"}, r"orientation is ras: give three capital letters, .* such as RAS\."),
        ({"orientation": "RLS"}, r"orientation is RLS: give three capital letters, .* such as RAS\."),
        ({"orientation": "LPS"}, None),
        ({"orientation": "@other"}, None),
    ],
)
def test_an_orientation_that_is_none_is_refused(command, given, sentence):
    Path("train.json").write_text(json.dumps(TRAIN | {"other": "RAS"} | given))
    command(*FILES)
    if sentence is None:
        checks.check_overrides()
        return
    with pytest.raises(SystemExit, match=f"^{sentence}$"):
        checks.check_overrides()


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"roi_size": [64, 64, 64], "image_size": [80, 96, 48]}, True),
        ({"roi_size": [64, 64, 48], "image_size": [80, 96, 48]}, False),
        ({"roi_size": [64, 64, 64], "image_size": [48, 48]}, False),
        ({"roi_size": "$[64, 64, 64]", "image_size": [80, 96, 48]}, False),
        ({"roi_size": [64, 64, 64], "image_size": [80, 96, 48], "crop_transforms": [{"_target_": "Resized"}]}, False),
        ({"roi_size": [64, 64, 64], "image_size": [80, 96, 48], "run": ["$@validate#evaluator.run()"]}, False),
    ],
)
def test_crops_larger_than_the_padded_volumes_are_told(command, caplog, given, warned):
    cut = {"crop_transforms": [{"_target_": "RandCropByLabelClassesd"}], "run": ["$@train#trainer.run()"]}
    Path("train.json").write_text(json.dumps(TRAIN | cut | given))
    command(*FILES)
    checks.check_overrides()
    assert ("give image_size at least that size" in caplog.text) == warned


def test_an_evaluation_that_sets_an_overlay_back_is_refused(command, tmp_path):
    """The same model has another score, without a word, where the overlay's own windows or mirroring are lost."""
    for name, content in {
        "train": TRAIN | {"data": {}},
        "evaluate": {"mirror_axes": [0, 1], "native": True, "data#required": ["test"]},
        "small": {"mirror_axes": [], "max_epochs": 2, "native": True},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    train, evaluate, small = (str(tmp_path / f"{name}.json") for name in ("train", "evaluate", "small"))
    command("--config_file", str([train, evaluate, small]))
    checks.check_overrides()
    command("--config_file", str([train, small, evaluate]))
    with pytest.raises(SystemExit) as caught:
        checks.check_overrides()
    assert str(caught.value) == (
        "evaluate.json comes after small.json and sets its `mirror_axes` back to [0, 1]: "
        "name it right behind train.json."
    )


def test_tracking_that_cannot_read_the_loss_is_refused(command, monkeypatch):
    """MONAI's settings take the output of a trainer that decollates, and fail at the first iteration of another."""
    trainer = {"_target_": "SupervisedTrainer", "decollate": False}
    config = TRAIN | {"train": {"trainer": trainer}, "run": ["$@train#trainer.run()"]}
    Path("train.json").write_text(json.dumps(config))
    Path("evaluate.json").write_text(json.dumps({"run": ["$@validate#evaluator.run()"]}))
    command("--config_file", "train.json", "--tracking", "mlflow")
    with pytest.raises(SystemExit, match=r"--tracking mlflow reads the loss .*: write --tracking tracking\.json"):
        checks.check_overrides()
    for folder in ("runs/x", "bundle/configs"):
        Path(folder).mkdir(parents=True)
    Path("train.json").rename("runs/x/train_config.json")
    command("--config_file", "runs/x/train_config.json", "--tracking", "mlflow")
    with pytest.raises(SystemExit, match=r"write --tracking configs/tracking\.json of the bundle, which"):
        checks.check_overrides()
    Path("bundle/configs/tracking.json").write_text(json.dumps(TRACKING))
    command("--config_file", "runs/x/train_config.json", "--tracking", "mlflow", "--bundle_root", "bundle")
    with pytest.raises(SystemExit, match=r"write --tracking bundle/configs/tracking\.json, which"):
        checks.check_overrides()
    Path("runs/x/train_config.json").rename("train.json")
    command("--config_file", "['train.json','evaluate.json']", "--tracking", "mlflow")
    checks.check_overrides()
    command("--config_file", "train.json", "--tracking", "tracking.json")
    checks.check_overrides()
    monkeypatch.setattr(checks.overrides, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"MLflow, which is not installed: pip install 'mlflow>=3\.17'"):
        checks.check_overrides()


def test_reads_the_args_file(command):
    Path("args.json").write_text(json.dumps({"config_file": "train.json", "max_epochs": 3, "epoch": 1}))
    command("--args_file", "args.json")
    with pytest.raises(SystemExit, match=r"`epoch` in args.json names no id of train.json; did you mean --max_epochs"):
        checks.check_overrides()


@pytest.mark.parametrize("argv", [["pytest", "run", "--epoch", "1"], ["monai/bundle/__main__.py", "ckpt_export"], [""]])
def test_does_nothing_outside_of_the_command(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", argv)
    checks.check_overrides()
    assert checks.config_digest() is None


def test_refuses_old_packages(command, monkeypatch):
    monkeypatch.setattr(doctor, "check_run", lambda: ["monai 1.0 is installed, but this collection needs monai>=9."])
    command("--config_file", "train.json")
    with pytest.raises(SystemExit, match=r"monai 1\.0 is installed"):
        checks.check_overrides()


@pytest.mark.parametrize(
    "tokens",
    [
        ["--a", "1", "--b=2", "--c-d", "x", "--flag", "--nocache"],
        ["run", "--a", "-1", "-b", "3", "--e", "1e-3", "--f", "-x"],
        ["--a#b::c", "[1, 2]", "--x=--y", "--normalise", "--z", ""],
        ["--dev", "$torch.device('cpu')", "--s=$None", "--t=a=b"],
        [],
    ],
)
def test_splits_the_command_line_as_fire_does(tokens):
    expected, _, _ = fire.core._ParseKeywordArgs(tokens, FullArgSpec(varkw="override"))
    assert {name: value for name, value, _ in checks.parse_flags(tokens)} == expected


def digest(command, *arguments: str) -> str:
    command(*arguments)
    found = checks.config_digest()
    assert found is not None
    return found


def test_digest_is_that_of_the_merged_config(command):
    expected = {key: value for key, value in TRAIN.items() if key not in ("bundle_root", "dataset_dir", "output_dir")}
    expected = json.loads(json.dumps({**expected, "max_epochs": 3, "sample_size": 4}))
    expected["train"]["dataloader"]["batch_size"] = 1
    text = json.dumps(expected, sort_keys=True)
    assert digest(command, *FILES, "--max_epochs", "3") == hashlib.sha256(text.encode()).hexdigest()


def test_digest_follows_what_is_computed_and_not_where(command):
    base = digest(command, *FILES)
    assert digest(command, *FILES, "--output_dir", "elsewhere", "--bundle_root", "/b", "--run_id", "run") == base
    assert digest(command, *FILES, "--max_epochs", "10") == base
    assert digest(command, *FILES, "--max_epochs", "11") != base
    assert digest(command, *FILES, "--network_def#channels#1", "16") != base
    assert digest(command, "--config_file", "train.json") != base


def no_datalist(folder: str = "/nowhere") -> None:
    from common.data import load_datalist

    load_datalist(f"{folder}/list.json", check="header")


def not_finite() -> None:
    state = SimpleNamespace(output={"loss": torch.tensor(float("nan"))}, batch={}, epoch=1, iteration=2)
    NonFiniteGuard()(SimpleNamespace(state=state))


def no_package() -> None:
    with mock.patch.dict(sys.modules, {"onnxruntime": None}):
        OnnxNet("net.onnx")


def other_encoder() -> None:
    vit = ViT(in_channels=1, img_size=(16, 16), patch_size=(8, 8), hidden_size=8, mlp_dim=8, num_layers=4, num_heads=1,
              spatial_dims=2)  # fmt: skip
    ViTEncoder(vit)


def of_a_worker(cause: Callable[[], None]) -> Exception:
    """The error of `wrapped` as it comes out of a worker of torch's DataLoader."""
    try:
        try:
            raise wrapped(cause)
        except RuntimeError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()
    except RuntimeError as error:
        return error
    raise AssertionError


def wrapped(cause: Callable[[], None]) -> Exception:
    """An error as MONAI's config parser and transforms pass it on."""
    try:
        try:
            cause()
        except Exception as error:
            raise RuntimeError("Failed to instantiate component\n\nin two paragraphs") from error
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("passed_on", [wrapped, of_a_worker])
def test_own_sentence_is_what_this_package_raised(passed_on):
    assert checks.own_sentence(passed_on(no_datalist)).startswith("No dataset folder at /nowhere: set the config id")
    lines = checks.own_sentence(passed_on(lambda: no_datalist("/no\n\n  where\n")))
    assert lines.startswith("No dataset folder at /no\n\n  where\n: set the config id")
    assert lines == checks.final_sentence(passed_on(lambda: no_datalist("/no\n\n  where\n")))
    foreign = passed_on(lambda: int("x"))
    assert checks.own_sentence(foreign) is None
    assert checks.final_sentence(foreign) == "ValueError: invalid literal for int() with base 10: 'x'"


@pytest.mark.parametrize("passed_on", [wrapped, of_a_worker])
@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (no_datalist, "No dataset folder at /nowhere"),
        (not_finite, "the loss is nan in epoch 1"),
        (no_package, "ONNX files need onnxruntime"),
        (other_encoder, "ViTEncoder needs a 3-D ViT"),
    ],
)
def test_the_command_ends_with_the_sentence(command, capsys, monkeypatch, passed_on, cause, sentence):
    command("--config_file", "train.json")
    checks.check_overrides()
    error = passed_on(cause)
    sys.excepthook(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(sentence)
    assert lines[0].startswith("The run was refused") and len(lines) == 3  # no traceback
    monkeypatch.setenv(checks.TRACEBACK, "1")
    sys.excepthook(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(sentence)
    assert any("Failed to instantiate" in line for line in lines[:-1])


def test_a_refusal_is_not_logged_as_well(command, caplog, monkeypatch):
    """ignite and MONAI log an error of an engine before the command ends with it; other errors stay in the log."""
    command("--config_file", "train.json")
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    checks.check_overrides()

    def logged(error: Callable[[], None]) -> str:
        handler.setStream(io.StringIO())
        engine = Engine(lambda *_: error())
        StatsHandler().attach(engine)
        with pytest.raises(Exception):  # noqa: B017
            engine.run([0])
        return handler.stream.getvalue()

    assert "No dataset folder" not in logged(no_datalist)
    assert "Engine run is terminating due to exception: " in logged(lambda: [][0])
    monkeypatch.setenv(checks.TRACEBACK, "1")
    assert "No dataset folder" in logged(no_datalist)


@pytest.fixture
def console(command, monkeypatch):
    """Lines of a run's console, of a log file beside it, and of MONAI's StatsHandler, as after its logging.conf."""
    command("--config_file", "train.json")
    root, known = logging.getLogger(), dict(logging.root.manager.loggerDict)
    known.pop(checks.console.STATS, None)
    monkeypatch.setattr(logging.root.manager, "loggerDict", known)
    monkeypatch.setattr(logging.getLogger("monai.bundle.scripts"), "filters", [])
    screen, file = logging.StreamHandler(io.StringIO()), logging.FileHandler("run.log", delay=True)
    monkeypatch.setattr(root, "handlers", [screen, file])

    def lines() -> tuple[list[str], list[str]]:
        return screen.stream.getvalue().splitlines(), Path("run.log").read_text().splitlines()

    return lines


def validate():
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}],
        network=torch.nn.Identity(),
        key_val_metric={"val_dice": Average(output_transform=lambda _: 0.5)},
        val_handlers=[StatsHandler(iteration_log=False)],
    )
    evaluator.run()


@pytest.mark.parametrize("full", [False, True])
def test_a_score_is_shown_once_and_a_log_file_has_all_lines(console, monkeypatch, caplog, full):
    if full:
        monkeypatch.setenv(checks.FULL_LOG, "full")
    checks.check_overrides()
    caplog.set_level(logging.INFO, "ignite.engine.engine.SupervisedEvaluator")
    validate()
    shown, logged = console()
    assert sum("val_dice" in line for line in logged) == 3 and any("Epoch[1] Complete" in line for line in logged)
    assert shown == (logged if full else ["Epoch[1] Metrics -- val_dice: 0.5000 "])


def wrong_argument():
    from common.volumes import format_shape

    format_shape(3)  # a TypeError of ours, but no refusal


def wrong_number():
    from common.volumes import format_values

    format_values(np.array(["a"]))  # a ValueError by a statement of ours that raises nothing


def defect_on_top_of_a_refusal():
    try:
        no_datalist()
    except ValueError:
        int("x")


def in_a_worker(defect: Callable[[], None]) -> Callable[[], None]:
    def run():
        try:
            defect()
        except (TypeError, ValueError):
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    return run


DEFECTS = [wrong_argument, wrong_number, defect_on_top_of_a_refusal]


@pytest.mark.parametrize("defect", [*DEFECTS, *map(in_a_worker, DEFECTS)])
def test_the_traceback_of_a_defect_is_never_hidden(command, capsys, defect):
    command("--config_file", "train.json")
    checks.check_overrides()
    with pytest.raises((TypeError, ValueError)) as raised:
        defect()
    sys.excepthook(raised.type, raised.value, raised.value.__traceback__)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_command_ends_with_the_cause_of_an_error_raised_elsewhere(command, capsys):
    command("--config_file", "train.json")
    checks.check_overrides()
    with pytest.raises(RuntimeError) as raised:
        config = monai.bundle.ConfigParser({"data": {"_target_": "common.data.list_images", "seed": 3}})
        config.get_parsed_content("data")
    sys.excepthook(raised.type, raised.value, raised.value.__traceback__)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("TypeError: list_images() got an unexpected keyword argument 'seed'")


def test_the_command_waits_for_the_threads_that_fill_a_cache(command, capsys):
    """Alive while the interpreter ends, they abort the process (exit status 134) after the sentence."""
    command("--config_file", "train.json")
    checks.check_overrides()
    at_work, go_on, ended = threading.Event(), threading.Event(), []

    def load(number):
        if number == 0:
            at_work.wait(10)
            raise ValueError("the mask of x.nii.gz has a label 9")
        at_work.set()
        go_on.wait(10)
        ended.append(number)

    with pytest.raises(ValueError) as raised, ThreadPool(2) as pool:
        list(pool.imap(load, [0, 1]))  # as CacheDataset does
    assert not ended  # the pool is left, and its second thread still loads
    threading.Timer(0.3, go_on.set).start()
    sys.excepthook(raised.type, raised.value, raised.value.__traceback__)
    assert ended == [1]


@pytest.mark.parametrize(
    ("old", "new", "meaning"),
    [
        ("warmup_epochs", "warmup", "a fraction of all steps"),
        ("warmup_steps", "warmup", "a fraction of all steps"),
        ("domains", "pretrain_datalist", "a list of datalists"),
        ("numbering", "label_scheme", "how the masks are numbered"),
        ("map_numbering", "map_label_scheme", "how label maps are numbered"),
    ],
)
def test_ids_of_earlier_versions_are_refused_with_the_new_one(command, old, new, meaning, tmp_path):
    sentence = f"--{old} was renamed: it is --{new} now, {meaning}"
    assert (checks.override_problem(old, f"--{old}", {new: 0.05}, "train.json") or "").startswith(sentence)
    assert checks.renamed_problems({new: 0.05}) == []
    (tmp_path / "own.json").write_text(json.dumps({new: 0.05, old: 3}))
    command("--config_file", str(tmp_path / "own.json"))
    with pytest.raises(SystemExit, match=f"`{old}` in the config files was renamed: it is `{new}` now"):
        checks.check_overrides()


def test_targets_of_earlier_versions_are_refused_with_the_new_name(command, tmp_path):
    old, new = "common.transforms.Canvasd", "common.transforms.PadOrCropd"
    content = {"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": old, "keys": "image"}]}}
    (tmp_path / "own.json").write_text(json.dumps(content))
    command("--config_file", str(tmp_path / "own.json"))
    with pytest.raises(SystemExit, match=f"^`{old}` in the config files was renamed: it is `{new}` now.$"):
        checks.check_overrides()
    assert checks.renamed_target(f"{checks.__package__.rpartition('.')[0]}.networks.place") is None
    assert checks.renamed_target("mine.transforms.Canvasd") is None


def test_what_a_renamed_target_is_called_now_is_there():
    for old, new in checks.renamed.TARGETS.items():
        assert pydoc.locate(f"common.{new}") is not None and pydoc.locate(f"common.{old}") is None


SIDES = {"0": "background", "1": "Left-Hippocampus", "2": "Right-Hippocampus"}


@pytest.mark.parametrize(
    ("axes", "orientation", "names"),
    [
        ([1, 2], "RAS", SIDES),
        ([0, 1], "SAR", SIDES),
        ([0, 1, 2], "RAS", {"1": "right ventricle", "2": "left ventricle", "3": "myocardium"}),
        ([0, 1, 2], "RAS", {"1": "Left-Hippocampus"}),
        ([0, 1, 2], "RAS", None),
    ],
)
def test_mirroring_where_sides_are_no_classes(axes, orientation, names):
    checks.check_mirroring(axes, orientation, names)


@pytest.mark.parametrize(
    ("axes", "orientation", "names"),
    [([0, 1, 2], "RAS", SIDES), ([2], "SAR", SIDES), ([0], "LPS", {1: "left kidney", 2: "right kidney"})],
)
def test_mirroring_where_sides_are_classes_is_refused(axes, orientation, names):
    with pytest.raises(ValueError, match=r"mirrors left to right, .* such as .* and .*: leave out presets/mirror.json"):
        checks.check_mirroring(axes, orientation, names)


@pytest.mark.parametrize("axes", [[0], 0, None])
def test_mirroring_in_inference_alone_is_refused(axes):
    checks.check_mirroring([0], "RAS", None, [RandFlipd(keys="image", spatial_axis=axes)])
    for steps in ([], [RandFlipd(keys="image", spatial_axis=1)]):
        with pytest.raises(ValueError, match=r"but `augmentation` does not: list presets/mirror.json behind the files"):
            checks.check_mirroring([0], "RAS", None, steps)


def test_a_number_of_processes_is_no_override():
    """It would run one process without a word."""
    problem = checks.override_problem("processes", "--processes 2", {"processes": None}, "train.json")
    assert problem is not None and problem.startswith("--processes 2 starts no processes: name a multi_gpu_*.json file")
    assert checks.override_problem("processes", "--processes", {"seed": 0}, "mine.json").startswith(
        "--processes names no id of mine.json"
    )
