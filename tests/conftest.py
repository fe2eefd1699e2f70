"""What tests of several folders share: a tiny cohort, tiny networks, and bundle runs in this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent

# The files that take longest, first, so that the workers of `make test`, which get a file at a time, end together.
LONG = (
    "test_ssl3d.py",
    "test_compare.py",
    "test_pipeline.py",
    "test_notebook.py",
    "test_ways.py",
    "test_distributed.py",
    "test_execute.py",
    "test_monai_label.py",
    "test_resume.py",
    "test_kinds.py",
    "test_medical_transformer.py",
    "test_schedules.py",
    "test_whole_batch.py",
    "test_warm_start.py",
    "test_contributing.py",
    "test_simtrot.py",
    "test_convert.py",
    "test_contract.py",
    "test_exports.py",
    "test_sample.py",
    "test_errors.py",
    "test_med3d.py",
    "test_dicom.py",
    "test_pack.py",
    "test_pretrain_once.py",
)

# As `datasets/sample.json`, but coarser. Unequal axes, so that a mistaken axis shows; crops smaller than the image, so
# that windows slide.
TINY = {
    "datalist": "$@dataset_dir + '/' + @task + '.json'",
    "label_scheme": "oasis_seg4",
    "spacing": [4.0, 4.0, 4.0],
    "num_workers": 0,
    "batch_size": 2,
    "crops_per_volume": 1,
    "max_epochs": 2,
    "learning_rate": 0.003,
}
NETWORKS = {
    "unetr": {
        "image_size": [40, 48, 40],
        "roi_size": [32, 48, 32],
        "segmentation_net": {
            "_target_": "common.networks.UNETR",
            "in_channels": 1,
            "out_channels": "@num_classes",
            "img_size": "@roi_size",
            "num_layers": 4,
            "feature_size": 4,
            "hidden_size": 24,
            "mlp_dim": 48,
            "num_heads": 2,
            "qkv_bias": True,
        },
        "encoder": {"_target_": "common.networks.ViTEncoder", "vit": "$@segmentation_net.vit"},
        "pretext": {
            "_target_": "common.pretexts.MAE",
            "encoder": "@encoder",
            "img_size": "@roi_size",
            "mask_ratio": 0.75,
            "decoder_hidden_size": 16,
            "decoder_num_layers": 1,
            "decoder_num_heads": 2,
        },
        "pretext_loss": {"_target_": "common.losses.MaskedReconstructionLoss"},
    },
    # Swin UNETR's instance norms cannot train on fewer than 64 voxels per axis; the small window saves memory and time.
    "swin_unetr": {
        "image_size": [64, 64, 64],
        "roi_size": [64, 64, 64],
        "segmentation_net": {
            "_target_": "SwinUNETR",
            "in_channels": 1,
            "out_channels": "@num_classes",
            "feature_size": 12,
            "depths": [1, 1, 1, 1],
            "window_size": 4,
            "use_flash_attention": True,
        },
        "encoder": {"_target_": "common.networks.SwinEncoder", "swin": "$@segmentation_net.swinViT"},
        "pretext": {"_target_": "common.pretexts.RCR", "encoder": "@encoder", "contrast_size": 16},
        "pretext_loss": {"_target_": "common.losses.RCRLoss"},
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("collection")
    group.addoption("--runslow", action="store_true", help="run the tests that are marked slow, too")
    group.addoption("--device", help="run the bundles on this device, such as cuda:0 (default: as their configs say)")
    group.addoption(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="precision of the bundles' networks (default: as their configs say, by the device)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if not config.getoption("--runslow"):
        skip = pytest.mark.skip(reason="slow: --runslow runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test draws the same random numbers in every run and in any order of tests, wider fixtures included."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` formats a stack for each kind of device there might be
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    if "monai" in sys.modules:  # importing it takes seconds, and some files do without
        from monai.transforms import Randomizable
        from monai.utils import get_seed, set_determinism

        if get_seed() != 0:
            set_determinism(0)  # each `Compose` that is built from here on takes this seed
        Randomizable.R.seed(0)  # shared by all transforms outside of a `Compose`


@pytest.fixture(autouse=True)
def memory_goes_back(request) -> Iterator[None]:
    """What a slow test frees goes back to the system: glibc keeps gigabytes in pieces, and the next test takes more."""
    yield
    if request.node.get_closest_marker("slow") and sys.platform == "linux":
        gc.collect()  # workflows refer to themselves
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)


@pytest.fixture(scope="session", autouse=True)
def quick_start() -> Iterator[str]:
    """A folder for ``PYTHONPATH`` with which a child process starts in less time. Children have it by default."""
    quick, before = str(ROOT / "tests/child"), os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [quick, before])))
        yield quick


@pytest.fixture(scope="session")
def child_path(quick_start) -> str:
    """``PYTHONPATH`` of a child process that finds this checkout, as if it were installed."""
    return os.pathsep.join([str(ROOT), quick_start])


@pytest.fixture(scope="session", autouse=True)
def one_table() -> Iterator[None]:
    """MONAI's table of its classes is made once, not by each config parser anew, which takes a third of a second."""
    if "monai" not in sys.modules:  # no test file has imported it, so few of their tests will
        yield
        return
    from monai.bundle import ComponentLocator

    find, tables = ComponentLocator._find_classes_or_functions, {}

    def once(self: ComponentLocator, names: list[str]) -> dict[str, list]:
        key = tuple(names)
        if key not in tables:
            tables[key] = find(self, names)
        return tables[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComponentLocator, "_find_classes_or_functions", once)
        yield


