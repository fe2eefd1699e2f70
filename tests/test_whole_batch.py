"""Two processes (gloo) equal one with the whole batch: norms and losses, values, gradients and running statistics."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor, list_data_collate
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from common import distributed
from common.losses import (
    BYOLLoss,
    DiceCrossEntropy,
    LabelContrastLoss,
    MaskedL1Loss,
    MaskedVectorsLoss,
    PlaneTripletLoss,
    PredictedCodesLoss,
    RCRLoss,
    RestorationLoss,
    SegmentedLabelsLoss,
    SoftmaxDiceFocalLoss,
    TokenContrastiveLoss,
    VoxelCrossEntropy,
    WholeBatchLoss,
)
from common.networks.sync_batch_norm import SyncBatchNorm, sync_batch_norms

BATCH = 4
RANK = """
import sys
import torch
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
from common.distributed import start, stop
from test_whole_batch import processes

torch.set_num_threads(1)
start()
processes(sys.argv[1])
stop()
"""


class Net(nn.Module):
    """Convolution, batch norm, and a head for each kind of loss."""

    def __init__(self, make):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, 4, 2, stride=2))
        self.norm = nn.BatchNorm1d(4)
        self.make = make

    def forward(self, image):
        x = self.body(image)
        return self.make(self.norm(x.flatten(2)).unflatten(2, x.shape[2:]), image)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def vectors(x, image):
    return {"prediction": tokens(x), "target": tokens(image[..., ::2, ::2, ::2]).repeat(1, 1, 4),
            "weight": torch.arange(1.0, 9.0)}  # fmt: skip


def rcr(x, image):
    turned = (image.flatten(1).sum(1).abs() * 7).long() % 4
    return {
        "rotation_logits": torch.cat((x, x.flip(2))).mean((3, 4))[..., 0],
        "rotation": turned.repeat(2),
        "contrast1": x.mean((2, 3, 4)),
        "contrast2": x[:, :, 0, 0, 0],
        "reconstruction": x[:, :1],
        "target": image[..., ::2, ::2, ::2],
        "unread": None,
    }


def half_masked(x, image):
    """Samples in which other shares of the voxels count."""
    target = image[..., ::2, ::2, ::2]
    return {"reconstruction": x[:, :1], "target": target, "mask": target[:, 0] > 0.4}


def byol(x, image):
    return {name: tokens(x) ** power for power, name in
            enumerate(("prediction1", "prediction2", "target1", "target2"), 1)}  # fmt: skip


def predicted_codes(x, image):
    """Two of the eight codes of an image, predicted from two others; other ones in each image."""
    codes = tokens(x)
    first = (image.flatten(1).sum(1).abs() * 7).long()[:, None] % 8
    predicted = torch.cat((first, (first + 3) % 8), 1)
    return {"codes": codes, "predictions": codes[:, :2] ** 2, "predicted": predicted}


def labelled_vectors(x, image):
    """Vectors at the voxels of two stages; places that do not count differ in number from image to image."""
    labels = (image[..., ::2, ::2, ::2].flatten(2) * 2).long().clamp(-1, 2).repeat(1, 2, 1)
    return {"vectors": torch.stack((tokens(x), tokens(x**2)), 1)[:, None].repeat(1, 2, 1, 1, 1), "labels": labels}


def segmented(x, image):
    """Deep supervision, with classes of other shares in each image."""
    return {"logits": [x, x[..., ::2, ::2, ::2]], "labels": (image[..., ::2, ::2, ::2] * 2).long().clamp(0, 3)}


KINDS = {
    "token contrast": (TokenContrastiveLoss(0.3), lambda x, image: {"view1": tokens(x), "view2": tokens(x.flip(2))}),
    "weighted token contrast": (
        TokenContrastiveLoss(0.3, weight="auto", weight_form="sum"),
        lambda x, image: {"view1": tokens(x), "view2": tokens(x**2)},
    ),
    "exemplar": (PlaneTripletLoss(), lambda x, image: {"anchor": tokens(x), "positive": tokens(x**2)}),
    "masked vectors": (MaskedVectorsLoss(), vectors),
    "masked voxels": (MaskedL1Loss(), half_masked),
    "damaged voxels": (RestorationLoss(), half_masked),
    "rotation, contrast and reconstruction": (RCRLoss(), rcr),
    "teacher": (BYOLLoss(), byol),
    "predicted codes": (PredictedCodesLoss(), predicted_codes),
    "label contrast": (LabelContrastLoss(0.3), labelled_vectors),
    "segmented labels": (SegmentedLabelsLoss(DiceCrossEntropy(include_background=True)), segmented),
    "segmented labels, dice of the batch": (SegmentedLabelsLoss(DiceCrossEntropy(batch=True)), segmented),
    "voxels that do not count": (VoxelCrossEntropy(), lambda x, image: x),
    "dice of the batch, deep supervision": (
        DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, batch=True), weights=[0.7, 0.3]),
        lambda x, image: [x, x[..., ::2, ::2, ::2]],
    ),
    "dice and focal": (SoftmaxDiceFocalLoss(), lambda x, image: x),
}

# Kinds whose loss of a half of the batch is clearly another one.
ACROSS = (
    "token contrast",
    "damaged voxels",
    "predicted codes",
    "segmented labels, dice of the batch",
    "dice of the batch, deep supervision",
)


def data(kind):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(BATCH, 1, 4, 4, 4, generator=generator).double()
    label = torch.randint(0, 4, (BATCH, 1, 2, 2, 2), generator=generator).double()
    if kind == "voxels that do not count":
        label[:2] = torch.where(label[:2] > 0, -1.0, label[:2])
    return image, label


def step(kind, wrap=lambda net: net, part=slice(None), train=True, whole=True):
    """Loss, gradients and buffers of one step."""
    torch.manual_seed(0)
    loss, make = KINDS[kind]
    net = wrap(Net(make).double().train(train))
    image, label = (tensor[part] for tensor in data(kind))
    value = WholeBatchLoss(loss, enabled=whole)(net(image), label)
    value.backward()
    net = getattr(net, "module", net)
    return {
        "loss": value.detach(),
        **{name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None},
        **dict(net.named_buffers()),
    }


def processes(path):
    """What the processes of the fixture do; the first writes what came of it."""
    # `wrap` puts a network into the memory format of single-process runs.
    wrap = functools.partial(distributed.wrap, device=torch.device("cpu"))
    half = BATCH // 2
    part = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    found = {(kind, train): step(kind, wrap, part, train) for kind in KINDS for train in (True, False)}
    found["own"] = {kind: step(kind, wrap, part, whole=False)["loss"] for kind in ACROSS}
    # batches of different sizes, as those of the last batch may be
    norm = sync_batch_norms(nn.BatchNorm3d(1).double(), torch.device("cpu"))
    x = data("exemplar")[0][slice(0, 3) if dist.get_rank() == 0 else slice(3, 4)].requires_grad_()
    (norm(x).pow(3).sum()).backward()
    parts = [None, None]
    dist.all_gather_object(parts, x.grad)
    found["uneven"] = {"gradient": torch.cat(parts), "mean": norm.running_mean, "variance": norm.running_var}
    places = [None, None]
    dist.all_gather_object(places, [int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "GROUP_RANK")])
    found["places"] = places
    if dist.get_rank() == 0:
        torch.save(found, path)


def forked(number, path):
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0", "WORLD_SIZE": "2"})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}.group", rank=number, world_size=2)
    distributed.start()
    processes(str(path))
    distributed.stop()


def fork_ranks(path):
    """Two processes that import nothing anew, which takes torchrun's longest."""
    context = torch.multiprocessing.get_context("fork")
    ranks = [context.Process(target=forked, args=(number, path)) for number in range(2)]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(timeout=300)
            assert rank.exitcode == 0
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one node", "two nodes"])
def two(request, run_ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "rank.py").write_text(RANK)
    (folder / "test_whole_batch.py").symlink_to(Path(__file__))
    if request.param == 1 and not torch.cuda.is_available():
        fork_ranks(folder / "found.pt")
    else:
        run_ranks(folder / "rank.py", folder / "found.pt", timeout=300, nodes=request.param)
    found = torch.load(folder / "found.pt", weights_only=True)
    assert found["places"] == ([[0, 0, 0], [1, 1, 0]] if request.param == 1 else [[0, 0, 0], [1, 0, 1]])
    return found


