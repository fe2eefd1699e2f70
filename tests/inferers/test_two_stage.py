from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Orientationd
from torch import nn

from common.checkpoint_file import save_checkpoint
from common.inferers import ResizedInferer, TwoStageInferer
from common.preparation import preparation_record


class Threshold(nn.Module):
    """Class 1 where the image is above a level. One parameter, so that it can be loaded."""

    def __init__(self, level=0.5):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(float(level)))
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return torch.cat([torch.zeros_like(image), 40 * (image - self.level)], 1)


def inferer(coarse=None, **arguments):
    coarse = coarse or Threshold()
    given = {"coarse_inferer": SimpleInferer(), "fine_inferer": SimpleInferer(), "margin": 2} | arguments
    return TwoStageInferer(2, coarse, **given)


@pytest.fixture
def image():
    """An organ of 1 with a rim of 0.4, which only the fine net finds, and a stray voxel."""
    image = torch.zeros(1, 1, 20, 24, 28)
    image[..., 7:13, 3:11, 9:17] = 0.4
    image[..., 8:12, 4:10, 10:16] = 1
    image[..., 0, 20, 27] = 1
    return MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 2, 3, 1])), meta={"filename_or_obj": "scan.nii.gz"})


def test_crop_segment_and_paste_back(image):
    fine = Threshold(0.2)
    logits = inferer()(image, fine)
    assert fine.seen == [(1, 1, 4 + 4, 6 + 4, 6 + 4)]
    assert logits.shape == (1, 2, *image.shape[2:]) and torch.equal(logits.affine, image.affine)
    expected = (image.as_tensor() > 0.2).float()
    expected[..., 0, 20, 27] = 0  # outside of the crop
    assert torch.equal(logits.as_tensor().argmax(1, keepdim=True).float(), expected)
    probability = logits.as_tensor().softmax(1)
    assert torch.isfinite(logits).all() and probability[0, 0, 0, 0, 0] > 0.999


def test_every_voxel_counts_where_asked(image):
    fine = Threshold(0.2)
    inferer(only_largest=False)(image, fine)
    assert fine.seen == [(1, 1, 14, 21, 20)]  # up to the stray voxel, and no further than the image


@pytest.mark.parametrize("margin", [0, 100, (0, 100, 3)])
def test_margin(image, margin):
    fine = Threshold(0.2)
    inferer(margin=margin)(image, fine)
    sizes = {0: (4, 6, 6), 100: (20, 24, 28), (0, 100, 3): (4, 24, 12)}
    assert fine.seen[0][2:] == sizes[margin]


@pytest.mark.parametrize(
    ("where", "start"), [((slice(0, 2),) * 3, 0), ((slice(18, 20), slice(5, 7), slice(9, 11)), 10)]
)
def test_a_crop_has_at_least_a_size(where, start):
    """And stays within the image: the region may lie at its rim, and the size may be more than the image's."""
    image = torch.zeros(1, 1, 20, 24, 28)
    image[(0, 0, *where)] = 1
    fine = Threshold(0.2)
    logits = inferer(margin=0, min_size=(10, 30, 8))(image, fine)
    assert fine.seen[0][2:] == (10, 24, 8)
    assert torch.equal(logits.argmax(1, keepdim=True).float(), image)
    inside = (logits[0, 1] != -20).any(dim=(1, 2)).nonzero()
    assert int(inside[0]) == start


def test_nothing_found(image, caplog):
    fine = Threshold(0.2)
    with caplog.at_level(logging.WARNING):
        logits = inferer(Threshold(2.0))(image, fine)
    assert not fine.seen
    assert logits.shape == (1, 2, *image.shape[2:]) and torch.equal(logits.affine, image.affine)
    assert not logits.argmax(1).any()
    image.meta["filename_or_obj"] = ["loaded.nii.gz"]  # as of a batch of one
    with caplog.at_level(logging.WARNING):
        inferer(Threshold(2.0))(image, fine)
    warnings = [record.getMessage().split(":")[0] for record in caplog.records]
    assert warnings == ["scan.nii.gz", "loaded.nii.gz"]


