"""Every bundle through MONAI Label's own tasks, in this process, without a server: train, infer, and what goes wrong.

Label as a whole is not among the requirements, since it brings a hundred packages and an older numpy. What its tasks
need is little, and `make` installs it (tests/monai_label.txt); without it these tests are skipped. `make label-demo`
runs the server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export

from common.checks import first_cause, own_sentence
from common.pack import pack

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir())
REQUEST = {"device": "cpu", "max_epochs": 1, "val_split": 0.34, "tracking": "None"}
# What clients send beside, and what Label adds.
REQUEST |= {"multi_gpu": True, "gpus": "all", "bundle_path": "/nowhere", "tracking_uri": "", "note": "5 $ @home"}


@pytest.fixture(scope="module")
def tasks():
    """MONAI Label's two classes of tasks."""
    if importlib.util.find_spec("monailabel") is None:
        pytest.skip("MONAI Label is not installed: pip install --no-deps -r tests/monai_label.txt")
    # Label imports two functions of torchvision, called for 2-D images only, and PyPI's torchvision does not load
    # beside a torch without CUDA: "operator torchvision::nms does not exist".
    made = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.utils")}
    vars(made["torchvision.utils"]).update(make_grid=None, save_image=None)
    sys.modules.update(made)
    try:
        from monailabel.tasks.infer.bundle import BundleInferTask
        from monailabel.tasks.train.bundle import BundleTrainTask
    finally:
        for name in made:
            del sys.modules[name]
    return BundleInferTask, BundleTrainTask


@pytest.fixture(scope="module")
def server(unchanged):
    """Around a request: put back what it changes in the process, which are the log, torch and the bundle's code."""

    @contextlib.contextmanager
    def serve() -> Iterator[None]:
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        try:
            with unchanged():
                yield
        finally:
            root.setLevel(level)
            root.handlers[:] = handlers
            for name in [name for name in list(sys.modules) if name.split(".")[0] == "scripts"]:
                del sys.modules[name]

    return serve


class Study:
    """As much of a datastore as training asks for."""

    def __init__(self, *items: dict[str, str]) -> None:
        self.items = items

    def datalist(self) -> list[dict[str, str]]:
        return list(self.items)


@pytest.fixture(scope="module", params=BUNDLES)
def packed(request, small, tmp_path_factory) -> Path:
    """A bundle without weights, as it is put under the app's `model/`."""
    files, values, *_ = small[request.param]
    folder, _ = pack(
        ROOT / "bundles" / request.param,
        tmp_path_factory.mktemp("model"),
        config_file=[Path(name) for name in files],
        override={"dataset_dir": "/workspace/data", "label_scheme": "task", **values},
    )
    return folder


@pytest.fixture(scope="module")
def study(cohort) -> list[dict[str, str]]:
    """The labelled scans of the sample; its tissues are numbered as the task's classes are."""
    items = json.loads((cohort / "structures4.json").read_text())["training"]
    return [{key: str(cohort / item[key]) for key in ("image", "label")} for item in items]


@pytest.fixture(scope="module")
def train(tasks, server, study):
    def run(folder: Path, items: list[dict[str, str]] = study, **values) -> None:
        with server():
            task = tasks[1](str(folder), {})
            assert task.is_valid()
            task(REQUEST | {"model": folder.name, **values}, Study(*items))

    return run


@pytest.fixture(scope="module")
def served(packed, train, tasks, server, tmp_path_factory) -> Path:
    """The bundle after a first training through Label."""
    with server():
        assert not tasks[0](str(packed), {}).is_valid()  # Label offers no inference before there are weights
    train(packed)
    return packed


@pytest.fixture(scope="module")
def infer(tasks, server):
    """Label's answer for an image: the path of its mask, and what it says beside."""

    def run(folder: Path, image: str | Path) -> tuple[str, dict]:
        with server():
            task = tasks[0](str(folder), {"preload": "false"})
            assert task.is_valid()
            return task({"model": folder.name, "image": str(image), "device": "cpu"})

    return run


