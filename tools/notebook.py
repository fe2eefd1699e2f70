"""Runs docs/tutorial.ipynb in an empty folder and stores what came out: python -m tools.notebook

The file gets a checksum of the code that was run, so that a test can tell whether the outputs are those of the cells as
they stand.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
TQDM = "IProgress not found"
"""What it says in notebooks without ipywidgets, when other libraries import it."""


def checksum(notebook: Any) -> str:
    """Of the code cells."""
    return hashlib.sha256(
        "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").encode()
    ).hexdigest()


def execute(folder: Path, change: Callable[[str], str] = str, seconds: int = 1800) -> Any:
    """The notebook with the outputs of a run in a folder.

    Args:
        folder: where it is run.
        change: what to do with the source of each cell first.
        seconds: that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = change(cell.source)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook


def without_paths(text: str, folder: Path) -> str:
    """Text that names no place of this machine."""
    for place in sorted({str(folder), str(folder.resolve())}, key=len, reverse=True):
        text = text.replace(f"{place}/", "")
    return text.replace(str(Path.home()), "~")


def main() -> None:
    import nbformat

    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        notebook = execute(Path(name))
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if TQDM not in output.get("text", "")]
                for output in cell.outputs:
                    if "text" in output:
                        output.text = without_paths(output.text, Path(name))
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.ran = {"code": checksum(notebook), "minutes": round((time.time() - started) / 60, 1)}
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB, {notebook.metadata.ran['minutes']} minutes")


if __name__ == "__main__":
    main()
