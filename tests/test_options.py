"""The options of the suite itself, in a suite of two tests with its `conftest.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("options", "counts", "placement"),
    [
        ([], {"passed": 1, "skipped": 1}, {}),
        (["--runslow"], {"passed": 2}, {}),
        (["--device", "cuda:1", "--dtype", "bfloat16"], {"passed": 1, "skipped": 1}, {"device": "cuda:1", "amp": True}),
        (["--runslow", "--dtype", "float32"], {"passed": 2}, {"amp": False}),
    ],
)
def test_options(pytester, options, counts, placement):
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = slow: takes long")
    pytester.makepyfile(
        f"""
        import pytest

        def test_at_every_change(placement):
            assert placement == {placement}

        @pytest.mark.slow
        def test_that_takes_long():
            pass
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *options).assert_outcomes(**counts)