@pytest.fixture
def masks(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files, where Label writes a mask before it sends it."""
    folder = tmp_path / "masks"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def own_inference(server, folder: Path, image: Path, output: Path) -> nib.Nifti1Image:
    with server():
        sys.path.insert(0, str(folder))
        workflow = ConfigWorkflow(
            config_file=str(folder / "configs" / "inference.json"),
            meta_file=str(folder / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="inference",
            bundle_root=str(folder),
            dataset_dir=str(image.parent),
            datalist=str(image),
            output_dir=str(output),
            device="cpu",
            amp=False,  # as Label computes
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    [written] = output.rglob("*_seg.nii.gz")
    return nib.load(written)


@pytest.mark.way("Label train")
def test_training_writes_the_weights_and_goes_on_from_them(served, train, caplog):
    model = served / "models" / "model.pt"
    before = model.read_bytes()
    assert [path.name for path in model.parent.glob("*.pt")] == ["model.pt"]  # Label would take a shorter name
    with caplog.at_level("INFO"):
        train(served)
    assert f"Add Checkpoint Loader for Path: {model}" in caplog.text
    assert model.read_bytes() != before


@pytest.mark.slow_unless(lambda packed: packed == "pretrain_once")
@pytest.mark.parametrize("values", [{"max_epochs": "1"}, {"device": "nonsense"}], ids=str)
def test_values_that_are_no_values_change_nothing(served, train, values):
    """Label before 0.8.8 evaluates what begins with `$` before a bundle sees it; the rest is data or an error."""
    model = served / "models" / "model.pt"
    before = model.read_bytes()
    with pytest.raises(Exception, match=r"max_epochs|'<'|'>='|not supported|device|nonsense"):
        train(served, **values)
    assert model.read_bytes() == before


@pytest.mark.way("Label infer")
def test_inference_gives_the_voxels_of_inference_json(served, infer, server, study, masks, tmp_path):
    """Of a scan with other axes than the bundle's, and turned against them."""
    image = nib.load(study[0]["image"])
    axes = [nib.orientations.axcodes2ornt(codes) for codes in ("RAS", "LIP")]
    image = image.as_reoriented(nib.orientations.ornt_transform(*axes))
    angle, turn = np.deg2rad(12), np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
    path = tmp_path / "study" / "scan.nii.gz"
    path.parent.mkdir()
    nib.save(image, path)
    file, answer = infer(served, path)
    assert [str(written) for written in masks.iterdir()] == [file]
    mask, expected = nib.load(file), own_inference(server, served, path, tmp_path / "out")
    assert mask.shape == expected.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-3)
    ours, theirs = np.asarray(mask.dataobj), np.asarray(expected.dataobj)
    assert np.array_equal(ours, theirs)
    assert len(np.unique(ours)) > 1, "a mask of one class shows nothing"
    names = [name for name, _ in sorted(answer["label_names"].items(), key=lambda item: item[1])]
    assert names[:3] == ["cortex", "subcortical grey matter", "white matter"] and len(names) == 4


def sentence(request: Callable, *arguments) -> str:
    """What an error says: the message itself, or, of errors of MONAI's config system, what they were raised from."""
    with pytest.raises(Exception) as caught:
        request(*arguments)
    return own_sentence(caught.value) or f"{caught.value} {first_cause(caught.value)}"


@pytest.mark.way("bad files refused")
def test_images_that_it_cannot_use(served, infer, study, masks, tmp_path):
    """An error that names the file or says what is wrong with it, and no mask."""
    assert f"{tmp_path}/missing.nii.gz does not exist" in sentence(infer, served, tmp_path / "missing.nii.gz")
    assert "The image that was asked for does not exist" in sentence(infer, served, "")
    (tmp_path / "empty.nii.gz").touch()
    assert f"{tmp_path}/empty.nii.gz is empty" in sentence(infer, served, tmp_path / "empty.nii.gz")
    image = nib.load(study[0]["image"])
    two = nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine)
    nib.save(two, tmp_path / "two.nii.gz")
    text = sentence(infer, served, tmp_path / "two.nii.gz")
    assert f"{tmp_path}/two.nii.gz has 2 channels, but the network takes 1" in text
    assert list(masks.iterdir()) == []


