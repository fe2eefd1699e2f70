from __future__ import annotations

import os
from pathlib import Path

__all__ = ["find_encoder", "shipped_encoders"]

FOLDER = Path(__file__).resolve().parent / "encoders"


def shipped_encoders() -> list[str]:
    """Names of the encoders that come with the collection, each with a page beside its file that says what it is."""
    return sorted(file.stem for file in FOLDER.glob("*.safetensors"))


def find_encoder(path: str | os.PathLike) -> Path:
    """The file of an encoder: a path, or the name of one that comes with the collection.

    Raises:
        FileNotFoundError: there is neither such a file nor such a name.
    """
    file = Path(path)
    if file.is_file():
        return file
    if file.name == str(path) and file.name in shipped_encoders():
        return FOLDER / f"{file.name}.safetensors"
    names = shipped_encoders()
    by_name = f", the name of an encoder that comes along ({', '.join(names)})," if names else ","
    raise FileNotFoundError(
        f"no encoder file {path}: give the path of an encoder.safetensors written by pre-training or by "
        f"`python -m common.weights convert`{by_name} or null to train from scratch."
    )
