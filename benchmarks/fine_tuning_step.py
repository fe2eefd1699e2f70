"""A fine-tuning step of UNETR and Swin UNETR: MONAI's nets as they come against the settings of the bundles.

The bundles keep 3-D nets in ``channels_last_3d``, and UNETR's attention in ``scaled_dot_product_attention``.
Both sides have the same weights and give the same output.
"""

from __future__ import annotations

import copy

import torch
from monai.losses import DiceCELoss
from monai.networks import nets
from timing import Row, assert_close, compare

from common.networks import UNETR


def rows(quick: bool, device: torch.device) -> list[Row]:
    if quick:
        return [_unetr(4, 48, 32, quick, device), _swin_unetr(12, 64, quick, device)]
    return [
        _unetr(8, 192, 96, quick, device),
        _unetr(16, 768, 96, quick, device),
        _swin_unetr(24, 96, quick, device),
    ]


def _unetr(features: int, hidden: int, size: int, quick: bool, device: torch.device) -> Row:
    arguments = {"in_channels": 1, "out_channels": 5, "img_size": size, "feature_size": features}
    arguments |= {"hidden_size": hidden, "mlp_dim": 4 * hidden}
    baseline = nets.UNETR(**arguments)
    ours = UNETR(**arguments, skip_blocks=(4, 7, 10))
    ours.load_state_dict(baseline.state_dict())
    name = f"fine-tuning step, UNETR {features}/{hidden}, {size}^3"
    return _row(name, baseline, ours, size, quick, device)


def _swin_unetr(features: int, size: int, quick: bool, device: torch.device) -> Row:
    baseline = nets.SwinUNETR(in_channels=1, out_channels=5, feature_size=features)
    name = f"fine-tuning step, Swin UNETR {features}, {size}^3"
    return _row(name, baseline, copy.deepcopy(baseline), size, quick, device)


def _row(name, baseline, ours, size, quick, device) -> Row:
    baseline.to(device)
    ours.to(device, memory_format=torch.channels_last_3d)
    image = torch.rand(1, 1, size, size, size, device=device)
    label = torch.randint(5, (1, 1, size, size, size), device=device)
    with torch.no_grad():
        assert_close(ours(image), baseline(image), 1e-3)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True)

    def step(net):
        optimizer = optimizers[net]
        optimizer.zero_grad()
        loss(net(image), label).backward()
        optimizer.step()

    optimizers = {net: torch.optim.AdamW(net.parameters(), lr=1e-4) for net in (baseline, ours)}
    return compare(
        f"{name} (baseline: MONAI's net as it comes)", lambda: step(baseline), lambda: step(ours), 1 if quick else 5
    )
