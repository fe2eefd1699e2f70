"""Make the page ``docs/papers.md``: every table and figure of the papers, and how to reproduce each row.

    python -m tools.papers      # remake the page from docs/papers.json

A row names the arms of a settings file of ``common.compare``, or the config files of one run, or says why there are
none. A row of a measurement names its files of ``docs/results`` (``results``), or the commit of older code (``older``).
``tests/test_papers.py`` checks that all of these exist.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.json_files import read_json

DOCS = Path(__file__).resolve().parents[1] / "docs"
STATES = ("run here", "not run", "not expressible")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.papers", description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help=argparse.SUPPRESS)
    docs = parser.parse_args(arguments).docs
    found = {path.stem: read_json(path) for path in (docs / "results").glob("*.json")}
    (docs / "papers.md").write_text(page(read_json(docs / "papers.json"), found), encoding="utf-8")
    return 0


def rows(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Yield paper, table or figure, and row. A row inherits what it does not state from its table."""
    for paper in content["papers"]:
        for item in paper["items"]:
            for row in item["rows"]:
                yield paper, item, {**{key: item[key] for key in ("settings", "state", "note") if key in item}, **row}


def how(paper: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Say what to run for a row."""
    bundle = row.get("bundle", paper["bundle"])
    if "command" in row:
        return f"`{row['command']}`"
    if "settings" in row:
        text = f"`--settings bundles/{bundle}/{row['settings']}`"
        if "arms" in row:
            text += f", {'arms' if len(row['arms']) > 1 else 'arm'} {', '.join(f'`{arm}`' for arm in row['arms'])}"
        text += f", `{row['options']}`" if "options" in row else ""
        return text
    if "files" in row:
        text = " + ".join(f"`{name}`" for name in row["files"])
        given = " ".join(f"--{name} {value}" for name, value in row.get("override", {}).items())
        text += f" of `{bundle}`" if bundle != paper["bundle"] else ""
        return f"{text}, `{given}`" if given else text
    if "test" in row:
        return f"`{row['test']}`"
    return "-"


def note(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say with which code a row was measured, and what else there is to say."""
    codes = sorted({(found[name]["date"], found[name]["code"]) for name in row.get("results", ())})
    parts = ["measured with " + ", ".join(f"`{code}` ({date})" for date, code in codes)] if codes else []
    parts += [f"measured with older code, `{row['older']}`"] if "older" in row else []
    return "; ".join([*parts, *([row["note"]] if "note" in row else [])])


def page(content: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the Markdown of the whole page; ``found`` holds the files of ``docs/results`` by name."""
    counts = dict.fromkeys(STATES, 0)
    for _, _, row in rows(content):
        counts[row["state"]] += 1
    lines = [
        "# The papers, row by row",
        "",
        "<!-- made by `python -m tools.papers` of docs/papers.json -->",
        "",
        *content["introduction"],
        "",
        f"Of {sum(counts.values())} rows, {', '.join(f'{count} {state}' for state, count in counts.items())}.",
    ]
    of_item: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for paper, item, row in rows(content):
        of_item.setdefault((paper["title"], item["item"]), []).append(row)
    for paper in content["papers"]:
        lines += [
            "",
            f"## {paper['title']}",
            "",
            f"Bundle [`{paper['bundle']}`](../bundles/{paper['bundle']}/docs/README.md).",
        ]
        for item in paper["items"]:
            lines += ["", f"### {item['item']}: {item['about']}", "", f"Data: {item['data']}", ""]
            lines += ["| row | what reproduces it | state | note |", "|---|---|---|---|"]
            for row in of_item[paper["title"], item["item"]]:
                lines.append(f"| {row['row']} | {how(paper, row)} | {row['state']} | {note(row, found)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
