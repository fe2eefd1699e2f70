from __future__ import annotations

import torch

from common.networks import DenseASPP


def test_dense_aspp_grows_and_reaches():
    head = DenseASPP([6], 2, hidden=8, growth=4, dropout=0.0).eval()
    x = torch.rand(1, 6, 9, 9, 9)
    features = head.features(x)
    assert features.shape == (1, 6 + 5 * 4, 9, 9, 9)
    assert torch.equal(features[:, -6:], x)  # what came in goes along
    # The last block reaches the sum of the dilations in each direction: 3 + 6 + 12 + 18 + 24.
    line = torch.zeros(1, 6, 1, 1, 131, requires_grad=True)
    for parameter in head.parameters():  # so that no ReLU closes a path
        parameter.data.abs_()
    head.features(line + 0.1)[0, 0, 0, 0, 65].backward()
    seen = line.grad.abs().sum(1).flatten().nonzero().flatten() - 65
    assert (seen.min(), seen.max()) == (-63, 63)


def test_dense_aspp_drops_whole_channels():
    torch.manual_seed(0)
    head = DenseASPP([6], 2, hidden=8, growth=40, dropout=0.5).train()
    new = head.features(torch.rand(1, 6, 4, 4, 4))[0, :40].flatten(1)  # of the last block
    dropped = (new == 0).all(1).float().mean()
    assert 0.2 < dropped < 0.8
