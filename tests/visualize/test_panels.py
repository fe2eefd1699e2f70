from __future__ import annotations

import torch

from common.visualize import class_colours, class_legend, grey_panel, mask_panel, side_by_side
from common.visualize.panels import ALPHA, CAPTION, ENTRY, READABLE


def test_grey_levels_are_those_of_the_reference():
    picture = torch.linspace(-3, 7, 200).view(10, 20)
    panel = grey_panel(picture)
    assert panel.shape == (3, 10, 20) and panel.min() == 0 and panel.max() == 1
    assert torch.equal(grey_panel(picture + 100, picture), torch.ones(3, 10, 20))
    spot = torch.zeros(20, 20)
    spot[0, 0] = 5
    assert torch.equal(grey_panel(spot)[0], spot / 5)
    assert torch.equal(grey_panel(torch.full((2, 2), torch.nan)), torch.zeros(3, 2, 2))


def test_classes_are_painted_and_the_background_is_not():
    grey, classes = torch.full((3, 1, 3), 0.5), torch.tensor([[0, 1, 9]])
    panel = mask_panel(grey, classes, num_classes=3)
    assert torch.equal(panel[:, 0, 0], grey[:, 0, 0])
    for column, colour in zip((1, 2), class_colours(2), strict=True):
        rgb = torch.tensor([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        torch.testing.assert_close(panel[:, 0, column], (1 - ALPHA) * 0.5 + ALPHA * rgb)


def test_side_by_side():
    row = side_by_side([torch.zeros(3, 4, 5), torch.full((3, 4, 6), 0.5)])
    assert row.shape == (3, 4, 13) and (row[:, :, 5:7] == 1).all() and (row[:, :, 7:] == 0.5).all()


def test_captions_stand_above_their_panels():
    panels = [torch.zeros(3, 4, 180), torch.full((3, 4, 120), 0.5)]
    row = side_by_side(panels, ("label", "prediction"))
    assert row.shape == (3, 4 + CAPTION, 302) and torch.equal(row[:, CAPTION:], side_by_side(panels))
    strips = row[:, :CAPTION, :180], row[:, :CAPTION, 182:]
    for strip in strips:
        assert strip.min() < 0.5 and strip.max() == 1 and torch.equal(strip[0], strip[2])
    assert (strips[0][:, :, 60:] == 1).all()  # five letters
    other = side_by_side(panels, ("image", "prediction"))
    assert not torch.equal(other[:, :, :180], row[:, :, :180]) and torch.equal(other[:, :, 182:], row[:, :, 182:])


def test_small_panels_are_enlarged_until_their_captions_fit():
    small = torch.rand(3, 40, 32)
    row = side_by_side([small, small], ("target", "reconstruction"))
    assert row.shape == (3, 3 * 40 + CAPTION, 2 * 3 * 32 + 2) and READABLE <= 3 * 32
    for first in (0, 2):
        assert torch.equal(row[:, CAPTION + first :: 3, first:96:3], small)
    words = row[:, :CAPTION, 98:]
    assert words[:, :, 50:].min() < 0.5 and (words[:, :, -3:] == 1).all()  # all fourteen letters
    narrow = side_by_side([torch.zeros(3, 150, 20)], ("prediction",))
    assert narrow.shape == (3, 150 + CAPTION, 20), "not enlarged without end"


def test_the_legend_has_each_colour_beside_its_number():
    legend = class_legend(4, 2 * ENTRY + 5)
    assert legend.shape == (3, 2 * CAPTION, 2 * ENTRY + 5)
    for number, colour in enumerate(class_colours(3)):
        row, column = divmod(number, 2)
        cell = legend[:, row * CAPTION : (row + 1) * CAPTION, column * ENTRY : (column + 1) * ENTRY]
        rgb = torch.tensor([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        assert int((cell == rgb[:, None, None]).all(0).sum()) == 64
        assert int(((cell[0] < 0.7) & (cell[0] == cell[1])).sum()) > 2, "the number"
    assert (legend[:, CAPTION:, ENTRY:] == 1).all()
