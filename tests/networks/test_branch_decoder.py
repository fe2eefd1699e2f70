from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from common.networks import BranchDecoder, Med3DNet, MultiBranchNet

SIZE = (17, 24, 30)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 1, *SIZE)


def test_branch_decoder_is_one_convolution_and_upsampling(image):
    net = MultiBranchNet(Med3DNet(partial(BranchDecoder, classes=[2]), width=4).encoder, [3, 5]).eval()
    last = net.encoder(image)[-1]
    weight, bias = net.decoder.branches[1].weight, net.decoder.branches[1].bias
    flat = torch.einsum("oc,bcxyz->boxyz", weight[:, :, 0, 0, 0], last) + bias.view(1, -1, 1, 1, 1)
    expected = F.interpolate(flat, SIZE, mode="trilinear", align_corners=False)
    torch.testing.assert_close(net(image, branch=1), expected)
    assert net(image, branch=0).shape[1] == 3


def test_a_branch_leaves_the_others_without_gradient(image):
    net = MultiBranchNet(Med3DNet(partial(BranchDecoder, classes=[2]), width=4).encoder, [3, 5, 2])
    net(image, branch=1).square().mean().backward()
    given = [branch.weight.grad is not None for branch in net.decoder.branches]
    assert given == [False, True, False]
    assert all(parameter.grad is not None for parameter in net.encoder.parameters())


@pytest.mark.parametrize("branch", [None, 2, -1])
def test_a_branch_has_to_exist(branch):
    decoder = BranchDecoder([4], [2, 3])
    with pytest.raises(ValueError, match=f"branches 0 to 1 and was asked for {branch}"):
        decoder([torch.rand(1, 4, 2, 2, 2)], (4, 4, 4), branch)
    with pytest.raises(ValueError, match="a branch at least"):
        BranchDecoder([4], [])
