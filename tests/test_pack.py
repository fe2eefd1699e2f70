from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Orientationd

from common import doctor
from common.checkpoint_file import save_checkpoint
from common.exported import add_model_record
from common.pack import pack
from common.pack.__main__ import main
from common.pack.modules import package_files
from common.pack.overlays import apply_overlays, changed_configs
from common.pack.targets import rewrite_config
from common.preparation import preparation_record
from common.weights import save_encoder, shipped

ROOT = Path(__file__).resolve().parents[1]

TRAIN = """{
    "bundle_root": ".",
    "max_epochs": 1,
    "spatial_size": [96, 96, 96],
    "digest": {"_target_": "common.checks.config_digest"},
    "initialize": [
        {"_target_": "common.checks.check_overrides"}
    ],
    "run": ["$print('epochs', @max_epochs, 'digest', @digest)"]
}
"""


LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=WARNING
handlers=console
[handler_console]
class=StreamHandler
formatter=plain
args=(sys.stderr,)
[formatter_plain]
format=%(message)s
"""


def make_bundle(folder: Path, **configs: str) -> Path:
    files = {
        "LICENSE": "text\n",
        "configs/metadata.json": '{"version": "0.1.0", "description": "uses common.checks"}\n',
        "configs/train.json": TRAIN,
        "configs/tasks/skull.json": '{"max_epochs": 2}\n',
        "configs/logging.conf": LOGGING,
        "docs/README.md": "# toy\n",
        "eval/patient.nii.gz": "image",
        **{f"configs/{name}.json": text for name, text in configs.items()},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    net = torch.nn.Linear(2, 2)
    save_checkpoint(net.state_dict(), folder / "models" / "model.pt")
    save_encoder(net, folder / "models" / "encoder.safetensors", {"method": "MAE"})
    return folder


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "bundles" / "toy")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_takes_the_bundle_and_the_code_and_nothing_else(bundle, tmp_path):
    folder, archive = pack(bundle, tmp_path / "out")
    assert (folder.name, archive.name) == ("toy", "toy_v0.1.0.zip")
    found = names(folder)
    code = {name for name in found if name.startswith("scripts/common/")}
    assert found - code == {
        "LICENSE",
        "configs/logging.conf",
        "configs/metadata.json",
        "configs/tasks/skull.json",
        "configs/train.json",
        "docs/README.md",
        "scripts/__init__.py",
    }
    assert {name.removeprefix("scripts/common/") for name in code} == {
        "__init__.py",
        "checkpoint_file.py",
        "checks/__init__.py",
        "checks/console.py",
        "checks/overrides.py",
        "checks/refusals.py",
        "checks/renamed.py",
        "checks/running.py",
        "dicom.py",
        "doctor.py",  # which overrides.py imports, and so on
        "files.py",
        "fingerprint.py",
        "foreground.py",
        "grids.py",
        "json_files.py",
        "networks/__init__.py",
        "networks/foreign.py",
        "networks/slice_names.py",
        "nifti.py",
        "overlays.py",
        "peak_memory.py",
        "precision.py",
        "preparation.py",
        "requirements.txt",
        "transforms/__init__.py",
        "transforms/average_pool.py",
        "transforms/check_scan.py",
        "transforms/check_volume.py",
        "transforms/checked_readers.py",
        "transforms/dicom_reader.py",
        "transforms/domain_spacing.py",
        "transforms/load_volume.py",
        "transforms/nifti_reader.py",
        "transforms/resampling.py",
        "transforms/select_channel.py",
        "transforms/spacing.py",
        "volumes.py",
        "weights/__init__.py",
        "weights/adapt.py",
        "weights/convert.py",
        "weights/encoder_file.py",
        "weights/hub.py",
        "weights/images.py",
        "weights/inflate.py",
        "weights/kind.py",
        "weights/options.py",
        "weights/prepare.py",  # prepare_as, which overrides.py does, reads records of encoders and models
        "weights/published.json",
        "weights/published.py",  # rules of encoders that are known by name, which convert.py reads
        "weights/shipped.py",
        "weights/soundness.py",
        "weights/source.py",
    }
    assert [str(r) for r in doctor.requirements(folder / "scripts" / "common")] == [
        str(r) for r in doctor.requirements() if r.marker is None
    ]
    with zipfile.ZipFile(archive) as stream:
        assert {name.removeprefix("toy/") for name in stream.namelist()} == found


def test_same_input_same_bytes(bundle, tmp_path):
    _, first = pack(bundle, tmp_path / "first")
    for path in bundle.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (bundle / "LICENSE").chmod(0o600)
    _, second = pack(bundle, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_rewrites_targets_and_keeps_the_rest_as_written(bundle, tmp_path):
    folder, _ = pack(bundle, tmp_path / "out")
    expected = TRAIN.replace('"common.', '"scripts.common.').replace(
        '"initialize": [\n', '"initialize": [\n        {"_target_": "site.addsitedir", "sitedir": "@bundle_root"},\n'
    )
    assert (folder / "configs" / "train.json").read_text() == expected
    for name in ("configs/metadata.json", "configs/tasks/skull.json", "configs/logging.conf"):
        assert (folder / name).read_text() == (bundle / name).read_text()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"a": {"_target_": "common.checks.config_digest", "b": 1e-05}},
            {"a": {"_target_": "scripts.common.checks.config_digest", "b": 1e-05}},
        ),
        ({"a": {"_target_": "torch.nn.Linear"}}, {"a": {"_target_": "torch.nn.Linear"}}),
        ({"a": {"_target_": "uncommon.checks"}}, {"a": {"_target_": "uncommon.checks"}}),
        ({"f": "$@bundle_root + '/configs/common.json'"}, {"f": "$@bundle_root + '/configs/common.json'"}),
        ({"f": "common", "g": "in common."}, {"f": "common", "g": "in common."}),
        ({"f": {"_desc_": "see common.checks"}}, {"f": {"_desc_": "see common.checks"}}),
        ({"initialize": []}, {"initialize": []}),
        (
            {"initialize": ["$None"]},
            {"initialize": [{"_target_": "site.addsitedir", "sitedir": "@bundle_root"}, "$None"]},
        ),
        ({"+initialize": ["$None"]}, {"+initialize": ["$None"]}),
    ],
)
@pytest.mark.parametrize("indent", [None, 4])
def test_rewrite_config(config, expected, indent):
    assert json.loads(rewrite_config(json.dumps(config, indent=indent), "x.json")) == expected


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("$import common", "x.json: `a` refers to common in"),
        ("$from common import checks", "x.json: `a` refers to common in"),
        ("$common.checks.config_digest()", "x.json: `a` refers to common in"),
        ("$f('common.checks')", "x.json: `a` refers to common in"),
        ("common.checks", "x.json: `a` refers to common in"),
        (
            {"_target_": "common.nothing.Here"},
            "x.json: `a#_target_` names common.nothing.Here, and",
        ),
    ],
)
def test_refuses_what_it_cannot_rewrite(value, sentence):
    with pytest.raises(ValueError) as caught:
        rewrite_config(json.dumps({"a": value}), "x.json")
    assert str(caught.value).startswith(sentence)


NETS = '''"""Networks."""

from .large import Large, grow
from .small import Small

__all__ = ["Large", "Small", "grow"]
'''


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "common"
    modules = {
        "__init__": "",
        "nets/__init__": NETS,
        "nets/small": "from .. import tools\nclass Small: ...\n",
        "nets/large": "from ..tools import work\nclass Large: ...\ndef grow(): ...\n",
        "tools": "def work():\n    from .later import x\n    from .nets import Small\n",
        "later": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .never import Kind\nx = 1\n",
        "never": "Kind = int\n",
        "tables": "from pathlib import Path\nnames = Path(__file__).with_name('names.json')\n"
        "words = Path(__file__).with_name('words') / 'a.json'\n",
        "own/__init__": "from ..later import x\nfrom .part import y\nz = [x, y]\n",
        "own/part": "y = 2\n",
    }
    for name, text in modules.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    (folder / "words").mkdir()
    for name in ("names.json", "other.json", "words/a.json", "words/a.txt"):
        (folder / name).write_text("{}")
    return folder


NEEDED = {
    "common.nets.Small": "nets/__init__ nets/small tools later",
    "common.nets.small.Small": "nets/__init__ nets/small tools later",
    "common.nets.grow": "nets/__init__ nets/large nets/small tools later",
    "common.later.x": "later",
    "common.own.part.y": "own/__init__ own/part later",  # the package's own statements run, too
    "common.own.z": "own/__init__ own/part later",
}


@pytest.mark.parametrize("target", NEEDED)
def test_what_a_target_needs(package, target):
    files = package_files([target], package)
    assert set(files) == {f"{name}.py" for name in ["__init__", *NEEDED[target].split()]}
    whole = NETS if "nets/large.py" in files else '"""Networks."""\n\nfrom .small import Small\n\n__all__ = ["Small"]\n'
    assert files.get("nets/__init__.py", whole.encode()).decode() == whole


def test_tables_come_with_the_module_that_names_them(package):
    assert set(package_files(["common.tables.names"], package)) == {
        "__init__.py",
        "tables.py",
        "names.json",
        "words/a.json",
    }


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("common.nets.Huge", "common.nets has no Huge"),
        ("common.nothing", "common has no nothing"),
        ("common.nets.SMALL.Small", "common.nets has no SMALL"),
    ],
)
def test_targets_that_are_not_there(package, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        package_files([target], package)


def test_every_table_is_packed_with_some_module():
    code = {path.relative_to(doctor.PACKAGE_FOLDER) for path in doctor.PACKAGE_FOLDER.rglob("*.py")}
    files = package_files(".".join(("common", *path.with_suffix("").parts)).removesuffix(".__init__") for path in code)
    assert set(files) == {
        path.relative_to(doctor.PACKAGE_FOLDER).as_posix()
        for path in doctor.PACKAGE_FOLDER.rglob("*")
        if path.suffix in (".json", ".py")
    }
    for path in doctor.PACKAGE_FOLDER.rglob("*.py"):  # where nothing stays behind, nothing is cut
        assert files[path.relative_to(doctor.PACKAGE_FOLDER).as_posix()] == path.read_bytes()


@pytest.mark.parametrize("line", ["import common", "import os, common.data", "from common.data import x"])
def test_refuses_absolute_imports(package, line):
    (package / "x.py").write_text(f"import torch\n{line}\n")
    with pytest.raises(ValueError, match=r"common/x\.py, line 2: imports common by name"):
        package_files(["common.x"], package)


def test_accepts_relative_imports(package):
    (package / "x.py").write_text("from . import later\nfrom .tools import work\nimport commonmark\n")
    assert {"x.py", "later.py", "tools.py"} <= set(package_files(["common.x"], package))


def test_does_not_overwrite_unless_told(bundle, tmp_path):
    folder, archive = pack(bundle, tmp_path)
    (folder / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="pass --force"):
        pack(bundle, tmp_path)
    assert (folder / "mine.txt").exists()
    before = archive.read_bytes()
    pack(bundle, tmp_path, force=True)
    assert not (folder / "mine.txt").exists()
    assert archive.read_bytes() == before


def test_a_failure_leaves_nothing_behind(tmp_path):
    bundle = make_bundle(tmp_path / "toy", wrong='{"imports": ["$import common"]}')
    with pytest.raises(ValueError, match=r"configs/wrong\.json: `imports#0` refers to common"):
        pack(bundle, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_inside_and_by_address(bundle, tmp_path):
    model, encoder = bundle / "models" / "model.pt", bundle / "models" / "encoder.safetensors"
    folder, _ = pack(bundle, tmp_path / "out", [model], {str(encoder): "https://example.org/encoder.safetensors"})
    assert {name for name in names(folder) if name.startswith("models/")} == {"models/model.pt"}
    [entry] = ConfigParser.load_config_file(folder / "large_files.yml")["large_files"]
    assert entry == {
        "path": "models/encoder.safetensors",
        "url": "https://example.org/encoder.safetensors",
        "hash_val": hashlib.sha256(encoder.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }


def test_names_and_addresses_are_quoted(bundle, tmp_path):
    encoder = (bundle / "models" / "encoder.safetensors").rename(bundle / "models" / 'an "odd" \\name.safetensors')
    url = 'https://example.org/?x="1"#2'
    folder, _ = pack(bundle, tmp_path / "out", weight_urls={str(encoder): url})
    [entry] = ConfigParser.load_config_file(folder / "large_files.yml")["large_files"]
    assert (entry["path"], entry["url"]) == (f"models/{encoder.name}", url)


def test_a_config_that_is_no_json_is_named(bundle, tmp_path, capsys):
    (bundle / "configs" / "tasks" / "skull.json").write_text('{"max_epochs": }')
    assert main([str(bundle), "--output", str(tmp_path / "out")]) == 1
    assert "configs/tasks/skull.json cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["http://example.org/model.pt", "file:///home/me/model.pt", "/home/me/model.pt", "https://", "https://a/b c"]
)
def test_addresses_that_others_cannot_trust_are_refused(bundle, tmp_path, url, capsys):
    model = bundle / "models" / "model.pt"
    assert main([str(bundle), "--output", str(tmp_path / "out"), "--weights-url", f"{model}={url}"]) == 1
    said = capsys.readouterr().err
    assert f"model.pt={url}: give an address that begins with https://" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("weights", "error", "sentence"),
    [
        (["encoder.pt"], ValueError, r"encoder\.pt cannot be in models/"),
        (["missing.safetensors"], FileNotFoundError, r"no file of weights .*missing\.safetensors"),
        (["model.pt", "old/model.pt"], ValueError, "two files of weights are called model.pt"),
    ],
)
def test_refuses_weights(bundle, tmp_path, weights, error, sentence):
    (tmp_path / "old").mkdir()
    for name in ("encoder.pt", "model.pt", "old/model.pt"):
        write_weights(tmp_path / name)
    with pytest.raises(error, match=sentence):
        pack(bundle, tmp_path / "out", [tmp_path / name for name in weights])


def write_weights(path: Path) -> None:
    net = torch.nn.Linear(8, 8)
    if path.suffix == ".pt":
        save_checkpoint({"model": net.state_dict()}, path)
    elif path.suffix == ".safetensors":
        save_encoder(net, path, {"method": "MAE"})
    elif path.suffix == ".ts":
        torch.jit.script(net).save(str(path))
    else:
        pytest.importorskip("onnx")
        torch.onnx.export(net, (torch.zeros(1, 8),), str(path), dynamo=False)


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def as_page(content: bytes) -> bytes:
    return b"<!DOCTYPE html><html>404</html>"


def as_pointer(content: bytes) -> bytes:
    """What a clone without Git LFS holds."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["model.pt", "encoder.safetensors", "model.ts", "model.onnx"])
