from __future__ import annotations

import torch

from common.visualize import class_colours, grey_panel, mask_panel, side_by_side
from common.visualize.panels import ALPHA, CAPTION


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
    panels = [torch.zeros(3, 4, 80), torch.full((3, 4, 20), 0.5)]
    row = side_by_side(panels, ("label", "prediction"))
    assert row.shape == (3, 4 + CAPTION, 102) and torch.equal(row[:, CAPTION:], side_by_side(panels))
    strips = row[:, :CAPTION, :80], row[:, :CAPTION, 82:]
    for strip in strips:
        assert strip.min() < 0.5 and strip.max() == 1 and torch.equal(strip[0], strip[2])
    assert (strips[0][:, :, 60:] == 1).all()  # five letters
    other = side_by_side(panels, ("image", "prediction"))
    assert not torch.equal(other[:, :, :80], row[:, :, :80]) and torch.equal(other[:, :, 82:], row[:, :, 82:])
