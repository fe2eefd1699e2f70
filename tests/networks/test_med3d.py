from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from common.networks import (
    BranchDecoder,
    DenseASPP,
    LungDecoder,
    Med3DNet,
    MedicalNetHead,
    MultiBranchNet,
    PooledClassifier,
    place,
)

SIZE = (17, 24, 30)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 1, *SIZE)


@pytest.mark.parametrize(
    "head",
    [
        partial(LungDecoder, num_classes=3, features=16),
        partial(BranchDecoder, classes=[3]),
        partial(DenseASPP, num_classes=3, hidden=8, growth=4),
        partial(MedicalNetHead, num_classes=3),
    ],
    ids=["lung", "branch", "dense_aspp", "medicalnet"],
)
def test_logits_lie_on_the_images_grid(image, head):
    net = Med3DNet(head, width=4)
    logits = net.eval()(image)
    assert logits.shape == (2, 3, *SIZE) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.encoder.parameters())


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
    with pytest.raises(ValueError, match=f"branches 0 to 1 but was asked for {branch}"):
        decoder([torch.rand(1, 4, 2, 2, 2)], (4, 4, 4), branch)
    with pytest.raises(ValueError, match="at least one branch"):
        BranchDecoder([4], [])


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


def test_dilations_fit_the_map_and_no_kernel_is_one_voxel():
    """Of 128 x 128 x 96 voxels, where dilations 18 and 24 had one of 27 taps within the map (a gradient each)."""
    head = DenseASPP([6], 2, hidden=4, growth=2, dropout=0.0, image_size=[128, 128, 96])
    assert head.dilations == [(1, 1, 1), (2, 2, 1), (3, 3, 2), (5, 5, 3), (6, 6, 5)]
    for parameter in head.parameters():
        parameter.data.abs_()
    logits = head([torch.rand(1, 6, 16, 16, 12)], (16, 16, 12))
    logits.sum().backward()
    for block in head.blocks:
        assert (block[-1].weight.grad.abs().sum((0, 1)) > 0).all()
    assert DenseASPP([6], 2, 4, 2, image_size=[512] * 3).dilations == [(r, r, r) for r in (3, 6, 12, 18, 24)]


def test_weights_of_other_dilations_are_refused():
    made = DenseASPP([6], 2, 4, 2, image_size=[128, 128, 96]).state_dict()
    DenseASPP([6], 2, 4, 2, image_size=[128, 128, 96]).load_state_dict(made)
    with pytest.raises(RuntimeError, match=r"DenseASPP was trained with the dilations .* set its image_size"):
        DenseASPP([6], 2, 4, 2, image_size=[64, 64, 64]).load_state_dict(made)
    with pytest.raises(RuntimeError, match="fitted_dilations"):
        DenseASPP([6], 2, 4, 2).load_state_dict(made)


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_norm_of_the_heads(norm):
    kinds = {"batch": torch.nn.BatchNorm3d, "group": torch.nn.GroupNorm, "frozen": torch.nn.BatchNorm3d}
    for head in (LungDecoder([8], 2, features=8, norm=norm), DenseASPP([8], 2, 4, 2, norm=norm)):
        norms = [part for part in head.modules() if "Norm" in type(part).__name__]
        assert norms and all(isinstance(part, kinds[norm]) for part in norms)


def test_dense_aspp_drops_whole_channels():
    torch.manual_seed(0)
    head = DenseASPP([6], 2, hidden=8, growth=40, dropout=0.5).train()
    new = head.features(torch.rand(1, 6, 4, 4, 4))[0, :40].flatten(1)  # of the last block
    dropped = (new == 0).all(1).float().mean()
    assert 0.2 < dropped < 0.8


def test_pooled_classifier(image):
    net = Med3DNet(partial(PooledClassifier, num_classes=4), width=4).eval()
    pooled = net.encoder(image)[-1].mean((2, 3, 4))
    expected = pooled @ net.head.fc.weight[:, :, 0, 0, 0].T + net.head.fc.bias
    torch.testing.assert_close(net(image), expected)


def test_chances_sum_to_one_under_autocast(image):
    net = Med3DNet(partial(PooledClassifier, num_classes=4), width=4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chances = net(image).softmax(1)
    torch.testing.assert_close(chances.sum(1), torch.ones(2))


def test_logits_of_a_scan_are_computed_in_float32_with_amp():
    torch.manual_seed(0)
    head = PooledClassifier([8], 3)
    maps = [torch.rand(16, 8, 3, 4, 5).bfloat16()]
    expected = maps[0].float().mean((2, 3, 4)) @ head.fc.weight[:, :, 0, 0, 0].T + head.fc.bias
    torch.testing.assert_close(place(head, "cpu", amp=True)(maps), expected)


def test_medicalnet_head_is_coarse_in_training(image):
    net = Med3DNet(partial(MedicalNetHead, num_classes=3), width=4)
    assert net.train()(image).shape == (2, 3, 6, 6, 8)  # ceil(size / 8) * 2
    assert net.eval()(image).shape == (2, 3, *SIZE)
    assert net.head.layers[-1].bias is None
