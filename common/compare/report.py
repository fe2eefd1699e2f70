"""The report of a comparison, as Markdown and as one HTML file, made only from its tables."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durations import format_duration
from ..files import atomic_write
from ..volumes import and_more
from .cells import escaped, interval_cell, mean_cell, scores_table
from .figures import draw_all, metric_name, metric_title
from .paper import write_paper
from .statistics import MOST_SEEDS, UNTRAINED, mean_and_spread
from .tables import Tables, device_hours, kind_of, plural, span

__all__ = ["write_report"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 0.92em; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 0.8em 0.3em 0; text-align: left; white-space: nowrap; }
td.long { white-space: normal; min-width: 16em; }
th { border-bottom: 2px solid #888; } img { max-width: 100%; } figure { margin: 1.5em 0; }
figcaption { color: #555; font-size: 0.9em; } h1, h2, h3 { line-height: 1.2; margin-top: 1.6em; }
code { background: #f3f3f3; }
/* On a phone tables and wide diagrams are read by moving them sideways, each by itself. */
@media screen and (max-width: 40em) {
  .wide { overflow-x: auto; } .wide img { max-width: none; width: 50em; }
  th:first-child, td:first-child { white-space: normal; min-width: 7em; }
}
@media print {
  body { max-width: none; margin: 0; } figure, tr { break-inside: avoid; } h1, h2, h3 { break-after: avoid; }
  table { display: table; } th, td { white-space: normal; }
}
"""

WIDE = 720
"""Width in pixels from which the text of a picture is too small to read on a phone."""
LONG = 40
"""Letters from which the text of a table's cell is broken into lines."""
SCALED = ("examples", "cases")
"""Pictures of scans and masks side by side: a phone shows the whole width."""


@dataclass(frozen=True)
class Block:
    """A part of the report: ``heading``, ``text``, ``list``, ``table``, ``code`` or ``figure``."""

    kind: str
    text: str = ""
    level: int = 2
    items: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: bytes = b""