def test_weights_are_read_before_they_are_packed(bundle, tmp_path, name):
    path = tmp_path / name
    write_weights(path)
    whole = path.read_bytes()
    assert f"models/{name}" in names(pack(bundle, tmp_path / "sound", [path])[0])
    for spoil in (cut, as_page, as_pointer):
        path.write_bytes(spoil(whole))
        for given in ({"weights": [path]}, {"weight_urls": {str(path): "https://example.org/x"}}):
            with pytest.raises(ValueError, match=f"{path} .*readable|{path} .*damaged") as raised:
                pack(bundle, tmp_path / "out", **given)
            assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.pt", "encoder.safetensors", "model.ts"])
def test_a_flipped_bit_is_not_packed(bundle, tmp_path, name):
    path = tmp_path / name
    torch.manual_seed(0)
    write_weights(path)
    content = bytearray(path.read_bytes())
    torch.manual_seed(0)
    content[content.index(torch.nn.Linear(8, 8).weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*damaged"):
        pack(bundle, tmp_path / "out", [path])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("model.pt", [1, 2], "holds no state dict: give a model.pt"),
        ("model.pt", {"epoch": 3}, "holds no state dict"),
        ("model.bin", {"a": torch.zeros(2)}, r"a name of weights: give \.pt, \.safetensors, \.ts or \.onnx"),
    ],
)
def test_what_is_no_state_dict_is_not_packed(bundle, tmp_path, name, content, sentence):
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} .*{sentence}"):
        pack(bundle, tmp_path / "out", [tmp_path / name])


