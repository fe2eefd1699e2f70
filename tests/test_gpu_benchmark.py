"""`benchmarks/gpu.py` needs a GPU to say anything; what it does before and around is tried on a CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", list(__import__("sys").path))
        spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_measures_nothing(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--output", str(tmp_path / "table.md")])
    monkeypatch.setattr(gpu, "rows", lambda *_: pytest.fail("it measured"))
    gpu.main()
    assert "sees none: nothing is measured" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["pretrain", "train"])
@pytest.mark.parametrize("bundle", sorted(path.parent.name for path in ROOT.glob("bundles/*/small.json")))
def test_it_measures_the_paper_s_size(gpu, bundle, part):
    files, values = gpu.settings(bundle, part, small=False)
    base, sample = (json.loads(Path(file).read_text()) for file in files)
    sizes = {"roi_size", "image_size", "batch_size", "segmentation_net", "head", "head_features", "pretext"}
    for name in set(base) & set(sample) & sizes:
        assert values[name] == base[name]
    assert base["network"]["compile"] is False  # what one of the ways sets


@pytest.mark.parametrize("way", ["plain", "bfloat16"])
def test_steps_are_timed_on_a_cpu(gpu, run_bundle, tmp_path, way):
    files, size = gpu.settings("pretrain_once", "pretrain", small=True)
    values = size | gpu.WAYS[way][0]
    workflow = run_bundle(*files, execute=False, output_dir=str(tmp_path), device="cpu", **values)
    seen = []
    workflow.parser.get_parsed_content("network").register_forward_pre_hook(lambda *_: seen.append(1))
    figures = gpu.time_steps(workflow.trainer, batch_size=2, warm_up=1, steps=2)
    assert figures.images_per_second > 0 and 0 < figures.waiting < 1 and figures.peak is None
    assert len(seen) == 3
