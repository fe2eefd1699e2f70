"""A real MONAI Label server with every bundle, asked by a real client. `make label-demo`.

It runs in Label's own environment. Every bundle is trained for seconds on the embedded sample, packed at that size, and
served on 127.0.0.1. The client asks for masks and compares each, voxel by voxel, with the mask that `inference.json`
makes without Label. It uploads labels, has every bundle trained on them, and sends wrong and hostile requests. It ends
with a page with pictures.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile_requests import hostile_requests

ROOT = Path(__file__).resolve().parent.parent
APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
# The files with which each bundle is trained and served.
BUNDLES: dict[str, list[str]] = {
    path.parent.name: json.loads(path.read_text(encoding="utf-8"))["files"]
    for path in sorted((ROOT / "bundles").glob("*/small.json"))
}
BATCHES = 6
"""Batches of an epoch, if it is not one pass over the data."""
COLOURS = ["#00000000", "#3b7dd8", "#2ca02c", "#f2b134", "#9aa0a6"]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # the server calls `python`
    "PYTHONWARNINGS": "ignore",
    "CUDA_VISIBLE_DEVICES": "",
    "MONAI_LABEL_TRACKING_ENABLED": "false",
}


@dataclass
class Outcome:
    """Checks, with the words of the answers."""

    checks: list[tuple[str, bool, str]] = field(default_factory=list)

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        self.checks.append((name, bool(passed), detail))
        print(f"   {'ok  ' if passed else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)


def run(command: list[str], log: Path, **settings: Any) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"   {shlex.join(['python', *command[1:]])}", flush=True)
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=ENVIRONMENT, **settings)
    if done.returncode:
        raise SystemExit(f"the command failed; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))


def repair_environment() -> None:
    """Install the workaround of `torchvision_operators.py` for every Python process of this environment."""
    site = Path(sysconfig.get_paths()["purelib"])
    shutil.copyfile(ROOT / "demo" / "torchvision_operators.py", site / "torchvision_operators.py")
    # A .pth file, since Debian's own `sitecustomize` would come before one of this environment.
    (site / "torchvision_operators.pth").write_text("import torchvision_operators\n")


def train_and_pack(name: str, epochs: int, output: Path, model: Path, sample: Path) -> float:
    """Train a bundle on the sample by MONAI's command and pack it, with its weights, under the app's `model/`."""
    files = BUNDLES[name]
    configs = ROOT / "bundles" / name / "configs"
    settings: dict[str, Any] = {}
    if "batches_per_epoch" in json.loads((configs / "train.json").read_text(encoding="utf-8")):
        settings["batches_per_epoch"] = BATCHES
    started = time.time()
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    command += [str([str(configs / file) for file in ("train.json", *files)])]
    settings = {"bundle_root": configs.parent, "output_dir": output / "training" / name, "device": "cpu", **settings}
    settings |= {"max_epochs": epochs, "val_interval": epochs}
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    run(command, output / "logs" / f"train_{name}.log", cwd=ROOT)
    command = [sys.executable, "-m", "common.pack", str(configs.parent), "--output", str(model), "--force"]
    command += ["--weights", str(output / "training" / name / "model.pt"), "--config_file", *files]
    # Masks drawn in Label are numbered by the task's classes. The folder belongs to no cohort.
    command += ["--override", "label_scheme=task", f"dataset_dir={sample}"]
    run(command, output / "logs" / f"pack_{name}.log", cwd=ROOT)
    return time.time() - started


def own_inference(bundle: Path, studies: Path, output: Path) -> None:
    """Run `inference.json` of the packed bundle without Label, from another folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str([f"{bundle}/configs/inference.json"])]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(studies), "--datalist", str(studies)]
    command += ["--output_dir", str(output), "--device", "cpu", "--amp", "False"]  # as Label computes
    run(command, output.parent / "logs" / f"inference_{bundle.name}.log", cwd=output.parent)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """MONAI Label's own server in a process group of its own."""

    def __init__(self, app: Path, studies: Path | str, models: list[str], log: Path) -> None:
        self.port = free_port()
        command = [str(Path(sys.executable).parent / "monailabel"), "start_server"]
        command += ["--app", str(app), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--conf", "models", ",".join(models)]
        # Any word but "monaihosting": else the server asks the internet for the model zoo's list, for local bundles too
        # (https://github.com/Project-MONAI/MONAILabel/issues/1490). SAM 2 would download weights.
        command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false"]
        command += ["--uvicorn_app", "common.label_guard:app"]
        print(f"   {shlex.join(['monailabel', *command[1:]])}", flush=True)
        self.log = log.open("w")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True, cwd=app
        )

    def __enter__(self) -> Server:
        end = time.time() + 300
        while time.time() < end:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/info/")[0] == 200:
                    return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        tail = "\n".join(Path(self.log.name).read_text().splitlines()[-20:])
        raise SystemExit(f"the server did not start; the end of {self.log.name}:\n{tail}")

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.log.close()

    def request(self, method: str, path: str, **named: Any) -> tuple[int, Any]:
        import requests

        answer = requests.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=900, **named)
        kind = answer.headers.get("content-type", "")
        return answer.status_code, answer.json() if kind.startswith("application/json") else answer.content

    def log_size(self) -> int:
        return Path(self.log.name).stat().st_size

    def log_since(self, size: int) -> str:
        time.sleep(1)  # the traceback is written after the answer is sent
        return Path(self.log.name).read_bytes()[size:].decode(errors="replace")

    def get(self, path: str, **named: Any) -> tuple[int, Any]:
        return self.request("GET", path, **named)

    def infer(self, model: str, image: str) -> tuple[int, Any]:
        form = {"params": json.dumps({"device": "cpu"})}
        return self.request("POST", f"/infer/{model}?image={image}&output=image", data=form)


