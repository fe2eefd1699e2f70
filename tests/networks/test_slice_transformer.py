from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.networks import slice_transformer as module
from common.networks.planes import PLANES
from common.networks.slice_transformer import SliceTransformer, sinusoidal_positions


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny(num_layers=1, dropout=0.1):
    net = SliceTransformer(8, num_heads=2, dim_head=5, mlp_dim=12, num_layers=num_layers, dropout=dropout)
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return net


def slow(net, vectors, plane, heads=2, dim_head=5):
    """The published layer, sample by sample, head by head and slice by slice, with the weights of ``net``."""
    d = vectors.shape[2]

    def normed(x, norm):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias

    results = []
    for sample in vectors:
        x = []
        for position, z in enumerate(sample):
            wave = [trig(position / 10000 ** (i / d)) for i in range(0, d, 2) for trig in (math.sin, math.cos)]
            x.append(math.sqrt(d) * z + torch.tensor(wave) + net.segments.weight[PLANES.index(plane)])
        x = torch.stack(x)
        for layer in net.layers:
            y = normed(x, layer.norm1)
            qkv = y @ layer.attention.qkv.weight.T + layer.attention.qkv.bias
            q, k, v = qkv.split(heads * dim_head, dim=1)
            parts = []
            for head in range(heads):
                own = slice(head * dim_head, (head + 1) * dim_head)
                rows = []
                for n in range(len(x)):
                    scores = torch.stack([q[n, own] @ k[m, own] / math.sqrt(dim_head) for m in range(len(x))])
                    shares = scores.exp() / scores.exp().sum()
                    rows.append(sum(shares[m] * v[m, own] for m in range(len(x))))
                parts.append(torch.stack(rows))
            x = x + torch.cat(parts, 1) @ layer.attention.out_proj.weight.T + layer.attention.out_proj.bias
            y = normed(x, layer.norm2)
            hidden = (y @ layer.mlp.linear1.weight.T + layer.mlp.linear1.bias).clamp_min(0)
            x = x + hidden @ layer.mlp.linear2.weight.T + layer.mlp.linear2.bias
        results.append(normed(x, net.norm))
    return torch.stack(results)


def test_the_published_number_of_parameters():
    net = SliceTransformer()
    assert sum(p.numel() for p in net.parameters()) == 282_432
    attention, feed_forward = 3 * (64 * 1024 + 1024) + 1024 * 64 + 64, 64 * 128 + 128 + 128 * 64 + 64
    assert attention + feed_forward + 3 * 2 * 64 + 3 * 64 == 282_432
    assert not list(net.buffers())


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("plane", PLANES)
def test_equals_a_slow_implementation(plane, num_layers):
    net, vectors = tiny(num_layers).eval(), torch.randn(2, 5, 8)
    torch.testing.assert_close(net(vectors, plane), slow(net, vectors, plane), atol=1e-5, rtol=1e-4)


def test_attention_equals_torchs():
    # Torch's attention has heads of embed_dim / num_heads, so one of that size is compared.
    net = SliceTransformer(8, num_heads=2, dim_head=4, mlp_dim=12).eval()
    attention, x = net.layers[0].attention, torch.randn(2, 6, 8)
    q, k, v = attention.qkv.weight.chunk(3)
    expected, _ = F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3, 8, 2, torch.cat((q, k, v)), attention.qkv.bias, None, None, False, 0.0,
        attention.out_proj.weight, attention.out_proj.bias, training=False,
    )  # fmt: skip
    torch.testing.assert_close(attention(x), expected.transpose(0, 1), atol=1e-5, rtol=1e-4)


def test_without_positions_slices_of_another_order_give_the_same_in_that_order(monkeypatch):
    net, vectors, order = tiny().eval(), torch.randn(2, 7, 8), torch.randperm(7)
    in_order = net(vectors, "axial")[:, order]
    assert not torch.allclose(net(vectors[:, order], "axial"), in_order, atol=1e-2)
    monkeypatch.setattr(module, "sinusoidal_positions", lambda count, length, device: torch.zeros(count, length))
    in_order = net(vectors, "axial")[:, order]
    torch.testing.assert_close(net(vectors[:, order], "axial"), in_order, atol=1e-5, rtol=1e-4)


def test_planes_differ_by_their_segment_vector_only():
    net, vectors = tiny().eval(), torch.randn(1, 4, 8)
    results = [net(vectors, plane) for plane in PLANES]
    assert not torch.allclose(results[0], results[1], atol=1e-2) and not torch.allclose(
        results[1], results[2], atol=1e-2
    )
    with torch.no_grad():
        net.segments.weight.copy_(net.segments.weight[:1].expand(3, -1))
    assert torch.equal(net(vectors, "axial"), net(vectors, "coronal"))


def test_dropout_is_for_training():
    net, vectors = tiny(dropout=0.5), torch.randn(2, 4, 8)
    assert not torch.equal(net.train()(vectors, "axial"), net(vectors, "axial"))
    assert torch.equal(net.eval()(vectors, "axial"), net(vectors, "axial"))
    still = tiny(dropout=0.0).train()
    assert torch.equal(still(vectors, "axial"), still.eval()(vectors, "axial"))


def test_dropout_acts_on_the_attention_weights_and_both_branches():
    layer = tiny(dropout=0.1).layers[0]
    places = [name for name, m in layer.named_modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.1]
    assert set(places) == {"attention.drop_weights", "attention.drop_output", "mlp.drop1", "mlp.drop2"}


def test_any_number_of_slices():
    net = tiny().eval()
    assert [net(torch.randn(1, n, 8), "axial").shape for n in (1, 3, 200)] == [(1, n, 8) for n in (1, 3, 200)]


def test_positions_are_the_sinusoids_of_vaswani():
    found = sinusoidal_positions(50, 6)
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            expected = [math.sin(angle), math.cos(angle)]
            assert found[position, 2 * i : 2 * i + 2].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(sinusoidal_positions(20, 6), found[:20])
