"""Files of weights that go into a pack, read before they do."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checks import first_cause
from ..volumes import first_line

__all__ = ["check_urls", "check_weights", "compare_weights", "large_files"]


def check_weights(paths: Sequence[Path]) -> None:
    names = [path.name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two files of weights are called {twice[0]}; models/ holds one of that name.")
    for path in paths:
        if not path.is_file():
            from ..weights.shipped import shipped_encoders  # loads torch

            names = shipped_encoders()
            known = f", and no encoder of this name comes along ({', '.join(names)} does)" if names else ""
            raise FileNotFoundError(f"there is no file of weights {path}{known}.")
        if path.suffix == ".pt" and path.name != "model.pt":
            raise ValueError(
                f"{path.name} cannot stand in models/: MONAI Label may take any .pt there for the network's weights; "
                "name the downstream network's weights model.pt, and an encoder's .safetensors."
            )
        _read_weights(path)


def _read_weights(path: Path) -> None:
    """Refuse a file of weights that its users could not read: cut short, damaged, or a page of some server."""
    import torch

    from ..checkpoint_file import checked_record, read_checkpoint
    from ..weights.encoder_file import read_encoder

    if path.suffix == ".pt":
        content, _ = read_checkpoint(path)
        state = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not any(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError(f"{path} holds no state dict: give a model.pt that configs/train.json wrote.")
    elif path.suffix == ".safetensors":
        read_encoder(path)
    elif path.suffix in (".ts", ".onnx"):
        try:
            if path.suffix == ".ts":
                checked_record(path)
                torch.jit.load(path, map_location="cpu")
            elif importlib.util.find_spec("onnx") is not None:
                importlib.import_module("onnx.checker").check_model(str(path))
        except Exception as error:  # a damaged file ends in whatever error its bytes lead to
            raise ValueError(f"{path} is no readable {path.suffix} file ({first_line(error)}).") from error
    else:
        raise ValueError(f"{path} is no file of weights by its name: give .pt, .safetensors, .ts or .onnx.")


def compare_weights(paths: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Compare the records of models and exported nets with the images, and the task, of the pack's inference.

    Args:
        paths: files of weights. Encoders are left out: fine-tuning compares them, and takes differences over.
        config: ``inference.json`` as it is packed; its ``accept_preparation`` takes differences over, with a warning.

    Raises:
        ValueError: there is a difference, or the transforms of the config cannot be built.
    """
    records = {path: _record(path) for path in paths if path.suffix != ".safetensors"}
    if "preprocessing" not in config or not any("preparation" in record for record in records.values()):
        return
    from monai.bundle import ConfigParser

    from ..preparation import check_images

    parser = ConfigParser(dict(config))
    try:
        preprocessing = parser.get_parsed_content("preprocessing")
        task, accepted = (parser.get_parsed_content(key, default=None) for key in ("task", "accept_preparation"))
    except Exception as error:  # whatever a target of the user's raises
        raise ValueError(f"`preprocessing` of inference.json cannot be built: {first_cause(error)}") from error
    for path, record in records.items():
        check_images(path, record, preprocessing, bool(accepted), task)


def _record(path: Path) -> Mapping[str, Any]:
    """The record that a model or an exported net carries; empty where it has none or nothing here can read it."""
    from ..checkpoint_file import RECORD, checked_record, parse_record

    if path.suffix != ".onnx":
        return checked_record(path)
    if importlib.util.find_spec("onnx") is None:
        return {}
    net = importlib.import_module("onnx").load(str(path), load_external_data=False)
    return parse_record({entry.key: entry.value for entry in net.metadata_props}.get(RECORD), path)


def check_urls(urls: Mapping[Path, str]) -> None:
    """Refuse addresses that others cannot read, or that anybody on the way could change.

    Raises:
        ValueError: an address does not begin with https.
    """
    for path, url in urls.items():
        if not re.match(r"https://[^/\s]+/\S+$", url):
            raise ValueError(f"--weights-url {path.name}={url}: give an address that begins with https://.")


def large_files(urls: Mapping[Path, str]) -> str:
    lines = ["large_files:"]
    for path, url in urls.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += [
            f'  - path: "models/{path.name}"',
            f'    url: "{url}"',
            f'    hash_val: "{digest}"',
            '    hash_type: "sha256"',
        ]
    return "\n".join(lines) + "\n"
