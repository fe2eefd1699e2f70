from __future__ import annotations

import functools

import torch

from common.networks.beit_encoder import BeitEncoder
from common.networks.transseg import TransSeg
from common.optimizers import decay_groups


def test_what_decays_is_what_the_published_code_names():
    make = functools.partial(
        BeitEncoder, patch_size=8, hidden_size=8, mlp_dim=8, num_layers=4, num_heads=2, out_blocks=(1, 2, 3, 4)
    )
    net = TransSeg(1, 2, (16, 16), make, decoder_channels=4)
    decaying, others = decay_groups(net, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    kept = {names[id(parameter)] for parameter in others["params"]}
    assert "encoder.position_biases.0.relative_position_bias_table" in kept
    assert "encoder.layers.0.attention.q_proj.bias" in kept
    assert not {"encoder.layers.0.layernorm_before.weight", "encoder.layers.0.lambda_1"} & kept
    assert all("bias" in name for name in kept)


def test_other_names():
    net = torch.nn.Linear(2, 3)
    decaying, others = decay_groups(net, 0.1, without=["weight"])
    assert decaying["params"] == [net.bias] and others["params"] == [net.weight]
