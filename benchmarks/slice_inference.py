"""TransSeg on a volume: runs of slices, embedded at once, against one window after the other.

Both sides have the same net, weights and number of threads. One window after the other is how MONAI's sliding windows
treat windows of K slices. Both sides keep the bias of relative positions between windows.
"""

from __future__ import annotations

import functools

import torch
from timing import Row, assert_close, compare
from torch import nn

from common.data.windows import cut_window
from common.inferers import SliceWindowInferer
from common.networks.beit_encoder import BeitEncoder
from common.networks.transseg import TransSeg

SLICES = 5


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = [(32, 32, 24, 4)] if quick else [(64, 32, 96, 4), (96, 32, 192, 8)]
    result = []
    for side, depth, hidden, layers in cases:
        net = _net(side, hidden, layers).to(device).eval()
        image = torch.randn(1, 1, side, side, depth, device=device)
        name = f"TransSeg of a volume, BEiT {layers}/{hidden}, {side} x {side} x {depth} (baseline: window by window)"
        result.append(_row(name, net, image, 1 if quick else 5))
    return result


@torch.no_grad()
def _row(name: str, net: nn.Module, image: torch.Tensor, repeats: int) -> Row:
    inferer = SliceWindowInferer(SLICES, chunk=8)

    def one_by_one() -> torch.Tensor:
        return torch.cat([net(cut_window(image, number, SLICES)) for number in range(image.shape[-1])], dim=-1)

    def in_runs() -> torch.Tensor:
        return inferer(image, net)

    assert_close(in_runs(), one_by_one(), 1e-4)
    return compare(name, one_by_one, in_runs, repeats)


def _net(side: int, hidden: int, layers: int) -> TransSeg:
    make = functools.partial(
        BeitEncoder,
        patch_size=8,
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_layers=layers,
        num_heads=3,
        out_blocks=[layers * quarter // 4 for quarter in (1, 2, 3, 4)],
    )
    return TransSeg(1, 5, (side, side), make, slices=SLICES, decoder_channels=hidden // 2)
