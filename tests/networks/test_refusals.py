"""Sizes that networks do not take are refused with a sentence that says which they do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.networks import EncoderUNet, NNFormerEncoder, SamEncoder3D
from common.networks.beit_encoder import BeitEncoder
from common.networks.primus import Primus

SAM = {"img_size": 32, "hidden_size": 12, "num_layers": 2, "num_heads": 2, "mlp_dim": 8, "maps": (1, 2)}
PRIMUS = {"hidden_size": 24, "num_layers": 1, "num_heads": 2}
UNSHARED = {"embed_dim": 10, "patch_size": (2, 2, 2), "depths": (1, 1), "num_heads": (3, 3), "window_size": (4, 4)}


class Maps(nn.Module):
    """An encoder of maps with these strides."""

    in_channels = 1

    def __init__(self, *strides):
        super().__init__()
        self.channels, self.strides = (4,) * len(strides), tuple((stride,) * 3 for stride in strides)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Primus(1, 2, (16, 16, 16), **PRIMUS | {"hidden_size": 20}), "needs a multiple of 6 channels per head"),
        (lambda: Primus(1, 2, (16, 20, 16), **PRIMUS), r"an img_size \(16, 20, 16\) of multiples of it"),
        (lambda: SamEncoder3D(**SAM, windows=(1, 1, 0)), "windows needs one side for each of 2 blocks, not 3"),
        (lambda: EncoderUNet(Maps(1, 2, 2), 2), "maps that get coarser, or several of one stride; the encoder has"),
        (lambda: BeitEncoder(1, (32,), 5), "img_size must be height and width of a slice and slices 1 or more"),
        (lambda: NNFormerEncoder(1, (32, 32, 32), **UNSHARED), "10 channels cannot be shared among 3 heads"),
    ],
)
def test_networks_that_cannot_be_built(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Primus(1, 2, (16, 16, 16), **PRIMUS), r"images of \(16, 16, 16\) voxels, not \(24, 24, 24\): set roi"),
        (lambda: SamEncoder3D(**SAM, windows=(1, 0)), r"cubes of 32 voxels, not \(24, 24, 24\): set roi_size"),
        (lambda: EncoderUNet(Maps(1, 16), 2), r"a multiple of \(16, 16, 16\), not \(24, 24, 24\); set roi_size"),
    ],
)
def test_images_that_do_not_fit(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()(torch.zeros(1, 1, 24, 24, 24))
