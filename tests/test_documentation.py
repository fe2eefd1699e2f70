"""The Python of the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR

from common.networks import SwinEncoder
from common.weights import save_encoder

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "python.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, cohort):
    """The collection's folder as it is after pre-training and training, with the tests' small cohort as the sample."""
    bundle = tmp_path / "bundles" / "pretrain_once"
    bundle.mkdir(parents=True)
    (bundle / "configs").symlink_to(ROOT / "bundles" / "pretrain_once" / "configs")
    config = ConfigParser()
    config.read_config([str(bundle / "configs" / name) for name in ("inference.json", "datasets/sample.json")])
    config["dataset_dir"] = str(cohort)
    torch.manual_seed(0)
    net, encoder = (config.get_parsed_content(name) for name in ("network_def", "encoder"))
    (bundle / "models").mkdir()
    torch.save(net.state_dict(), bundle / "models" / "model.pt")
    save_encoder(encoder, bundle / "models" / "encoder.safetensors", {})
    swin = SwinUNETR(1, 2, feature_size=12).swinViT
    save_encoder(SwinEncoder(swin), bundle / "models" / "swin" / "encoder.safetensors", {})
    monkeypatch.setattr("common.data.make_sample", lambda **settings: str(cohort))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_page(folder):
    names: dict = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["labels"].shape == names["array"].shape and set(np.unique(names["labels"])) <= set(range(5))
    image = names["item"]["image"][None, :, :64, :80, :64].as_tensor()
    with torch.no_grad():
        tokens, _ = names["own"].eval().vit(image)
    last = names["maps"][-1].as_tensor() if hasattr(names["maps"][-1], "as_tensor") else names["maps"][-1]
    torch.testing.assert_close(tokens, last.flatten(2).transpose(1, 2))
    saved = torch.load(folder / "pretrained.pth", weights_only=True)["network_weights"]
    assert saved.keys() == torch.load(folder / "pretrained.pt", weights_only=True).keys()


PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/*.md"), *ROOT.glob("common/**/*.md")]
)


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