@pytest.mark.parametrize("train", [True, False], ids=["training", "statistics frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one_with_the_whole_batch(two, kind, train):
    one = step(kind, train=train)
    assert any("weight" in name for name in one)
    assert one.keys() == two[kind, train].keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[kind, train][name], tensor, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ACROSS)
def test_without_the_gather_a_process_compares_its_own_images(two, kind):
    assert abs(two["own"][kind] - step(kind)["loss"]) > 0.01


def test_norms_of_uneven_batches(two):
    norm, x = nn.BatchNorm3d(1).double(), data("exemplar")[0].requires_grad_()
    norm(x).pow(3).sum().backward()
    expected = {"gradient": x.grad, "mean": norm.running_mean, "variance": norm.running_var}
    for name, tensor in expected.items():
        torch.testing.assert_close(two["uneven"][name], tensor)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm3d(3, affine=False),
     nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm3d(3, eps=0.1, momentum=0.3)],
)  # fmt: skip
@pytest.mark.parametrize("train", [True, False])
def test_with_one_process_it_is_torchs(norm, train):
    norm.train(train)
    net = nn.Sequential(copy.deepcopy(norm))
    keys = list(net.state_dict())
    held = list(net.parameters())
    net = sync_batch_norms(net, torch.device("cpu"))
    assert isinstance(net[0], SyncBatchNorm) and list(net.state_dict()) == keys
    assert all(one is other for one, other in zip(net.parameters(), held, strict=True))
    shape = {nn.BatchNorm1d: (5, 3), nn.BatchNorm2d: (5, 3, 4, 2), nn.BatchNorm3d: (5, 3, 4, 2, 3)}[type(norm)]
    for _ in range(2):
        x = torch.randn(shape)
        torch.testing.assert_close(net(x), norm(x))
    for name, tensor in norm.state_dict().items():
        torch.testing.assert_close(net.state_dict()[f"0.{name}"], tensor)


