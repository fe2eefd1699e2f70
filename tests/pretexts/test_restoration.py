from __future__ import annotations

import pytest
import torch
from torch import nn

from common.losses import RestorationLoss
from common.pretexts import Restoration
from common.transforms import CellMask, GenesisDamage


@pytest.fixture
def image():
    return torch.randn(2, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("damage", [CellMask(0.5, (4, 4, 4)), GenesisDamage()])
def test_the_network_sees_the_damaged_image_alone(image, damage):
    class Net(nn.Module):
        def forward(self, x):
            self.seen = x
            return x

    model = Restoration(Net(), damage)
    torch.manual_seed(0)
    result = model(image)
    assert torch.equal(model.network.seen, result["masked"]) and torch.equal(result["target"], image)
    assert not torch.equal(result["masked"], image)
    target, seen, made = model.pictures(image, result)
    assert torch.equal(target, image) and torch.equal(seen, result["masked"]) and torch.equal(made, seen)


def test_the_loss_is_0_at_the_target_and_reads_what_it_should(image):
    _, mask = CellMask(0.5, (4, 4, 4))(image)
    made = image.clone().requires_grad_()
    prediction = {"reconstruction": made, "target": image, "mask": mask}
    assert RestorationLoss()(prediction, image) == 0 and RestorationLoss(masked_only=False)(prediction, image) == 0
    off = (image + 2 * torch.ones_like(image)).requires_grad_()
    value = RestorationLoss()({**prediction, "reconstruction": off}, image)
    value.backward()
    assert float(value) == pytest.approx(4)
    assert torch.equal(off.grad[:, 0] != 0, mask)  # a voxel that the network saw has no gradient
    whole = torch.where(mask[:, None], image + 2, image)
    assert float(RestorationLoss(masked_only=False)({**prediction, "reconstruction": whole}, image)) == pytest.approx(
        4 * float(mask.float().mean())
    )


def test_it_learns_what_lies_under_a_mask():
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, 12).view(1, 1, 12, 1, 1).expand(4, 1, 12, 12, 12).clone()
    net = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv3d(8, 1, 5, padding=2))
    model, loss = Restoration(net, CellMask(0.3, (2, 2, 2))), RestorationLoss()
    optimizer, values = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(60):
        value = loss(model(ramp), ramp)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-5:]) < 0.3 * sum(values[:5])


def test_deep_supervision_counts_the_finest(image):
    class Net(nn.Module):
        def forward(self, x):
            return [x, x[..., ::2, ::2, ::2]]

    assert Restoration(Net(), CellMask(0.5, (4, 4, 4)))(image)["reconstruction"].shape == image.shape


def test_another_number_of_channels_is_refused(image):
    with pytest.raises(ValueError, match="num_classes to in_channels"):
        Restoration(nn.Conv3d(1, 3, 1), CellMask(0.5, (4, 4, 4)))(image)


def test_another_size_is_refused_as_such(image):
    match = r"returns 6x6x6 voxels for images of 12x12x12: set roi_size to multiples"
    with pytest.raises(ValueError, match=match):
        Restoration(nn.Conv3d(1, 1, 2, 2), CellMask(0.5, (4, 4, 4)))(image)
