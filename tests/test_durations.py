"""Durations in words."""

import pytest

from common.durations import format_duration


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "0 s"),
        (99.4, "99 s"),
        (99.6, "1.7 min"),
        (600, "10 min"),
        (5900, "98 min"),
        (5990, "1.7 h"),
        (36000, "10 h"),
        (400000, "111 h"),
    ],
)
def test_two_figures(seconds, words):
    assert format_duration(seconds) == words
