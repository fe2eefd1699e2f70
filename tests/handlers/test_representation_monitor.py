import logging
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from common.handlers import RepresentationMonitor
from common.metrics import effective_rank, feature_std, position_cosines
from common.transforms import TokenViews


class Encoder(nn.Module):
    channels = (6,)
    strides = ((2, 2, 2),)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 6, 2, stride=2)
        self.norm = nn.BatchNorm3d(6)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, image):
        self.seen.append((image, torch.is_grad_enabled()))
        return [image, self.dropout(self.norm(self.conv(image)))]


def run(encoder, data, epochs=1, **arguments):
    """An engine that leaves the encoder alone; returns its metrics after every epoch."""
    engine = Engine(lambda engine, batch: None)
    RepresentationMonitor(encoder, **arguments).attach(engine)
    engine.run(data, max_epochs=epochs)
    return engine.state.metrics


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def data():
    return [{"image": torch.randn(2, 1, 4, 4, 4)} for _ in range(5)]


def test_images_that_the_pretext_draws_are_measured_instead_of_what_it_draws_them_from(data):
    encoder = Encoder()
    drawn = torch.randn(2, 1, 8, 4, 4)
    engine = Engine(lambda engine, batch: {"image": batch["image"], "pred": {"logits": None, "drawn": drawn}})
    RepresentationMonitor(encoder, batches=1).attach(engine)
    engine.run(data)
    assert [image is drawn for image, _ in encoder.seen] == [True]


def test_measures_the_last_batches(data):
    encoder = Encoder()
    metrics = run(encoder, data, batches=3)
    assert [image is batch["image"] for (image, _), batch in zip(encoder.seen, data[2:], strict=True)] == [True] * 3
    assert not any(grad for _, grad in encoder.seen)
    features = encoder.eval()(torch.cat([batch["image"] for batch in data[2:]]))[-1]
    tokens = features.movedim(1, -1).flatten(0, 3)
    pooled = features.mean(dim=(2, 3, 4))
    assert metrics["feature_std"] == pytest.approx(feature_std(tokens).item(), rel=1e-4)
    assert metrics["effective_rank"] == pytest.approx(effective_rank(tokens).item(), rel=1e-4)
    assert metrics["pooled_feature_std"] == pytest.approx(feature_std(pooled).item(), rel=1e-4)
    assert metrics["pooled_effective_rank"] == pytest.approx(effective_rank(pooled).item(), rel=1e-4)
    each = [position_cosines(encoder(batch["image"])[-1].flatten(2).transpose(1, 2)) for batch in data[2:]]
    for name, values in zip(("same_position_cosine", "other_position_cosine"), zip(*each, strict=True), strict=True):
        assert metrics[name] == pytest.approx(sum(values).item() / 3, rel=1e-4)