def test_images_of_a_batch_are_cropped_each_by_itself(image, caplog):
    both = torch.cat([image.as_tensor(), torch.zeros_like(image.as_tensor()), image.as_tensor().flip(2)])
    logits = inferer()(both, Threshold(0.2))
    alone = inferer()(image, Threshold(0.2)).as_tensor()
    assert torch.equal(logits[:1], alone) and not logits[1].argmax(0).any()
    assert torch.equal(logits[2:].flip(2), alone)
    assert "image 1 of the batch: the first stage finds nothing" in caplog.text


def test_the_first_stage_on_a_resized_image(image):
    coarse, fine = Threshold(0.3), Threshold(0.2)
    logits = inferer(coarse, coarse_inferer=ResizedInferer([10, 12, 14]))(image, fine)
    assert coarse.seen == [(1, 1, 10, 12, 14)]
    expected = (image.as_tensor() > 0.2)[0, 0]
    expected[0, 20, 27] = False
    assert torch.equal(logits.as_tensor().argmax(1)[0].bool(), expected)


def test_weights_of_the_first_stage_are_read_once(image, tmp_path):
    torch.save(Threshold(0.5).state_dict(), tmp_path / "model.pt")
    coarse = Threshold(9.0).train()
    two = inferer(coarse, coarse_path=tmp_path / "model.pt")
    assert two(image, Threshold(0.2)).argmax(1).any()
    assert not coarse.training and float(coarse.level) == 0.5
    (tmp_path / "model.pt").unlink()
    two(image, Threshold(0.2))
    with pytest.raises(FileNotFoundError, match=r"no model .*/model.pt: .* set coarse_model_path\."):
        inferer(coarse, coarse_path=tmp_path / "model.pt")(image, Threshold(0.2))
    torch.save({"level": torch.zeros(2)}, tmp_path / "model.pt")
    sentence = r"level, \(2,\) in the file and \(\) here\); train the first stage for the same task"
    with pytest.raises(ValueError, match=sentence):
        inferer(coarse, coarse_path=tmp_path / "model.pt")(image, Threshold(0.2))


def test_a_first_stage_of_other_images_is_refused(image, tmp_path):
    images = Orientationd("image", "RAS", labels=None)
    save_checkpoint(Threshold(0.5).state_dict(), tmp_path / "model.pt", {"preparation": preparation_record(images)})
    given = {"coarse_path": tmp_path / "model.pt", "preprocessing": Orientationd("image", "LPS", labels=None)}
    with pytest.raises(
        ValueError, match=r"model\.pt was trained on images .* made with orientation RAS, the images have LPS"
    ):
        inferer(**given)(image, Threshold(0.2))
    assert inferer(**given, accept_preparation=True)(image, Threshold(0.2)).argmax(1).any()
    assert inferer(**given | {"preprocessing": images})(image, Threshold(0.2)).argmax(1).any()


def test_refusals():
    with pytest.raises(ValueError, match=r"`margin` -1 .* numbers of voxels, 0 or more"):
        inferer(margin=-1)


def test_small_crops_are_padded_with_the_background_of_the_image(image):
    """Of the whole image: a crop of an organ may have no background."""
    image = MetaTensor(image.as_tensor() - 2, meta=image.meta)
    fine = Threshold(-1.8)
    seen = []

    def look(crop, network):
        seen.append(crop.clone())
        return network(crop)

    logits = inferer(Threshold(-1.5), fine_inferer=look, margin=0, window=(10, 6, 13))(image, fine)
    assert seen[0].shape == (1, 1, 10, 6, 13)  # of 4 x 6 x 6
    assert (seen[0][..., 3:7, :, 3:9] == -1).all() and (seen[0] == -2).sum() == 10 * 6 * 13 - 4 * 6 * 6
    assert (logits.as_tensor().argmax(1) == 1).sum() == 4 * 6 * 6
