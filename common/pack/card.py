"""Scores of a pack, and its page on the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Scores", "model_card", "read_scores"]

LIMITS = """\
The scores hold for images like those of the data set above; scanners, protocols, ages and diseases that it does not
have may give worse ones, and a mask does not tell."""
NAMES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95 (mm)"}


@dataclass(frozen=True)
class Scores:
    """Scores of an evaluation.

    Args:
        data: the data set and its part, in the user's words.
        cases: number of test scans.
        means: by score, the mean over cases of the mean over classes, as in ``common.score``.
        classes: by class and score, over cases.
    """

    data: str
    cases: int
    means: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]]


def read_scores(path: Path, data: str) -> Scores:
    """Read a table written by ``evaluate.json`` or ``python -m common.score``.

    Args:
        path: a CSV file with the columns `case`, `class` and one or more of `dice`, `nsd`, `hd95`; an empty score or
            NaN does not count.
        data: the data set and its part, for readers of the scores.

    Raises:
        ValueError: the file is not such a table or has no score.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in NAMES if rows and name in rows[0]]
    if not columns or not {"case", "class"} <= set(rows[0]):
        raise ValueError(f"{path} is not a table of scores: it needs the columns case, class and {', '.join(NAMES)}.")
    # The last rows of a table may be its means.
    rows = [row for row in rows if row["case"] != "mean" and row["class"] != "mean"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    found = {column: [(row["case"], row["class"], _number(path, row[column])) for row in rows] for column in columns}
    means: dict[str, float] = {}
    classes: dict[str, dict[str, float]] = {}
    for column, values in found.items():
        by_case = [_mean([value for of, _, value in values if of == case]) for case in cases]
        means[column] = _mean(by_case)
        for name in dict.fromkeys(name for _, name, _ in values):
            classes.setdefault(name, {})[column] = _mean([value for _, of, value in values if of == name])
    means = {name: value for name, value in means.items() if not math.isnan(value)}
    if not means:
        raise ValueError(f"{path} has no score.")
    return Scores(data, len(cases), means, classes)


def _number(path: Path, text: str | None) -> float:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise ValueError(f"{path} has {text!r} instead of a score.") from None
    return value if math.isfinite(value) else math.nan


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def model_card(
    name: str, metadata: Mapping[str, Any], scores: Scores | None, licence: str | None, weights: bool, data_licence: str
) -> str:
    """``README.md`` of the pack: the hub's header with a model index, use, scores, licence and limits.

    Args:
        name: name of the pack.
        metadata: its ``metadata.json``.
        scores: measured scores; without them, the card says
            so.
        licence: the hub's identifier for the licence of the weights; None if not given.
        weights: whether the pack has weights or their address.
        data_licence: text on the licences of the data.
    """
    header: dict[str, Any] = {"library_name": "monai", "pipeline_tag": "image-segmentation"}
    if licence or not weights:
        header["license"] = licence or "apache-2.0"
    else:  # the terms of what the weights were trained on, which nobody but the packer knows
        header |= {"license": "other", "license_name": "terms-of-the-training-data"}
        header["license_link"] = "docs/data_license.txt"
    header["tags"] = ["monai", "medical", "segmentation"]
    image: dict[str, Any] = next(iter(metadata.get("network_data_format", {}).get("inputs", {}).values()), {})
    header["tags"] += [image["modality"].lower()] if image.get("modality") else []
    if scores is not None:
        slug = re.sub(r"[^a-z0-9]+", "-", scores.data.lower()).strip("-")
        header["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-segmentation"},
                        "dataset": {"type": slug, "name": scores.data},
                        "metrics": [
                            {"type": key, "name": f"mean {NAMES[key]}", "value": round(value, 4)}
                            for key, value in scores.means.items()
                        ],
                    }
                ],
            }
        ]
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    lines += [f"# {metadata.get('name', name)}", "", str(metadata.get("description", "")), ""]
    for title, key in (("Images", "image_classes"), ("Classes", "label_classes"), ("Data", "data_source")):
        if metadata.get(key):
            lines.append(f"- **{title}**: {metadata[key]}.".replace("..", "."))
    lines += ["", "## Use", "", "```bash", "pip install -r scripts/common/requirements.txt"]
    lines += ["python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER", "```", ""]
    lines += ["`docs/README.md` has the rest: origin, training, evaluation.", "", "## Results", ""]
    lines += _table(scores) if scores is not None else ["None were measured for this pack."]
    lines += ["", "## Limits", "", str(metadata.get("intended_use", "Not a medical device and not for diagnosis."))]
    lines += [LIMITS, "", "## Licence", ""]
    lines += ["The code is under the Apache License 2.0 (`LICENSE`).", "", data_licence.strip()]
    if metadata.get("references"):
        lines += ["", "## References", "", *(f"- {reference}" for reference in metadata["references"])]
    return "\n".join(lines) + "\n"


def _table(scores: Scores) -> list[str]:
    columns = list(scores.means)

    def row(title: str, values: Mapping[str, float]) -> str:
        cells = [f"{values[name]:.3f}" if not math.isnan(values[name]) else "" for name in columns]
        return f"| {' | '.join([title, *cells])} |"

    return [
        f"{scores.data}, {scores.cases} {'scan' if scores.cases == 1 else 'scans'}:",
        "",
        f"| class | {' | '.join(NAMES[name] for name in columns)} |",
        "|---|" + "---|" * len(columns),
        *(row(name, values) for name, values in scores.classes.items()),
        row("mean", scores.means),
    ]
