from __future__ import annotations

import nibabel as nib
import pytest
import torch

from common.visualize import AxialView

# A volume in RAS whose value says where a voxel lies: 100 R + 10 A + S.
R, A, S = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), torch.arange(3.0), indexing="ij")
RAS = 100 * R + 10 * A + S


def oriented(codes: str, spacing=(1.0, 1.0, 1.0)):
    """The volume and its affine with other axes; the spacing is along R, A and S."""
    image = nib.Nifti1Image(RAS.numpy(), torch.diag(torch.tensor([*spacing, 1.0])).numpy())
    ornt = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(c) for c in ("RAS", codes)))
    turned = image.as_reoriented(ornt)
    return torch.as_tensor(turned.get_fdata())[None], torch.as_tensor(turned.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIR", "ALI"])
def test_front_on_top_and_right_on_the_left_however_the_voxels_lie(codes):
    volume, affine = oriented(codes)
    view = AxialView(affine)
    index = view.fullest((volume[0] % 10 == 2) & (volume[0] < 200))
    assert (volume[0].select(view.axis, index) % 10 == 2).all()
    assert torch.equal(view(volume, index, nearest=True)[0], RAS[:, :, 2].T.flip(0, 1))


def test_pixels_are_square_and_few():
    volume, affine = oriented("SRA", (2.0, 1.0, 5.0))
    picture = AxialView(affine)(volume, 0, nearest=True)
    assert picture.shape == (1, 5, 8) and set(picture.unique().tolist()) == set(RAS[:, :, 0].unique().tolist())
    assert AxialView(affine, longest=4)(volume).shape == (1, 2, 4)


def test_without_an_affine_the_last_axis_is_cut_and_nothing_turned():
    view = AxialView()
    assert torch.equal(view(RAS[None], 1)[0], RAS[:, :, 1]) and torch.equal(view(RAS[None]), view(RAS[None], 1))
    assert view.fullest(torch.zeros(4, 5, 3)) == 1


def test_an_image_of_two_dimensions_is_its_own_slice():
    view = AxialView(torch.eye(4))
    assert view.fullest(torch.ones(4, 5)) is None and torch.equal(view(RAS[None, :, :, 0])[0], RAS[:, :, 0])
