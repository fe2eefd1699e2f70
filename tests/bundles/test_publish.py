"""Packs for others: the model zoo's rules, the page on the hub, and the upload to a stand-in for it."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from common.json_files import read_json, write_json
from common.pack import pack
from common.pack.__main__ import main
from common.pack.card import read_scores
from common.pack.overlays import changed_configs
from common.pack.zoo import zoo_problems

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.name for path in (ROOT / "bundles").iterdir())
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
TABLE = """\
case,class,dice,hd95
a,cortex,0.9,1.5
a,white matter,0.8,
b,cortex,0.7,2.5
b,white matter,nan,
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module", params=BUNDLES)
def packed(request, small, scores, tmp_path_factory) -> Path:
    """A small form of a bundle with weights, as it is published."""
    files, values, *_ = small[request.param]
    bundle, output = ROOT / "bundles" / request.param, tmp_path_factory.mktemp("packed")
    config = json.loads(changed_configs(bundle, [Path(name) for name in files], values)["inference.json"])
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), output / "model.pt")
    folder, _ = pack(
        bundle,
        output,
        weights=[output / "model.pt"],
        config_file=[Path(name) for name in files],
        override=values,
        scores=read_scores(scores, "IXI, 2 scans"),
        card=True,
        licence="cc-by-sa-3.0",
    )
    return folder


def forget_scripts() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]


def test_every_packed_bundle_keeps_the_rules_of_the_zoo(packed, unchanged, monkeypatch):
    schema = read_json(SCHEMA) if SCHEMA.is_file() else None
    large = [path for path in packed.rglob("*") if path.is_file() and path.stat().st_size > 25e6]
    assert zoo_problems(packed, schema) == [
        f"{p.relative_to(packed)} is above 25 MB: give its address (--weights-url)." for p in large
    ]
    metadata = read_json(packed / "configs" / "metadata.json")
    assert metadata["eval_metrics"] == {"mean_dice": 0.775, "mean_hd95": 2.0}
    for page in ("configs/metadata.json", "docs/data_license.txt", "docs/README.md", "README.md"):
        assert "weights are shipped" not in (packed / page).read_text(), page
    forget_scripts()
    monkeypatch.syspath_prepend(str(packed))
    with unchanged():
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(packed / "configs" / "metadata.json"),
            config_file=str(packed / "configs" / "inference.json"),
            bundle_root=str(packed),
            device="cpu",
        )
    forget_scripts()  # the next pack has its own


def test_there_is_no_card_unless_asked_for(toy, tmp_path):
    folder, _ = pack(toy, tmp_path / "out", weights=[])
    assert not (folder / "README.md").exists()


def test_the_card_is_read_by_the_hub(packed):
    from huggingface_hub import ModelCard

    card = ModelCard.load(packed / "README.md")
    assert (card.data.library_name, card.data.license) == ("monai", "cc-by-sa-3.0")
    found = {(one.metric_type, one.metric_value, one.dataset_name) for one in card.data.eval_results}
    assert found == {("dice", 0.775, "IXI, 2 scans"), ("hd95", 2.0, "IXI, 2 scans")}
    assert "| cortex | 0.800 | 2.000 |" in card.text and "| mean | 0.775 | 2.000 |" in card.text
    assert "Not a medical device" in card.text and "Montreal Neurological Institute" in card.text


BROKEN = {
    "LICENSE is missing.": lambda folder: (folder / "LICENSE").unlink(),
    "docs/data_license.txt is missing or empty.": lambda folder: (folder / "docs/data_license.txt").write_text(" \n"),
    "configs/inference.json is missing.": lambda folder: (folder / "configs/inference.json").unlink(),
    "models/model.pt is missing, also": lambda folder: (folder / "models/model.pt").unlink(),
    "does not have version 9.0.0": lambda folder: edit(folder, "metadata", version="9.0.0"),
    "no version or no changelog": lambda folder: edit(folder, "metadata", changelog=None),
    "eval_metrics is empty": lambda folder: edit(folder, "metadata", eval_metrics={}),
    "supported_apps is empty": lambda folder: edit(folder, "metadata", supported_apps={}),
    "inference.json does not define inferer": lambda folder: edit(folder, "inference", inferer=None),
    "train.json does not define val_interval": lambda folder: edit(folder, "train", val_interval=None),
    "train.json does not define train#dataset#data": lambda folder: edit(folder, "train", train={"trainer": {}}),
    "models/large.bin is above 25 MB": lambda folder: (folder / "models/large.bin").write_bytes(bytes(25_000_001)),
}


