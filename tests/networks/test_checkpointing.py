"""``checkpointing`` and ``compile`` of ``place``: the same values and gradients."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
from monai.networks.nets import DynUNet, SwinUNETR
from torch import nn

from common.networks import UNETR, NNFormer, SamEncoder3D, SliceTransformer, place
from common.networks.placement import BLOCK
from common.networks.primus import Primus

NETS = {
    "UNETR": (lambda: UNETR(1, 2, 32, 4, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2, dropout_rate=0.1), 4),
    "Swin UNETR": (lambda: SwinUNETR(1, 2, feature_size=12, depths=(2, 1, 1, 1), drop_rate=0.1), 5),
    # the decoder's blocks take three maps
    "nnFormer": (
        lambda: NNFormer(1, 2, (32,) * 3, 12, 4, (2, 2), (1, 2), drop_path_rate=0.3, deep_supervision=True),
        6,
    ),
    "Primus": (lambda: Primus(1, 2, (16,) * 3, hidden_size=12, num_layers=2, num_heads=2, drop_path=0.3), 2),
    "SAM-Med3D": (lambda: SamEncoder3D(1, 32, 16, 12, 2, 2, 16, (2, 0), (1, 2)), 2),
    "slices in a row": (lambda: SliceTransformer(8, 2, 4, 8, 2), 2),
    "BEiT": (lambda: _slices("beit_encoder", "BeitEncoder"), 2),
    "DINO": (lambda: _slices("dino_encoder", "DinoEncoder"), 2),
}


def _slices(file, name):
    module = pytest.importorskip(f"common.networks.{file}")
    return getattr(module, name)(1, (32, 32), 1, 16, 12, 16, 2, 2, (1, 2))


SIZES = {
    "Swin UNETR": (1, 1, 32, 32, 64),
    "Primus": (1, 1, 16, 16, 16),
    "slices in a row": (2, 5, 8),
    "BEiT": (1, 1, 32, 32, 1),
    "DINO": (1, 1, 32, 32, 1),
}


def image_of(name):
    return torch.rand(SIZES.get(name, (1, 1, 32, 32, 32)), generator=torch.Generator().manual_seed(2))


def step(net, name):
    inputs = (image_of(name), "axial") if name == "slices in a row" else (image_of(name),)
    torch.manual_seed(3)  # the same units dropped
    outputs = net(*inputs)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum(output.square().mean() for output in outputs).backward()
    return outputs, {key: p.grad for key, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETS)
def test_values_and_gradients_stay(name, amp):
    make, blocks = NETS[name]
    torch.manual_seed(0)
    net = make().train()
    other = place(copy.deepcopy(net), "cpu", amp, checkpointing=True)
    net = place(net, "cpu", amp)
    passes = []
    attentions = [
        getattr(part, n) for part in other.modules() for n in BLOCK if isinstance(getattr(part, n, None), nn.Module)
    ]
    for attention in attentions:
        attention.register_forward_hook(lambda *_: passes.append(1))
    (outputs, gradients), (others, other_gradients) = step(net, name), step(other, name)
    assert len(passes) >= 2 * blocks  # each block's inside was computed again
    for one, two in zip(outputs, others, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert gradients.keys() == other_gradients.keys() and any("attn" in key or "attention" in key for key in gradients)
    for key, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[key], gradient, msg=key)
    passes.clear()
    other.eval()
    with torch.no_grad():
        step_inputs = (image_of(name), "axial") if name == "slices in a row" else (image_of(name),)
        other(*step_inputs)
    assert len(passes) == len(attentions)


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(ValueError, match="Conv3d has none: leave it out"):
        place(nn.Conv3d(1, 1, 1), "cpu", checkpointing=True)


def test_compiled_it_is_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2), nn.ReLU())
    image, seen = torch.rand(1, 1, 6, 6, 6), []

    def backend(module, inputs):
        seen.append(module)
        return module.forward

    torch._dynamo.register_backend(backend, name="of_a_test")
    compiled = place(copy.deepcopy(net), "cpu", compile="of_a_test")
    assert list(compiled.state_dict()) == list(net.state_dict())
    torch.testing.assert_close(compiled(image), net(image))
    assert seen
    place(copy.deepcopy(net), "cpu")(image)
    assert len(seen) == len(set(map(id, seen)))


@pytest.mark.slow  # half a minute of the compiler
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch's inductor needs a C++ compiler")
def test_inductor_gives_the_same_up_to_rounding(monkeypatch, tmp_path):
    """A whole DynUNet, in the place that the id `compile` has in the configs."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a kernel of an earlier run would not be compiled
    torch.manual_seed(0)
    strides = [1, 2, 2]
    net = DynUNet(3, 1, 3, [3] * 3, strides, strides[1:], filters=[4, 8, 8], norm_name="instance")
    image = torch.rand(2, 1, 16, 24, 16)
    compiled = place(copy.deepcopy(net), "cpu", compile=True)
    place(net, "cpu")
    torch._dynamo.reset()
    results = []
    for one in (net, compiled):
        made = one(image)
        made.square().mean().backward()
        results.append((made, *(parameter.grad for parameter in one.parameters())))
    assert list(tmp_path.rglob("*.so"))  # what the compiler made
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
