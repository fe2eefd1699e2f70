"""Values and gradients in bfloat16 are tested with those of the other norms, in ``test_placement``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common.networks.float_layer_norm import FloatLayerNorm, float_layer_norms


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_it_is_torchs_in_other_types_and_can_be_scripted(affine, precision):
    torch.manual_seed(0)
    norm = nn.LayerNorm((3, 5), elementwise_affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(precision)
    ours = float_layer_norms(nn.Sequential(copy.deepcopy(norm)))
    image = torch.randn(4, 3, 5, dtype=precision)
    assert type(ours[0]) is FloatLayerNorm and ours[0].state_dict().keys() == norm.state_dict().keys()
    for made in (ours, torch.jit.script(ours), torch.jit.trace(ours, image)):
        assert torch.equal(made(image), norm(image))


def test_weights_of_bfloat16_are_taken_as_torch_takes_them():
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    ours = float_layer_norms(nn.Sequential(copy.deepcopy(norm))).bfloat16()
    image = torch.randn(4, 8).bfloat16()
    made = ours(image)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, norm.bfloat16()(image), rtol=2**-7, atol=2**-7)