@pytest.fixture(scope="session")
def placement(request) -> dict[str, Any]:
    """Values of the bundles' ids `device` and `amp` that `--device` and `--dtype` ask for."""
    device, dtype = (request.config.getoption(name) for name in ("--device", "--dtype"))
    return ({"device": device} if device else {}) | ({"amp": dtype == "bfloat16"} if dtype else {})


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Six labelled subjects (3 for training, 1 for validation, 2 for test) and one unlabelled, at 4 mm."""
    from common.data import make_sample

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    folder = folder / "cohort"
    with FileLock(f"{folder}.lock"):
        if not (folder / "unlabelled.json").is_file():
            made = folder.with_name("cohort-unfinished")
            make_sample(made, subjects=6, unlabelled=1, spacing=4.0, progress=False)
            # A contrast between volumes takes two of them for its validation.
            path = made / "unlabelled.json"
            content = json.loads(path.read_text())
            content["validation"].append(content["training"].pop())
            path.write_text(json.dumps(content))
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, str]:
    """Config overlays that make a bundle run in a second, by the network's name."""
    folder = tmp_path_factory.mktemp("overlays")
    for name, network in NETWORKS.items():
        (folder / f"{name}.json").write_text(json.dumps(TINY | network, indent=4))
    return {name: str(folder / f"{name}.json") for name in NETWORKS}


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back what a bundle run changes in its process: generators, import path, torch's settings."""
    from monai.utils import get_seed, set_determinism

    seed, states = get_seed(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    path, precision, threads = list(sys.path), torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_num_threads(1)  # bits depend on it, and the tensors are small
    try:
        yield
    finally:
        set_determinism(seed)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        sys.path[:] = path
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def unchanged() -> Callable:
    """`unchanged_process`, for what runs a bundle by other means than `run_bundle`."""
    return unchanged_process


@pytest.fixture(scope="session")
def run_bundle(cohort, placement) -> Callable:
    """Run configs of a bundle as ``python -m monai.bundle run`` does, in this process, on the cohort.

    ``run_bundle("train.json", "/an/overlay.json", max_epochs=1)`` returns the finished workflow. Names without a folder
    are those of ``pretrain_once``. ``before`` is called with the workflow when it is initialised.
    """
    from monai.bundle import ConfigWorkflow

    def run(
        *files: str,
        bundle: str = "pretrain_once",
        before: Callable | None = None,
        workflow_type: str = "train",
        execute: bool = True,
        **overrides,
    ) -> ConfigWorkflow:
        configs = ROOT / "bundles" / bundle / "configs"
        workflow = ConfigWorkflow(
            config_file=[str(configs / name) for name in files],
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            workflow_type=workflow_type,
            **({"dataset_dir": str(cohort)} | placement | overrides),
        )
        with unchanged_process():
            workflow.initialize()
            if before is not None:
                before(workflow)
            if execute:
                workflow.run()
                workflow.finalize()
        return workflow

    return run


@pytest.fixture(scope="session")
def event_images() -> Callable:
    """``event_images(folder)``: pictures (H, W, 3) of 0..255 by tag and step, of a folder's TensorBoard files."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> dict[str, dict[int, np.ndarray]]:
        found: dict[str, dict[int, np.ndarray]] = {}
        for file in folder.glob("events.*"):
            events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
            for tag in events.Tags()["images"]:
                for event in events.Images(tag):
                    picture = Image.open(io.BytesIO(event.encoded_image_string))
                    found.setdefault(tag, {})[event.step] = np.asarray(picture)
        return found

    return read


@pytest.fixture(scope="session")
def without_common() -> str:
    """Code with which a process begins that cannot import the collection's `common`, as where it is not installed."""
    return """
import sys

class NoCommon:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "common" or name.startswith("common."):
            raise ImportError(f"{name} is imported from outside the bundle")

sys.meta_path.insert(0, NoCommon)
"""


@pytest.fixture(scope="session")
def run_ranks(child_path) -> Callable:
    """``run_ranks(script, argument, timeout, nodes)``: output of two processes under torchrun, of one agent or (with
    two nodes) of two that meet at one address; all end when time is over."""

    def run(script: Path, argument: Path, timeout: float, nodes: int = 1) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}"]
        if nodes == 1:
            command.append("--standalone")
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=of_a_test"]
        agents = [
            subprocess.Popen(
                [*command, str(script), str(argument)],
                env=os.environ | {"PYTHONPATH": child_path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for _ in range(nodes)
        ]
        try:
            with ThreadPoolExecutor(nodes) as readers:  # an agent whose output nobody reads would stop
                read = [readers.submit(agent.communicate, timeout=timeout) for agent in agents]
                outputs = [future.result()[0] for future in read]
        except subprocess.TimeoutExpired:
            for agent in agents:
                agent.terminate()  # torchrun then ends its workers
            output = "\n".join(agent.communicate(timeout=60)[0] for agent in agents)
            pytest.fail(f"two processes hung:\n{output[-4000:]}")
        for agent, output in zip(agents, outputs, strict=True):
            assert agent.returncode == 0, output[-4000:]
        return "\n".join(outputs)

    return run


@pytest.fixture(scope="session")
def write_series() -> Callable:
    """`tools.dicom_series.write_series`, of CT: slices are rescaled by 1 and -1024."""
    pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")
    from tools.dicom_series import write_series

    ct = {"Modality": "CT", "SeriesDescription": "made by a test", "RescaleSlope": 1, "RescaleIntercept": -1024}

    def write(folder: Path, volume: np.ndarray, affine: np.ndarray, tags: dict | None = None) -> list[Path]:
        return write_series(folder, volume, affine, {**ct, **(tags or {})})

    return write
