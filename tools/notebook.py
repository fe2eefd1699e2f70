"""Run docs/tutorial.ipynb in an empty folder and store its outputs: python -m tools.notebook

The file also gets a checksum of its code, by which a test can tell whether the outputs belong to the current cells.
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
"""A warning that other libraries cause in notebooks without ipywidgets."""


def checksum(notebook: Any) -> str:
    """Checksum of the code cells."""
    return hashlib.sha256(
        "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").encode()
    ).hexdigest()


def execute(folder: Path, change: Callable[[str], str] = str, seconds: int = 1800) -> Any:
    """Run the notebook in a folder and return it with its outputs.

    Args:
        folder: working folder of the run.
        change: applied to the source of each cell first.
        seconds: time limit of a cell.

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
    """Remove paths and times of this machine from a text."""
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