def write_report(folder: Path) -> Path:
    """Write ``report.md``, ``report.html``, ``figures/*.png`` and ``paper/*`` from the tables in ``folder``.

    Returns:
        path of ``report.md``.
    """
    tables = Tables(folder)
    pictures = {}
    for name, (figure, caption) in draw_all(tables).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pictures[name] = Block("figure", caption, items=[name], picture=buffer.getvalue())
        with atomic_write(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(buffer.getvalue())
    if tables.subjects:
        write_paper(tables)
    blocks = list(_blocks(tables, pictures))
    for name, text in (("report.md", markdown(blocks)), ("report.html", page(blocks, _title(tables)))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "report.md"


def _title(tables: Tables) -> str:
    task = tables.about.get("task")
    return f"Does pre-training help? {tables.about['bundle']}{f', {task}' if task else ''}"


def _blocks(tables: Tables, pictures: dict[str, Block]):
    yield Block("heading", _title(tables), level=1)
    yield Block("heading", "Outcome")
    yield Block("list", items=outcome(tables))
    if tables.subjects:
        yield Block("text", _reading(tables))
        if "differences" in pictures:
            yield pictures["differences"]
    for metric, direction in tables.metrics.items() if tables.subjects else ():
        yield Block("heading", f"{metric_title(metric)}, {direction} is better")
        header, rows = scores_table(tables, metric)
        yield Block("table", header=header, rows=rows)
        if tables.pairs:
            yield _differences_table(tables, metric)
        if metric == tables.main_metric:
            yield from (pictures[name] for name in ("label_efficiency", "learning_curves") if name in pictures)
            yield from _convergence(tables)
    if tables.trials:
        yield from _tuning(tables)
    failures = _failures(tables)
    if failures:
        yield Block("heading", "Unfinished runs")
        yield Block("list", items=failures)
    if tables.structures:
        yield Block("heading", "Structures")
        yield pictures["structures"]
        for labels in tables.labels:
            yield _structures_table(tables, labels)
    if "predictions" in pictures:
        yield Block("heading", "Predictions")
        yield pictures["predictions"]
    if "examples" in pictures:
        yield Block("heading", "Examples")
        yield pictures["examples"]
    probes = tables.rows("probes")
    if probes:
        yield Block("heading", "Probes of the frozen encoders")
        yield Block(
            "text",
            "Nearest neighbours and linear models on the encoder's features, without fine-tuning; mean over seeds.",
        )
        yield _probes_table(tables, probes)
    yield Block("heading", "Cost")
    yield _cost_table(tables)
    if any(row.get("taken") for row in tables.rows("costs")):
        yield Block("text", "A fine-tuning that was copied from its trial counts once in the last time of an arm.")
    for kind in tables.device_kinds:
        yield from _device_hours(tables, kind)
    yield Block("heading", "How it was made")
    yield Block("list", items=_making(tables))
    yield Block("code", tables.about["command"])


def outcome(tables: Tables) -> list[str]:
    """The answer, one sentence for each arm and number of labels."""
    if not tables.subjects:
        return ["No evaluation was completed, so there is nothing to compare."]
    if not tables.pairs:
        if tables.about["baseline"]:
            return ["Only one arm was compared, so there is no difference to judge."]
        return ["No arm starts from scratch, so there is nothing to compare with."]
    metric = tables.main_metric
    lines = []
    stale = tables.about.get("stale")
    if stale:
        lines.append(
            f"Of other settings, config files or data than the present ones: {and_more(stale)}. Call the comparison "
            "without --report to run them again."
        )
    if tables.about.get("transductive"):
        lines.append("Transductive: pre-training may have seen validation and test scans.")
    if len({packages.get("common") for packages in tables.about["packages"]}) > 1:
        lines.append(
            "The runs were made with several versions of this collection's code; a new --output uses only one."
        )
    if tables.about.get("evaluate_override"):
        given = ", ".join(f"{key} {value}" for key, value in tables.about["evaluate_override"].items())
        lines.append(f"Evaluated with settings that training did not have: {given}.")
    if tables.about.get("validation_from_labels"):
        lines.append(
            "Validation scans are part of the labels; pre-training on the training list has seen their images."
        )
    if tables.about.get("validated_on_test"):
        lines.append(
            "The test scans also served as validation scans, which choose the weights and what is tuned: scores on new "
            "scans may be lower."
        )
    for arm, base in tables.pairs:
        for labels in tables.labels:
            found = tables.difference((arm, base), labels)
            text = f"With {tables.labelled(labels)}, {arm} against {base}: **{_verdict(tables, (arm, base), labels)}**"
            details = _why_not(tables, (arm, base), labels)
            if tables.about["arms"][arm].get("reference"):
                details.append("another network, so not the start alone")
            if found is not None:
                ours, theirs = (mean_and_spread(tables.scores(name, labels, metric))[0] for name in (arm, base))
                parts = found.parts
                details += [
                    f"{metric_name(metric)} {ours:.3f} against {theirs:.3f}",
                    f"difference {parts.mean:+.3f}",
                    *([f"95 % interval {interval_cell(found.interval)}"] if found.interval else []),
                    f"{parts.seeds} {plural(parts.seeds, 'seed')}",
                    f"{parts.subjects} {plural(parts.subjects, 'subject')}",
                ]
            lines.append(f"{text} ({', '.join(details)}).")
    return lines


def _verdict(tables: Tables, pair: tuple[str, str], labels: int) -> str:
    verdict = tables.verdicts[pair, labels].text
    of_two_models = len(tables.about["seeds"]) == 1 and verdict in ("better", "worse", "equivalent")
    if verdict == "equivalent":
        verdict += f" within {tables.about['margin']:g}"
    return f"{verdict} between these two models" if of_two_models else verdict


def _why_not(tables: Tables, pair: tuple[str, str], labels: int) -> list[str]:
    """What is missing for an open verdict."""
    verdict = tables.verdicts[pair, labels]
    if verdict.text == "incomplete":
        missing = {arm: tables.missing_seeds(arm, labels) for arm in pair}
        return [f"{arm} lacks seed {', '.join(map(str, seeds))}" for arm, seeds in missing.items() if seeds]
    if verdict.text != "undecided":
        return []
    if len(tables.about["seeds"]) == 1:
        return ["one seed says nothing about other trainings"]
    if verdict.seeds is None:
        return [f"even {MOST_SEEDS} seeds would not decide it, but more test subjects may"]
    return [f"about {verdict.seeds} seeds would decide it if mean and variances stay the same"]


def _reading(tables: Tables) -> str:
    """Explain the verdicts that occur."""
    verdicts, several = {verdict.text for verdict in tables.verdicts.values()}, len(tables.about["seeds"]) > 1
    margin, count = tables.about.get("margin"), len(tables.verdicts)
    parts = []
    if verdicts & {"better", "worse", "equivalent", "undecided"}:
        spread = "trainings (seeds) and of subjects" if several else "subjects"
        parts.append(
            f"Each 95 % interval covers the spread of {spread}. Verdicts use "
            f"{metric_name(tables.main_metric)} only. Holm's procedure over {count} "
            f"{plural(count, 'comparison')} limits false verdicts to 5 % of reports, so verdicts are "
            "stricter than the intervals."
        )
        parts.append(
            "No margin is given, so nothing is called equivalent."
            if margin is None
            else f'"Equivalent" means that the difference is shown to be below {margin:g}.'
        )
    if "undecided" in verdicts:
        parts.append('"Undecided" means that neither a difference nor its absence is shown.')
    if "incomplete" in verdicts:
        parts.append(
            '"Incomplete" means that an arm lacks seeds; its numbers cover only the seeds that both arms have.'
        )
    if "untrained" in verdicts:
        parts.append(
            f'"Untrained" means that both arms have a mean Dice below {UNTRAINED:g}: they have not learnt the task, so '
            "their difference says nothing. Give more --steps or a higher rate."
        )
    if "identical" in verdicts:
        parts.append('"Identical" means that both arms have the same scores to the last digit.')
    shared = [name for name in tables.others if tables.about["arms"][name].get("one_pretraining")]
    if shared and several:
        parts.append(
            f"All seeds of {', '.join(shared)} start from one pre-training, so the interval does not include "
            "the spread of pre-trainings."
        )
    if tables.about.get("folds"):
        parts.append(
            f"Test scores are pooled from {tables.about['folds']} folds, with each subject tested once per "
            "seed. The intervals do not account for scans that the trainings of different folds share."
        )
    if len(tables.metrics) > 1 or tables.structures:
        parts.append("Other metrics and single structures are described but not judged.")
    if not several:
        parts.append(
            "With one seed the spread of trainings is unknown: a verdict applies to these models only, and "
            "another training may reverse it."
        )
    return " ".join(parts)


def _convergence(tables: Tables):
    """Whether fine-tuning was long enough to compare more than speed of learning."""
    gains, margin, patience = tables.last_thirds, tables.about.get("margin"), tables.about.get("patience")
    if patience:
        yield Block(
            "text",
            f"A fine-tuning ended after {patience} {plural(patience, 'validation')} without a better one, or "
            "at the cap of steps, which is the same in all arms. Ended before the cap:",
        )
        rows = []
        for labels in tables.labels:
            counts = [tables.stopped(arm, labels) for arm in tables.arms]
            rows.append(
                [tables.labelled(labels), *(f"{ended} of {count}" if count else "-" for ended, count in counts)]
            )
        yield Block("table", header=["labels", *tables.arms], rows=rows)
    if not gains:
        return
    enough = f"; {margin:g} or more: not converged" if margin is not None else ""
    yield Block(
        "text",
        f"Improvement in {metric_name(tables.main_metric)} in validation over the last third of fine-tuning, mean over "
        f"seeds{enough}. For arms that have not converged, the comparison shows how fast they learn.",
    )
    arms = [arm for arm in tables.arms if any((arm, labels) in gains for labels in tables.labels)]
    rows = []
    for labels in tables.labels:
        cells = [_gain(gains.get((arm, labels)), margin) for arm in arms]
        rows.append([tables.labelled(labels), *cells])
    yield Block("table", header=["labels", *arms], rows=rows)


def _tuning(tables: Tables):
    """The result of every trial, the choice, and whether the grid was wide enough."""
    yield Block("heading", "Tuning")
    asked, seeds = tables.about["trials"], tables.about["seeds"][: tables.about.get("tune_seeds") or 1]
    by_mean = " by mean" if len(seeds) > 1 else ""
    yield Block(
        "text",
        f"{len(asked)} trials in every arm and number of labels, on {plural(len(seeds), 'seed')} "
        f"{', '.join(map(str, seeds))}; the best{by_mean} in validation (bold) is used for all seeds; the test list is "
        f"not used. Numbers: best {metric_name(tables.main_metric)} in validation. The intervals do not include the "
        "chance in this choice.",
    )
    cells = {(row["labels"], row.get("fold"), row["trial"], row["arm"]): row for row in tables.trials}
    arms = [arm for arm in tables.arms if any(row["arm"] == arm for row in tables.trials)]
    rows = []
    for labels, fold in dict.fromkeys(key[:2] for key in cells):
        for number, trial in enumerate(asked):
            name = ", ".join(f"{key} {value}" for key, value in trial.items())
            row = [_trial_cell(cells.get((labels, fold, number, arm))) for arm in arms]
            rows.append([str(labels) if fold is None else f"{labels}, fold {fold}", name, *row])
    yield Block("table", header=["labels", "values", *arms], rows=rows)
    edges = _edges(tables)
    if edges:
        yield Block("list", items=edges)


def _trial_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["status"] != "done":
        return row["status"] if row else "-"
    text = f"{row['score']:.3f} ({', '.join(map(str, row['values'].values()))})"
    return f"**{text}**" if row["chosen"] else text


def _edges(tables: Tables) -> list[str]:
    """Notes on trials where the smallest or largest value is the best."""
    lines = []
    for best in (row for row in tables.trials if row["chosen"]):
        same = [row for row in tables.trials if all(row[key] == best[key] for key in ("arm", "labels", "fold"))]
        for key, value in best["values"].items():
            tried = {row["values"][key] for row in same if type(row["values"][key]) in (int, float)}
            if len(tried) > 1 and value in (min(tried), max(tried)):
                fold = "" if best["fold"] is None else f" (fold {best['fold']})"
                labels = f"{best['labels']} {plural(best['labels'], 'label')}"
                lines.append(
                    f"With {labels}{fold}, {best['arm']} is best at the edge of the grid, {key} {value:g}: a wider "
                    "grid may find a better value."
                )
    return lines


def _gain(gain: float | None, margin: float | None) -> str:
    if gain is None:
        return "-"
    return f"{gain:+.3f}" + ("" if margin is None else ", not converged" if gain >= margin else ", converged")


def _differences_table(tables: Tables, metric: str) -> Block:
    rows = []
    judged = metric == tables.main_metric
    for labels in tables.labels:
        for pair in tables.pairs:
            cells = ["-"] * 4
            found = tables.difference(pair, labels, metric)
            if found is not None:
                cells = [f"{found.parts.mean:+.3f}", interval_cell(found.interval), interval_cell(found.over_subjects)]
                cells.append(f"{round(found.better * found.parts.subjects)} of {found.parts.subjects}")
            verdict = [_verdict(tables, pair, labels)] if judged else []
            rows.append([str(labels), " - ".join(pair), *cells, *verdict])
    header = ["labels", "difference", "mean", "95 % interval", "over subjects alone", "subjects better"]
    return Block("table", header=[*header, "verdict"] if judged else header, rows=rows)


def _structures_table(tables: Tables, labels: int) -> Block:
    rows = []
    for name in tables.structures:
        cells = [mean_cell(tables, arm, labels, tables.main_metric, name) for arm in tables.arms]
        for pair in tables.pairs:
            found = tables.difference(pair, labels, structure=name)
            cells.append(f"{found.parts.mean:+.3f} ({interval_cell(found.interval)})" if found else "-")
        rows.append([name, *cells])
    heads = [" - ".join(pair) for pair in tables.pairs]
    return Block("table", header=[tables.labelled(labels), *tables.arms, *heads], rows=rows)


def _failures(tables: Tables) -> list[str]:
    lines = []
    for row in tables.rows("costs"):
        if row["status"] != "done":
            labels = "" if math.isnan(row["fraction"]) else f", fraction {row['fraction']:.3g}"
            seed = "" if row["seed"] is None else f", seed {row['seed']}"
            reason = row["reason"] or "not started yet"
            lines.append(f"{row['stage']}, {row['arm']}{labels}{seed}: {row['status']}. {reason}")
    return lines


def _probes_table(tables: Tables, probes: list[dict[str, Any]]) -> Block:
    groups: dict[tuple, list[float]] = {}
    for row in probes:
        key = (row["target"], row["metric"], row["structure"], row["probe"], row["labels"])
        groups.setdefault((*key, row["arm"]), []).append(row["value"])
    rows = []
    for key in dict.fromkeys(key[:-1] for key in groups):
        values = [groups.get((*key, arm), []) for arm in tables.arms]
        rows.append([*map(str, key), *(f"{sum(part) / len(part):.3f}" if part else "-" for part in values)])
    return Block("table", header=["target", "metric", "of", "probe", "labels", *tables.arms], rows=rows)


def _spent(seconds: float) -> str:
    return format_duration(seconds) if seconds else "-"


def _cost_table(tables: Tables) -> Block:
    rows = []
    memory = {"peak_memory_mb": "peak memory", "peak_gpu_mb": "of GPUs"}
    if not any(row.get("peak_gpu_mb", math.nan) > 0 for row in tables.rows("costs")):
        del memory["peak_gpu_mb"]
    kinds = tables.device_kinds
    for arm in tables.arms:
        costs = [row for row in tables.rows("costs") if row["arm"] == arm and row["status"] == "done"]
        seconds = {
            stage: [row["seconds"] for row in costs if row["stage"] == stage]
            for stage in ("pretrain", "train", "evaluate")
        }
        first = tables.about["arms"][arm].get("pretrain_from")
        pretraining = sum(seconds["pretrain"]) + (tables.pretraining_seconds(first) if first else 0.0)
        train = seconds["train"]
        steps = sorted({row["steps"] for row in costs if row["stage"] == "train"})
        rows.append(
            [
                arm,
                "unknown (an encoder file)" if arm in tables.made_elsewhere else _spent(pretraining),
                f"{_spent(sum(train) / len(train))} ({span(steps)} steps)" if train else "-",
                str(len(train)),
                _spent(sum(seconds["evaluate"])),
                _spent(sum(row["seconds"] for row in costs if not row.get("taken"))),
                *(_hours(device_hours([row for row in costs if not row.get("taken")], kind)) for kind in kinds),
                *(_most(costs, column) for column in memory),
            ]
        )
    hours = [f"all, {kind} hours" for kind in kinds]
    header = ["arm", "pre-training", "a fine-tuning", "fine-tunings", "evaluations", "all", *hours, *memory.values()]
    return Block("table", header=header, rows=rows)


def _hours(hours: float) -> str:
    return (f"{hours:.3g}" if hours < 100 else f"{hours:.0f}") if hours else "-"


def _device_hours(tables: Tables, kind: str):
    """Hours of a pre-training and of a fine-tuning with each number of labels, as papers report them."""
    names = sorted({row["device"] for row in tables.rows("costs") if kind_of(row) == kind})
    yield Block(
        "text",
        f"{kind} hours of one pre-training and of one fine-tuning (mean over its runs, with the epoch at which they "
        f"ended). A run of several processes counts the hours of each. On {', '.join(names)}.",
    )
    rows = []
    for arm in tables.arms:
        unknown = arm in tables.made_elsewhere
        cells = ["unknown" if unknown else _hours(tables.pretraining_hours(arm, kind))]
        for labels in tables.labels:
            runs = [row for row in tables.fine_tunings(arm, labels) if kind_of(row) == kind]
            epochs = sorted({row["epochs"] for row in runs if row["epochs"] is not None})
            ended = f" (epoch {span(epochs)})" if epochs else ""
            cells.append(f"{_hours(device_hours(runs, kind) / len(runs))}{ended}" if runs else "-")
        rows.append([arm, *cells])
    header = ["arm", "a pre-training", *(f"a fine-tuning: {tables.labelled(labels)}" for labels in tables.labels)]
    yield Block("table", header=header, rows=rows)


def _most(costs: Sequence[dict[str, Any]], column: str) -> str:
    values = [row[column] for row in costs if not math.isnan(row.get(column, math.nan))]
    return f"{max(values) / 1024:.1f} GiB" if values else "-"


def _making(tables: Tables) -> list[str]:
    about = tables.about
    return [
        *(f"{name}: {arm['description']}" for name, arm in about["arms"].items()),
        f"equal {about['equal']}; {'at most ' if about.get('patience') else ''}{about['steps']} steps of fine-tuning "
        "(up to one pass over the labels); seeds "
        f"{', '.join(map(str, about['seeds']))}",
        *(", ".join(f"{name} {version}" for name, version in packages.items()) for packages in about["packages"]),
        *about["machine"],
        "numbers: results.csv, subjects.csv, curves.csv and costs.csv beside this report; tables for a paper: paper/; "
        "commands and logs: folders of the runs",
    ]


def markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if block.kind == "heading":
            parts.append(f"{'#' * block.level} {escaped(block.text)}")
        elif block.kind == "list":
            parts.append("\n".join(f"- {escaped(item)}" for item in block.items))
        elif block.kind == "table":
            rows = [block.header, ["---"] * len(block.header), *block.rows]
            parts.append("\n".join(_row(row) for row in rows))
        elif block.kind == "figure":
            caption = escaped(block.text)
            parts.append(f"![{caption}](figures/{block.items[0]}.png)\n\n*{caption}*")
        elif block.kind == "code":
            parts.append(f"```\n{block.text}\n```")
        else:
            parts.append(escaped(block.text))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escaped(cell.replace('|', '/')) for cell in cells)} |"


