import pytest
import torch
from monai.networks.nets import UNETR
from torch import nn

from common.networks import EncoderClassifier, EncoderRegressor, ViTEncoder, place


class TwoMaps(nn.Module):
    """An encoder of the contract with maps that can be written down."""

    channels = (2, 3)
    strides = ((1, 1, 1), (2, 2, 2))

    def forward(self, image):
        coarse = image[..., ::2, ::2, ::2]
        return [image.expand(-1, 2, -1, -1, -1), torch.cat([coarse, 2 * coarse, -coarse], dim=1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def slow_head(head, features):
    """Layer norm and linear layer written out, for pooled features (B, C)."""
    norm, linear = head[0], head[2]
    features = features - features.mean(dim=1, keepdim=True)
    features = features / (features.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt()
    return (features * norm.weight + norm.bias) @ linear.weight.T + linear.bias


def test_classifier_pools_the_last_map():
    net = EncoderClassifier(TwoMaps(), num_classes=5)
    nn.init.normal_(net.head[0].weight)
    image = torch.rand(4, 1, 4, 6, 8)
    mean = image[..., ::2, ::2, ::2].mean(dim=(2, 3, 4))
    logits = net(image)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(logits, slow_head(net.head, torch.cat([mean, 2 * mean, -mean], dim=1)))


def test_all_maps_are_pooled_each_with_its_norm():
    net = EncoderClassifier(TwoMaps(), num_classes=5, maps="all")
    for norm in net.head[0]:
        nn.init.normal_(norm.weight)
    image = torch.rand(4, 1, 4, 6, 8)
    fine, coarse = image.mean(dim=(2, 3, 4)), image[..., ::2, ::2, ::2].mean(dim=(2, 3, 4))
    features = [fine.expand(-1, 2), torch.cat([coarse, 2 * coarse, -coarse], dim=1)]
    normed = torch.cat([norm(one) for norm, one in zip(net.head[0], features, strict=True)], dim=1)
    torch.testing.assert_close(net(image), normed @ net.head[2].weight.T + net.head[2].bias)
    assert net.head[2].in_features == 5 and EncoderRegressor(TwoMaps(), maps="all")(image).shape == (4, 1)
    with pytest.raises(ValueError, match="maps is 'first'; it must be 'last' or 'all'"):
        EncoderRegressor(TwoMaps(), maps="first")


@pytest.mark.parametrize("maps", ["last", "all"])
def test_a_hidden_layer_takes_the_place_of_the_norm(maps):
    net = EncoderClassifier(TwoMaps(), num_classes=5, maps=maps, hidden=7)
    image = torch.rand(4, 1, 4, 6, 8)
    fine, coarse = image.mean(dim=(2, 3, 4)), image[..., ::2, ::2, ::2].mean(dim=(2, 3, 4))
    features = torch.cat(([fine, fine] if maps == "all" else []) + [coarse, 2 * coarse, -coarse], dim=1)
    first, last = net.head[0], net.head[-1]
    expected = (features @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias
    torch.testing.assert_close(net(image), expected)
    assert sum(p.numel() for p in net.parameters()) == 7 * features.shape[1] + 7 + 7 * 5 + 5
    with pytest.raises(ValueError, match="hidden is a number of units"):
        EncoderRegressor(TwoMaps(), hidden=0)


def test_regressor_returns_the_unit_of_the_target():
    standardised = EncoderRegressor(TwoMaps())
    net = EncoderRegressor(TwoMaps(), mean=60.0, std=12.0)
    net.head.load_state_dict(standardised.head.state_dict())
    image = torch.rand(4, 1, 4, 4, 4)
    assert net(image).shape == (4, 1)
    torch.testing.assert_close(net(image), 60 + 12 * standardised(image))
    assert set(net.state_dict()) - set(standardised.head.state_dict(prefix="head.")) == {"mean", "std"}
    standardised.load_state_dict(net.state_dict())
    torch.testing.assert_close(standardised(image), net(image))


def test_regressor_keeps_float32_under_autocast():
    net = EncoderRegressor(TwoMaps(), mean=70.0)
    nn.init.zeros_(net.head[2].weight)
    nn.init.constant_(net.head[2].bias, 0.203125)  # exact in bfloat16, and 70.203125 is not
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(torch.rand(1, 1, 4, 4, 4))
    assert output.dtype == torch.float32 and output.item() == 70.203125


class Convolved(TwoMaps):
    """Maps of bfloat16 under autocast."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 3, 1)

    def forward(self, image):
        return [image.expand(-1, 2, -1, -1, -1), self.convolution(image)]


@pytest.mark.parametrize("maps", ["last", "all"])
@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("regressor", [True, False])
def test_the_head_computes_in_float32_with_amp(maps, hidden, regressor):
    """64 ages stay 64, as near to those of the same maps in float32 as that can tell."""
    made = {"mean": 60.0, "std": 12.0} if regressor else {"num_classes": 1}
    net = (EncoderRegressor if regressor else EncoderClassifier)(Convolved(), maps=maps, hidden=hidden, **made).eval()
    image = torch.linspace(-1, 1, 64).view(-1, 1, 1, 1, 1) * torch.rand(1, 1, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = net.encoder(image)
    assert found[-1].dtype == torch.bfloat16
    means = torch.cat([one.float().mean((2, 3, 4)) for one in found[-1 if maps == "last" else 0 :]], dim=1)
    expected = net.head(means) * 12 + 60 if regressor else net.head(means)
    ages = place(net, "cpu", amp=True)(image)
    assert ages.dtype == torch.float32 and len(ages.unique()) == len(expected.unique()) > 50
    torch.testing.assert_close(ages, expected, rtol=1e-6, atol=1e-6)


def test_dropout_acts_in_training_only():
    net = EncoderClassifier(TwoMaps(), num_classes=3, dropout=0.5)
    image = torch.rand(8, 1, 4, 4, 4)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_over_a_real_encoder():
    segmentation_net = UNETR(1, 2, img_size=32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2)
    net = EncoderClassifier(ViTEncoder(segmentation_net.vit), num_classes=2)
    net(torch.rand(2, 1, 32, 32, 32)).sum().backward()
    assert segmentation_net.vit.patch_embedding.patch_embeddings.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_rejects_std(std):
    with pytest.raises(ValueError, match="standard deviation"):
        EncoderRegressor(TwoMaps(), std=std)