def test_an_encoder_by_name_is_known_by_it_in_the_pack(bundle, tmp_path, monkeypatch):
    beside = shipped.FOLDER.relative_to(Path(shipped.__file__).parent)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "encoders")
    save_encoder(torch.nn.Conv3d(1, 2, 3), tmp_path / "encoders" / "head.safetensors", {"method": "a test"})
    (tmp_path / "encoders" / "head.md").write_text("made by a test")
    folder, _ = pack(bundle, tmp_path / "packed", weights=[Path("head")])
    packed = folder / "scripts" / "common" / "weights" / beside / "head.safetensors"
    assert packed.read_bytes() == (tmp_path / "encoders" / "head.safetensors").read_bytes()
    assert not (folder / "models").exists() and (folder / "docs" / "head.md").read_text() == "made by a test"
    with pytest.raises(FileNotFoundError, match=r"no encoder of this name is included \(only head\)"):
        pack(bundle, tmp_path / "other", weights=[Path("hand")])


@pytest.mark.parametrize("part", ["LICENSE", "configs/metadata.json"])
def test_incomplete_bundle(bundle, tmp_path, part, capsys):
    (bundle / part).unlink()
    assert main([str(bundle), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.strip().endswith(f"is not a complete bundle: it has no {part}.")


def test_command_line(bundle, tmp_path, capsys):
    weights = str(bundle / "models" / "model.pt")
    assert main([str(bundle), "--output", str(tmp_path), "--weights-url", f"{weights}=https://a.org/?x=1"]) == 0
    assert "toy_v0.1.0.zip" in capsys.readouterr().out
    assert 'url: "https://a.org/?x=1"' in (tmp_path / "toy" / "large_files.yml").read_text()


# Runs two toy bundles by MONAI's command in one process in which the collection's `common` cannot be imported. The
# real ones run so in tests/bundles/test_ways.py.
RUN_ALL = """
import importlib, os, pkgutil, runpy, sys

def run(bundle, *overrides):
    file = os.path.join(bundle, "configs", "train.json")
    sys.argv = ["", "run", "--config_file", file, "--bundle_root", bundle, *overrides]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)

def unload():  # as MONAI Label does between bundles
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]

first, second = sys.argv[1:]
run(first, "--max_epochs", "3")
checks = sys.modules["scripts.common.checks"]
assert checks.__file__.startswith(first), checks.__file__
run(second)  # without unloading: the same code serves both
unload()
sys.path.insert(0, second)
run(second, "--max_epochs", "3")
assert sys.modules["scripts.common.checks"].__file__.startswith(second)
from scripts import common
modules = [module.name for module in pkgutil.walk_packages(common.__path__, "scripts.common.")]
for name in modules:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print("modules", len(modules))
run(second, "--epoch", "3")
"""


@pytest.mark.slow
def test_packed_bundles_in_one_foreign_process(bundle, without_common, quick_start, tmp_path):
    """Two toys, which share code and then do not."""
    packed = []
    for source in (bundle, make_bundle(tmp_path / "bundles" / "other")):
        _, archive = pack(source, tmp_path / "packed")
        with zipfile.ZipFile(archive) as stream:
            stream.extractall(tmp_path / "unpacked")
        packed.append(str(tmp_path / "unpacked" / source.name))
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", without_common + RUN_ALL, *packed],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": quick_start, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("epochs", "modules"))]
    assert [line.split()[:2] for line in lines[:3]] == [["epochs", "3"], ["epochs", "1"], ["epochs", "3"]], done.stderr
    digests = [line.split()[3] for line in lines[:3]]
    assert digests[0] == digests[2] != digests[1]
    assert len(digests[0]) == 64
    assert int(lines[3].split()[1]) >= 2, done.stderr
    assert done.returncode == 1
    assert done.stderr.strip().endswith("--epoch names no id of train.json; did you mean --max_epochs?")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_every_folder_of_code_is_a_package():
    """One without ``__init__.py`` would be missing from an installed package."""
    folders = {path.parent for path in doctor.PACKAGE_FOLDER.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


BASE = {
    "bundle_root": ".",
    "task": "skull",
    "in_channels": 1,
    "num_classes": 2,
    "roi_size": [8, 8, 8],
    "network_def": {"_target_": "UNet", "in_channels": "@in_channels", "out_channels": "@num_classes"},
    "handlers": [{"_target_": "StatsHandler"}],
    "run": ["$print(@roi_size, @network_def, @task)"],
}


LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}


