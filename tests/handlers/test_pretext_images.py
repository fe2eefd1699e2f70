from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from common.handlers import PretextImages
from common.visualize import AxialView, grey_panel, side_by_side

AFFINE = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))


class Half(nn.Module):
    """Blanks the left half and makes it half as bright again; two pictures an image, as of two views."""

    def pictures(self, image, prediction):
        return tuple(torch.cat((part, part)) for part in (image, prediction["blanked"], prediction["filled"]))


def evaluate(handler, batches, epochs=1):
    def step(engine, batch):
        image = batch["image"].as_tensor()
        return {"image": image, "pred": {"blanked": image * 0, "filled": image / 2}}

    engine = Engine(step)
    handler.attach(engine)
    for epoch in range(epochs):  # as MONAI's evaluator: one run of one epoch a validation, numbered as the trainer's
        engine.state.epoch, engine.state.max_epochs, engine.state.iteration = epoch, epoch + 1, 0
        engine.run(batches)


@pytest.fixture
def batches():
    """Four images in two batches, of contrast 0, 2, 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 2.0, 1.0, 0.0]).view(4, 1, 1, 1, 1)
    images = scales * torch.rand(4, 1, 6, 7, 4, generator=generator)
    return [{"image": MetaTensor(part, affine=torch.stack([AFFINE] * 2))} for part in images.split(2)]


def row(image):
    target = AxialView(AFFINE)(image.as_tensor())[0]
    panels = [grey_panel(target), *(grey_panel(part, target) for part in (target * 0, target / 2))]
    return (side_by_side(panels, ("target", "input", "reconstruction")).movedim(0, -1) * 255).numpy()


def test_target_input_and_reconstruction_of_the_images_with_most_contrast(batches, event_images, tmp_path):
    evaluate(PretextImages(tmp_path, Half(), volumes=2), batches, epochs=2)
    pictures = event_images(tmp_path)
    assert {tag: sorted(steps) for tag, steps in pictures.items()} == {"validation/0": [1, 2], "validation/1": [1, 2]}
    for tag, image in (("validation/0", batches[0]["image"][1]), ("validation/1", batches[1]["image"][0])):
        for step in (1, 2):
            np.testing.assert_allclose(pictures[tag][step], row(image), atol=1)


@pytest.mark.parametrize(("pretext", "volumes"), [(nn.Identity(), 1), (Half(), 0)])
def test_nothing_to_show_writes_nothing(batches, tmp_path, pretext, volumes):
    evaluate(PretextImages(tmp_path, pretext, volumes), batches)
    assert not list(tmp_path.iterdir())
