"""The check of requests before MONAI Label, without Label: what is refused never reaches the application."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from common.label_guard import RequestGuard, refused_body, refused_name, refused_value

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
try:
    from hostile_requests import Hostile, form, hostile_requests
finally:
    sys.path.remove(str(ROOT / "demo"))

CANARY = "/tmp/canary_of_the_label_guard"
HOSTILE = list(hostile_requests("skull", "sub-001", CANARY))
FORMS = all(importlib.util.find_spec(name) for name in ("starlette", "python_multipart"))


def ask(request: Hostile, parts: int = 1, **settings) -> tuple[int, dict, bytes | None]:
    """Status and answer, and the body that the application read, None where it was not asked."""
    if request.headers.get("content-type", "").startswith("multipart") and not FORMS:
        pytest.skip("forms are read by python-multipart: pip install --no-deps -r tests/monai_label.txt")
    seen: list[bytes] = []
    sent: list[dict] = []

    async def application(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        seen.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    size = max(1, -(-len(request.body) // parts))
    pieces = [request.body[i : i + size] for i in range(0, len(request.body), size)] or [b""]

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    path, _, query = request.target.partition("?")
    scope = {
        "type": "http",
        "method": request.method,
        "path": unquote(path),
        "query_string": query.encode(),
        "headers": [(key.encode(), value.encode()) for key, value in request.headers.items()],
    }
    asyncio.run(RequestGuard(application, **settings)(scope, receive, send))
    assert len(seen) <= 1
    return sent[0]["status"], json.loads(sent[1]["body"]), seen[0] if seen else None


@pytest.mark.parametrize("request_", HOSTILE, ids=lambda request: request.name)
def test_hostile_and_wrong_requests(request_):
    status, answer, seen = ask(request_)
    if request_.guarded:
        assert (status, seen) == (400, None)
        assert answer["detail"].startswith("refused: ") and len(answer["detail"]) < 300
    else:
        assert (status, seen) == (200, request_.body), "Label's to refuse"
    assert not Path(CANARY).exists()


def test_the_list_is_long_enough_and_its_names_differ():
    assert len(HOSTILE) >= 40 and len({request.name for request in HOSTILE}) == len(HOSTILE)


JSON = {"content-type": "application/json"}
LABEL = gzip.compress(b"$ is no expression here")
SLICER = {"device": ["cpu"], "multi_gpu": True, "gpus": "all", "max_epochs": 50, "val_split": 0.2, "pretrained": True}
SLICER |= {"tracking": ["None", "mlflow"], "tracking_uri": "", "run_id": "", "model_filename": ["model.pt"]}
OHIF = {"result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False, "label_info": []}


@pytest.mark.parametrize(
    "request_",
    [
        Hostile(
            "Slicer trains", "POST", "/train/skull", json.dumps(SLICER).encode(), {"content-type": "application/json"}
        ),
        Hostile("nothing chosen", "POST", "/train/skull"),
        Hostile("OHIF asks", "POST", "/infer/skull?image=1.2.3&output=image", *form({"params": json.dumps(OHIF)})),
        Hostile(
            "a label",
            "PUT",
            "/datastore/label?image=a&tag=final",
            *form({}, {"label": ("a.nii.gz", gzip.compress(b"$" * 99))}),
        ),
        Hostile("the archive", "POST", "/proxy/dicom/stow/studies", b"DICM", {"content-type": "multipart/related"}),
        Hostile("a page", "GET", "/ohif/viewer?StudyInstanceUIDs=1.2.840.1"),
    ],
    ids=lambda request: request.name,
)
@pytest.mark.parametrize("parts", [1, 7])
def test_requests_of_clients_pass_with_their_bytes(request_, parts):
    status, _, seen = ask(request_, parts)
    assert (status, seen) == (200, request_.body)


def refusal(path: str, *kinds: bytes) -> bytes | None:
    """The answer of the check to a body that would be evaluated; None where the application reads it."""
    body = b'{"note": "$__import__(\'os\').getpid()"}'
    sent: list[dict] = []
    asked: list[str] = []

    async def application(scope, receive, send):
        asked.append(scope["path"])

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind) for kind in kinds]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(RequestGuard(application)(scope, receive, send))
    return None if asked else sent[-1]["body"]


@pytest.mark.parametrize("kind", [b"application/dicom+json", b"application/x+json", b"Application/JSON; charset=utf-8"])
def test_json_of_any_kind_is_checked(kind):
    """FastAPI reads a body as JSON with each of these."""
    assert b"begins with '$'" in (refusal("/train/skull", kind) or b"")


def test_two_content_types_are_refused():
    """Starlette goes by the first: a form to this check would be JSON to Label."""
    kinds = [b"application/json", b"application/x-www-form-urlencoded"]
    assert b"more than one content type" in (refusal("/train/skull", *kinds) or b"")


def test_the_archive_gets_its_json_as_it_is():
    assert refusal("/proxy/dicom/wado/studies", b"application/dicom+json") is None


def test_a_body_above_the_limit_is_not_kept():
    request = Hostile("large", "PUT", "/datastore/label?image=a", b"x" * 3000, JSON)
    status, answer, seen = ask(request, 10, largest=1000)
    assert (status, seen) == (400, None) and "more than 1,000 bytes" in answer["detail"]


@pytest.mark.parametrize("value", ["cpu", "a.b", 3, 0.5, True, None, [1, ["a"]], {"a": {"b": [1.5]}}, "5 $", "a@b.c"])
def test_plain_values(value):
    assert refused_value({"note": value}) is None
    assert refused_body(json.dumps({"note": value})) is None


@pytest.mark.parametrize("name", ["sub-001", "a/b.nii.gz", "1.2.840", "two..dots", ""])
def test_plain_names(name):
    assert refused_name(name, "it") is None


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        (None, "", 200),
        ("http://127.0.0.1:8000", "", 200),  # the viewer that Label serves
        ("http://127.0.0.1:9000", "", 400),
        ("https://127.0.0.1:8000.example.org", "", 400),
        ("null", "", 400),
        ("https://viewer.example.org", "https://other.example.org, https://viewer.example.org", 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_of_other_sites_get_no_answers(method, origin, allowed, status, monkeypatch):
    monkeypatch.setenv("COMMON_LABEL_ORIGINS", allowed)
    headers = {"host": "127.0.0.1:8000", "content-type": "application/json"} | ({"origin": origin} if origin else {})
    answer, said, body = ask(Hostile("a page", method, "/info/", b"", headers))
    assert answer == status and (body is None) == (status == 400)
    assert status == 200 or f"pages of {origin!r} get no answers" in str(said)
