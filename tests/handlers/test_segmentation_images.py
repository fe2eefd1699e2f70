from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.handlers import SegmentationImages
from common.visualize import AxialView, class_legend, grey_panel, mask_panel, side_by_side

AFFINE = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0]))


def evaluate(handler, outputs, epochs=1, batches=None) -> None:
    """As MONAI's evaluator: one run of one epoch a validation, numbered as the trainer's."""
    rows = iter(range(10**6))
    engine = Engine(lambda engine, batch: outputs[next(rows) % len(outputs)])
    handler.attach(engine)
    for epoch in range(epochs):
        engine.state.epoch, engine.state.max_epochs, engine.state.iteration = epoch, epoch + 1, 0
        engine.run([output if batches is None else batches[n] for n, output in enumerate(outputs)], epoch_length=None)


@pytest.fixture
def volume():
    """Image, label and prediction as class numbers; most of the label lies in slice 3."""
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(2, 8, 10, 6, generator=generator), affine=AFFINE)
    label, prediction = torch.zeros(2, 1, 8, 10, 6)
    label[:, 2:6, 2:6, 3], label[:, 0, 0, 5] = 1, 2
    prediction[:, 1:6, 2:7, 3], prediction[:, 6, 7, 3] = 1, 2
    return image, label, prediction


def expected(volume):
    image, label, prediction = volume
    view = AxialView(AFFINE)
    grey = grey_panel(view(image[:1], 3)[0])
    masks = [mask_panel(grey, view(mask, 3, nearest=True)[0], 3) for mask in (label, prediction)]
    row = side_by_side([grey, *masks], ("image", "label", "prediction"))
    return (torch.cat((row, class_legend(3, row.shape[2])), dim=1).movedim(0, -1) * 255).numpy()


def one_hot(mask):
    return torch.cat([mask == n for n in range(3)]).float()


def test_a_picture_a_validation_of_the_slice_with_most_of_the_label(volume, event_images, tmp_path):
    item = dict(zip(("image", "label", "pred"), volume, strict=True))
    evaluate(SegmentationImages(tmp_path, 3), [[item], [item]], epochs=2)
    pictures = event_images(tmp_path)
    assert list(pictures) == ["validation/0"] and sorted(pictures["validation/0"]) == [1, 2]
    np.testing.assert_allclose(pictures["validation/0"][1], expected(volume), atol=1)


@pytest.mark.parametrize("kind", ["one-hot", "regions", "scores in a batch"])
def test_masks_of_several_channels(volume, event_images, tmp_path, kind):
    """One-hot, nested regions of which the smaller come first, and what a net gives before anything is done to it."""
    image, label, prediction = volume
    if kind == "regions":
        label, prediction = [torch.cat((m == 0, m == 1, m > 0)).float() for m in (label, prediction)]
    else:
        label, prediction = one_hot(label), one_hot(prediction)
    output = [{"image": image, "label": label, "pred": prediction}]
    batches = [output]
    if kind == "scores in a batch":  # the batch keeps the affine, as pre-training strips it off the output
        scores = (3 * prediction - 1).bfloat16()
        output = {"image": image.as_tensor()[None], "label": volume[1][None], "pred": scores[None]}
        batches = [{"image": MetaTensor(image.as_tensor()[None], affine=AFFINE[None])}]
    evaluate(SegmentationImages(tmp_path, 3), [output], batches=batches)
    np.testing.assert_allclose(event_images(tmp_path)["validation/0"][1], expected(volume), atol=1)


@pytest.mark.parametrize("volumes", [0, False, 1, True, 2, 9])
def test_as_many_volumes_as_were_asked_for(volume, event_images, tmp_path, volumes):
    item = dict(zip(("image", "label", "pred"), volume, strict=True))
    evaluate(SegmentationImages(tmp_path, 3, volumes), [[item], [item, item]])
    assert sorted(event_images(tmp_path)) == [f"validation/{n}" for n in range(min(3, volumes))]
    assert bool(list(tmp_path.glob("events.*"))) == bool(volumes)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("label", "prediction"), [(torch.tensor(1), torch.rand(3)), (50.0, torch.rand(1))])
def test_one_prediction_a_scan_is_not_drawn(volume, tmp_path, batched, label, prediction):
    item = {"image": volume[0], "label": label, "pred": prediction}
    batch = {"image": volume[0][None], "label": torch.as_tensor(label)[None], "pred": prediction[None]}
    evaluate(SegmentationImages(tmp_path, 3), [batch if batched else [item]])
    assert not list(tmp_path.iterdir())
