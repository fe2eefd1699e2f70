from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from monai.losses import ContrastiveLoss

from common.losses import NTXentLoss, TokenContrastiveLoss

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def slow_loss(view1, view2, weight, temperature=0.5):
    """Equations (1) and (3) of the paper, one token and one pair at a time, in double precision."""
    volumes, tokens = view1.shape[:2]
    vectors = {
        (view, i, m): (x[i, m] / x[i, m].norm()).double()
        for view, x in enumerate((view1, view2))
        for i in range(volumes)
        for m in range(tokens)
    }
    total = 0.0
    for a, u in vectors.items():
        denominator = 0.0
        for b, v in vectors.items():
            if a != b:
                same_place_elsewhere = a[2] == b[2] and a[1] != b[1]
                denominator = denominator + (weight if same_place_elsewhere else 1) * torch.exp(u @ v / temperature)
        positive = vectors[1 - a[0], a[1], a[2]]
        total = total - u @ positive / temperature + torch.log(denominator)
    return total / len(vectors)


def loss_of(view1, view2, **settings):
    return TokenContrastiveLoss(**settings)({"view1": view1, "view2": view2})


def summed_loss_of(view1, view2, **settings):
    return loss_of(view1, view2, weight_form="sum", **settings)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 3, 6), (3, 4, 8)])
@pytest.mark.parametrize("weight", [0.3, 1.0, 5.0])
def test_equals_the_slow_reference(shape, weight):
    view1, view2 = torch.randn(2, *shape)
    for temperature in (0.1, 0.5):
        expected = float(slow_loss(view1, view2, weight, temperature))
        ours = summed_loss_of(view1, view2, weight=weight, temperature=temperature)
        assert ours.item() == pytest.approx(expected, abs=1e-5)


def test_gradient_equals_the_slow_reference_and_autograd_checks():
    views = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    ours, slow = views.clone().requires_grad_(), views.clone().requires_grad_()
    summed_loss_of(*ours, weight=5.0).backward()
    slow_loss(*slow, 5.0).backward()
    torch.testing.assert_close(ours.grad, slow.grad)
    small = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: summed_loss_of(*v, weight=5.0), small)


@pytest.mark.parametrize("form", ["exponent", "sum"])
@pytest.mark.parametrize("rows", [1, 7, 24, 100])
def test_in_blocks_or_whole(rows, form):
    views = torch.randn(2, 3, 4, 5)
    whole, blocks = views.clone().requires_grad_(), views.clone().requires_grad_()
    expected, got = loss_of(*whole, weight_form=form), loss_of(*blocks, rows=rows, weight_form=form)
    expected.backward()
    got.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(blocks.grad, whole.grad)


NO_WEIGHT = pytest.mark.parametrize("none", [{"weight": 0}, {"weight": 1, "weight_form": "sum"}])


@NO_WEIGHT
def test_without_weight_it_is_ntxent_over_all_tokens(none):
    view1, view2 = torch.randn(2, 3, 4, 5)
    flat = view1.flatten(0, 1), view2.flatten(0, 1)
    assert loss_of(view1, view2, **none).item() == pytest.approx(NTXentLoss()(*flat).item(), abs=1e-6)
    assert loss_of(view1, view2, **none).item() == pytest.approx(ContrastiveLoss(0.5)(*flat).item(), abs=1e-6)


@NO_WEIGHT
def test_one_token_a_volume_and_no_weight_is_simclr(none):
    view1, view2 = torch.randn(2, 6, 1, 5)
    assert loss_of(view1, view2, **none).item() == pytest.approx(
        NTXentLoss()(view1[:, 0], view2[:, 0]).item(), abs=1e-6
    )


def test_one_volume_does_not_depend_on_the_weight_nor_on_its_form():
    view1, view2 = torch.randn(2, 1, 6, 5)
    expected = loss_of(view1, view2, weight=0).item()
    assert loss_of(view1, view2, weight=100).item() == summed_loss_of(view1, view2, weight=100).item() == expected


def test_symmetric_in_views_and_in_the_order_of_volumes():
    view1, view2 = torch.randn(2, 3, 4, 5)
    expected = loss_of(view1, view2).item()
    assert loss_of(view2, view1).item() == pytest.approx(expected, abs=1e-6)
    order = torch.tensor([2, 0, 1])
    assert loss_of(view1[order], view2[order]).item() == pytest.approx(expected, abs=1e-6)
    assert loss_of(view1[order], view2).item() != pytest.approx(expected, abs=1e-3)  # the pairs are others


def test_punishes_collapse_by_position():
    """With orthogonal places: the loss of volumes that say only where a token lies, against those that differ."""
    places = torch.eye(4, 8)
    collapsed = places.expand(2, 4, 8)
    apart = torch.stack((places, places.roll(4, dims=1)))
    for weight in (1.0, 5.0):
        e = math.exp(2)
        # positive and, for the collapsed, two same-position terms of similarity 1 beside 12 of similarity 0
        expected = math.log(e + 2 * weight * e + 12) - 2
        assert summed_loss_of(collapsed, collapsed, weight=weight).item() == pytest.approx(expected, abs=1e-5)
        expected = math.log(e + 2 * weight + 12) - 2
        assert summed_loss_of(apart, apart, weight=weight).item() == pytest.approx(expected, abs=1e-5)
        # In the exponent, the two terms of similarity 1 weigh more, and those of similarity 0 as the others.
        expected = math.log(e + 2 * math.exp(2 * (1 + weight)) + 12) - 2
        assert loss_of(collapsed, collapsed, weight=weight).item() == pytest.approx(expected, abs=1e-5)
        assert loss_of(apart, apart, weight=weight).item() == pytest.approx(math.log(e + 14) - 2, abs=1e-5)