@pytest.mark.parametrize(
    ("overlays", "changed"),
    [
        ([{"roi_size": [4, 4, 4]}, {"roi_size": [2, 2, 2]}], {"roi_size": [2, 2, 2]}),
        ([{"network_def#in_channels": 3}], {"network_def": BASE["network_def"] | {"in_channels": 3}}),
        ([{"network_def::in_channels": 3}], {"network_def": BASE["network_def"] | {"in_channels": 3}}),
        ([{"+handlers": ["x"]}], {"handlers": [*BASE["handlers"], "x"]}),
        ([{"+network_def": {"bias": True}}], {"network_def": BASE["network_def"] | {"bias": True}}),
        # what this base file lacks, and what only such things read
        ([{"pretext": {"_target_": "x", "ratio": "@ratio"}, "ratio": 0.5}], {}),
        ([{"train#trainer": 1, "+train#handlers": ["x"]}], {}),
        ([{"width": 3, "roi_size": ["@width"] * 3}], {"roi_size": ["@width"] * 3, "width": 3}),
    ],
)
def test_overlays_are_applied_as_monai_does(overlays, changed, tmp_path):
    base = json.loads(json.dumps(BASE))
    assert apply_overlays(base, overlays) == BASE | changed
    assert base == BASE
    known = all(key.lstrip("+").replace("::", "#").split("#")[0] in BASE for one in overlays for key in one)
    if known:
        files = [BASE, *overlays]
        for number, content in enumerate(files):
            (tmp_path / f"{number}.json").write_text(json.dumps(content))
        paths = [str(tmp_path / f"{number}.json") for number in range(len(files))]
        assert ConfigParser.load_config_files(paths) == BASE | changed


