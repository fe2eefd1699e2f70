"""Make the table of comparisons in ``docs/results.md`` from the comparisons' own files.

    python -m tools.results add RUNS NAME --on "IXI, four tissues" --code COMMIT   # note a comparison, remake the page
    python -m tools.results                                                      # remake the page

``RUNS`` is the output folder of ``common.compare``. Its findings are stored in ``docs/results/NAME.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.compare.statistics import mean_and_spread
from common.compare.tables import Tables, span
from common.json_files import read_json, write_json

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- comparisons: made by tools/results.py -->", "<!-- end of comparisons -->"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help=argparse.SUPPRESS)
    add = parser.add_subparsers(dest="command").add_parser("add", help="note what a comparison found")
    add.add_argument("runs", type=Path)
    add.add_argument("name")
    add.add_argument("--on", required=True, help="data and task, in words")
    add.add_argument("--code", required=True, help="commit that the runs were made with")
    options = parser.parse_args(arguments)
    folder = options.docs / "results"
    if options.command == "add":
        write_json(folder / f"{options.name}.json", summary(options.runs, options.on, options.code))
    page = options.docs / "results.md"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"error: {page} lacks the lines {BEGIN!r} and {END!r}.")
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    page.write_text(f"{head}{BEGIN}\n\n{table(found)}\n{END}{tail}", encoding="utf-8")
    return 0


def summary(runs: Path, on: str, code: str) -> dict[str, Any]:
    """Read the findings of a comparison from its tables."""
    tables = Tables(runs)
    about, rows = tables.about, []
    for pair in tables.pairs:
        for labels in tables.labels:
            found = tables.difference(pair, labels)
            if found is None:
                continue
            ours, theirs = (mean_and_spread(tables.scores(arm, labels, tables.main_metric))[0] for arm in pair)
            gains = [tables.last_thirds.get((arm, labels)) for arm in pair]
            margin = about.get("margin")
            known = margin is not None and None not in gains
            rows.append(
                {
                    "arm": pair[0],
                    "against": pair[1],
                    "labels": tables.labelled(labels),
                    "ours": round(ours, 6),
                    "theirs": round(theirs, 6),
                    "difference": round(found.parts.mean, 6),
                    "interval": [round(value, 6) for value in found.interval] if found.interval else None,
                    "verdict": tables.verdicts[pair, labels].text,
                    "seeds": found.parts.seeds,
                    "subjects": found.parts.subjects,
                    "converged": [gain < margin for gain in gains] if known else None,
                }
            )
    train = [row for row in tables.rows("costs") if row["stage"] == "train" and row["status"] == "done"]
    return {
        "on": on,
        "bundle": about["bundle"],
        "metric": tables.main_metric,
        "steps": span(sorted({int(row["steps"]) for row in train})) if train else "",
        "date": time.strftime("%Y-%m-%d", time.gmtime((runs / "comparison.json").stat().st_mtime)),
        "code": code,
        "machine": about["machine"],
        "rows": rows,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown: a row for each pair of arms and number of labels."""
    titles = ("on", "fine-tuned", "labels", "arm", "against", "difference, 95 % interval", "verdict")
    titles = (*titles, "seeds, subjects", "code, date, machine")
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for one in found:
        for row in one["rows"]:
            interval = f" ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})" if row["interval"] else ""
            ended = {None: "", True: "; both had converged", False: "; had not converged"}[
                None if row["converged"] is None else all(row["converged"])
            ]
            cells = [
                f"{one['on']} (`{one['bundle']}`)",
                f"{one['steps']} steps{ended}",
                row["labels"],
                f"{row['arm']} {row['ours']:.3f}",
                f"{row['against']} {row['theirs']:.3f}",
                f"{row['difference']:+.3f}{interval}",
                f"**{row['verdict']}**" if row["verdict"] in ("better", "worse") else row["verdict"],
                f"{row['seeds']}, {row['subjects']}",
                f"`{one['code']}`, {one['date']}, {'; '.join(one['machine'])}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
