import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from common.transforms import RandomStrip

CORTEX, FLUID, SKULL = 3, 24, 258


@pytest.fixture
def head():
    """A ball of cortex with a narrow sulcus and a wide ventricle of the same fluid, in shells of fluid and skull."""
    lines = torch.arange(48.0) - 23.5
    x, y, z = torch.meshgrid(lines, lines, lines, indexing="ij")
    radius = (x * x + y * y + z * z).sqrt()
    head = torch.zeros(48, 48, 48, dtype=torch.long)
    for limit, label in ((23, SKULL), (20, FLUID), (15, CORTEX), (9, FLUID)):
        head[radius < limit] = label
    head[(y.abs() < 1) & (x > 10) & (radius < 15)] = FLUID  # two voxels wide, from the surface to the depth
    return head[None, None]


def stripper(**arguments):
    return RandomStrip(outside=[SKULL], fluid=[FLUID], **{"share": 1.0, "closing": 3.0, **arguments})


def reference(labels, margin, closing):
    """Boxes and connected components by scipy."""
    outside = np.isin(labels, (0, SKULL))
    fluid = labels == FLUID

    def grow(mask, reach):
        return ndi.binary_dilation(mask, np.ones((2 * reach + 1,) * 3, bool)) if reach else mask

    closed = ~grow(~grow(~outside & ~fluid, closing), closing)
    loose = fluid & ~grow(closed, margin)
    parts, _ = ndi.label(loose | outside, np.ones((3, 3, 3)))
    gone = np.isin(parts, np.unique(parts[outside]))
    return np.where(gone, 0, labels)


@pytest.mark.parametrize("margin", [0, 1, 3])
@pytest.mark.parametrize("closing", [0, 3])
def test_it_is_scipys_flood(head, margin, closing):
    result = stripper(closing=closing).strip(head[0], margin, [1.0] * 3)
    assert np.array_equal(result[0].numpy(), reference(head[0, 0].numpy(), margin, closing))


def test_skull_and_loose_fluid_go_and_the_rest_stays(head):
    result = stripper(margin=0.0)(head)
    assert not (result == SKULL).any() and result.dtype == head.dtype
    changed = result != head
    assert set(head[changed].tolist()) == {SKULL, FLUID} and (result[changed] == 0).all()
    inside = (head == FLUID)[0, 0].clone()
    lines = torch.arange(48.0) - 23.5
    radius = torch.stack(torch.meshgrid(lines, lines, lines, indexing="ij")).square().sum(0).sqrt()
    deep = inside & (radius < 13)  # the ventricle, which is wider than the closing, and the sulcus but its mouth
    assert deep.any() and (result[0, 0][deep] == FLUID).all()
    rim = inside & (radius > 16)
    assert rim.any() and (result[0, 0][rim] == 0).all()


def test_a_margin_of_fluid_is_left_in_some(head):
    torch.manual_seed(0)
    many = stripper(margin=6.0)(head.repeat(8, 1, 1, 1, 1))
    left = {int((one == FLUID).sum()) for one in many}
    assert len(left) > 3 and max(left) <= int((head == FLUID).sum())


def test_a_share_of_the_samples_is_stripped(head):
    torch.manual_seed(0)
    small = head[..., ::4, ::4, ::4]
    many = stripper(share=0.5)(small.repeat(100, 1, 1, 1, 1))
    stripped = sum(not (one == SKULL).any() for one in many)
    assert 35 <= stripped <= 65
    assert all(torch.equal(one, small[0]) for one in many if (one == SKULL).any())
    assert torch.equal(stripper(share=0.0)(head), head)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="probability"):
        stripper(share=1.5)
    with pytest.raises(ValueError, match="0 or more"):
        stripper(margin=-1)
