from __future__ import annotations

import torch
from torch import nn

from common.networks.primus import Primus

SMALL = {"in_channels": 1, "out_channels": 2, "img_size": (8, 8, 8), "hidden_size": 12, "num_layers": 3, "num_heads": 2}


def test_a_branch_is_dropped_by_sample_and_kept_in_the_mean():
    torch.manual_seed(0)
    net = Primus(**SMALL, drop_path=0.5)
    assert net.state_dict().keys() == Primus(**SMALL).state_dict().keys()
    block, x = net.eva.blocks[1], torch.rand(4000, 1, 12)  # half the rate of the last block
    for tensor in block.mlp.fc2.parameters():
        nn.init.zeros_(tensor)
    with torch.no_grad():
        change, whole = (block.train(mode)(x, net.eva.rotation) - x for mode in (True, False))
    dropped = (change == 0).flatten(1).all(1)
    assert abs(dropped.float().mean() - 0.25) < 0.03
    torch.testing.assert_close(change[~dropped] * 0.75, whole[~dropped])
    assert torch.equal(net.eva.blocks[0].train()(x, net.eva.rotation), net.eva.blocks[0].eval()(x, net.eva.rotation))
