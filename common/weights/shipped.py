from __future__ import annotations

import os
from pathlib import Path

from ..files import cache_folder

__all__ = ["find_encoder", "shipped_encoders"]

FOLDER = Path(__file__).resolve().parent / "encoders"


def shipped_encoders() -> list[str]:
    """Names of the encoders included in the collection; a page beside each file describes it."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def find_encoder(path: str | os.PathLike) -> Path:
    """Find the file of an encoder by its path, the name of an included one, or the name of a file on the hub.

    A foreign checkpoint from the hub is converted once, with the defaults of ``common.weights.convert``.

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

    from .convert import convert
    from .hub import fetch

    file, origin = fetch(name)
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            if "record" in (content.metadata() or {}):  # an encoder file already
                return file
    made = cache_folder() / "encoders" / f"{origin['sha256']}.safetensors"
    if not made.is_file():
        convert(name, made)
    return made
