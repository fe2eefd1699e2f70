import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.networks import MultiViewClassifier, MultiViewEncoder, MultiViewRegressor, MultiViewSegmenter
from common.networks.planes import PLANES, from_slices

SHAPE = (34, 40, 37)  # unequal, and none a multiple of a stride


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    # Small, and with heads of a size of their own.
    return MultiViewEncoder(2, embed_dim=6, widths=(3, 4, 5, 6), num_heads=2, dim_head=5, mlp_dim=7).eval()


@pytest.fixture
def image():
    return torch.rand(2, 2, *SHAPE)


def combined(vectors):
    """F[x, y, z] = (s_x, c_y, a_z), built whole."""
    s, c, a = (sequence.transpose(1, 2) for sequence in vectors)
    size = s.shape[2], c.shape[2], a.shape[2]
    laid = s[:, :, :, None, None], c[:, :, None, :, None], a[:, :, None, None, :]
    return torch.cat([sequence.expand(-1, -1, *size) for sequence in laid], dim=1)


def naive_features(encoder, image):
    """The paper's features of every voxel, of F and of the maps interpolated to the volume."""
    vectors, maps = encoder.encode(image)
    features = [combined(vectors)]
    for plane, own in zip(PLANES, maps, strict=True):
        for map in own:
            volume = from_slices(map, plane)
            features.append(F.interpolate(volume, size=SHAPE, mode="trilinear", align_corners=False))
    return torch.cat(features, dim=1)


def test_segmentation_equals_the_naive_head(encoder, image):
    net = MultiViewSegmenter(encoder, 4)
    with torch.no_grad():
        features = naive_features(encoder, image)
        assert features.shape[1] == net.head.in_features == 3 * 6 + 3 * (3 + 4 + 5)
        expected = torch.einsum("kc,bcxyz->bkxyz", net.head.weight, features) + net.head.bias.view(1, -1, 1, 1, 1)
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-5)


def test_classification_equals_the_mean_of_the_naive_map(encoder, image):
    net = MultiViewClassifier(encoder, 3)
    with torch.no_grad():
        volume = combined(encoder.encode(image)[0])
        expected = net.head(volume.movedim(1, -1)).mean(dim=(1, 2, 3))
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-5)


def test_regression_is_in_the_unit_of_the_target(encoder, image):
    plain, scaled = MultiViewRegressor(encoder), MultiViewRegressor(encoder, mean=60.0, std=12.0)
    scaled.head.load_state_dict(plain.head.state_dict())
    torch.testing.assert_close(scaled(image), 60 + 12 * plain(image))
    assert scaled(image).shape == (2, 1)
    plain.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(plain(image), scaled(image))
    with pytest.raises(ValueError, match="standard deviation of the target must be larger than 0"):
        MultiViewRegressor(encoder, std=0.0)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_scan_level_heads_work_in_float32_in_mixed_precision(encoder, image, kind):
    net = MultiViewClassifier(encoder, 3) if kind == "classification" else MultiViewRegressor(encoder, 60.0, 12.0)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            found, vectors = net(image), encoder.encode(image)[0]
        means = torch.cat([v.double().mean(dim=1) for v in vectors], dim=1)
        expected = F.linear(means, net.head.weight.double(), net.head.bias.double())
    expected = expected if kind == "classification" else 12 * expected + 60
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)


def test_the_maps_are_an_encoders(encoder, image):
    maps = encoder(image)
    assert [map.shape[1] for map in maps] == list(encoder.channels) == [3, 3, 3, 4, 4, 4, 5, 5, 5, 18]
    for map, stride in zip(maps, encoder.strides, strict=True):
        assert tuple(map.shape[2:]) == tuple(-(-n // s) for n, s in zip(SHAPE, stride, strict=True))
    # The last is the average of F over blocks, those at the rim being smaller.
    with torch.no_grad():
        volume = combined(encoder.encode(image)[0])
    expected = F.avg_pool3d(volume, 16, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(maps[-1], expected, rtol=0, atol=1e-4)


def test_three_encoders_and_one_transformer(encoder):
    owners = [{id(p) for p in encoder.planes[plane].parameters()} for plane in PLANES]
    assert all(not a & b for number, a in enumerate(owners) for b in owners[:number])
    assert sum(isinstance(module, nn.Embedding) for module in encoder.modules()) == 1


def test_without_transformer_vectors_are_those_of_the_planes(image):
    encoder = MultiViewEncoder(2, embed_dim=6, widths=(3, 4, 5, 6), num_layers=0)
    assert encoder.transformer is None
    for mixed, own in zip(encoder.encode(image)[0], encoder.encode_planes(image), strict=True):
        assert torch.equal(mixed, own)


def test_gradients_reach_every_parameter(encoder, image):
    net = MultiViewSegmenter(encoder, 4)
    net(image).square().sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_a_repeated_first_layer_is_the_same_function():
    """Four equal channels with the weights repeated: the norm behind the first layer takes any factor out."""
    torch.manual_seed(0)
    one, four = (MultiViewEncoder(c, embed_dim=8, widths=(3, 4, 5, 6), dim_head=4).eval() for c in (1, 4))
    image = 100 * torch.rand(1, 1, *SHAPE)  # far above the norm's epsilon
    for factor in (1.0, 0.25):
        state = {n: t.expand(-1, 4, -1, -1) * factor if ".stem." in n else t for n, t in one.state_dict().items()}
        four.load_state_dict(state)
        for a, b in zip(one(image), four(image.expand(-1, 4, -1, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_another_number_of_channels_is_one_error(encoder):
    with pytest.raises(ValueError, match=r"2 channels, X, Y, Z\), not the shape \(1, 1, 34, 40, 37\): set in_channels"):
        encoder(torch.rand(1, 1, *SHAPE))