@pytest.mark.parametrize("running", [True, False])
def test_nothing_is_exchanged_in_evaluation(monkeypatch, running):
    """Processes may have different numbers of batches there, so one would wait for ever."""
    monkeypatch.setattr("common.networks.sync_batch_norm._all_sum", lambda _: pytest.fail("a sum over processes"))
    x = torch.randn(5, 3)
    own, torchs = (kind(3, track_running_stats=running).eval() for kind in (SyncBatchNorm, nn.BatchNorm1d))
    torch.testing.assert_close(own(x), torchs(x))


def test_images_with_a_record_are_taken():
    x = torch.randn(2, 3, 4, 4, 4)
    image = list_data_collate(
        [MetaTensor(part, meta={"filename_or_obj": name}) for part, name in zip(x, "ab", strict=True)]
    )
    torch.testing.assert_close(SyncBatchNorm(3)(image), nn.BatchNorm3d(3)(x))


def test_other_norms_stay_and_a_single_value_is_refused():
    net = sync_batch_norms(nn.Sequential(nn.InstanceNorm3d(2), nn.GroupNorm(1, 2)), torch.device("cpu"))
    assert [type(part) for part in net] == [nn.InstanceNorm3d, nn.GroupNorm]
    with pytest.raises(ValueError, match="more than one value per channel"):
        SyncBatchNorm(2)(torch.zeros(1, 2))


def test_one_process_is_left_alone():
    _, label = data("dice and focal")
    loss, _ = KINDS["dice and focal"]
    logits = torch.randn(BATCH, 4, 2, 2, 2)
    assert WholeBatchLoss(loss)(logits, label.float()) == loss(logits, label.float())
