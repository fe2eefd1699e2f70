import pytest
import torch

from common.losses import MaskedL1Loss


def test_mean_over_masked_voxels_and_channels_only():
    torch.manual_seed(0)
    reconstruction, target = torch.randn(2, 2, 3, 4, 4, 4)
    mask = torch.rand(2, 4, 4, 4) < 0.5
    reconstruction.requires_grad_()
    loss = MaskedL1Loss()({"reconstruction": reconstruction, "target": target, "mask": mask})
    where = mask[:, None].expand_as(target)
    assert loss.item() == pytest.approx((reconstruction - target).abs()[where].mean().item(), abs=1e-6)
    loss.backward()
    assert torch.equal(reconstruction.grad != 0, where)


def test_0_at_the_target_and_for_an_empty_mask():
    image = torch.randn(1, 1, 2, 2, 2)
    for mask in (torch.ones(1, 2, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, 2, dtype=torch.bool)):
        shift = 0 if mask.any() else 1
        assert MaskedL1Loss()({"reconstruction": image + shift, "target": image, "mask": mask}).item() == 0