@pytest.fixture
def served(bundle):
    """A bundle with inference, evaluation and a description of the network's data."""
    configs = bundle / "configs"
    (configs / "inference.json").write_text(json.dumps(BASE))
    (configs / "evaluate.json").write_text(json.dumps({"metrics": ["dice"], "train#handlers": [1]}))
    image = {"num_channels": 1, "spatial_shape": [8, 8, 8], "channel_def": {"0": "image"}}
    pred = {"num_channels": 2, "spatial_shape": [8, 8, 8], "channel_def": {"0": "background", "1": "brain"}}
    formats = {"inputs": {"image": image}, "outputs": {"pred": pred}}
    metadata = {
        "version": "0.1.0",
        "image_classes": "single-channel T1-weighted MRI",
        "label_classes": "0 background, 1 brain",
        "pred_classes": "2 channels, one per class, background first",
        "network_data_format": formats,
    }
    (configs / "metadata.json").write_text(json.dumps(metadata))
    return bundle


@pytest.mark.parametrize("spelling", ["tasks/tissue.json", "['configs/tasks/tissue.json']", "tasks/tissue.json,"])
def test_the_packed_files_have_the_overlays(served, tmp_path, capsys, spelling):
    overlay = {
        "task": "structures4",
        "num_classes": 5,
        "metrics": ["hd95"],
        "+train#handlers": [2],
        "roi_size": [4, 4, 4],
    }
    (served / "configs" / "tasks" / "tissue.json").write_text(json.dumps(overlay))
    arguments = [str(served), "--output", str(tmp_path), "--name", "tissue"]
    arguments += ["--config_file", spelling, "--override", "in_channels=2", "max_epochs=7", "digest=null"]
    assert main(arguments) == 0
    configs = tmp_path / "tissue" / "configs"
    assert (tmp_path / "tissue_v0.1.0.zip").is_file()
    inference, train = (json.loads((configs / f"{name}.json").read_text()) for name in ("inference", "train"))
    changes = {"task": "structures4", "num_classes": 5, "in_channels": 2, "roi_size": [4, 4, 4]}
    assert inference == BASE | changes
    assert (train["max_epochs"], train["digest"]) == (7, None) and "task" not in train
    evaluate = json.loads((configs / "evaluate.json").read_text())
    assert evaluate == {"metrics": ["hd95"], "train#handlers": [1, 2]}
    metadata = json.loads((configs / "metadata.json").read_text())
    tissues = "1 cortex, 2 subcortical grey matter, 3 white matter, 4 CSF"
    assert metadata["label_classes"] == f"0 background, {tissues}"
    assert metadata["pred_classes"] == "5 channels, one per class, background first"
    assert metadata["image_classes"] == "2-channel image"
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"] == {
        "num_channels": 2,
        "spatial_shape": [4, 4, 4],
        "channel_def": {"0": "image 0", "1": "image 1"},
    }
    pred = formats["outputs"]["pred"]
    assert pred["num_channels"] == 5 and pred["spatial_shape"] == [4, 4, 4]
    assert pred["channel_def"]["0"] == "background" and pred["channel_def"]["1"] == "cortex"
    # A task of the user's own has numbers for names.
    overlay |= {"task": "mine", "num_classes": 3}
    (served / "configs" / "tasks" / "tissue.json").write_text(json.dumps(overlay))
    assert main([*arguments, "--force"]) == 0
    formats = json.loads((configs / "metadata.json").read_text())["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "class 1", "2": "class 2"}


PREPARED = BASE | {
    "accept_preparation": False,
    "orientation": "RAS",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Orientationd", "keys": "image", "axcodes": "@orientation", "labels": None}],
    },
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 8},
    "run": ["$print(@roi_size, @network_def, @task, @preprocessing, @accept_preparation)"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["model.pt", "model.ts", "model.onnx"])