def test_derivative_for_a_weighted_pair_is_the_weight_times_that_of_another():
    """Of the denominator at equal similarities: d/ds of log sum w exp(s) is w / sum w for each term."""
    vectors = torch.eye(8, dtype=torch.float64).reshape(2, 2, 2, 8).requires_grad_()
    summed_loss_of(*vectors, weight=5.0).backward()
    gradient = vectors.grad[0, 0, 0]  # view 1, volume 0, position 0; its own coordinate is 0
    same_place, another_place = gradient[2], gradient[3]  # volume 1 of view 1, positions 0 and 1
    assert same_place / another_place == pytest.approx(5.0)


def test_auto_weight_gives_the_share():
    def auto(**settings):
        return TokenContrastiveLoss(weight="auto", weight_form="sum", **settings)

    assert auto(target_share=10 / 263).weight_for(2, 64) == pytest.approx(5.0)
    for volumes, tokens in ((2, 512), (8, 64)):
        weight = auto(target_share=0.1).weight_for(volumes, tokens)
        weighted = weight * 2 * (volumes - 1)
        assert weighted / (weighted + 2 * volumes * tokens - 1 - 2 * (volumes - 1)) == pytest.approx(0.1)
    assert auto().weight_for(1, 64) == 1.0


def test_finite_at_small_temperatures_and_under_autocast():
    view1, view2 = torch.randn(2, 2, 8, 16)
    assert math.isfinite(loss_of(view1, view2, temperature=0.005).item())
    expected = loss_of(view1.bfloat16().float(), view2.bfloat16().float()).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(view1.bfloat16(), view2.bfloat16()).item() == pytest.approx(expected, abs=1e-6)


def peak_kilobytes() -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


@pytest.mark.skipif(not CLEAR.exists(), reason="reads Linux's /proc")
def test_two_views_of_two_volumes_of_2048_tokens_fit():
    """The whole table of similarities would have 8192^2 entries, 256 MB, and as much again for its gradient."""
    views = torch.randn(2, 2, 2048, 8, requires_grad=True)
    CLEAR.write_text("5")  # from here on the peak is of what is in use now
    before = peak_kilobytes()
    loss_of(*views, rows=256).backward()
    assert torch.isfinite(views.grad).all()
    assert peak_kilobytes() - before < 100 * 1024


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"temperature": 0}, "temperature must be larger than 0"),
        ({"weight": 0, "weight_form": "sum"}, 'larger than 0 or "auto"'),
        ({"weight": "automatic", "weight_form": "sum"}, 'larger than 0 or "auto", got .automatic'),
        ({"target_share": 1.0}, "target_share must be between 0 and 1"),
        ({"weight_form": "product"}, 'weight_form must be "exponent" or "sum"'),
        ({"weight": "auto"}, 'weight "auto" is for the sum: also set weight_form to "sum", or give a number'),
        ({"weight": "automatic"}, "a number, 0 or larger, got .automatic"),
        ({"weight": -1}, "a number, 0 or larger"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ValueError, match=text):
        TokenContrastiveLoss(**settings)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3, 4), (2, 2, 4)), ((0, 3, 4), (0, 3, 4))])
def test_wrong_shapes(shapes):
    with pytest.raises(ValueError, match=r"one shape \(B, T, C\)"):
        loss_of(torch.ones(shapes[0]), torch.ones(shapes[1]))


def test_the_published_form_multiplies_similarities_and_is_the_default():
    assert TokenContrastiveLoss().weight_form == "exponent"
    view1, view2 = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    unit = torch.nn.functional.normalize(torch.cat((view1, view2)).flatten(0, 1), dim=1)
    similarity = unit @ unit.T / 0.5
    place, volume = torch.arange(12) % 3, torch.arange(12) // 3 % 2
    same = (place[:, None] == place) & (volume[:, None] != volume)
    logits = torch.where(same, 6 * similarity, similarity).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    expected = (logits.logsumexp(1) - similarity[torch.arange(12), torch.arange(12).roll(6)]).mean()
    assert loss_of(view1, view2).item() == pytest.approx(expected.item())
    views = torch.stack((view1, view2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: loss_of(*v), views)


@pytest.mark.parametrize("form, least, most", [("sum", 0.1, 0.5), ("exponent", 5.0, 8.0)])
def test_how_much_a_code_of_the_position_costs_more_than_one_of_the_content(form, least, most):
    """At the paper's size: two volumes of 64 tokens. The sum hardly tells the two apart."""
    position = torch.eye(64).expand(2, 64, 64)
    content = torch.eye(128).unflatten(0, (2, 64))
    costs = [loss_of(code, code, weight=5.0, weight_form=form).item() for code in (position, content)]
    assert least < costs[0] - costs[1] < most