@pytest.mark.way("bad files refused")
def test_weights_of_another_network(served, infer, train, study, masks, tmp_path):
    """Label loads what fits and goes on with noise; the bundles' networks refuse."""
    folder = tmp_path / served.name
    shutil.copytree(served, folder)
    model = folder / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    first = next(iter(state.values()))
    # With all its names: MONAI's DynUNet has two for a tensor, and one fills both.
    renamed = {name for name, tensor in state.items() if tensor.data_ptr() == first.data_ptr()}
    torch.save({("other." if name in renamed else "") + name: tensor for name, tensor in state.items()}, model)
    before = model.read_bytes()
    expected = f"belong to another network: {len(state) - len(renamed)} of {len(state)} tensors"
    assert expected in sentence(infer, folder, study[0]["image"])
    assert list(masks.iterdir()) == []
    assert expected in sentence(train, folder)
    assert model.read_bytes() == before


@pytest.mark.way("bad files refused")
def test_weights_of_other_images(served, infer, study, masks, tmp_path):
    """Label runs no handlers: the network itself compares, by what the state dict notes."""
    folder = tmp_path / served.name
    shutil.copytree(served, folder)
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    made, content["orientation"] = content["orientation"], "LPI"
    config.write_text(json.dumps(content))
    expected = f"made with orientation {made}, the images have LPI (id `orientation`)"
    assert expected in sentence(infer, folder, study[0]["image"])
    assert list(masks.iterdir()) == []


@pytest.mark.way("bad files refused")
def test_a_mask_with_other_labels_is_not_learnt(served, train, study, tmp_path):
    model = served / "models" / "model.pt"
    before = model.read_bytes()
    label = nib.load(study[0]["label"])
    wrong = np.asarray(label.dataobj).astype(np.uint8)
    wrong[wrong == 1] = 77
    nib.save(nib.Nifti1Image(wrong, label.affine), tmp_path / "wrong.nii.gz")
    items = [{"image": study[0]["image"], "label": str(tmp_path / "wrong.nii.gz")}, study[1]]
    text = sentence(train, served, items)
    assert f"{tmp_path}/wrong.nii.gz" in text and "77" in text
    assert model.read_bytes() == before


def test_a_traced_net_serves_without_weights(infer, small, small_files, study, tmp_path):
    """`models/model.ts` in place of `model.pt`: Label takes the net from it, whatever `inference.json` names."""
    files, values, window, *_ = small["pretrain_once"]
    folder, _ = pack(
        ROOT / "bundles" / "pretrain_once",
        tmp_path,
        config_file=[Path(name) for name in files],
        override={"dataset_dir": "/workspace/data", "label_scheme": "task", **values},
    )
    configs = ROOT / "bundles" / "pretrain_once" / "configs"
    files = [str(configs / name) for name in ("inference.json", *small_files["pretrain_once"])]
    parser = ConfigParser()
    parser.read_config(files)
    net = parser.get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    weights = folder / "models" / "model.pt"
    weights.parent.mkdir(exist_ok=True)
    torch.save(net.state_dict(), weights)
    expected = np.asarray(nib.load(infer(folder, study[0]["image"])[0]).dataobj)
    ckpt_export(
        net_id="network_def",
        filepath=str(weights.with_suffix(".ts")),
        ckpt_file=str(weights),
        meta_file=str(configs / "metadata.json"),
        config_file=files,
        use_trace=True,
        input_shape=[1, *window],
    )
    weights.unlink()
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["segmentation_net"] = {"_target_": "nowhere.Net"}
    config.write_text(json.dumps(content))
    mask = np.asarray(nib.load(infer(folder, study[0]["image"])[0]).dataobj)
    assert np.array_equal(mask, expected) and len(np.unique(mask)) > 2