def test_a_model_of_other_images_is_not_packed(served, tmp_path, capsys, caplog, name):
    (served / "configs" / "inference.json").write_text(json.dumps(PREPARED))
    record = {"preparation": preparation_record(Orientationd("image", "LPS", labels=None), task="skull")}
    save_checkpoint({"model": torch.nn.Linear(8, 8).state_dict()}, tmp_path / "model.pt", record)
    if name != "model.pt":
        write_weights(tmp_path / name)
        add_model_record(str(tmp_path / "model.pt"), str(tmp_path / name))

    def packed(*arguments):
        given = [str(served), "--output", str(tmp_path / "out"), "--force", "--weights", str(tmp_path / name)]
        return main([*given, *arguments]), capsys.readouterr().err

    for arguments, sentence in (
        ((), "made with orientation LPS, the images have RAS (id `orientation`)"),
        (("--override", "orientation=LPS", "task=tissue"), "made with task skull, the task has tissue"),
    ):
        status, said = packed(*arguments)
        assert status == 1 and sentence in said and f"{tmp_path / name} was trained on images" in said
        assert len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert packed("--override", "orientation=LPS")[0] == 0
    assert packed("--accept_preparation", "True")[0] == 0
    assert "made with orientation LPS" in caplog.text
    config = json.loads((tmp_path / "out" / "toy" / "configs" / "inference.json").read_text())
    assert config["accept_preparation"] is True and config["orientation"] == "RAS"


