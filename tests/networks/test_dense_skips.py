from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetUpBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock

from common.networks.dense_skips import keep_gradients_dense


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnetrUpBlock(3, 4, 2, 3, 2, "instance", res_block=True),
        lambda: UnetUpBlock(3, 4, 2, 3, 2, 2, "instance"),
    ],
    ids=["unetr", "dynunet"],
)
def test_the_same_gradients_in_the_format_of_the_inputs(make):
    torch.manual_seed(0)
    block = make().double()
    ours = keep_gradients_dense(copy.deepcopy(block))
    assert list(ours.state_dict()) == list(block.state_dict())
    below, skip = torch.randn(2, 4, 3, 4, 5).double(), torch.randn(2, 2, 6, 8, 10).double()
    results = []
    for module in (block, ours):
        inputs = [tensor.clone(memory_format=torch.channels_last_3d).requires_grad_() for tensor in (below, skip)]
        made = module(*inputs)
        made.square().mul(torch.arange(made.numel()).view(made.shape)).sum().backward()
        results.append((made, *(tensor.grad for tensor in inputs), *(p.grad for p in module.parameters())))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert results[1][2].is_contiguous(memory_format=torch.channels_last_3d)