def test_leaves_modes_statistics_and_random_state_alone(data):
    encoder = Encoder().train()
    encoder.norm.eval()  # a frozen part of a net in training
    modes = [module.training for module in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    run(encoder, data)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_an_encoder_that_draws_does_not_move_the_random_state(data):
    class Drawing(Encoder):
        def forward(self, image):
            return [image + torch.rand_like(image)]

    encoder = Drawing()
    random_state = torch.get_rng_state()
    run(encoder, data)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_modes_come_back_when_the_encoder_fails(data):
    class Failing(Encoder):
        def forward(self, image):
            raise RuntimeError("no")

    encoder = Failing()
    with pytest.raises(RuntimeError, match="no"):
        run(encoder, data)
    assert all(module.training for module in encoder.modules())


def test_interval_and_log(data, caplog):
    encoder = Encoder()
    with caplog.at_level(logging.INFO):
        run(encoder, data, epochs=5, interval=2, batches=1)
    assert len(encoder.seen) == 2
    ours = [record for record in caplog.records if record.name == RepresentationMonitor.__module__]
    assert [record.message[:8] for record in ours] == ["Epoch 2,", "Epoch 4,"]
    assert all(record.levelname == "INFO" for record in ours)


def constant(encoder):
    nn.init.zeros_(encoder.conv.weight)


def one_direction(encoder):
    with torch.no_grad():
        encoder.conv.weight.copy_(encoder.conv.weight[:1].expand_as(encoder.conv.weight))
        encoder.conv.bias.zero_()


@pytest.mark.parametrize("collapse", [constant, one_direction])
def test_warns_of_collapse(data, caplog, collapse):
    encoder = Encoder()
    collapse(encoder)
    metrics = run(encoder, data)
    assert metrics["effective_rank"] < 2
    assert [record.levelname for record in caplog.records if "collapsed" in record.message] == ["WARNING"]


def test_warns_when_tokens_differ_but_images_do_not(data, caplog):
    """Tokens that tell only their position: every image gets the same map."""

    class Positions(Encoder):
        def forward(self, image):
            return [self.conv(torch.arange(64.0).sin().view(1, 1, 4, 4, 4)).expand(len(image), -1, -1, -1, -1)]

    metrics = run(Positions(), data)
    assert metrics["feature_std"] > 0.1 / math.sqrt(6)
    assert "collapsed" in caplog.text


def test_threshold(data, caplog):
    run(Encoder(), data, threshold=1e-3)
    assert "collapsed" not in caplog.text
    run(Encoder(), data, threshold=10.0)
    assert "collapsed" in caplog.text


def test_one_image_has_tokens_only():
    metrics = run(Encoder(), [{"image": MetaTensor(torch.randn(1, 1, 4, 4, 4))}])
    assert set(metrics) == {"feature_std", "effective_rank"}


def test_max_tokens_bounds_the_matrix(data):
    encoder = Encoder()
    metrics = run(encoder, data, batches=1, max_tokens=3)
    tokens = encoder.eval()(data[-1]["image"])[-1].movedim(1, -1).flatten(0, 3)
    assert metrics["effective_rank"] == pytest.approx(effective_rank(tokens[::6]).item(), rel=1e-4)


@pytest.mark.parametrize("argument", ["interval", "batches", "max_tokens"])
def test_rejects_arguments(argument):
    with pytest.raises(ValueError, match="at least 1"):
        RepresentationMonitor(Encoder(), **{argument: 0})


def test_features_that_are_not_finite_are_said_and_not_measured(data, caplog):
    encoder = Encoder()
    nn.init.constant_(encoder.conv.bias, float("nan"))
    assert run(encoder, data) == {}
    assert "features are not finite" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_warns_when_tokens_tell_little_but_their_position(data, caplog, share):
    class Positions(Encoder):
        def forward(self, image):
            place = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
            return [place.expand(len(image), -1, -1, -1, -1) + share * image]

    metrics = run(Positions(), data)
    warned = "where a token lies, not its content" in caplog.text or "collapsed" in caplog.text
    assert warned == (share < 0.1) == (metrics["same_position_cosine"] > 0.999)


class Pretext(nn.Module):
    """What the monitor reads of a pretext."""

    def __init__(self, mask_ratio):
        super().__init__()
        self.views = TokenViews(axes=None, mask_ratio=mask_ratio, mask_size=(2, 2, 2))


def test_retrieval_tells_content_from_what_is_only_apart(caplog):
    """Two encoders with equally unlike images: one says what it sees, the other draws."""

    class Drawing(Encoder):
        def forward(self, image):
            return [torch.randn(len(image), 6, 4, 4, 4)]

    data = [{"image": torch.randn(4, 1, 8, 8, 8)} for _ in range(2)]
    with caplog.at_level(logging.INFO):
        content = run(Encoder(), data, pretext=Pretext(0.5))
    drawn = run(Drawing(), data, pretext=Pretext(0.5))
    assert content["retrieval_chance"] == drawn["retrieval_chance"] == 0.25
    assert content["retrieval"] > 0.5  # half of the cells are seen
    assert drawn["retrieval"] < 0.4
    assert "retrieval 0." in caplog.text and "retrieval_chance 0.25" in caplog.text


def test_retrieval_needs_views_of_tokens_and_leaves_the_random_state_alone(data):
    encoder = Encoder()
    assert "retrieval" not in run(encoder, data, pretext=encoder)
    random_state = torch.get_rng_state()
    assert "retrieval" in run(encoder, data, pretext=Pretext(0.75))
    assert torch.equal(torch.get_rng_state(), random_state)
