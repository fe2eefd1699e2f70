import pytest
import torch
from torch.nn import functional as F

from common.data import class_weights


def test_all_classes_count_alike():
    items = [{"label": rating} for rating in (1, 2, 3, 3, 2.5, 1, 4, 5)]
    weights = class_weights(items, [4])
    assert weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    truth = torch.tensor([0] * 6 + [1] * 2)
    constant = torch.tensor([[2.0, 1.0]]).expand(8, 2)  # what ignores the image
    loss = F.cross_entropy(constant, truth, weight=weights)
    torch.testing.assert_close(loss, F.cross_entropy(constant[:2], torch.tensor([0, 1])))


def test_a_class_without_scans_is_one_sentence():
    with pytest.raises(ValueError, match=r"\[2, 0\] scans of the classes 0 to 1: each class needs a scan"):
        class_weights([{"label": 1}, {"label": 3}], [4])
