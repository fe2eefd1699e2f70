from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from common.handlers import PretextImages
from common.visualize import AxialView, grey_panel, side_by_side


class Half(nn.Module):
    """Blanks the left half and makes it half as bright again; two pictures an image, as of two views."""

    def pictures(self, image, prediction):
        return tuple(torch.cat((part, part)) for part in (image, prediction["blanked"], prediction["filled"]))


def evaluate(handler, image, epochs=1):
    state = {"image": image.as_tensor(), "pred": {"blanked": image.as_tensor() * 0, "filled": image.as_tensor() / 2}}
    engine = Engine(lambda engine, batch: state)
    handler.attach(engine)
    for epoch in range(epochs):
        engine.state.epoch, engine.state.max_epochs, engine.state.iteration = epoch, epoch + 1, 0
        engine.run([{"image": image}, {"image": image}])


@pytest.fixture
def image():
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    return MetaTensor(torch.rand(2, 1, 6, 7, 4), affine=torch.stack([affine] * 2))


def test_target_input_and_reconstruction_of_the_first_batch(image, event_images, tmp_path):
    evaluate(PretextImages(tmp_path, Half(), volumes=3), image, epochs=2)
    pictures = event_images(tmp_path)
    assert sorted(pictures) == ["validation/0", "validation/1"]  # as many as there are images
    assert sorted(pictures["validation/1"]) == [1, 2]
    target = AxialView(image.affine[1])(image[1].as_tensor())[0]
    row = side_by_side([grey_panel(target), *(grey_panel(part, target) for part in (target * 0, target / 2))])
    np.testing.assert_allclose(pictures["validation/1"][1], (row.movedim(0, -1) * 255).numpy(), atol=1)


@pytest.mark.parametrize(("pretext", "volumes"), [(nn.Identity(), 1), (Half(), 0)])
def test_nothing_to_show_writes_nothing(image, tmp_path, pretext, volumes):
    evaluate(PretextImages(tmp_path, pretext, volumes), image)
    assert not list(tmp_path.iterdir())
