from __future__ import annotations

import pytest
import torch

from common.losses import VoxelCrossEntropy


def test_against_one_voxel_at_a_time():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 2, 3, 4), torch.randint(3, (2, 1, 2, 3, 4)).float()
    label[0, 0, 0, 0, 0] = -1
    losses = []
    for b, x, y, z in torch.cartesian_prod(*map(torch.arange, (2, 2, 3, 4))).tolist():
        target = int(label[b, 0, x, y, z])
        if target >= 0:
            losses.append(-logits[b, :, x, y, z].softmax(0)[target].log())
    torch.testing.assert_close(VoxelCrossEntropy()(logits, label), torch.stack(losses).mean())


def test_labels_are_brought_to_coarser_logits():
    """Each voxel of the coarse grid takes one label of those that it covers, none between them."""
    label = torch.tensor([0.0, 0.0, 2.0, 2.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 4, 4)
    logits = torch.full((1, 3, 2, 2, 2), -50.0)
    logits[:, 0, 0], logits[:, 2, 1] = 50.0, 50.0
    assert VoxelCrossEntropy()(logits, label) == pytest.approx(0, abs=1e-6)


def test_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        loss = VoxelCrossEntropy()(torch.randn(1, 2, 2, 2, 2).bfloat16(), torch.zeros(1, 1, 2, 2, 2))
    assert loss.dtype == torch.float32


def test_where_no_voxel_counts():
    logits = torch.randn(1, 2, 2, 2, 2, requires_grad=True)
    loss = VoxelCrossEntropy()(logits, torch.full((1, 1, 2, 2, 2), -1.0))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