def edit(folder: Path, name: str, **changes) -> None:
    path = folder / "configs" / f"{name}.json"
    write_json(path, {**read_json(path), **changes})


@pytest.fixture
def toy(tmp_path) -> Path:
    """As small a bundle as keeps the rules."""
    part = {"dataset": {"data": []}, "handlers": [], "inferer": {}}
    train = {"bundle_root": ".", "device": "cpu", "dataset_dir": ".", "output_dir": ".", "val_interval": 1}
    train["train"] = {**part, "trainer": {"max_epochs": 1}}
    train["validate"] = {**part, "evaluator": {}, "key_metric": {}}
    inference = dict.fromkeys(("bundle_root", "device", "network_def", "inferer", "output_dir"), "x")
    metadata = {"version": "0.1.0", "changelog": {"0.1.0": "first"}, "name": "Toy", "description": "A toy."}
    metadata |= {"eval_metrics": {"mean_dice": 0.5}, "supported_apps": {"monai-label": "0.8.5"}}
    for name, content in {"train": train, "inference": inference, "metadata": metadata}.items():
        (tmp_path / "toy" / "configs").mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / "toy" / "configs" / f"{name}.json", content)
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt"):
        (tmp_path / "toy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "toy" / name).write_text("text\n")
    return tmp_path / "toy"


@pytest.mark.parametrize("sentence", BROKEN)
def test_what_the_zoo_would_refuse(toy, sentence):
    assert zoo_problems(toy) == []
    BROKEN[sentence](toy)
    assert any(sentence in problem for problem in zoo_problems(toy))


def test_weights_by_their_address(toy):
    (toy / "models/model.pt").unlink()
    (toy / "large_files.yml").write_text('large_files:\n  - path: "models/model.pt"\n    url: "https://a.org/b"\n')
    assert zoo_problems(toy) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("case,class\na,b\n", "is not a table of scores"),
        ("", "is not a table of scores"),
        ("case,class,dice\na,b,high\n", "has 'high' instead of a score"),
        ("case,class,dice\na,b,\n", "has no score"),
    ],
)
def test_tables_that_hold_no_scores(tmp_path, text, sentence):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_scores(tmp_path / "scores.csv", "x")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for."""

    calls: list[tuple[str, bytes]]

    def do_POST(self):
        length = self.headers.get("content-length")
        body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
        self.calls.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        url = f"http://127.0.0.1:{self.server.server_port}/org/toy"
        commit = {"commitUrl": f"{url}/commit/abc", "commitOid": "abc", "success": True}
        return self.answer({"url": url, "name": "org/toy", **commit})

    def do_GET(self):
        self.answer({"id": "org/toy", "siblings": [], "sha": "0" * 40, "private": True})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *message):
        pass


@pytest.fixture
def hub(monkeypatch):
    calls: list[tuple[str, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"calls": calls}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield calls
    server.shutdown()
    thread.join()
    server.server_close()


def test_push_is_a_dry_run_unless_told(toy, tmp_path, hub, capsys):
    (toy / "models" / "model.pt").unlink()
    arguments = [str(toy), "--output", str(tmp_path / "out"), "--force", "--card", "--push", "org/toy"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "would upload" in said and "to org/toy; --no-dry-run does it" in said
    assert "the model zoo would refuse: models/model.pt is missing" in said
    assert hub == []
    assert main([*arguments, "--no-dry-run"]) == 0
    assert "to org/toy, commit abc." in capsys.readouterr().out
    assert json.loads(hub[0][1])["visibility"] == "private"
    [commit] = [body for path, body in hub if "/commit/" in path]
    sent = {line["value"]["path"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert {"LICENSE", "README.md"} <= sent


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--push", "toy", "--card"], "--push toy: give organisation/name"),
        (["--push", "org/toy"], "has no README.md, the page for the hub: pass --card"),
        (["--push", "org/a..b", "--card"], "org/a..b"),
    ],
)
def test_what_is_not_pushed(toy, tmp_path, hub, capsys, arguments, sentence):
    assert main([str(toy), "--output", str(tmp_path / "out"), *arguments]) == 1
    assert sentence in capsys.readouterr().err and hub == []
