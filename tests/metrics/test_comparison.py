from math import nan

import pytest

from common.metrics import is_higher, is_lower


@pytest.mark.parametrize(("better", "good", "bad"), [(is_higher, 0.9, 0.1), (is_lower, 0.1, 0.9)])
def test_better_and_any_number_rather_than_none(better, good, bad):
    assert better(good, bad) and not better(bad, good) and not better(good, good)
    assert better(bad, nan) and not better(nan, good) and not better(nan, nan)