def test_weights_of_another_network_are_not_packed(served, tmp_path, capsys):
    """A model goes into the network of inference, an encoder file into that which fine-tuning loads it into."""
    (served / "configs" / "inference.json").write_text(json.dumps(BASE | {"network_def": LINEAR}))
    loads = {"_target_": "common.weights.load_encoder", "encoder": "@encoder", "path": None, "held_out": "@no_data"}
    train = {"network_def": LINEAR, "encoder": "@network_def", "initialize": [loads], "run": [], "no_data": "$1 / 0"}
    (served / "configs" / "train.json").write_text(json.dumps(train))
    for name in ("model.pt", "encoder.safetensors"):
        given = [str(served), "--output", str(tmp_path), "--force", "--weights", str(served / "models" / name)]
        assert main(given) == 0
        assert main([*given, "--override", "network_def#out_features=3"]) == 1
        said = capsys.readouterr().err
        assert f"{name} does not fit the network of the pack: " in said and "--config_file" in said
        assert len(said.splitlines()) == 1


def test_a_whole_network_by_name_is_compared_as_a_model(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "encoders")
    record = {
        "method": "a test",
        "preparation": preparation_record(Orientationd("image", "RAS", labels=None), task="skull"),
    }
    save_encoder(torch.nn.Linear(8, 8), tmp_path / "encoders" / "head.safetensors", record)
    (served / "configs" / "inference.json").write_text(json.dumps(PREPARED))
    given = [str(served), "--output", str(tmp_path / "out"), "--force", "--weights", "head"]
    assert main(given) == 0
    readme = (tmp_path / "out" / "toy" / "docs" / "README.md").read_text()
    assert "configs/inference.json --model_path head   # a folder of images\n" in readme
    for override, sentence in (
        ("network_def#out_features=3", "head.safetensors does not fit the network of the pack: "),
        ("orientation=LPS", "made with orientation RAS, the images have LPS"),
    ):
        assert main([*given, "--override", override]) == 1
        assert sentence in capsys.readouterr().err
    assert main([*given, "--override", "orientation=LPS", "task=tissue"]) == 0  # an encoder alone: fine-tuning judges


def test_inference_keeps_its_datalist_unless_told():
    """Where an overlay names the list of its data set, a folder of images would not be enough."""
    bundle = ROOT / "bundles" / "medical_transformer"
    files = [Path("tasks/structures4.json"), Path("datasets/sample.json")]
    packed = changed_configs(bundle, files, {})
    inference, train = (json.loads(packed[f"{name}.json"]) for name in ("inference", "train"))
    assert inference["datalist"] == "@dataset_dir" and "sample_lists" not in inference
    assert "@sample_lists" in train["datalist"] and "sample_lists" in train
    packed = changed_configs(bundle, files, {"datalist": "/data/list.json"})
    assert {json.loads(packed[f"{name}.json"])["datalist"] for name in ("inference", "train")} == {"/data/list.json"}


def test_a_schedule_is_written_into_fine_tuning_alone():
    bundle = ROOT / "bundles" / "ssl3d"
    files = [Path("datasets/sample.json"), Path("schedules/frozen.json")]
    packed, without = (changed_configs(bundle, some, {}) for some in (files, files[:1]))
    train = json.loads(packed.pop("train.json"))
    assert train["optimizer"]["params"]["_target_"] == "common.optimizers.parameter_groups"
    assert train["train"]["handlers"][-1]["_target_"] == "common.handlers.FrozenEncoder" and train["rate_factor"] == 0.1
    without.pop("train.json")
    assert packed == without


def test_a_pack_names_no_data_of_this_machine(tmp_path):
    bundle = ROOT / "bundles" / "ssl3d"
    mine = tmp_path / "plan.json"
    mine.write_text(json.dumps({"dataset_dir": "/home/me", "datalist": "/home/me/list.json", "batch_size": 1}))
    packed = changed_configs(bundle, [mine], {})
    assert "/home/me" not in "".join(packed.values())
    for name in ("train", "pretrain"):
        made, base = json.loads(packed[f"{name}.json"]), json.loads((bundle / "configs" / f"{name}.json").read_text())
        assert made["batch_size"] == 1
        assert {key: made[key] for key in ("dataset_dir", "datalist")} == {
            key: base[key] for key in ("dataset_dir", "datalist")
        }
    mine.write_text(json.dumps({"datalist": "$@dataset_dir + '/mine.json'"}))  # goes with the data
    assert json.loads(changed_configs(bundle, [mine], {})["train.json"])["datalist"] == "$@dataset_dir + '/mine.json'"


