"""Hostile and wrong requests to a MONAI Label server. None may get a mask or have an effect.

`make label-demo` sends them to a real server, tests/test_label_guard.py to `common.label_guard`.
"""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote


@dataclass
class Hostile:
    """A request as bytes, since a client library would clean up its address.

    Args:
        guarded: whether the guard refuses it. Label must refuse the others.
    """

    name: str
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    guarded: bool = True

    def send(self, port: int) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.putrequest(self.method, self.target)
            for key, value in {"content-length": str(len(self.body)), **self.headers}.items():
                connection.putheader(key, value)
            connection.endheaders(self.body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def form(fields: dict[str, str], files: dict[str, tuple[str, bytes]] | None = None) -> tuple[bytes, dict[str, str]]:
    """Build a multipart form and its headers."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    for key, (name, content) in (files or {}).items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), {"content-type": f"multipart/form-data; boundary={boundary}"}


def hostile_requests(model: str, study: str, canary: str) -> Iterator[Hostile]:
    """List the requests.

    Args:
        model: a model that the server has.
        study: a study that it has.
        canary: a path without a file. If a file is there after the requests, something was evaluated or written.
    """
    code = f"$open({canary!r}, 'w').write('evaluated')"
    call = {"_target_": "builtins.open", "file": canary, "mode": "w"}
    infer = f"/infer/{model}?image={study}&output=image"
    up = "/".join([".."] * 12)

    def ask(name: str, values: Any, guarded: bool = True) -> Hostile:
        text = values if isinstance(values, str) else json.dumps(values)
        return Hostile(f"infer: {name}", "POST", infer, *form({"params": text}), guarded)

    def train(name: str, values: Any, guarded: bool = True) -> Hostile:
        text = values if isinstance(values, str) else json.dumps(values)
        head = {"content-type": "application/json"}
        return Hostile(f"train: {name}", "POST", f"/train/{model}", text.encode(), head, guarded)

    def put(name: str, target: str, filename: str, content: bytes = b"x", guarded: bool = True) -> Hostile:
        field_name = "label" if "label" in target else "file"
        return Hostile(f"put: {name}", "PUT", target, *form({}, {field_name: (filename, content)}), guarded)

    yield ask("an expression as device", {"device": code})
    yield ask("an expression in a list", {"device": "cpu", "points": [[1, 2, code]]})
    yield ask("an expression in a dictionary", {"device": "cpu", "options": {"deep": {"deeper": code}}})
    yield ask("an expression as a name", {"device": "cpu", code: 1})
    yield ask("a reference as device", {"device": "@network_def"})
    yield ask("a file's content as device", {"device": "%/etc/passwd::root"})
    yield ask("a component as device", {"device": call})
    yield ask("a device that does not exist", {"device": "cuda:0; true"})
    yield ask("weights from another folder", {"device": "cpu", "model_filename": f"{up}{canary}"})
    yield ask("a mask in another folder", {"device": "cpu", "result_extension": f"/{up}{canary}"})
    yield ask("a folder of code", {"device": "cpu", "bundle_path": "/tmp"})
    yield ask("no JSON", "{'device': 'cpu'")
    yield ask("a list", ["cpu"])
    yield ask("not finite", '{"device": "cpu", "threshold": NaN}')
    yield ask("nested 5,000 times", "[" * 5000 + "]" * 5000)
    yield ask("two megabytes", {"device": "cpu", "note": "x" * 2_000_000})
    for name, image, guarded in (
        ("a path upwards", f"{up}/etc/passwd", True),
        ("a path upwards, encoded twice", quote(f"{up}/etc/passwd", safe=""), True),
        ("an absolute path", "/etc/passwd", True),
        ("a NUL character", "a\0b", True),
        ("an expression", code, True),
        ("5,000 letters", "x" * 5000, True),
        ("nothing", "", False),
        ("one that is not there", "nobody", False),
    ):
        target = f"/infer/{model}?image={quote(image, safe='')}&output=image"
        yield Hostile(f"infer: the study is {name}", "POST", target, *form({"params": '{"device": "cpu"}'}), guarded)
    yield Hostile("infer: the model is a path", "POST", f"/infer/%2e%2e%2f%2e%2e%2fetc?image={study}", *form({}))
    yield Hostile("infer: no such model", "POST", f"/infer/nothing?image={study}", *form({"params": "{}"}), False)
    yield Hostile("infer: no such kind of answer", "POST", f"{infer[:-5]}exe", *form({"params": "{}"}), False)
    yield Hostile("infer: another method", "PATCH", infer, guarded=False)
    yield Hostile("infer: plain text", "POST", infer, b"device=cpu", {"content-type": "text/plain"})
    broken = {"content-type": "multipart/form-data"}
    yield Hostile("infer: a form without a boundary", "POST", infer, b"--x\r\n", broken)
    upload = f"/infer/{model}?output=image"
    for name, filename, content, guarded in (
        ("a file whose name is a path", f"{up}{canary}", b"x", True),
        ("an empty file", "scan.nii.gz", b"", False),
        ("a file that is no scan", "scan.nii.gz", b"no scan" * 100, False),
    ):
        body, head = form({"params": '{"device": "cpu"}'}, {"file": (filename, content)})
        yield Hostile(f"infer: {name}", "POST", upload, body, head, guarded)
    good = {"device": "cpu", "multi_gpu": False, "max_epochs": 1}
    yield train("an expression as max_epochs", {**good, "max_epochs": code})
    yield train("a component as max_epochs", {**good, "max_epochs": call})
    yield train("an expression as device", {**good, "device": code})
    yield train("an expression as run_id", {**good, "run_id": code})
    yield train("an expression as weights", {**good, "model_filename": code})
    yield train("a number as a string", {**good, "max_epochs": "2"})
    yield train("minus one epoch", {**good, "max_epochs": -1})
    yield train("a share as a string", {**good, "val_split": "0.2"})
    yield train("a word as a switch", {**good, "multi_gpu": "yes"})
    yield train("a folder of code", {**good, "bundle_path": "/tmp"})
    yield train("a file as tracking", {**good, "tracking": "/tmp/settings.json"})
    yield train("another tracking server", {**good, "tracking": "mlflow", "tracking_uri": f"file://{canary}"})
    yield train("an id of the configuration", {**good, "train#trainer#max_epochs": 5})
    yield train("a string for a body", '"cpu"')
    yield train("no JSON", "max_epochs=1")
    for kind in ("application/dicom+json", "application/x+json", "Application/JSON; charset=utf-8"):  # JSON to FastAPI
        body = json.dumps({**good, "device": code}).encode()
        yield Hostile(f"train: an expression as {kind}", "POST", f"/train/{model}", body, {"content-type": kind})
    yield Hostile("train: XML", "POST", f"/train/{model}", b"<a/>", {"content-type": "application/xml"})
    yield put("a study upwards", f"/datastore/image?image={up}{canary}", "scan.nii.gz")
    yield put("a label of a study upwards", f"/datastore/label?image={up}{canary}", "scan.nii.gz")
    yield put("a tag upwards", f"/datastore/label?image={study}&tag={up}{canary}", "scan.nii.gz")
    yield put("a label's file upwards", f"/datastore/label?image={study}&tag=x", f"{up}{canary}")
    yield put("weights' file upwards", f"/model/{model}", f"{up}{canary}")
    yield Hostile("delete: a study upwards", "DELETE", f"/datastore/image?id={up}{canary}")
    yield Hostile("get: a study upwards", "GET", f"/datastore/image?image={up}/etc/passwd")
    yield Hostile("get: a page upwards", "GET", "/ohif/%2e%2e/%2e%2e/%2e%2e/config.py")
    yield Hostile("batch: an expression", "POST", f"/batch/infer/{model}?images=all", *_json({"device": code}))


def _json(values: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(values).encode(), {"content-type": "application/json"}
