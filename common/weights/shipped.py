from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..files import cache_folder, file_digest

__all__ = ["find_encoder", "shipped_encoders"]

FOLDER = Path(__file__).resolve().parent / "encoders"


def shipped_encoders() -> list[str]:
    """Names of the encoders included in the collection; a page beside each file describes it."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def find_encoder(path: str | os.PathLike) -> Path:
    """Find the file of an encoder by its path, the name of an included one, or the name of a file on the hub.

    A foreign checkpoint from the hub is converted once, with the defaults of ``common.weights.convert``, and again if
    its settings, its origin or the converter have changed.

    Raises:
        FileNotFoundError: there is neither such a file nor such a name.
        OSError, ValueError: as ``common.weights.hub.fetch`` and ``common.weights.convert``.
    """
    if str(path).startswith("hf:/"):
        return _from_hub(str(path))
    file = Path(path)
    if file.is_file():
        return file
    if file.name == str(path) and file.name in shipped_encoders():
        return FOLDER / f"{file.name}.safetensors"
    names = shipped_encoders()
    by_name = f", the name of an included encoder ({', '.join(names)})," if names else ","
    raise FileNotFoundError(
        f"no encoder file {path}: give the path of an encoder.safetensors written by pre-training or by "
        f"`python -m common.weights convert`{by_name} or null to train from scratch."
    )


def _from_hub(name: str) -> Path:
    from safetensors import safe_open

    from .convert import VERSION, convert
    from .hub import fetch
    from .published import published_weights
    from .source import HUB_FILES, HUB_SETTINGS

    file, origin = fetch(name)
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            if "record" in (content.metadata() or {}):  # an encoder file already
                return file
    beside = [file.with_name(name) for name in HUB_SETTINGS if file.name in HUB_FILES]
    settings = {one.name: file_digest(one) for one in beside if one.is_file()}
    key = json.dumps([VERSION, published_weights(), origin, settings])  # all that makes the encoder file
    made = cache_folder() / "encoders" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    if not made.is_file():
        convert(name, made)
    return made
