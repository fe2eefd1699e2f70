"""Medical Transformer: heads in closed form against explicit maps, stage 2 with its cache, and stage 1."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from timing import Row, assert_close, compare
from torch.nn import functional as F

from common.losses import MaskedVectorsLoss, PlaneTripletLoss
from common.networks import MultiViewClassifier, MultiViewEncoder, MultiViewSegmenter, to_channels_last
from common.networks.planes import PLANES, from_slices, to_slices
from common.pretexts import MaskedEncodingVectors, PlaneExemplar
from common.transforms.bezier import bezier_table, look_up

SIZE, QUICK = (96, 114, 96), (34, 40, 36)


def rows(quick: bool, device: torch.device) -> list[Row]:
    size = QUICK if quick else SIZE
    half = size if quick else tuple(n // 2 for n in size)
    repeats = 1 if quick else 3
    # Only once: at the paper's size the naive heads take seconds and gigabytes.
    return [
        *_heads(size, 1, device),
        _stage_2(half, repeats, device),
        _stage_1(half, repeats, device),
        _bezier(size, repeats, device),
    ]


class Given(MultiViewEncoder):
    """An encoder that computes its output once and returns it again, so that only heads are measured."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            self.found = super().encode(image)

    def encode(self, image: torch.Tensor):
        return self.found


def combined(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Build F as in the paper: each voxel has the vectors of its three slices."""
    s, c, a = (v.transpose(1, 2) for v in vectors)
    laid = s[..., :, None, None], c[..., None, :, None], a[..., None, None, :]
    return torch.cat([v.expand(-1, -1, s.shape[2], c.shape[2], a.shape[2]) for v in laid], dim=1)


def naive_classes(net: MultiViewClassifier, image: torch.Tensor) -> torch.Tensor:
    volume = combined(net.encoder.encode(image)[0])
    return F.linear(volume.movedim(1, -1), net.head.weight, net.head.bias).mean(dim=(1, 2, 3))


def naive_masks(net: MultiViewSegmenter, image: torch.Tensor) -> torch.Tensor:
    vectors, maps = net.encoder.encode(image)
    features = [combined(vectors)]
    for plane, own in zip(PLANES, maps, strict=True):
        features += [F.interpolate(from_slices(m, plane), size=image.shape[2:], mode="trilinear") for m in own]
    # Not a 1 x 1 x 1 convolution, which is slow in torch on a CPU for a single sample.
    return F.linear(torch.cat(features, dim=1).movedim(1, -1), net.head.weight, net.head.bias).movedim(-1, 1)


def _nets(size: tuple, device: torch.device) -> dict:
    torch.manual_seed(0)
    image = torch.rand(1, 1, *size, device=device)
    encoder = Given(image).to(device).eval()
    nets = {"classification": MultiViewClassifier(encoder, 3), "segmentation": MultiViewSegmenter(encoder, 4)}
    naive = {"classification": naive_classes, "segmentation": naive_masks}
    return {name: (image, net.to(device), naive[name]) for name, net in nets.items()}


def _heads(size: tuple, repeats: int, device: torch.device) -> list[Row]:
    found = []
    for name, (image, net, naive) in _nets(size, device).items():
        with torch.no_grad():
            assert_close(net(image), naive(net, image), 1e-4)
            title = f"{name} head, 1 x {'x'.join(map(str, size))} (baseline: the map of every voxel's features)"
            found.append(compare(title, lambda n=naive, m=net, i=image: n(m, i), lambda m=net, i=image: m(i), repeats))
        if device.type == "cpu" and Path("/proc/self/status").exists():
            # One process each, since the system reports only the peak memory of a process.
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                peaks = [pool.apply(_peak, (name, size, kind)) for kind in ("naive", "ours")]
            found.append(Row(f"{name} head, peak memory of the same", *peaks, unit="MB"))
    return found


def _peak(name: str, size: tuple, kind: str) -> float:
    """Measure the megabytes that one head takes in addition to the memory of the process."""
    image, net, naive = _nets(size, torch.device("cpu"))[name]
    before = _most_memory()
    with torch.no_grad():
        naive(net, image) if kind == "naive" else net(image)
    return max(0.1, _most_memory() - before)


def _most_memory() -> float:
    """Return the peak memory of this process in MB; `getrusage` would include the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _stage_2(size: tuple, repeats: int, device: torch.device) -> Row:
    pretext = to_channels_last(MaskedEncodingVectors(MultiViewEncoder(), size), device)
    image = torch.rand(2, 1, *size, device=device)
    with torch.no_grad():
        vectors = torch.cat(pretext.encoder.encode_planes(image), dim=1)

    def step(given: torch.Tensor) -> None:
        pretext.zero_grad()
        MaskedVectorsLoss()(pretext(given)).backward()

    title = f"stage 2 step, 2 x {'x'.join(map(str, size))} (baseline: slices encoded anew)"
    return compare(title, lambda: step(image), lambda: step(vectors), repeats)


def _stage_1(size: tuple, repeats: int, device: torch.device) -> Row:
    pretext = to_channels_last(PlaneExemplar(MultiViewEncoder()), device)
    loss = PlaneTripletLoss()
    image = torch.rand(2, 1, *size, device=device)

    def three_passes() -> None:
        pretext.zero_grad()
        losses = []
        for plane, encoder in pretext.encoder.planes.items():
            volumes = image, pretext.intensity(image), image.roll(1, 0)
            a, p, n = (encoder(to_slices(volume, plane))[0].mean(dim=1) for volume in volumes)
            losses.append(F.triplet_margin_loss(a, p, n))
        torch.stack(losses).mean().backward()

    def ours() -> None:
        pretext.zero_grad()
        loss(pretext(image)).backward()

    title = f"stage 1 step, 2 x {'x'.join(map(str, size))} (baseline: negatives encoded)"
    return compare(title, three_passes, ours, repeats)


def _bezier(size: tuple, repeats: int, device: torch.device) -> Row:
    image = torch.rand(2, 1, *size, device=device)
    control, falls = torch.rand(2, 2, 2, device=device), torch.zeros(2, dtype=torch.bool, device=device)

    def interpolated() -> torch.Tensor:
        """Do as Models Genesis and the published code do: NumPy, and 100,000 points of the curve."""
        t = np.linspace(0, 1, 100_000)
        found = []
        for sample, points in zip(image.cpu().numpy(), control.cpu().numpy(), strict=True):
            x, y = (3 * (1 - t) ** 2 * t * points[0, a] + 3 * (1 - t) * t**2 * points[1, a] + t**3 for a in (0, 1))
            found.append(np.interp(sample, np.sort(x), np.sort(y)))
        return torch.from_numpy(np.stack(found)).float().to(device)

    def tables() -> torch.Tensor:
        return look_up(image, bezier_table(control, falls))

    assert_close(tables(), interpolated(), 1e-3)
    title = f"Bezier intensity maps, 2 x {'x'.join(map(str, size))} (baseline: numpy.interp)"
    return compare(title, interpolated, tables, repeats)
