import pytest
import torch

from common.losses import PlaneTripletLoss


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def vectors(batch=4, planes=3, d=5, scale=1.0):
    return {name: scale * torch.randn(batch, planes, d) for name in ("anchor", "positive")}


def slow(anchor, positive, margin=1.0, planes=(0, 1, 2)):
    """Equation 1 for each plane, distances over the vector, negatives the sample before; the mean over planes."""
    losses = []
    for plane in planes:
        terms = []
        for i in range(len(anchor)):
            to_positive = (anchor[i, plane] - positive[i, plane]).square().sum().sqrt()
            to_negative = (anchor[i, plane] - anchor[i - 1, plane]).square().sum().sqrt()
            terms.append(max(0.0, float(to_positive - to_negative + margin)))
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("batch", "margin", "scale"), [(2, 1.0, 1.0), (4, 1.0, 0.2), (5, 2.5, 1.0), (6, 0.1, 3.0)])
def test_equals_a_slow_reference(batch, margin, scale):
    prediction = vectors(batch, scale=scale)
    expected = slow(**prediction, margin=margin)
    assert expected > 0
    assert PlaneTripletLoss(margin)(prediction).item() == pytest.approx(expected, abs=1e-5)


def test_the_mean_of_the_planes():
    prediction = vectors()
    planes = [PlaneTripletLoss(plane=plane)(prediction).item() for plane in range(3)]
    assert planes == pytest.approx([slow(**prediction, planes=[plane]) for plane in range(3)], abs=1e-5)
    assert PlaneTripletLoss()(prediction).item() == pytest.approx(sum(planes) / 3)
    assert len(set(planes)) == 3


@pytest.mark.parametrize("plane", [None, 1])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_hardest_negative_is_the_nearest_other_sample_of_the_plane(normalise, plane):
    prediction, losses = vectors(batch=5), []
    planes = range(3) if plane is None else [plane]
    anchor, positive = prediction["anchor"], prediction["positive"]
    if normalise:
        anchor, positive = (x / x.square().sum(-1, keepdim=True).sqrt() for x in (anchor, positive))
    for p in planes:
        for i in range(5):
            others = min(float((anchor[i, p] - anchor[j, p]).square().sum().sqrt()) for j in range(5) if j != i)
            own = float((anchor[i, p] - positive[i, p]).square().sum().sqrt())
            losses.append(max(0.0, own - others + 0.2))
    made = PlaneTripletLoss(0.2, plane, normalise, "hardest")(prediction)
    assert made.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5) and sum(losses) > 0
    assert made > PlaneTripletLoss(0.2, plane, normalise)(prediction)


def test_normalised_vectors_cannot_meet_the_margin_by_their_length():
    prediction = vectors(scale=0.1)
    longer = {name: 100 * tensor for name, tensor in prediction.items()}
    loss = PlaneTripletLoss(0.2, normalise=True)
    assert loss(longer).item() == pytest.approx(loss(prediction).item(), abs=1e-5)
    assert PlaneTripletLoss(0.2)(longer).item() != pytest.approx(PlaneTripletLoss(0.2)(prediction).item(), abs=1e-2)


def test_gradients_of_the_hardest_negative():
    prediction = {name: tensor.requires_grad_() for name, tensor in vectors().items()}
    PlaneTripletLoss(0.2, normalise=True, negative="hardest")(prediction).backward()
    assert all(tensor.grad.any() and tensor.grad.isfinite().all() for tensor in prediction.values())


def test_other_negatives_are_refused():
    with pytest.raises(ValueError, match="negative must be 'rolled' or 'hardest', not 'random'"):
        PlaneTripletLoss(negative="random")


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_the_margin_where_anchor_positive_and_negative_are_one(margin):
    same = torch.randn(1, 3, 5).expand(4, 3, 5)
    assert PlaneTripletLoss(margin)({"anchor": same, "positive": same}).item() == pytest.approx(margin)


def test_0_where_others_are_farther_by_the_margin():
    # Distances in the vector: positives at 0.5, negatives at 1.5 or just less.
    anchor = torch.zeros(2, 3, 4)
    anchor[1, :, 2] = 1.51
    positive = anchor + torch.tensor([0.3, 0.4, 0, 0])
    assert PlaneTripletLoss()({"anchor": anchor, "positive": positive}) == 0
    anchor = anchor / 1.51 * 1.4
    positive = anchor + torch.tensor([0.3, 0.4, 0, 0])
    assert PlaneTripletLoss()({"anchor": anchor, "positive": positive}).item() == pytest.approx(0.1, abs=1e-4)


def test_gradients_reach_anchor_and_positive():
    prediction = {name: tensor.requires_grad_() for name, tensor in vectors().items()}
    PlaneTripletLoss()(prediction).backward()
    assert all(tensor.grad.any() and tensor.grad.isfinite().all() for tensor in prediction.values())
    same = torch.zeros(2, 3, 4, requires_grad=True)  # a distance of 0
    PlaneTripletLoss()({"anchor": same, "positive": same.clone()}).backward()
    assert same.grad.isfinite().all()


def test_in_float32():
    prediction = {name: tensor.bfloat16() for name, tensor in vectors().items()}
    loss = PlaneTripletLoss()(prediction)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow(**{k: v.float() for k, v in prediction.items()}), abs=1e-5)


def test_a_batch_of_one_is_one_clear_error():
    message = "another sample of the batch as a negative, but this batch has one sample: set batch_size to 2 or more"
    with pytest.raises(ValueError, match=message) as error:
        PlaneTripletLoss()(vectors(batch=1))
    assert "\n" not in str(error.value)