def words(answer: Any) -> str:
    """Describe an answer in a few words."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
    return text if len(text) < 300 else text[:300] + " ..."


def dice(mask: Any, truth: Any) -> float:
    """Return the mean Dice of the four tissues."""
    scores = [
        2 * ((mask == k) & (truth == k)).sum() / max(1, (mask == k).sum() + (truth == k).sum()) for k in range(1, 5)
    ]
    return float(sum(scores) / 4)


def ask(server: Server, name: str, where: dict[str, Path], outcome: Outcome) -> dict[str, Any]:
    """Infer, batch infer and compare with `inference.json`; return what the page shows of it."""
    import nibabel as nib
    import numpy as np

    found: dict[str, Any] = {"dice": []}
    equal = geometry = 0
    images = sorted(where["images"].glob("*.nii.gz"))
    for path in images:
        study = path.name.removesuffix(".nii.gz")
        started = time.time()
        status, answer = server.infer(name, study)
        found.setdefault("seconds", time.time() - started)
        if status != 200:
            outcome.check(f"{name}: /infer of {study}", False, f"{status} {words(answer)}")
            return found
        mask_file = where["output"] / "masks" / name / path.name
        mask_file.parent.mkdir(parents=True, exist_ok=True)
        mask_file.write_bytes(answer)
        image, mask = nib.load(path), nib.load(mask_file)
        own = nib.load(where["own"] / name / f"{study}_seg.nii.gz")
        values = np.asarray(mask.dataobj)
        geometry += mask.shape == image.shape and np.allclose(mask.affine, image.affine, atol=1e-3)
        equal += np.array_equal(values, np.asarray(own.dataobj))
        truth = np.asarray(nib.load(where["truth"] / path.name).dataobj)
        found["dice"].append(dice(values, truth))
        found.setdefault("classes", [int(value) for value in np.unique(values)])
        if "example" not in found:
            found["example"] = (np.asarray(image.dataobj), truth, values)
    count = len(images)
    outcome.check(f"{name}: shape and affine of the mask are the image's", geometry == count, f"{geometry} of {count}")
    outcome.check(f"{name}: voxels are those of inference.json", equal == count, f"{equal} of {count}")
    several = len(found["classes"]) > 1
    outcome.check(
        f"{name}: a mask has more than one class", several, f"{found['classes']}, Dice {found['dice'][0]:.2f}"
    )
    settings = {"device": "cpu", "multi_gpu": False, "save_label": True, "label_tag": "original", "max_workers": 1}
    status, answer = server.request("POST", f"/batch/infer/{name}?images=all&run_sync=true", json=settings)
    same = 0
    for path in images if status == 200 else ():
        study = path.name.removesuffix(".nii.gz")
        status, answer = server.get(f"/datastore/label?label={study}&tag=original")
        if status == 200:
            saved = where["output"] / "masks" / name / f"batch_{path.name}"
            saved.write_bytes(answer)
            own = nib.load(where["own"] / name / f"{study}_seg.nii.gz")
            same += np.array_equal(np.asarray(nib.load(saved).dataobj), np.asarray(own.dataobj))
    outcome.check(f"{name}: /batch/infer saves the same masks as labels", same == count, f"{status}, {same} of {count}")
    return found


def train(server: Server, name: str, model: Path, held_out: float, outcome: Outcome) -> None:
    """Train on the stored labels for an epoch; `held_out` is the share of the validation."""
    weights = model / name / "models" / "model.pt"
    before = weights.read_bytes()
    settings = {"device": "cpu", "multi_gpu": False, "max_epochs": 1, "val_split": held_out, "tracking": "None"}
    status, answer = server.request("POST", f"/train/{name}", json=settings)
    state = words(answer)
    while status == 200:
        status, answer = server.get("/train/")
        state = answer.get("status", "") if isinstance(answer, dict) else words(answer)
        if state not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(2)
    outcome.check(f"{name}: /train", state == "DONE", f"{status} {state}")
    outcome.check(f"{name}: /train rewrites model.pt", weights.read_bytes() != before)


def ask_again(server: Server, name: str, where: dict[str, Path], outcome: Outcome) -> None:
    """Check that the next answer after a training comes from the new weights."""
    study = sorted(where["images"].glob("*.nii.gz"))[0].name
    status, answer = server.infer(name, study.removesuffix(".nii.gz"))
    old = (where["output"] / "masks" / name / study).read_bytes()
    outcome.check(f"{name}: /infer uses the new weights", status == 200 and answer != old, str(status))


def ask_the_impossible(server: Server, images: Path, outcome: Outcome) -> list[tuple[str, int, str]]:
    """Send requests that cannot be answered: each must end with an error, none with a mask."""
    study = sorted(images.glob("*.nii.gz"))[0].name.removesuffix(".nii.gz")
    asked = [
        ("a study that the server does not have", "med3d", "nobody", "does not exist"),
        # Label drops the attributes of an unfinished task; the reason is further up in the log.
        ("a model that has no weights yet", "untrained", study, "BundleInferTask"),
        (
            "weights of another network in models/model.pt",
            "mismatched",
            study,
            "weights belong to another network: 0 of",
        ),
        (
            "a study of two channels",
            "pretrain_once",
            "two_channels",
            "has 2 channels, but the network takes 1",
        ),
        ("a study whose file is cut off", "simtrot", "cut_off", "cut_off.nii.gz cannot be read"),
        ("a model that does not exist", "nothing", study, "There is no model 'nothing' available"),
    ]
    answers = []
    for what, model, image, expected in asked:
        before = server.log_size()
        status, answer = server.infer(model, image)
        # The answer itself is "Internal Server Error"; the reason is in the log, which `/logs/` shows to clients.
        reasons = re.findall(r"^[\w.]*(?:Error|Exception): .*", server.log_since(before), re.MULTILINE)
        reason = reasons[-1] if reasons else ""
        outcome.check(f"refused: {what}", status >= 400 and expected in reason, f"{status} {reason}")
        answers.append((what, status, f"{words(answer)}; {reason}"))
    return answers


def listing(*folders: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file except logs, to see what was written."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts]
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if "__pycache__" not in path.parts
    }


def ask_the_hostile(server: Server, model: str, folders: list[Path], output: Path, outcome: Outcome) -> None:
    """Send `hostile_requests` one by one and eight at a time: no mask, no effect, and the server goes on."""
    from concurrent.futures import ThreadPoolExecutor

    canary = output / "canary"
    study = sorted(folders[0].glob("*.nii.gz"))[0].name.removesuffix(".nii.gz")
    requests = list(hostile_requests(model, study, str(canary)))
    before = listing(*folders)
    answers = [request.send(server.port) for request in requests]
    for request, (status, answer) in zip(requests, answers, strict=True):
        outcome.check(
            f"hostile: {request.name}", status >= 400 and answer[:2] != b"\x1f\x8b", f"{status} {words(answer)}"
        )
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda request: request.send(server.port)[0], requests))
    same = sum(status == first for status, (first, _) in zip(again, answers, strict=True))
    outcome.check("hostile: eight at a time, the same answers", same == len(requests), f"{same} of {len(requests)}")
    status, answer = server.get("/train/?all=true")
    outcome.check("hostile: no training was started", status == 404 or not answer, f"{status} {words(answer)}")
    outcome.check("hostile: nothing was evaluated", not canary.exists())
    changed = {path for path, _ in before.items() ^ listing(*folders).items()}
    outcome.check("hostile: no file of studies and app changed", not changed, ", ".join(sorted(changed)))
    outcome.check("hostile: the server goes on", server.get("/info/")[0] == 200)


def draw(found: dict[str, dict[str, Any]], output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = matplotlib.colors.ListedColormap(COLOURS)
    for name, one in found.items():
        if "example" not in one:
            continue
        image, truth, mask = one["example"]
        middle = 9 * image.shape[2] // 20  # above the cerebellum: the slice with most of the deep grey nuclei
        z = middle + int((truth == 2).sum((0, 1))[middle:].argmax())
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
        titles = ("study", "truth", f"{name}, Dice {one['dice'][0]:.2f}")
        for axis, title, overlay in zip(axes, titles, (None, truth, mask), strict=True):
            axis.imshow(image[:, :, z].T, cmap="gray", origin="lower")
            if overlay is not None:
                axis.imshow(overlay[:, :, z].T, cmap=colours, vmin=0, vmax=4, origin="lower", alpha=0.7)
            axis.set_title(title, fontsize=10)
            axis.axis("off")
        figure.savefig(output / f"{name}.png", dpi=90)
        plt.close(figure)


def write_page(output: Path, found: dict, refused: list, outcome: Outcome, versions: str, seconds: float) -> None:
    failed = sum(not passed for _, passed, _ in outcome.checks)
    rows = "".join(
        f"<tr class={'ok' if passed else 'bad'}><td>{html.escape(name)}</td><td>{'yes' if passed else 'NO'}</td>"
        f"<td>{html.escape(detail)}</td></tr>"
        for name, passed, detail in outcome.checks
    )
    wrong = "".join(
        f"<tr><td>{html.escape(what)}</td><td>{status}</td><td>{html.escape(text)}</td></tr>"
        for what, status, text in refused
    )
    pictures = "".join(
        f"<h3>{name}</h3><p>{one.get('seconds', 0):.1f} s for the first mask; trained and packed in "
        f"{one['preparation']:.0f} s.</p><img src='{name}.png' alt='{name}'>"
        for name, one in found.items()
    )
    style = (
        "body{font-family:sans-serif;max-width:70em;margin:2em auto}"
        "td,th{padding:.2em .6em;text-align:left;vertical-align:top}.bad{background:#fbb}"
    )
    (output / "index.html").write_text(
        f"<!doctype html><meta charset='utf-8'><title>MONAI Label</title><style>{style}</style>"
        f"<h1>Every bundle in a MONAI Label server</h1><p>{len(outcome.checks)} checks, {failed} failed, in "
        f"{seconds / 60:.1f} minutes. {html.escape(versions)}. Nets trained for seconds on synthetic brains: the masks "
        f"show that the parts fit, not what a method is worth.</p><h2>Masks</h2>{pictures}"
        f"<h2>Checks</h2><table>{rows}</table><h2>What is refused, and how</h2>"
        f"<table><tr><th>asked for</th><th>status</th><th>answer, and the reason in the log</th></tr>{wrong}</table>"
    )


def add_unusable(model: Path, images: Path, output: Path) -> None:
    """Add two models and two studies, none of which can be used."""
    import nibabel as nib
    import numpy as np
    import torch

    untrained = [sys.executable, "-m", "common.pack", str(ROOT / "bundles/pretrain_once"), "--output", str(model)]
    untrained += ["--force", "--config_file", "datasets/sample.json"]
    run([*untrained, "--name", "untrained"], output / "logs" / "pack_untrained.log", cwd=ROOT)
    mismatched = [*untrained, "--name", "mismatched", "--accept_preparation", "True"]  # the network is what differs
    run(mismatched, output / "logs" / "pack_mismatched.log", cwd=ROOT)
    weights = model / "mismatched" / "models" / "model.pt"
    weights.parent.mkdir()
    shutil.copyfile(model / "simtrot" / "models" / "model.pt", weights)
    first = sorted(images.glob("*.nii.gz"))[0]
    image = nib.load(first)
    two = np.stack([np.asarray(image.dataobj)] * 2, -1)
    nib.save(nib.Nifti1Image(two, image.affine), images / "two_channels.nii.gz")
    (images / "cut_off.nii.gz").write_bytes(first.read_bytes()[:20000])
    assert torch.load(weights, weights_only=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "label_demo", help="folder of all that is written"
    )
    parser.add_argument("--bundles", nargs="+", default=list(BUNDLES), choices=list(BUNDLES))
    parser.add_argument(
        "--epochs", type=int, default=2, help="epochs that each bundle is trained for before it is served"
    )
    parser.add_argument("--studies", type=int, default=2, help="test subjects of the sample that become studies")
    arguments = parser.parse_args()
    started = time.time()
    repair_environment()
    if not APP.is_dir():
        raise SystemExit(f"there is no {APP}: run this by `make label-demo`, in an environment with MONAI Label.")
    sys.path.insert(0, str(ROOT))
    from importlib.metadata import version

    from common.data import make_sample

    output = arguments.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    print("== the sample", flush=True)
    sample = Path(make_sample())
    where = {"output": output, "images": output / "images", "own": output / "own", "truth": sample / "structures4"}
    where["images"].mkdir(parents=True)
    tests = json.loads((sample / "structures4.json").read_text())["test"][: arguments.studies]
    for item in tests:
        shutil.copy(sample / item["image"], where["images"])
    app = output / "app"
    shutil.copytree(APP, app)
    model = app / "model"
    found: dict[str, dict[str, Any]] = {}
    for name in arguments.bundles:
        print(f"== {name}: train, pack, and infer by itself", flush=True)
        found[name] = {"preparation": train_and_pack(name, arguments.epochs, output, model, sample)}
        own_inference(model / name, where["images"], where["own"] / name)
    impossible = set(arguments.bundles) >= {"med3d", "pretrain_once", "simtrot"}  # the models that are asked
    # The server's own copy: Label writes labels and a list into it.
    studies = output / "studies"
    shutil.copytree(where["images"], studies)
    served = [*arguments.bundles]
    if impossible:
        add_unusable(model, studies, output)
        served += ["untrained", "mismatched"]

    outcome, refused = Outcome(), []
    print("== the server", flush=True)
    with Server(app, studies, served, output / "logs" / "server.log") as server:
        _, information = server.get("/info/")
        for name in arguments.bundles:
            offered = information["models"].get(name, {})
            labels = list(offered.get("labels", {}))
            outcome.check(f"{name}: /info offers the model and its labels", len(labels) == 4, ", ".join(labels))
            outcome.check(f"{name}: /info offers its training", name in information["trainers"])
        if impossible:
            outcome.check("/info leaves out the model without weights", "untrained" not in information["models"])
            refused = ask_the_impossible(server, where["images"], outcome)
            for study in ("two_channels", "cut_off"):
                server.request("DELETE", f"/datastore/image?id={study}")
        ask_the_hostile(server, arguments.bundles[0], [studies, app], output, outcome)
        for name in arguments.bundles:
            try:
                found[name] |= ask(server, name, where, outcome)
            except Exception:
                outcome.check(f"{name}: asked", False, traceback.format_exc(limit=1))
        for item in tests:
            path = sample / item["label"]
            study = path.name.removesuffix(".nii.gz")
            with path.open("rb") as stream:
                status, answer = server.request(
                    "PUT", f"/datastore/label?image={study}&tag=final", files={"label": (path.name, stream)}
                )
            outcome.check(f"/datastore/label of {study}", status == 200, words(answer))
        for name in arguments.bundles:
            train(server, name, model, 0.34, outcome)
            ask_again(server, name, where, outcome)
    outcome.check("the server stopped", server.process.poll() is not None)

    versions = ", ".join(f"{package} {version(package)}" for package in ("monailabel", "monai", "torch", "numpy"))
    draw(found, output)
    write_page(output, found, refused, outcome, versions, time.time() - started)
    failed = [name for name, passed, _ in outcome.checks if not passed]
    print(f"\n{len(outcome.checks)} checks, {len(failed)} failed, in {(time.time() - started) / 60:.1f} minutes")
    print(output / "index.html")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
