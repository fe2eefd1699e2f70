from __future__ import annotations

import torch

from common.networks import LungDecoder


def test_lung_decoder():
    """Channels 256/128, 128/64, 64/32; doubled as the text has it where asked for."""
    decoder = LungDecoder([512], 2)
    convolutions = [layer for layer in decoder.layers if hasattr(layer, "kernel_size")]
    assert [layer.out_channels for layer in convolutions] == [256, 128, 128, 64, 64, 32, 2]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 3, 3, 3, 3, 3, 1]
    doubled = LungDecoder([8], 2, features=8, factor=2)
    assert [x.out_channels for x in doubled.layers if hasattr(x, "kernel_size")] == [8, 4, 16, 8, 32, 16, 2]
    small = LungDecoder([8], 2, features=8).eval()
    whole = small([torch.rand(1, 8, 2, 3, 4)], (16, 24, 32))
    assert whole.shape == (1, 2, 16, 24, 32)


def test_lung_decoder_cuts_the_far_end():
    decoder = LungDecoder([8], 2, features=8).eval()
    x = torch.rand(1, 8, 2, 3, 4)
    assert torch.equal(decoder([x], (13, 24, 26)), decoder([x], (16, 24, 32))[..., :13, :24, :26])
