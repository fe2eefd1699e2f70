from __future__ import annotations

import pytest

from common.visualize import class_colours


@pytest.mark.parametrize("count", [0, 1, 7, 8, 33, 64])
def test_every_class_has_a_colour_of_its_own(count):
    assert len(set(class_colours(count))) == count
