"""What every bundle of the collection keeps to, whatever its method."""

from __future__ import annotations

import ast
import configparser
import inspect
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ConfigComponent

from common.data.label_maps import TASKS
from common.json_files import to_json
from common.overlays import find_overlay, merge_files

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent for path in (ROOT / "bundles").glob("*/configs"))
CONFIGS = [path for bundle in BUNDLES for path in sorted(bundle.rglob("configs/**/*.json"))]
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"

SCHEDULES = ("scratch", "warmup", "sawtooth", "frozen", "layer_decay", "two_rates")
BASE = ("pretrain.json", "train.json", "evaluate.json", "inference.json")
FILES = (
    "LICENSE",
    "small.json",
    "configs/metadata.json",
    "configs/logging.conf",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/inference_onnx.json",
    "configs/inference_trt.json",
    "configs/multi_gpu_train.json",
    "configs/multi_gpu_evaluate.json",
    "configs/datasets/sample.json",
    "configs/outputs/dicom_seg.json",
    "configs/outputs/nifti.json",
    *(f"configs/schedules/{name}.json" for name in SCHEDULES),
    "docs/README.md",
    "docs/data_license.txt",
)
EVERYWHERE = (
    "bundle_root dataset_dir datalist output_dir device amp in_channels segmentation_net network_def network "
    "initialize run"
)
TRAINING = (
    "seed encoder loss optimizer lr_scheduler max_epochs val_interval resume train#dataset#data train#dataloader "
    "train#inferer train#preprocessing train#handlers train#trainer#max_epochs validate#dataset#data "
    "validate#dataloader validate#inferer validate#preprocessing validate#handlers validate#key_metric "
    "validate#evaluator"
)
IDS = {
    "pretrain.json": f"{EVERYWHERE} {TRAINING}",
    "train.json": f"{EVERYWHERE} {TRAINING} pretrained_encoder validate#postprocessing",
    "inference.json": f"{EVERYWHERE} preprocessing postprocessing dataset dataloader inferer handlers evaluator",
}
# Ids that say the same thing wherever they stand.
SHARED = [
    "device",
    "amp",
    "spacing",
    "orientation",
    "percentiles",
    "foreground",
    "intensity",
    "in_channels",
    "image_size",
    "roi_size",
    "num_classes",
    "segmentation_net",
    "encoder",
    "network",
]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "common").rglob("*.py")}
PRETRAINED_LIKE = {"medical_transformer": "tasks/age.json"}
METADATA = [
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "name",
    "task",
    "description",
    "authors",
    "copyright",
    "intended_use",
    "references",
    "network_data_format",
]


