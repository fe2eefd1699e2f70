"""Check files of weights before they go into a pack."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checks import first_cause
from ..files import file_digest
from ..volumes import first_line

__all__ = ["check_networks", "check_urls", "check_weights", "compare_weights", "large_files", "models_of"]

LOADER = "load_encoder"
NETWORK = ("_target_", "encoder", "spatial_size", "inflation", "task")
"""Arguments of a loading step that define the network of an encoder."""


def check_weights(paths: Sequence[Path]) -> None:
    names = [path.name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two files of weights are called {twice[0]}, but models/ can hold only one of that name: rename one."
        )
    for path in paths:
        if not path.is_file():
            from ..weights.shipped import shipped_encoders  # loads torch

            names = shipped_encoders()
            known = f", and no encoder of this name is included (only {', '.join(names)})" if names else ""
            raise FileNotFoundError(f"there is no file of weights {path}{known}.")
        if path.suffix == ".pt" and path.name != "model.pt":
            raise ValueError(
                f"{path.name} cannot be in models/, since MONAI Label may take any .pt there for the network's "
                "weights; name the weights of the final network model.pt, and those of an encoder .safetensors."
            )
        _read_weights(path)


def _read_weights(path: Path) -> None:
    """Refuse a file of weights that users could not read: cut short, damaged, or a web page."""
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
            raise ValueError(f"{path} is not a readable {path.suffix} file ({first_line(error)}).") from error
    else:
        raise ValueError(f"{path} does not have a name of weights: give .pt, .safetensors, .ts or .onnx.")


def compare_weights(paths: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Compare the records of models and exported nets with the images and the task of the pack's inference.

    Args:
        paths: models and exported nets (``models_of``). Fine-tuning compares encoders, and accepts differences.
        config: ``inference.json`` as packed; its ``accept_preparation`` accepts differences with a warning.

    Raises:
        ValueError: there is a difference, or the transforms of the config cannot be built.
    """
    records = {path: _record(path) for path in paths}
    if "preprocessing" not in config or not any("preparation" in record for record in records.values()):
        return
    from ..preparation import check_images

    preprocessing, task, accepted = (
        _built(config, key) if key in config else None for key in ("preprocessing", "task", "accept_preparation")
    )
    for path, record in records.items():
        check_images(path, record, preprocessing, bool(accepted), task)


def models_of(paths: Sequence[Path], config: Mapping[str, Any]) -> list[Path]:
    """The models among files of weights that inference can use; encoders only if they predict its classes."""
    whole = [path for path in paths if path.suffix == ".safetensors" and "task" in config and "network_def" in config]
    told = {path: (_record(path).get("preparation") or {}).get("task") for path in whole}
    return [path for path in paths if path not in told or (told[path] and told[path] == _built(config, "task"))]


def check_networks(
    encoders: Sequence[Path], models: Sequence[Path], inference: Mapping[str, Any], train: Mapping[str, Any]
) -> None:
    """Load models into the network of the pack's inference, and encoder files into that of its fine-tuning.

    Args:
        encoders: files; all but encoder files are skipped.
        models: files; exported nets are skipped, since they bring their network.
        inference, train: ``inference.json`` and ``train.json`` as packed, empty if there is none. Nothing is compared
            without ``network_def``, or without a step that loads an encoder.

    Raises:
        ValueError: a file belongs to another network, or the network cannot be built.
    """
    from ..weights.model_file import load_model

    steps = [step for step in train.get("initialize", ()) if isinstance(step, Mapping)]
    loader = next((step for step in steps if str(step.get("_target_")).endswith(f".{LOADER}")), None)
    for path in [path for path in encoders if path.suffix == ".safetensors" and loader is not None]:
        used = {key: value for key, value in (loader or {}).items() if key in NETWORK}
        with _fitting(path):
            _built({**train, LOADER: {**used, "path": str(path)}}, LOADER)
    for path in [path for path in models if path.suffix in (".pt", ".safetensors") and "network_def" in inference]:
        network = _built(inference, "network_def")
        with _fitting(path):
            load_model(network, path)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the transfer report is for those who train
    try:
        yield
    except (RuntimeError, ValueError) as error:  # MONAI wraps what loading refuses
        raise ValueError(
            f"{path.name} does not fit the network of the pack: {first_cause(error)} To pack for its network "
            "and task, give their files with --config_file."
        ) from error
    finally:
        logging.disable(before)


def _built(config: Mapping[str, Any], key: str) -> Any:
    """The value of an id of a packed config, built as in a run."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(dict(config))
    try:
        if "imports" in config:
            parser.get_parsed_content("imports")
        return parser.get_parsed_content(key)
    except Exception as error:  # whatever a target of the user's raises
        if key == LOADER:
            raise
        raise ValueError(f"`{key}` of inference.json cannot be built: {first_cause(error)}") from error


def _record(path: Path) -> Mapping[str, Any]:
    """The record of a file of weights; empty if it has none or nothing here can read it."""
    from ..checkpoint_file import RECORD, checked_record, parse_record
    from ..weights.encoder_file import read_record

    if path.suffix == ".safetensors":
        return read_record(path)
    if path.suffix != ".onnx":
        return checked_record(path)
    if importlib.util.find_spec("onnx") is None:
        return {}
    net = importlib.import_module("onnx").load(str(path), load_external_data=False)
    return parse_record({entry.key: entry.value for entry in net.metadata_props}.get(RECORD), path)


def check_urls(urls: Mapping[Path, str]) -> None:
    """Refuse addresses that others cannot read, or whose content could be changed on the way.

    Raises:
        ValueError: an address does not begin with https.
    """
    for path, url in urls.items():
        if not re.match(r"https://[^/\s]+/\S+$", url):
            raise ValueError(f"--weights-url {path.name}={url}: give an address that begins with https://.")


def large_files(urls: Mapping[Path, str]) -> str:
    lines = ["large_files:"]
    for path, url in urls.items():
        lines += [
            f"  - path: {json.dumps('models/' + path.name)}",  # a JSON text is one of YAML
            f"    url: {json.dumps(url)}",
            f'    hash_val: "{file_digest(path)}"',
            '    hash_type: "sha256"',
        ]
    return "\n".join(lines) + "\n"