def test_the_packed_readme_says_what_it_is(served, tmp_path):
    (served / "configs" / "inference.json").write_text(
        json.dumps(BASE | {"dataset_dir": "/d", "datalist": "@dataset_dir", "network_def": LINEAR})
    )
    elsewhere = tmp_path / "private" / "mine.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps({"roi_size": [4, 4, 4], "datalist": "/d/list.json"}))

    def readme(*arguments: str) -> str:
        assert main([str(served), "--output", str(tmp_path / "out"), "--force", *arguments]) == 0
        assert (tmp_path / "out" / "toy" / "scripts" / "common" / "requirements.txt").is_file()
        text = (tmp_path / "out" / "toy" / "docs" / "README.md").read_text()
        assert text.startswith("# toy\n\nPacked by `common.pack` from `toy` 0.1.0 of MONAI Transfer Bundles")
        assert "\npip install -r scripts/common/requirements.txt\n" in text
        assert "\npython -m monai.bundle run --config_file configs/train.json\n" in text
        return text

    inference = "\npython -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER"
    text = readme()
    assert (
        "Bundles. In" in text
        and "already included" not in text
        and f"{inference}   # " in text
        and "no weights" in text
    )
    weights = str(served / "models" / "model.pt")
    files = ["--config_file", "tasks/skull.json", str(elsewhere)]
    text = readme(*files, "--override", "task=a b", "in_channels=2", "--weights", weights)
    assert ", with `--config_file tasks/skull.json mine.json --override 'task=a b' in_channels=2`. In" in text
    assert (
        f"{inference}   # " in text
        and "already included" in text
        and "no weights" not in text
        and "private" not in text
    )
    text = readme(*files, "--override", "datalist=/d/new.json", "--weights-url", f"{weights}=https://a.org/model.pt")
    assert f"{inference} --datalist FOLDER   # " in text and "download_large_files" in text


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "bundles").iterdir()))
def test_metadata_says_one_thing(name):
    """The sentences on classes agree with the names and counts beside them, as they are and after an overlay."""
    bundle = ROOT / "bundles" / name
    written = json.loads((bundle / "configs" / "metadata.json").read_text())
    small = json.loads((bundle / "small.json").read_text())["files"]
    files = [Path(file) for file in (*small, *(["tasks/skull.json"] if name == "pretrain_once" else []))]
    texts = changed_configs(bundle, files, {})
    packed, inference = json.loads(texts["metadata.json"]), json.loads(texts["inference.json"])
    tissues = "1 cortex, 2 subcortical grey matter, 3 white matter, 4 CSF"
    assert packed["label_classes"] == f"0 background, {'1 brain' if name == 'pretrain_once' else tissues}"
    for metadata in (written, packed):
        pred = metadata["network_data_format"]["outputs"]["pred"]
        classes = ", ".join(f"{index} {of_it}" for index, of_it in pred["channel_def"].items())
        assert metadata["label_classes"] == classes
        assert metadata["pred_classes"].startswith(f"{pred['num_channels']} channels")
    base = json.loads((bundle / "configs" / "inference.json").read_text())
    changed = any(base.get(key) != inference.get(key) for key in ("in_channels", "intensity", "intensity_range"))
    assert packed["image_classes"] == ("single-channel image" if changed else written["image_classes"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config_file", "tasks/no.json"], "No config file tasks/no.json"),
        (["--override", "epochs=3"], "--override epochs sets `epochs`, but no base file of toy has such an id"),
        (["--override", "warmup_steps=3"], "`warmup_steps` in --override warmup_steps was renamed: it is `warmup` now"),
        (["--override", "train#handlers#0=3"], "`train#handlers#0` changes a part of what evaluate.json sets"),
        (["--name", "a/b"], "--name 'a/b': use letters"),
    ],
)
def test_refuses_overlays_that_do_nothing(served, tmp_path, capsys, arguments, sentence):
    train = json.loads((served / "configs" / "train.json").read_text())
    (served / "configs" / "train.json").write_text(json.dumps(train | {"warmup": 0, "train": {"handlers": [0]}}))
    assert main([str(served), "--output", str(tmp_path / "out"), *arguments]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
