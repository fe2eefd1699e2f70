"""A MONAI Label server that treats the values of a request as plain data.

Releases of MONAI Label before 0.8.8 evaluate them, so anybody who reaches the server can run code on it
(`common.doctor.label_warning` lists the advisories). An option of Label puts this check before its application, in any
release::

    monailabel start_server --host 127.0.0.1 --uvicorn_app common.label_guard:app ...

A refused request gets status 400 and a sentence, and Label never sees it. Requests of web pages from other sites are
refused, too. This is no authentication; for that, use
Label's ``MONAI_LABEL_AUTH_ENABLE``.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["RequestGuard", "refused_body", "refused_name", "refused_value"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LARGEST_TEXT = 1 << 20
"""Largest size of a JSON text in bytes."""
LARGEST_BODY = 4 << 30
"""Largest size of a request in bytes; an uploaded volume is the largest."""
DEEPEST = 16
ORIGINS = "COMMON_LABEL_ORIGINS"
"""Environment variable: origins of pages from elsewhere that may ask, such as ``https://viewer.example.org``."""
FORM_TEXTS = ("params", "info")
"""Fields of Label's forms that hold JSON."""
DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,2})?")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _number(low: float, high: float, whole: bool) -> Callable[[Any], str | None]:
    kind = "a whole number" if whole else "a number"

    def check(value: Any) -> str | None:
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        return None if right and low <= value <= high else f"{kind} from {low} to {high}"

    return check


def _switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _match(pattern: re.Pattern[str], meaning: str) -> Callable[[Any], str | None]:
    """Match a value or a list: Slicer sends all choices of an option if the user chose none."""

    def check(value: Any) -> str | None:
        values = value if isinstance(value, list) else [value]
        good = all(isinstance(one, str) and (not one or pattern.fullmatch(one)) for one in values)
        return None if good else meaning

    return check


# What Label or a training computes with, opens or runs; everything else of a request is stored or ignored.
VALUES: dict[str, Callable[[Any], str | None]] = {
    "device": _match(DEVICE, "cpu, mps, cuda or cuda:NUMBER"),
    "gpus": _match(re.compile(r"all|\d{1,2}(,\d{1,2})*"), "all, or numbers with commas"),
    "model_filename": _match(WORD, "the name of a file in the bundle's models/"),
    "result_dtype": _match(WORD, "a NumPy type"),
    "result_extension": _match(re.compile(r"(\.[a-z0-9]{1,8}){1,2}"), "an extension such as .nii.gz"),
    "run_id": _match(re.compile("run"), "run"),
    "tracking": _match(re.compile("mlflow|none", re.IGNORECASE), "mlflow or None"),
    "max_epochs": _number(1, 100_000, True),
    "val_split": _number(-1, 0.99, False),
    "max_workers": _number(0, 64, True),
    "multi_gpu": _switch,
    "force_multi_gpu": _switch,
    "pretrained": _switch,
    "save_label": _switch,
}
# Set by the server alone: a folder whose code it runs, and where it writes.
SERVER_ONLY = {"bundle_path": "", "tracking_uri": os.environ.get("MONAI_LABEL_TRACKING_URI", "")}


def refused_name(name: str, what: str) -> str | None:
    """Why a name in an address, or of an uploaded file, is refused: it leaves its folder or is not a name."""
    if len(name) > 1024:
        return f"{what} is longer than 1,024 characters"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return f"{what} has a control character"
    if "\\" in name or ".." in name.split("/") or name.startswith(("/", "~")):
        return f"{what} {name!r} leaves its folder"
    if name.startswith("$"):
        return f"{what} {name!r} begins with '$'"
    return None


def refused_value(values: Any, depth: int = 0) -> str | None:
    """Why the values of a request are refused: one would be evaluated, or no bundle can use it."""
    if depth > DEEPEST:
        return f"values are nested in more than {DEEPEST} levels"
    if isinstance(values, str):
        # MONAI's config system: an expression, a reference, and a file's content
        if values.startswith(("$", "@", "%")):
            return f"the value {_short(values)} begins with {values[0]!r}, but values must be plain data"
        return "a value has a NUL character" if "\0" in values else None
    if isinstance(values, float):
        return None if math.isfinite(values) else "a value is not finite"
    if isinstance(values, list):
        return next((reason for item in values if (reason := refused_value(item, depth + 1))), None)
    if not isinstance(values, dict):
        return None
    for key, value in values.items():
        if re.fullmatch(r"_\w+_", key) or re.search("[#$@%]|::", key):
            return f"the name {_short(key)} has a meaning in a configuration, but values must be plain data"
        if key in SERVER_ONLY and value not in (None, "", SERVER_ONLY[key]):
            return f"{key} is the server's own setting"
        expected = VALUES[key](value) if key in VALUES and value is not None else None
        if expected:
            return f"{key} is {_short(value)}; it must be {expected}"
        reason = refused_value(value, depth + 1)
        if reason:
            return reason
    return None