def page(blocks: Sequence[Block], title: str) -> str:
    parts = []
    for block in blocks:
        if block.kind == "heading":
            parts.append(f"<h{block.level}>{_escape(block.text)}</h{block.level}>")
        elif block.kind == "list":
            parts.append("<ul>" + "".join(f"<li>{_escape(item)}</li>" for item in block.items) + "</ul>")
        elif block.kind == "table":
            head = "".join(f"<th>{_escape(cell)}</th>" for cell in block.header)
            rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
            parts.append(f"<table><tr>{head}</tr>{rows}</table>")
        elif block.kind == "figure":
            data = base64.b64encode(block.picture).decode()
            caption = _escape(block.text)
            wide = _pixels_across(block.picture) > WIDE and block.items[0] not in SCALED
            kind = "wide" if wide else "narrow"
            parts.append(
                f'<figure><div class="{kind}"><img alt="{caption}" src="data:image/png;base64,{data}"></div>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        elif block.kind == "code":
            parts.append(f"<p><code>{_escape(block.text)}</code></p>")
        else:
            parts.append(f"<p>{_escape(block.text)}</p>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n"
        "<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _cell(text: str) -> str:
    start = '<td class="long">' if len(text) > LONG else "<td>"
    return f"{start}{_escape(text)}</td>"


def _pixels_across(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")


def _escape(text: str) -> str:
    """Escape text for HTML, and keep Markdown's bold."""
    pieces = html.escape(text).split("**")
    return "".join(f"<b>{piece}</b>" if number % 2 else piece for number, piece in enumerate(pieces))
