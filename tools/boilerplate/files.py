"""Make the content of the generated files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.json_files import read_json, to_json

__all__ = ["boilerplate"]

TEMPLATES = Path(__file__).resolve().parent / "templates"
# Stages that run in several processes, each with the template of its `multi_gpu_*.json`.
STAGES = {"pretrain": "multi_gpu_train", "train": "multi_gpu_train", "evaluate": "multi_gpu_evaluate"}
SEEDING = "$monai.utils.set_determinism("
STARTING = "@processes"


def boilerplate(bundle: Path, license_file: Path) -> dict[str, str]:
    """Return the text of each generated file, by its path relative to the bundle.

    Args:
        bundle: folder with ``configs/train.json``, ``evaluate.json``, ``inference.json`` and, if the bundle pre-trains,
            ``pretrain.json``.
        license_file: file to copy.

    Raises:
        FileNotFoundError: a base file is missing.
        KeyError: a base file lacks a part that a generated file needs.
    """
    configs = bundle / "configs"
    inference = read_json(configs / "inference.json")
    made = {
        "inference_onnx.json": _template("inference_onnx", bundle),
        "inference_trt.json": _tensorrt(bundle, inference),
        "outputs/dicom_seg.json": _dicom_seg(bundle, inference),
        "outputs/nifti.json": {"save_output": inference["save_output"]},
        "tracking.json": _template("tracking", bundle),
    }
    made |= {f"schedules/{path.name}": read_json(path) for path in sorted((TEMPLATES / "schedules").glob("*.json"))}
    for stage, template in STAGES.items():
        if stage != "pretrain" or (configs / "pretrain.json").is_file():
            made[f"multi_gpu_{stage}.json"] = _multi_gpu(bundle, stage, template)
    return {
        "LICENSE": license_file.read_text(encoding="utf-8"),
        "configs/logging.conf": (TEMPLATES / "logging.conf").read_text(encoding="utf-8"),
        **{f"configs/{name}": to_json(content) for name, content in made.items()},
    }


def _template(name: str, bundle: Path) -> dict[str, Any]:
    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        return bundle.name if value == "{bundle}" else value

    return named(read_json(TEMPLATES / f"{name}.json"))


def _multi_gpu(bundle: Path, stage: str, template: str) -> dict[str, Any]:
    """Make the overlay for several processes. They start before the first random number is drawn.

    It sets the base file's step ``@processes`` and leaves `initialize` itself alone, to which other overlays may add.
    """
    base = read_json(bundle / "configs" / f"{stage}.json")
    made = _template(template, bundle)
    steps = base["initialize"]
    seeding = next((n for n, step in enumerate(steps) if str(step).startswith(SEEDING)), None)
    if seeding is None:
        raise ValueError(f"`initialize` of {stage}.json has no step {SEEDING}...)")
    if STARTING not in steps[:seeding]:
        raise ValueError(f"`initialize` of {stage}.json has no step {STARTING} before {SEEDING}...)")
    network = base.get("network", {})
    made["network"] |= {key: network[key] for key in ("checkpointing", "compile") if key in network}
    # Our own samplers already divide their batches among processes.
    if "train#sampler" in made and not base["train"]["dataloader"]["shuffle"]:
        del made["train#sampler"], made["train#dataloader#shuffle"]
    if base.get("validate", {}).get("sampler") is not None:
        del made["validate#sampler"]
    return made


def _tensorrt(bundle: Path, inference: dict[str, Any]) -> dict[str, Any]:
    """Make the overlay that compiles the inference network for the inferer's batch size."""
    made = _template("inference_trt", bundle)
    inferer = inference["inferer"]
    windows = inferer.get("sw_batch_size") or inference.get(str(inferer.get("chunk")).lstrip("@")) or 1
    made["trt_args"]["dynamic_batchsize"] = [1, windows, windows]
    return made


def _dicom_seg(bundle: Path, inference: dict[str, Any]) -> dict[str, Any]:
    """Make the overlay that writes DICOM SEG in place of NIfTI."""
    made = _template("dicom_seg", bundle)
    made["save_output"]["folder_layout"] = (
        inference["save_output"]["folder_layout"] | made["save_output"]["folder_layout"]
    )
    return made