def refused_body(text: bytes | str, what: str = "the body") -> str | None:
    """Why a JSON text is refused."""
    if len(text) > LARGEST_TEXT:
        return f"{what} has more than {LARGEST_TEXT:,} bytes"
    try:
        values = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return f"{what} is no JSON"
    if values is None:
        return None
    return refused_value(values) if isinstance(values, dict) else f"{what} is not a JSON object"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class RequestGuard:
    """The check as ASGI middleware.

    Args:
        application: application that answers the accepted requests.
        largest: largest size of a request's body in bytes.
    """

    def __init__(self, application: Application, largest: int = LARGEST_BODY) -> None:
        self.application = application
        self.largest = largest

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        reason = _refused_origin(scope) or _refused_address(scope)
        if reason is None and scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.application(scope, receive, send)
            return
        # On disk when it is large; the application reads the very bytes that were checked.
        with tempfile.SpooledTemporaryFile(max_size=16 << 20) as body:
            if reason is None:
                reason = await self._read(receive, body) or await _refused_content(scope, body)
            if reason is not None:
                await _refuse(send, reason)
                return
            body.seek(0)
            await self.application(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive, body: IO[bytes]) -> str | None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return "the request ended before its body did"
            part = message.get("body", b"")
            size += len(part)
            if size > self.largest:
                return f"the body has more than {self.largest:,} bytes"
            body.write(part)
            more = message.get("more_body", False)
        body.seek(0)
        return None


def _refused_origin(scope: MutableMapping[str, Any]) -> str | None:
    """Browsers name the page that asks; other clients name none. Label itself would answer the pages of any site."""
    headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
    origin = headers.get(b"origin", "")
    allowed = os.environ.get(ORIGINS, "").replace(",", " ").split()
    if not origin or origin in allowed or urlsplit(origin).netloc == headers.get(b"host"):
        return None
    return (
        f"pages of {origin[:100]!r} get no answers; the environment variable {ORIGINS} names the sites whose pages do"
    )


def _refused_address(scope: MutableMapping[str, Any]) -> str | None:
    # "%252e": what a second decoding would make of it counts as well
    path = unquote(scope["path"]).lstrip("/")
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    names = [(path, "the path")] + [(unquote(value), f"{key!r} of the address") for key, value in query]
    return next((reason for name, what in names if (reason := refused_name(name, what))), None)


async def _refused_content(scope: MutableMapping[str, Any], body: IO[bytes]) -> str | None:
    kinds = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"content-type"]
    if len(kinds) > 1:
        return "there is more than one content type"  # Label would go by another one than this check
    kind = "".join(kinds).partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _refused_form(scope, body)
    if scope["path"].startswith("/proxy/"):
        return None  # goes to the archive as it is
    # FastAPI reads a body without a content type as JSON
    text = body.read(LARGEST_TEXT + 1)
    body.seek(0)
    if not text or kind in ("", "application/json") or kind.endswith("+json"):
        return refused_body(text)
    return f"content type {kind!r} is not accepted here"


async def _refused_form(scope: MutableMapping[str, Any], body: IO[bytes]) -> str | None:
    from starlette.requests import Request

    try:
        form = await Request(scope, _replay(body)).form()
    except Exception as error:  # whatever the parser says of a malformed form
        return f"the form cannot be read ({error})"
    try:
        for key, value in form.multi_items():
            if not isinstance(value, str):
                name = value.filename or ""
                reason = refused_name(name, "a file's name")
                reason = reason or (f"a file's name {name!r} has a folder" if "/" in name else None)
            elif key in FORM_TEXTS:
                reason = refused_body(value, key)
            else:
                reason = refused_name(value, key)
            if reason:
                return reason
        return None
    finally:
        await form.close()
        body.seek(0)


def _replay(body: IO[bytes], after: Receive | None = None) -> Receive:
    """A `receive` that first gives the body, then later messages of the connection, such as its end."""
    parts: Iterator[bytes] = iter(lambda: body.read(1 << 20), b"")
    done = False

    async def receive() -> Message:
        nonlocal done
        if done and after is not None:
            return await after()
        part = next(parts, None)
        done = part is None
        return {"type": "http.request", "body": part or b"", "more_body": not done}

    return receive


async def _refuse(send: Send, reason: str) -> None:
    content = json.dumps({"detail": f"refused: {reason}."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def __getattr__(name: str) -> Any:
    """`app`, created on first access: MONAI Label is not among the requirements."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from monailabel.app import app

    globals()["app"] = RequestGuard(app)
    return globals()["app"]
