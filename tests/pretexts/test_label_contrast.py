from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import DynUNet, MedNeXt, SegResNet
from torch import nn

from common.losses import LabelContrastLoss
from common.networks import (
    DynUNetEncoder,
    MedNeXtEncoder,
    ResidualEncoderUNet,
    ResidualUNetEncoder,
    SegResNetEncoder,
)
from common.pretexts import LabelContrast
from common.transforms import RandomShapes, SyntheticContrast


def slow(vectors, labels, temperature):
    """The loss as it is written, a pair at a time."""
    values = []
    for sample, tags in zip(vectors.tolist(), labels.tolist(), strict=True):
        for (first, second), names in zip(sample, tags, strict=True):
            kept = [n for n, name in enumerate(names) if name >= 0]
            first, second, names = ([part[n] for n in kept] for part in (first, second, names))
            rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in [*first, *second]]
            names = names + names
            terms = []
            for a, row in enumerate(rows):
                scores = [math.exp(sum(x * y for x, y in zip(row, other, strict=True)) / temperature) for other in rows]
                below = sum(score for b, score in enumerate(scores) if b != a)
                positives = [b for b in range(len(rows)) if b != a and names[b] == names[a]]
                terms.append(-sum(math.log(scores[b] / below) for b in positives) / len(positives))
            values.append(sum(terms) / len(terms))
    return sum(values) / len(values)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_loss_equals_a_slow_reference(temperature):
    torch.manual_seed(0)
    vectors, labels = torch.randn(2, 3, 2, 6, 5, requires_grad=True), torch.randint(3, (2, 3, 6))
    labels[1, 2, 4:] = -1  # a stage of four voxels
    value = LabelContrastLoss(temperature)({"vectors": vectors, "labels": labels})
    assert float(value.detach()) == pytest.approx(slow(vectors, labels, temperature), rel=1e-4)
    value.backward()
    assert torch.isfinite(vectors.grad).all() and vectors.grad.abs().sum() > 0
    assert not vectors.grad[1, 2, :, 4:].any()


