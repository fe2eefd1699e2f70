"""Each bundle at a size that takes seconds, for the tests that ask the same of all of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import convert_to_tensor

ROOT = Path(__file__).resolve().parents[2]


class Small(NamedTuple):
    """A small form of a bundle, from its `small.json`."""

    files: list[str]
    """Overlays of its `configs/`, for every workflow."""
    values: dict[str, Any]
    """Values of ids that lie over them."""
    window: list[int]
    """Shape of an image (C, *spatial) that the network takes."""
    two_processes: dict[str, Any]
    """Values for pre-training by two processes."""
    second_stage: Sequence[str] = ()
    """Overlays on `pretrain.json` of a second pre-training, which begins with the encoder of the first."""


# Each process needs a validation scan, and the cohort has one.
DEFAULTS = {"two_processes": {"validate#dataset#data": "$@data['training']"}}
SMALL = {
    path.parent.name: Small(**(DEFAULTS | json.loads(path.read_text(encoding="utf-8"))))
    for path in sorted((ROOT / "bundles").glob("*/small.json"))
}


# A way of use that all bundles are tested in is quick with this one.
QUICK = "pretrain_once"


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow with some parameters alone, and note of each test of a way of use which way and which bundle,
    for the report that the table is made of."""
    for item in items:
        for mark in item.iter_markers("slow_unless"):
            rule = mark.args[0]
            if not rule(*(item.callspec.params[name] for name in inspect.signature(rule).parameters)):
                item.add_marker("slow")
        for mark in item.iter_markers("way"):
            values = item.callspec.params.values() if hasattr(item, "callspec") else ()
            bundles = [mark.kwargs["bundle"]] if "bundle" in mark.kwargs else [v for v in values if v in list(SMALL)]
            assert len(bundles) == 1, f"{item.nodeid} is of no bundle"
            if "bundle" not in mark.kwargs and bundles[0] != QUICK:
                item.add_marker("slow")
            item.user_properties.append(("way", f"{bundles[0]}: {mark.args[0]}"))


@pytest.fixture(params=list(SMALL))
def bundle(request) -> str:
    """Each bundle in turn."""
    return request.param


@pytest.fixture(scope="session")
def chosen(request) -> Callable[[str], list[str]]:
    """``chosen(test)``: the bundles with which a test of this name runs, for fixtures that need all in one process."""

    def bundles(test: str) -> list[str]:
        items = [item for item in request.session.items if getattr(item, "originalname", "") == test]
        taken = {item.callspec.params["bundle"] for item in items if not item.get_closest_marker("skip")}
        return [name for name in SMALL if name in taken]

    return bundles


@pytest.fixture(scope="session")
def small() -> dict[str, Small]:
    return SMALL


@pytest.fixture(scope="session")
def small_files(tmp_path_factory) -> dict[str, list[str]]:
    """For each bundle the files that make it small, to stand behind `train.json` or any other base file."""
    folder = tmp_path_factory.mktemp("small")
    files = {}
    for bundle, (overlays, values, *_) in SMALL.items():
        path = folder / f"{bundle}.json"
        path.write_text(json.dumps(values, indent=4))
        files[bundle] = [*overlays, str(path)]
    return files


@pytest.fixture(scope="session")
def small_model(run_bundle, small_files, tmp_path_factory) -> Callable[[str], Path]:
    """``small_model(bundle)``: a model file of the small net with random weights, by which every class is predicted.

    The last bias is moved so that on a scan of the cohort all classes have one mean score.
    """
    folder = tmp_path_factory.mktemp("small_models")

    def make(bundle: str) -> Path:
        path = folder / f"{bundle}.pt"
        if path.exists():
            return path
        workflow = run_bundle(
            "inference.json",
            *small_files[bundle],
            bundle=bundle,
            workflow_type="inference",
            execute=False,
            device="cpu",
        )
        net, inferer, dataset = (workflow.parser.get_parsed_content(id) for id in ("network_def", "inferer", "dataset"))
        generator = torch.Generator().manual_seed(0)
        for parameter in net.parameters():
            # No tensor of zeros, behind which a mistake would hide.
            noise = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1
            parameter.data = 2 * noise / parameter[0].numel() ** 0.5 if matrix else parameter + 0.3 * noise
        with torch.no_grad():
            means = inferer(dataset[0]["image"][None], net.eval()).mean((0, 2, 3, 4))
        biases = [parameter for parameter in net.parameters() if parameter.shape == means.shape]
        biases[-1].data -= convert_to_tensor(means, track_meta=False)
        torch.save(net.state_dict(), path)
        return path

    return make


@pytest.fixture(scope="session")
def parsed() -> Callable[..., ConfigParser]:
    """``parsed(bundle, names, cohort, **values)``: a bundle's config files over each other, on the cohort."""

    def parse(bundle: str, names: list[str], cohort: Path, **values: Any) -> ConfigParser:
        configs = ROOT / "bundles" / bundle / "configs"
        parser = ConfigParser()
        parser.read_config([str(configs / name) for name in names])
        parser.update({"dataset_dir": str(cohort), "device": "cpu", **values})
        return parser

    return parse
