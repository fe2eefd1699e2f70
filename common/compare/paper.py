"""The tables of a comparison for a paper, in LaTeX and Markdown, with the protocol in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..files import atomic_write
from .cells import escaped, interval_cell, scores_table
from .figures import metric_name
from .tables import Tables, plural

__all__ = ["protocol", "write_paper"]


def write_paper(tables: Tables) -> None:
    """Write ``paper/tables.tex`` (for ``booktabs``) and ``paper/tables.md``."""
    parts = [(*scores_table(tables, tables.main_metric), protocol(tables))]
    if tables.pairs:
        parts.append((*_differences(tables), judgement(tables)))
    latex = "\n".join(_latex(*part) for part in parts)
    markdown = "\n\n".join(_markdown(*part) for part in parts) + "\n"
    for name, text in (("tables.tex", latex), ("tables.md", markdown)):
        with atomic_write(tables.folder / "paper" / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def protocol(tables: Tables) -> str:
    """The protocol of the scores, for a caption."""
    about, metric = tables.about, metric_name(tables.main_metric)
    seeds, folds, subjects = len(about["seeds"]), about.get("folds"), {row["subject"] for row in tables.subjects}
    task = f", {about['task']}" if about.get("task") else ""
    length = {"steps": "optimiser steps", "epochs": "epochs", "time": "time, pre-training included"}[about["equal"]]
    words = [
        f"Test {metric} ({about['bundle']}{task}), mean ± standard deviation of {seeds} {plural(seeds, 'seed')}, "
        f"{len(subjects)} test {plural(len(subjects), 'subject')}"
        + (f" pooled from {folds}-fold cross-validation." if folds else "."),
        f"All arms are fine-tuned for the same {length} ({'at most ' if about.get('patience') else ''}{about['steps']} "
        "steps) on the same labelled scans; the best checkpoint in validation is evaluated once.",
    ]
    if about.get("patience"):
        words.append(f"Training ends after {about['patience']} validations without a better one.")
    if about.get("trials"):
        ids = ", ".join(about["trials"][0])
        seeds = about.get("tune_seeds") or 1
        each = f", each on {seeds} seeds" if seeds > 1 else ""
        words.append(f"{ids} was chosen on validation from {len(about['trials'])} trials in every arm{each}.")
    words += [f"{name}: {arm['description']}." for name, arm in about["arms"].items()]
    if about.get("evaluate_override"):
        given = ", ".join(f"{key} {value}" for key, value in about["evaluate_override"].items())
        words.append(f"Evaluated with {given}, unlike training.")
    if about.get("validated_on_test"):
        words.append("The validation scans are the test scans.")
    if about.get("transductive"):
        words.append("Pre-training may have seen validation and test scans.")
    return " ".join(words)


def judgement(tables: Tables) -> str:
    """The rules for the verdicts, for a caption."""
    count, margin = len(tables.verdicts), tables.about.get("margin")
    spread = "seeds and subjects (two-way random effects)" if len(tables.about["seeds"]) > 1 else "subjects (one seed)"
    within = f", and equivalence within {margin:g} by two one-sided tests" if margin is not None else ""
    return (
        f"Differences in {metric_name(tables.main_metric)}, paired by seed and subject; 95 % intervals over {spread}. "
        f"Verdicts at 5 % over all {count} {plural(count, 'comparison')} by Holm's procedure{within}."
    )


def _differences(tables: Tables) -> tuple[list[str], list[list[str]]]:
    rows = []
    for (pair, labels), verdict in tables.verdicts.items():
        found = tables.difference(pair, labels)
        cells = ["-", "-"]
        if found is not None:
            cells = [f"{found.parts.mean:+.3f}", interval_cell(found.interval or (found.parts.mean,) * 2)]
        rows.append([str(labels), " - ".join(pair), *cells, verdict.text])
    return ["labels", "difference", "mean", "95 % interval", "verdict"], rows


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(escaped(cell).replace('|', '/') for cell in line)} |" for line in lines)
    return f"{escaped(caption)}\n\n{table}"


def _latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in (header, *rows)]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_tex(caption)}}}\n\\begin{{tabular}}{{{'l' * len(header)}}}\n{body}\n"
        "\\end{tabular}\n\\end{table}\n"
    )


_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)
