import numpy as np
import pytest
import torch

from common.transforms import RandomFolds

CORTEX, WHITE, FLUID, DEEP, SKULL = 3, 2, 24, 10, 258


@pytest.fixture
def head():
    """A ball of white matter with a deep nucleus and a ventricle, in shells of cortex, fluid and skull."""
    lines = torch.arange(48.0) - 23.5
    radius = torch.stack(torch.meshgrid(lines, lines, lines, indexing="ij")).square().sum(0).sqrt()
    head = torch.zeros(48, 48, 48, dtype=torch.long)
    for limit, label in ((22, SKULL), (20, FLUID), (18, CORTEX), (15, WHITE), (5, DEEP), (3, FLUID)):
        head[radius < limit] = label
    return head[None, None]


def border(labels, a, b):
    """Faces between voxels of two labels."""
    count = 0
    for axis in (2, 3, 4):
        one = labels.narrow(axis, 0, labels.shape[axis] - 1)
        other = labels.narrow(axis, 1, labels.shape[axis] - 1)
        count += int((((one == a) & (other == b)) | ((one == b) & (other == a))).sum())
    return count


def test_a_smooth_cortex_gets_folds_and_all_else_stays(head):
    torch.manual_seed(0)
    fold = RandomFolds([[CORTEX, WHITE, FLUID]], spacing=2.0, depth=(8, 8), outward=(3, 3))
    folded = fold(head.repeat(2, 1, 1, 1, 1))
    assert folded.dtype == head.dtype
    for one in folded:
        one = one[None]
        assert border(one, CORTEX, WHITE) > 1.2 * border(head, CORTEX, WHITE)
        assert border(one, CORTEX, FLUID) > 1.2 * border(head, CORTEX, FLUID)
        for label in (0, DEEP, SKULL):
            assert torch.equal(one == label, head == label)
    assert not torch.equal(folded[0], folded[1])


def test_labels_come_from_where_the_pull_says(head, monkeypatch):
    """A slow reference: layers along one axis, where the normal is that axis and the field is known."""
    layers = torch.full((1, 1, 40, 24, 24), SKULL)
    for start, stop, label in ((0, 24, WHITE), (24, 30, CORTEX), (30, 36, FLUID)):
        layers[:, :, start:stop] = label
    rng = np.random.default_rng(0)
    field = torch.as_tensor(rng.normal(size=(40, 24, 24)), dtype=torch.float32)
    fold = RandomFolds([[CORTEX, WHITE, FLUID]], spacing=2.0, depth=(7, 7), outward=(3, 3), width=(0.4, 0.4))
    monkeypatch.setattr(fold, "_field", lambda *args: field)
    folded = fold(layers)[0, 0].numpy()
    column = layers[0, 0, :, 0, 0].tolist()
    compared = 0
    for x in range(26, 36):  # where the blurred border is steep enough for the normal to have its full length
        for y in range(24):
            for z in range(24):
                sheet = np.exp(-0.5 * (float(field[x, y, z]) / (np.pi / 2 * 0.4)) ** 2)
                place = x + (sheet * 10 - 3) / 2
                if abs(place % 1 - 0.5) < 1e-3:
                    continue
                source = column[min(round(place), 39)]
                expected = source if source in (CORTEX, WHITE, FLUID) else column[x]
                assert folded[x, y, z] == expected
                compared += 1
    assert compared > 5_000


def test_the_seed_decides(head):
    fold = RandomFolds([[CORTEX, WHITE, FLUID]], spacing=2.0)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(fold(head))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_sides_fold_by_their_own_labels(head):
    """The right half has labels of its own: none of them crosses to the left but the shared fluid."""
    right = head.clone()
    right[..., 24:, :, :][right[..., 24:, :, :] == CORTEX] = 42
    right[..., 24:, :, :][right[..., 24:, :, :] == WHITE] = 41
    torch.manual_seed(0)
    fold = RandomFolds([[CORTEX, WHITE, FLUID], [42, 41, FLUID]], spacing=2.0, depth=(8, 8))
    folded = fold(right)
    assert border(folded, 42, 41) > border(right, 42, 41)
    was_left, was_right = torch.isin(right, torch.tensor([CORTEX, WHITE])), torch.isin(right, torch.tensor([42, 41]))
    now_left, now_right = torch.isin(folded, torch.tensor([CORTEX, WHITE])), torch.isin(folded, torch.tensor([42, 41]))
    assert not (was_left & now_right).any() and not (was_right & now_left).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": []}, "label triples"),
        ({"groups": [[3, 2]]}, "label triples"),
        ({"depth": (5, 2)}, "depth must be a range"),
        ({"distance": (0, 2)}, "above 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomFolds(**{"groups": [[3, 2, 24]], **arguments})