def test_voxels_of_a_label_that_are_alike_cost_least():
    labels = torch.arange(4).repeat(1, 1, 2)
    apart = torch.eye(4)[labels].unsqueeze(2).expand(1, 1, 2, 8, 4)
    least = math.log(3)  # of three positives each has a third
    assert float(LabelContrastLoss(0.07)({"vectors": apart, "labels": labels})) == pytest.approx(least, abs=1e-3)
    mixed = apart.roll(1, dims=3)
    assert float(LabelContrastLoss(0.07)({"vectors": mixed, "labels": labels})) == pytest.approx(least, abs=1e-3)
    assert float(LabelContrastLoss(0.07)({"vectors": mixed, "labels": labels // 2})) > 2
    with pytest.raises(ValueError, match="larger than 0"):
        LabelContrastLoss(0)


class Seen(nn.Module):
    """Two stages that return what they are given, the second at half of the resolution."""

    def forward(self, x):
        self.seen = x
        return [x, x[..., ::2, ::2, ::2]]


def test_vectors_and_labels_are_of_the_same_voxels_in_both_images():
    torch.manual_seed(0)
    values = torch.arange(2 * 512).view(2, 1, 8, 8, 8)
    net = Seen()
    views = iter((2.0, 3.0))
    model = LabelContrast(net, lambda labels: labels * next(views), features=1, points=20)
    model.projector = nn.Identity()
    result = model(values)
    assert torch.equal(net.seen, torch.cat((values * 2.0, values * 3.0)))
    assert result["vectors"].shape == (2, 2, 2, 20, 1) and result["labels"].shape == (2, 2, 20)
    first, second = result["vectors"][:, 0, :, :, 0].unbind(1)
    assert torch.equal(first, 2.0 * result["labels"][:, 0]) and torch.equal(second, 3.0 * result["labels"][:, 0])
    # Of a coarse map, whose every second voxel this net keeps, a voxel has the label of its own.
    assert torch.equal(result["vectors"][:, 1, 0, :, 0], 2.0 * result["labels"][:, 1])


def small_dynunet(**given):
    return DynUNet(3, 1, 4, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 6, 8], norm_name="INSTANCE", **given)


def test_bottleneck_and_decoder_are_contrasted_beside_the_output():
    """Map by map against the network run part by part."""
    torch.manual_seed(0)
    net = small_dynunet()
    model = LabelContrast(net, SyntheticContrast(), 4, RandomShapes(), points=64, encoder=DynUNetEncoder(net))
    image = torch.randn(2, 1, 8, 8, 8)
    (output,), inner = model.maps(image)

    fine = net.input_block(image)
    middle = net.downsamples[0](fine)
    deep = net.bottleneck(middle)
    first = net.upsamples[0](deep, middle)
    expected = [net.output_block(net.upsamples[1](first, fine)), deep, first]
    assert all(torch.equal(*pair) for pair in zip((output, *inner), expected, strict=True))
    assert model(image)["vectors"].shape == (2, 3, 2, 64, 256)


def networks():
    dynunet = small_dynunet(deep_supervision=True, deep_supr_num=1)
    segresnet = SegResNet(3, 8, 1, 4, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    mednext = MedNeXt(3, 4, 1, 4, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1), deep_supervision=False)
    plan = {"features": (4, 6, 8, 8), "blocks": (1, 1, 1, 1), "strides": (1, 2, 2, 2), "decoder_blocks": (1, 1, 1)}
    resenc = ResidualEncoderUNet(1, 4, **plan, deep_supervision=True)
    return {
        "dynunet": (dynunet, DynUNetEncoder(dynunet), [4, 4, 8, 6]),
        "segresnet": (segresnet, SegResNetEncoder(segresnet), [4, 16]),
        "mednext": (mednext, MedNeXtEncoder(mednext), [4, 16, 8]),
        "resenc": (resenc, ResidualUNetEncoder(resenc), [4, 4, 4, 8, 6]),
    }


@pytest.mark.parametrize("name", ["dynunet", "segresnet", "mednext", "resenc"])
def test_each_map_of_each_u_net_has_a_projector_of_its_width(name):
    """Widths of the outputs, as many as deep supervision has, and of the coarser maps."""
    torch.manual_seed(0)
    net, encoder, widths = networks()[name]
    model = LabelContrast(net.train(), SyntheticContrast(), 4, RandomShapes(), points=32, encoder=encoder)
    outputs, inner = model.maps(torch.randn(2, 1, 16, 16, 16))
    assert [one.shape[1] for one in (*outputs, *inner)] == widths
    assert [one[0].in_features for one in model.projectors] == widths[len(outputs) :]
    LabelContrastLoss()(model(torch.zeros(2, 1, 16, 16, 16))).backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not lost


def test_an_encoder_of_another_network_is_refused():
    net = small_dynunet()
    with pytest.raises(ValueError, match="has none of the maps that its encoder lists"):
        LabelContrast(nn.Sequential(net), SyntheticContrast(), 4, encoder=DynUNetEncoder(net))


def test_a_bottleneck_of_one_voxel_is_refused():
    """Group norms do not mind, and the loss would be 0."""
    net = MedNeXt(3, 4, 1, 4, deep_supervision=False)
    model = LabelContrast(net, lambda labels: labels / 4096, 4, encoder=MedNeXtEncoder(net))
    with pytest.raises(ValueError, match="16 x 16 x 16 voxels leave one voxel at the bottleneck"):
        model(torch.arange(4096).view(1, 1, 16, 16, 16))


def test_a_stack_of_outputs_is_a_map_each():
    net = small_dynunet(deep_supervision=True, deep_supr_num=1).train()
    result = LabelContrast(net, lambda labels: labels / 512, 4, points=9)(torch.arange(512).view(1, 1, 8, 8, 8))
    assert result["vectors"].shape == (1, 2, 2, 9, 256)


def test_vectors_cannot_be_all_alike_and_what_fills_up_a_map_is_zero():
    torch.manual_seed(0)
    net = small_dynunet()
    model = LabelContrast(net, SyntheticContrast(), 4, RandomShapes(), points=100, size=16, encoder=DynUNetEncoder(net))
    assert not any("running" in name for name in model.state_dict())
    for mode in (True, False):
        result = model.train(mode)(torch.zeros(2, 1, 12, 12, 12))
        vectors = result["vectors"].detach()
        for number in range(3):
            kept = (result["labels"][:, number] >= 0)[:, None].expand(-1, 2, -1)
            rows = vectors[:, number][kept]
            assert rows.mean(0).abs().max() < 1e-4 and rows.var(0, correction=0).min() > 0.9
            assert not vectors[:, number][~kept].any()
        assert (result["labels"][:, 1] >= 0).sum(1).tolist() == [27, 27]


def test_the_loss_of_an_inner_map_trains_what_leads_to_it():
    torch.manual_seed(0)
    net = small_dynunet()
    model = LabelContrast(net, SyntheticContrast(), 4, RandomShapes(), points=64, encoder=DynUNetEncoder(net))
    result = model(torch.zeros(2, 1, 16, 16, 16))
    LabelContrastLoss()({name: result[name][:, 1:2] for name in ("vectors", "labels")}).backward()
    reached = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"input_block", "downsamples", "bottleneck"}
    assert all(p.grad is not None for p in model.projectors[0].parameters())


def test_shapes_are_drawn_for_each_step_and_a_seed_repeats_them():
    net = nn.Conv3d(1, 4, 1)
    model = LabelContrast(net, SyntheticContrast(), 4, RandomShapes(), points=8)
    image = torch.zeros(2, 1, 12, 12, 12)
    torch.manual_seed(0)
    first, other = model(image), model(image)
    assert not torch.equal(first["shapes"], other["shapes"]) and not torch.equal(first["drawn"], first["second"])
    torch.manual_seed(0)
    again = model(image)
    assert all(torch.equal(first[name], again[name]) for name in first)
    label, one, two = model.pictures(image, first)
    assert label.amax() == 1 and torch.equal(one, first["drawn"]) and torch.equal(two, first["second"])


def test_no_voxel_is_drawn_twice_and_a_small_stage_leaves_places_out():
    class Numbers(nn.Module):
        def forward(self, x):
            numbers = torch.arange(x[0].numel()).reshape(1, *x.shape[1:]).expand_as(x).float()
            return [numbers, numbers[..., ::2, ::2, ::2]]

    model = LabelContrast(Numbers(), SyntheticContrast(), 1, RandomShapes(), points=60)
    model.projector = nn.Identity()
    drawn = model(torch.zeros(2, 1, 4, 4, 4))
    assert all(len(set(one.tolist())) == 60 for one in drawn["vectors"][:, 0, 0, :, 0])
    assert (drawn["labels"][:, 0] >= 0).all()
    assert ((drawn["labels"][:, 1] >= 0).sum(1) == 8).all()


def test_it_learns_and_gradients_reach_the_whole_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
    contrast = SyntheticContrast(std=(0.0, 1.0), sharp=1.0, bias=0.0)
    model = LabelContrast(net, contrast, 8, RandomShapes((3, 5), (0.2, 0.5)), points=64)
    loss, values = LabelContrastLoss(0.2), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        torch.manual_seed(1)
        result = model(torch.zeros(2, 1, 12, 12, 12))
        value = loss(result)
        optimizer.zero_grad()
        value.backward()
        if not values:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim > 1)
        optimizer.step()
        values.append(value.item())
    # A positive can have its share of the chances at most.
    tags = result["labels"].flatten(0, 1)
    counts = 2 * (tags[:, :, None] == tags[:, None]).sum(2) - 1
    least = float(counts.float().log().mean())
    assert least - 1e-4 < values[-1] < least + 0.4 * (values[0] - least), (least, values)
