import pytest
import torch

from common.networks.planes import PLANES, from_slices, to_slices

SIZE = (4, 5, 6)


def test_the_axis_of_each_plane_in_order():
    volume = torch.rand(2, 3, *SIZE)
    assert PLANES == ("sagittal", "coronal", "axial")
    for number in range(4):
        assert torch.equal(to_slices(volume, "sagittal")[:, :, number], volume[:, :, number].transpose(2, 3))
        assert torch.equal(to_slices(volume, "coronal")[:, :, number], volume[:, :, :, number])
        assert torch.equal(to_slices(volume, "axial")[:, :, number], volume[:, :, :, :, number])


def test_layouts_of_the_published_code():
    shapes = {plane: to_slices(torch.empty(1, 1, 96, 114, 96), plane).shape[2:] for plane in PLANES}
    assert shapes == {"sagittal": (96, 96, 114), "coronal": (114, 96, 96), "axial": (96, 96, 114)}
    # There the last axis is that of the slices.
    volume = torch.rand(2, 1, *SIZE)
    orders = {"sagittal": (0, 3, 2, 1), "coronal": (0, 1, 3, 2), "axial": (0, 1, 2, 3)}
    for plane, order in orders.items():
        assert torch.equal(to_slices(volume, plane)[:, 0].movedim(1, -1), volume[:, 0].permute(order))


@pytest.mark.parametrize("plane", PLANES)
def test_there_and_back_without_a_copy(plane):
    volume = torch.rand(2, 3, *SIZE)
    slices = to_slices(volume, plane)
    assert torch.equal(from_slices(slices, plane), volume) and slices.data_ptr() == volume.data_ptr()
    assert torch.equal(to_slices(from_slices(slices, plane), plane), slices)