def ident(path: Path) -> str:
    return str(path.relative_to(ROOT / "bundles"))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def walk(value: Any, where: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every part of a config with the keys that lead to it."""
    yield where, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from walk(part, (*where, key))


def expressions(config: dict) -> Iterator[tuple[tuple, str]]:
    yield from ((where, text) for where, text in walk(config) if isinstance(text, str) and text.startswith("$"))


def references(config: dict) -> set[str]:
    """Top-level ids that values of a config refer to."""
    texts = (value for _, value in walk(config) if isinstance(value, str))
    return {name for text in texts for name in re.findall(r"[@%](\w+)", text)}


def look_up(config: dict, path: str) -> Any:
    value: Any = config
    for key in path.split("#"):
        value = value[int(key) if isinstance(value, list) else key]
    return value


def merged(bundle: Path, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in names])
    return parser


each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=ident)
each_config = pytest.mark.parametrize("path", CONFIGS, ids=ident)


@each_bundle
def test_has_every_file(bundle):
    readme = (bundle / "docs/README.md").read_text() if (bundle / "docs/README.md").is_file() else ""
    pretraining = ("configs/pretrain.json", "configs/multi_gpu_pretrain.json")
    needed = FILES if re.search("no pre-?training", readme, re.IGNORECASE) else FILES + pretraining
    assert [name for name in needed if not (bundle / name).is_file()] == []
    assert [path for path in (bundle / "models").rglob("*.pt") if path.name != "model.pt"] == []


@each_config
def test_is_written_plainly(path):
    def once(pairs):
        assert len(dict(pairs)) == len(pairs), f"a key stands twice among {[key for key, _ in pairs]}"
        return dict(pairs)

    text = path.read_text(encoding="utf-8")
    config = json.loads(text, object_pairs_hook=once)
    assert text == to_json(config), "`make format` writes it as all others are"


@each_bundle
def test_the_log_is_set_up_alike(bundle):
    """And keeps out of it what MONAI says at each start: of a decoder for GPUs, and that it has read this file."""
    text = (bundle / "configs/logging.conf").read_text()
    assert text == (BUNDLES[0] / "configs/logging.conf").read_text()
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(text)
    others = [section for section in config if section.startswith("logger_") and section != "logger_root"]
    levels = {config[section]["qualname"]: config[section]["level"] for section in others}
    assert levels == {"monai.data.nvimgcodec_pydicom_plugin": "ERROR", "monai.bundle.workflows": "WARNING"}
    assert config["logger_root"]["level"] == config["handler_consoleHandler"]["level"] == "INFO"


def test_a_start_says_nothing_once_the_log_is_set_up(capsys, monkeypatch):
    """But what warns later is logged, as everything else is."""
    root, workflows = logging.getLogger(), logging.getLogger("monai.bundle.workflows")
    screen = io.StringIO()
    for logger, handlers in ((root, []), (workflows, [logging.StreamHandler(screen)])):
        for name, value in (("handlers", handlers), ("level", logging.INFO), ("propagate", False)):
            monkeypatch.setattr(logger, name, value)
    ConfigWorkflow(config_file=str(BUNDLES[0] / "configs/train.json"))
    assert capsys.readouterr().out == screen.getvalue() == ""
    workflows.warning("later")
    assert capsys.readouterr().out.endswith(" - monai.bundle.workflows - WARNING - later\n")


@each_bundle
def test_metadata(bundle):
    metadata = read(bundle / "configs/metadata.json")
    assert [key for key in METADATA if not metadata.get(key)] == []
    assert metadata["version"] in metadata["changelog"]
    for version in (metadata["version"], *metadata["changelog"]):
        assert re.fullmatch(r"\d\.\d\.\d", version), "MONAI compares versions as strings, so each field has one digit"
    formats = metadata["network_data_format"]
    inference = merged(bundle, "inference.json")
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert len(image["channel_def"]) == image["num_channels"] == inference["in_channels"]
    assert len(pred["channel_def"]) == pred["num_channels"] == inference.get_parsed_content("num_classes")
    assert pred["channel_def"]["0"] == "background"
    assert image["spatial_shape"] == inference.get_parsed_content("roi_size")
    # A net of windows of slices predicts the slice in the middle.
    assert pred["spatial_shape"] in (image["spatial_shape"], [*image["spatial_shape"][:2], 1])


@each_bundle
def test_metadata_passes_the_schema(bundle):
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip("MONAI's metadata schema is not at hand")
    jsonschema.validate(read(bundle / "configs/metadata.json"), read(SCHEMA))


@each_config
def test_targets_exist_and_take_their_arguments(path):
    if path.name == "metadata.json":
        return
    locator = ComponentLocator()
    for where, part in walk(read(path)):
        if isinstance(part, dict) and "_target_" in part and not part["_target_"].startswith("$"):
            name = ConfigComponent(config=part, locator=locator).resolve_module_name()
            from pydoc import locate

            target = locate(name) if isinstance(name, str) else name
            assert callable(target), f"{'#'.join(map(str, where))} names {part['_target_']}"
            # Where a function is named like its file, `pydoc.locate` of Python 3.12 finds the file.
            assert part["_target_"] not in MODULES, f"{part['_target_']} is a module as well"
            if part.get("_mode_") != "callable":
                arguments = {key: value for key, value in part.items() if not re.fullmatch("_.*_", key)}
                inspect.signature(target).bind(**arguments)


@each_config
def test_expressions_are_references_arithmetic_and_look_ups(path):
    for where, text in expressions(read(path)):
        assert not re.search(r"\bcommon\b", text), (
            f"{where}: `common` is named by _target_ only, so that it can be packed"
        )
        if where[0] == "imports":
            assert re.fullmatch(r"\$import [\w.]+", text)
            continue
        assert not ("import" in text and "@" in text), f"{where}: MONAI takes {text} for an import statement"
        tree = ast.parse(re.sub(r"@[\w#:]+", "reference", text[1:]), mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.IfExp):
                on_the_device = ("if torch.cuda.is_available() else 'cpu')", "if @device.type == 'cuda' else None")
                assert text.endswith(on_the_device), f"{where}: a condition in {text}"
            if isinstance(node, ast.Lambda):
                assert where[-1] == "batch_transform", f"{where}: a function in {text}"
            comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
            in_batch_transform = where[-1] == "batch_transform"
            assert in_batch_transform or not isinstance(node, comprehensions), f"{where}: a loop in {text}"
            assert not isinstance(node, (ast.BoolOp, ast.NamedExpr, ast.Await)), f"{where}: a condition in {text}"


@each_config
def test_needs_nothing_that_monai_breaks_on(path):
    config = read(path)
    for where, value in walk(config):
        keys = value if isinstance(value, list) else [value]
        if str(where[-1:]).find("key") >= 0:
            # MONAI's Spacingd takes such entries for the metadata of `image`. The crop's indices come after it.
            keys = [key for key in keys if key not in ("label_fg_indices", "label_bg_indices", "label_cls_indices")]
            assert not [key for key in keys if isinstance(key, str) and key.startswith(("image_", "label_"))]
        if isinstance(value, str):
            assert "@_meta_" not in value, f"{where}: MONAI Label does not read metadata into the config"
            assert not re.search(r"%.*\.json", value), f"{where}: macros across files depend on the working folder"
        if isinstance(value, dict) and value.get("_target_") == "CheckpointLoader":
            assert "strict_shape" not in value, f"{where}: with strict_shape MONAI loads nothing, silently"
        if isinstance(value, dict) and "_target_" in value:
            assert value["_target_"] not in ("Spacingd", "monai.transforms.Spacingd"), f"{where}: use common.transforms"
    for section in ("train", "validate"):
        handlers = config.get(section, {}).get("handlers", [])
        assert all(isinstance(handler, dict) for handler in handlers)


@pytest.mark.parametrize(
    "task", [task for bundle in BUNDLES for task in sorted(bundle.glob("configs/tasks/*.json"))], ids=ident
)
def test_inference_compares_the_scan_with_those_of_training_in_every_task(task):
    config = merged(task.parents[2], "inference.json", f"tasks/{task.name}").get()
    assert "@scan_check" in json.dumps(config["preprocessing"])


@pytest.mark.parametrize("settings", sorted(ROOT.glob("bundles/*/compare*.json")), ids=ident)
def test_the_files_of_a_reference_fit_training_and_inference(settings):
    """They lie over both; a part that one of them lacks would end the comparison."""
    bundle = settings.parent
    arms = read(settings)["arms"]
    for arm in arms.values() if isinstance(arms, dict) else ():
        for name in ((arm or {}).get("reference") or {}).get("network", ()):
            file = find_overlay(name, bundle, bundle)
            for base in ("train.json", "inference.json"):
                assert merge_files([bundle / "configs" / base, file])


@pytest.mark.parametrize("base", [bundle / "configs/pretrain.json" for bundle in BUNDLES], ids=ident)
def test_whole_batches_have_an_id_from_which_the_steps_are_counted(base):
    """``common.compare`` counts the steps of an epoch from it, and would count a last, smaller batch without it."""
    sampler = read(base)["train"]["sampler"] or {}
    if sampler.get("_target_", "").endswith("VolumeSampler"):
        assert sampler["batches"] == "@batches_per_epoch" and "batches_per_epoch" in read(base)


@pytest.mark.parametrize(
    ("base", "task"),
    [
        (base, task)
        for bundle in BUNDLES
        for base in sorted(bundle.glob("configs/pretrain*.json"))
        for task in sorted(bundle.glob("configs/tasks/*.json"))
    ],
    ids=ident,
)
def test_a_task_leaves_the_loss_of_pretraining_alone(base, task):
    """Comparisons give both trainings the same files."""

    def loss(*files: Path) -> Any:
        names = [str(file.relative_to(base.parent)) for file in files]
        config = merged(base.parents[1], "pretrain.json", *names).get()  # the second stage is an overlay of the first
        found = look_up(config, "train#trainer#loss_function")
        while isinstance(found, str):
            found = look_up(config, found.removeprefix("@"))
        return found

    assert loss(base, task) == loss(base)


@pytest.mark.parametrize("name", IDS)
@each_bundle
def test_has_the_common_ids(bundle, name):
    if not (bundle / "configs" / name).is_file():
        pytest.skip("a bundle without this file; test_has_every_file decides whether it may")
    config = read(bundle / "configs" / name)
    missing = []
    for path in IDS[name].split():
        try:
            look_up(config, path)
        except (KeyError, IndexError):
            missing.append(path)
    assert missing == []


@each_bundle
def test_pretraining_can_hold_out_a_fold_as_fine_tuning_does(bundle):
    for name in ("pretrain.json", "train.json"):
        config = read(bundle / "configs" / name)
        for key in ("fold", "split_seed"):
            assert key in config and config["data"][key] == f"@{key}", name


@each_bundle
def test_every_initialize_checks_the_overrides_first(bundle):
    for path in sorted(bundle.rglob("configs/**/*.json")):
        initialize = read(path).get("initialize")
        if initialize is not None:
            assert initialize[0] == {"_target_": "common.checks.check_overrides"}, path.name
            loads = any(isinstance(step, dict) and "load_encoder" in step["_target_"] for step in initialize)
            # Of pre-training, those that may start from an encoder, as a second stage does, say so by an id.
            base = bundle / "configs" / path.name.removeprefix("multi_gpu_")
            assert loads == ("pretrained_encoder" in read(base)), path.name


@pytest.mark.parametrize("stage", ["pretrain", "train", "evaluate"])
@each_bundle
def test_what_an_overlay_adds_to_initialize_stays_with_several_processes(bundle, stage, tmp_path):
    """A check of a preset, such as that of mirroring. The processes still start before the first random number."""
    configs = bundle / "configs"
    (tmp_path / "preset.json").write_text(json.dumps({"+initialize": ["$'added'"]}))
    files = [configs / "train.json"] if stage == "evaluate" else []
    files += [configs / f"{stage}.json", tmp_path / "preset.json"]
    one, several = merge_files(files), merge_files([*files, configs / f"multi_gpu_{stage}.json"])
    assert several["initialize"] == one["initialize"] and several["initialize"][-1] == "$'added'"
    assert one["processes"] is None and several["processes"] == {"_target_": "common.distributed.start"}
    steps = [str(step) for step in several["initialize"]]
    seeds = next(number for number, step in enumerate(steps) if step.startswith("$monai.utils.set_determinism("))
    assert steps.index("@processes") < seeds


@each_bundle
def test_a_run_says_where_its_files_are(bundle):
    evaluate, inference = (read(bundle / "configs" / name) for name in ("evaluate.json", "inference.json"))
    for handlers, folder in ((evaluate["validate#handlers"], "@eval_dir"), (inference["handlers"], "@output_dir")):
        assert (handlers[-1]["_target_"], handlers[-1]["folder"]) == ("common.handlers.OutputFolder", folder)
    names = [handler["_target_"] for handler in evaluate["validate#handlers"]]
    assert names.index("common.handlers.NamedClasses") > names.index("MetricsSaver")


@pytest.mark.parametrize("name", BASE)
@each_bundle
def test_no_id_is_idle(bundle, name):
    """Something refers to each id of a base file, or it is one that overlays, users and tools read."""
    if not (bundle / "configs" / name).is_file():
        pytest.skip(f"no {name}")
    config = read(bundle / "configs" / name)
    if name == "evaluate.json":
        train = read(bundle / "configs/train.json")
        config = {key: value for key, value in config.items() if "#" not in key and key not in train}
    public = {*EVERYWHERE.split(), "imports", "task", "num_classes", "encoder", "rank", "train", "validate"}
    public |= {"metrics", "structure_names", "batches_per_epoch"}  # common.compare reads them
    public -= {"in_channels"}  # has to be the network's
    public |= {"prepare_as"}  # check_overrides does what it says
    public |= {"close_tracking"}  # tracking.json reads it
    used = references(read(bundle / "configs" / name)) | public
    assert [key for key in config if key not in used] == []


# What must agree


def image_part(transforms: list[dict]) -> list[dict]:
    """A list of transforms as far as it concerns the image."""
    result = []
    for transform in transforms:
        if isinstance(transform, str):  # a reference to an id that all base files share
            result.append({"reference": transform})
            continue
        keys = transform.get("keys", [])
        keys = [keys] if isinstance(keys, str) else keys
        if "image" not in keys:
            continue
        place = keys.index("image")
        part = {key: value for key, value in transform.items() if key not in ("label_key", "num_classes")}
        part |= {key: value[place] for key, value in part.items() if key == "mode" and isinstance(value, list)}
        result.append(part | {"keys": "image"})
    return result


def deterministic_transforms(name: str, config: dict) -> list:
    if name == "inference.json":
        # An evaluation compares its scans with those of the training, too, when the model is loaded, and only warns.
        transforms = config["preprocessing"]["transforms"]
        check = transforms.index("@scan_check")
        assert transforms[check - 1]["_target_"] == "common.transforms.CheckVolumed"
        return transforms[:check] + transforms[check + 1 :]
    return config.get("deterministic_transforms") or config["train"]["deterministic_transforms"]


def classes_of(config: dict) -> int:
    return ConfigParser(config={key: config[key] for key in ("task", "num_classes")}).get_parsed_content("num_classes")


@pytest.mark.parametrize("name", ["pretrain.json", "inference.json"])
@each_bundle
def test_base_files_agree(bundle, name):
    if not (bundle / "configs" / name).is_file():
        pytest.skip(f"no {name}")
    train, config = read(bundle / "configs/train.json"), read(bundle / "configs" / name)
    if name == "pretrain.json":
        # Where the paper pre-trains on other images than those of the default task: a task on images like them.
        train |= read(bundle / "configs" / PRETRAINED_LIKE[bundle.name]) if bundle.name in PRETRAINED_LIKE else {}
        if bundle.name in PRETRAINED_LIKE:
            train |= {key: config[key] for key in ("segmentation_net", "num_classes")}
    if "unlabelled" in (config["task"], train["task"]):  # a list, no task that a number of classes follows from
        train, config = (one | {"num_classes": classes_of(one)} for one in (train, config))
    if name == "inference.json":  # what is of use to a training alone
        kept = {key: value for key, value in train["network"].items() if key not in ("checkpointing", "compile")}
        assert len(kept) < len(train["network"])
        train |= {"network": kept}
    differing = [key for key in SHARED if key in train and key in config and train[key] != config[key]]
    assert differing == [], f"{name} and train.json differ"
    if "map_size" in config:
        return  # its images are drawn in the pretext, from label maps, and brought to `intensity` there
    ours, theirs = (image_part(deterministic_transforms(*one)) for one in ((name, config), ("train.json", train)))
    if "padding" in config:  # which stands apart from them here
        assert theirs.pop() == image_part(config["padding"])[0] | {"spatial_size": "@image_size"}
    assert ours == theirs


@pytest.mark.parametrize("name", ["pretrain.json", "train.json"])
@each_bundle
def test_memory_can_be_saved_in_one_process_and_in_several(bundle, name):
    """The settings of `docs/multi_gpu.md` are ids that a command line can change."""
    base, several = (read(bundle / "configs" / file) for file in (name, f"multi_gpu_{name}"))
    assert base["train"]["trainer"]["accumulation_steps"] == 1
    assert base["network"]["compile"] is False
    assert "checkpointing" in base["network"] or "checkpointing" in base  # of transformers, or of a ResNet
    assert several["network"] == base["network"] | {"_target_": "common.distributed.wrap"}


@each_config
def test_the_number_of_classes_follows_from_the_task(path):
    """It is stated for tasks that no table knows alone, and whoever changes it is told by the map of the labels."""
    config = read(path)
    assert not (isinstance(config.get("num_classes"), int) and config.get("task") in TASKS)
    for where, part in walk(config):
        if isinstance(part, dict) and part.get("_target_") == "common.data.label_map" and path.name != "pretrain.json":
            assert part["num_classes"] == "@num_classes", where


@each_bundle
def test_images_are_checked_for_the_channels_of_the_network(bundle):
    for path in bundle.rglob("configs/**/*.json"):
        config = read(path)
        for where, part in walk(config):
            steps = part if isinstance(part, list) else []
            steps = [config.get("check") if step == "@check" else step for step in steps]
            steps = [step for step in steps if isinstance(step, dict)]
            loads = [step for step in steps if "LoadVolumed" in str(step.get("_target_")) and "image" in step["keys"]]
            if "transforms" in str(config.get("check")):  # label maps, from which images of any channels are drawn
                assert not loads or config["check"] in steps, f"{ident(path)}: {where}"
                continue
            checked = [step["channels"] for step in steps if "channels" in step]
            assert not loads or checked == ["@in_channels"], f"{ident(path)}: {where}"
        if "check" in config and config.get("interpolation") == "bilinear":  # scans instead of label maps
            assert config["check"]["channels"] == "@in_channels", ident(path)


@each_bundle
def test_outputs_differ_in_what_is_written_alone(bundle):
    base = read(bundle / "configs/inference.json")
    nifti, seg = (read(bundle / f"configs/outputs/{name}.json") for name in ("nifti", "dicom_seg"))
    assert nifti == {"save_output": base["save_output"]}, "NIfTI is the default"
    assert base["postprocessing"]["transforms"][-1] == "@save_output"
    assert seg["save_output"]["folder_layout"] == base["save_output"]["folder_layout"] | {"extension": ".dcm"}
    assert seg["save_output"]["algorithm_name"] == bundle.name
    parser = merged(bundle, "inference.json", "outputs/dicom_seg.json")
    names, classes = (parser.get_parsed_content(key) for key in ("segment_names", "num_classes"))
    assert [int(number) for number in names] == list(range(classes))
    others = [read(other / "configs/outputs/dicom_seg.json") for other in BUNDLES]
    for other in others:
        other["save_output"]["algorithm_name"] = bundle.name
    assert all(other == seg for other in others)


@each_bundle
def test_schedules_are_alike_and_take_what_the_bundle_states(bundle):
    """Whatever its optimiser is, with the rate and weight decay of its ids, in groups that tell the encoder."""
    optimizer = read(bundle / "configs/train.json")["optimizer"]
    for name in SCHEDULES:
        overlay = read(bundle / f"configs/schedules/{name}.json")
        assert overlay == read(BUNDLES[0] / f"configs/schedules/{name}.json")
        parser = merged(bundle, "train.json", f"schedules/{name}.json")
        others = {key: value for key, value in parser["optimizer"].items() if key != "params"}
        assert others == {key: value for key, value in optimizer.items() if key != "params"}
        groups = parser["optimizer#params"]
        assert (groups["network"], groups["encoder"]) == ("@network", "@encoder")
        assert groups["learning_rate"] == "$@rate_factor * @learning_rate" and groups["weight_decay"] == "@weight_decay"
        frozen = [one for one in parser["train#handlers"] if one["_target_"] == "common.handlers.FrozenEncoder"]
        assert len(frozen) == (name in ("sawtooth", "frozen")), name
    assert parser["optimizer#params#rates"] == {"encoder": "@encoder_rate"}  # of the last of them


@each_bundle
def test_overlays_of_exported_nets_change_the_network_alone(bundle):
    base = read(bundle / "configs/inference.json")
    onnx, trt = (read(bundle / f"configs/inference_{name}.json") for name in ("onnx", "trt"))
    assert base["handlers"][0]["_target_"] == "common.handlers.ModelLoader"
    assert set(onnx) == {"onnx_path", "network", "scan_check#model", "handlers#0#path", "handlers#0#network"}
    assert onnx == read(BUNDLES[0] / "configs/inference_onnx.json")
    # TensorRT is given weights by the same handler, and compiles at the first batch.
    assert set(trt) == {"trt_args", "trt_net", "network"}
    placed = base["network"] | {"_target_": "common.networks.to_channels_last"}
    assert trt["trt_net"] == {key: value for key, value in placed.items() if key != "amp"}  # it has its own precision
    inferer = base["inferer"]
    batch = inferer.get("sw_batch_size") or base.get(str(inferer.get("chunk")).lstrip("@")) or 1
    assert trt["trt_args"]["dynamic_batchsize"] == [1, batch, batch]


@each_bundle
def test_overlays_repeat_networks_that_exist(bundle):
    """A network that an overlay spells out is that of one of `networks/`, and the base files' is one of them too.

    So is a pretext, of `networks/` or of `pretexts/`. The nets in `comparators/` are other people's, each for one task.
    """
    kinds = {("segmentation_net", "encoder"): ["networks"], ("pretext", "pretext_loss"): ["networks", "pretexts"]}
    for keys, folders in kinds.items():
        known = [read(path) for folder in folders for path in sorted((bundle / "configs" / folder).glob("*.json"))]
        for path in (path for path in bundle.rglob("configs/**/*.json") if path.parent.name != "comparators"):
            overlaid = [key for key in keys if any(key in one for one in known)]
            spelt_out = {key: value for key, value in read(path).items() if key in overlaid}
            if spelt_out and path.parent.name not in folders:
                assert any(spelt_out.items() <= one.items() for one in known), ident(path)


def overlays(folder: str) -> list:
    return [path for bundle in BUNDLES for path in sorted((bundle / "configs" / folder).glob("*.json"))]


NETWORK = ("network_def", "segmentation_net", "encoder")


def built(parser: ConfigParser) -> list:
    """Network, segmentation net and encoder, without their weights where they can be built so: there are millions."""

    def parts() -> list:
        parser.parse()  # anew
        return [parser.get_parsed_content(key) for key in NETWORK]

    try:
        with torch.device("meta"):
            return parts()
    except RuntimeError:  # Swin reads numbers off tensors while it is made
        return parts()


@pytest.mark.parametrize("path", overlays("networks"), ids=ident)
def test_network_overlays_fit_every_base_file(path, monkeypatch):
    bundle = path.parents[2]
    for draw in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        # Nobody looks at the weights, and at the papers' sizes it takes seconds to draw them.
        monkeypatch.setattr(torch.nn.init, draw, lambda tensor, *args, **kwargs: tensor)
    known = set()
    for name in BASE:
        if not (bundle / "configs" / name).is_file():
            continue
        names = ["train.json", name] if name == "evaluate.json" else [name]
        parser = merged(bundle, *names, f"networks/{path.name}")
        # With every reference resolved, which fails where a base file lacks an id. What is the same is built once.
        resolved = str([parser.get_parsed_content(key, instantiate=False, eval_expr=False) for key in NETWORK])
        if resolved in known:
            continue
        known.add(resolved)
        network, net, encoder = built(parser)
        assert len(encoder.channels) == len(encoder.strides), name
        inside = {id(parameter) for parameter in net.parameters()}
        assert {id(parameter) for parameter in encoder.parameters()} <= inside, f"{name}: no view on the network"
        if name == "pretrain.json":
            assert {id(p) for p in encoder.parameters()} <= {id(p) for p in network.parameters()}
        else:
            assert network is net, name


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("tasks", "datasets", "presets", "networks", "pretexts", "schedules", "outputs")
        for path in overlays(folder)
    ],
    ids=ident,
)
def test_overlays_change_ids_that_exist(path):
    bundle = path.parents[2]
    known = {key for name in BASE if (bundle / "configs" / name).is_file() for key in read(bundle / "configs" / name)}
    overlay = read(path)
    used = references(overlay)
    unread = [key for key in overlay if key.lstrip("+").split("#")[0] not in known | used]
    assert unread == []
    # A nested id whose parent no base file has stops MONAI.
    for key in overlay:
        if "#" in key:
            parent = key.lstrip("+").rpartition("#")[0]
            files = [name for name in BASE if (bundle / "configs" / name).is_file()]
            assert any(parent in merged(bundle, name) for name in files), key


# What MONAI asks for


@pytest.mark.parametrize("name", ["pretrain.json", "train.json", "inference.json"])
@each_bundle
def test_monai_finds_its_properties(bundle, name, run_bundle, tmp_path):
    if not (bundle / "configs" / name).is_file():
        pytest.skip(f"no {name}")
    workflow = run_bundle(
        name,
        "datasets/sample.json",
        bundle=bundle.name,
        workflow_type="inference" if name == "inference.json" else "train",
        execute=False,
        output_dir=str(tmp_path),
        cache="none",
    )
    assert isinstance(workflow, ConfigWorkflow)
    assert workflow.check_properties() == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_segmentations_are_scored_by_the_collections_metrics(path):
    """MONAI's leave out what is invented, or are infinite there; `common.metrics` has one rule for empty masks."""
    theirs = re.findall(r'"_target_": "((?:monai\.\w+\.)*(?:Mean|Hausdorff|Surface|Generalized)\w+)"', path.read_text())
    assert [name for name in theirs if not name.startswith("MeanAbsolute")] == []


GROUPED = [
    path
    for path in CONFIGS
    if path.parent.name != "schedules"  # these set a rate for each part
    and "parameter_groups" in str(json.loads(path.read_text(encoding="utf-8")).get("optimizer", {}).get("params"))
]


@pytest.mark.parametrize("path", GROUPED, ids=lambda path: f"{path.parents[2].name}/{path.stem}")
def test_groups_of_parameters_follow_the_optimisers_own_numbers(path):
    """``--optimizer#lr`` changes nothing where the groups state a rate from elsewhere."""
    params = json.loads(path.read_text(encoding="utf-8"))["optimizer"]["params"]
    assert (params["learning_rate"], params["weight_decay"]) == ("@optimizer#lr", "@optimizer#weight_decay")
