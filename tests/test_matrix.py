"""The table of what works with which bundle says what the tests came to, and no more."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASE = '<testcase classname="tests.x" name="{name}"><properties><property name="way" value="{way}"/></properties>{end}'


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "tests" / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cell_is_what_its_tests_came_to(matrix, tmp_path):
    cases = [
        ("a", "one: run", ""),
        ("b", "one: run", ""),
        ("c", "one: packed", ""),
        ("d", "one: packed", '<failure message="no"/>'),
        ("e", "one: ONNX", '<skipped message="no onnx here"/>'),
        ("f", "two: run", '<error message="no"/>'),
        ("g", "two: ONNX", ""),
        ("h", "two: ONNX", '<skipped message="no onnx here"/>'),
    ]
    body = "".join(CASE.format(name=name, way=way, end=end) + "</testcase>" for name, way, end in cases)
    (tmp_path / "x.xml").write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    text = matrix.page(matrix.outcomes(tmp_path / "x.xml"))
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in text.splitlines() if line.startswith("| ")}
    assert rows["| run"] == ["2 passed", "1 of 1 failed |"]
    assert rows["| packed"] == ["1 of 2 failed", "not tested |"]
    assert rows["| ONNX"] == ["not run", "1 passed, rest not run |"]
    assert rows["| Label infer"] == ["not tested", "not tested |"]
    assert text.count("- no onnx here") == 1
    with pytest.raises(ValueError, match="that this table does not have: by carrier pigeon"):
        matrix.page({("one", "by carrier pigeon"): []})


def test_the_page_has_every_bundle_and_every_way(matrix):
    text = (ROOT / "docs" / "matrix.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    header, *rest = rows
    assert header.count("`") == 2 * len(list((ROOT / "bundles").iterdir()))
    assert [row.split(" | ")[0][2:] for row in rest] == list(matrix.WAYS)
    assert "failed" not in text.partition("\n- ")[0] and "not tested" not in text
