from __future__ import annotations

import pytest
import torch

from common.handlers.momentum_teacher import move_teacher
from common.losses import BYOLLoss
from common.pretexts import TokenBYOL
from common.transforms import RandomTexture, TokenViews


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_shapes_pooled_or_not(cells):
    image = torch.rand(3, 1, 4, 8, 8)
    for pooled, tokens in ((False, 2 * 4 * 4), (True, 1)):
        prediction = TokenBYOL(cells(), TokenViews(mask_size=(2, 4, 4)), pooled=pooled, out_size=5)(image)
        assert {name: tuple(value.shape) for name, value in prediction.items()} == {
            name: (3, tokens, 5) for name in ("prediction1", "prediction2", "target1", "target2")
        }


def test_the_teacher_starts_equal_and_has_no_gradient(cells):
    pretext = TokenBYOL(cells(), TokenViews(RandomTexture(), mask_size=(2, 4, 4)))
    for student, teacher in zip(pretext.student.parameters(), pretext.teacher.parameters(), strict=True):
        assert torch.equal(student, teacher) and student is not teacher and not teacher.requires_grad
    prediction = pretext(torch.rand(2, 1, 8, 8, 8))
    assert prediction["prediction1"].requires_grad and not prediction["target1"].requires_grad
    BYOLLoss()(prediction).backward()
    moved = [*pretext.student.named_parameters(), *pretext.predictor.named_parameters()]
    # a bias in front of a batch norm has the gradient 0
    assert [name for name, p in moved if p.grad is None] == []
    assert all(p.grad.any() for name, p in moved if name.endswith("weight"))
    assert all(p.grad is None for p in pretext.teacher.parameters())


@pytest.mark.parametrize("momentum, expected", [(1.0, "kept"), (0.0, "copied")])
def test_momentum_1_keeps_0_copies(momentum, expected, cells):
    pretext = TokenBYOL(cells(), TokenViews())
    before = [p.clone() for p in pretext.teacher.parameters()]
    with torch.no_grad():
        for parameter in pretext.student.parameters():
            parameter.add_(1.0)
    move_teacher(pretext.student, pretext.teacher, momentum)
    reference = before if expected == "kept" else list(pretext.student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(pretext.teacher.parameters(), reference, strict=True))


def test_both_networks_restore_before_they_project(cells):
    """With an encoder that commutes with turns, views without texture and mask project to equal tokens in both."""
    pretext = TokenBYOL(cells(), TokenViews(mask_ratio=0)).eval()
    prediction = pretext(torch.rand(30, 1, 8, 8, 8))
    torch.testing.assert_close(prediction["target1"], prediction["target2"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(prediction["prediction1"], prediction["prediction2"], atol=1e-5, rtol=1e-4)


def test_only_the_student_s_encoder_is_the_encoder(cells):
    encoder = cells()
    pretext = TokenBYOL(encoder, TokenViews())
    assert pretext.student.encoder is encoder and pretext.teacher.encoder is not encoder


def test_a_single_vector_has_no_batch_statistics(cells):
    with pytest.raises(ValueError, match="set batch_size to 2"):
        TokenBYOL(cells(), TokenViews(mask_size=(2, 4, 4)), pooled=True)(torch.rand(1, 1, 8, 8, 8))


def test_the_teacher_s_encoder_drops_no_paths(cells):
    """Its targets are those of its weights; the student's are not, in training."""
    encoder = cells()
    encoder.drop = torch.nn.Dropout(0.5)
    encoder.register_forward_hook(lambda module, _, maps: [module.drop(map) for map in maps])
    pretext = TokenBYOL(encoder, TokenViews(mask_ratio=0, axes=None)).train()
    image = torch.rand(3, 1, 8, 8, 8)
    first, second = (pretext(image) for _ in range(2))
    torch.testing.assert_close(first["target1"], second["target1"])
    assert not torch.equal(first["prediction1"], second["prediction1"])
    assert pretext.teacher.projector.training and not pretext.teacher.encoder.training
