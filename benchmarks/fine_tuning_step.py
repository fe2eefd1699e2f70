"""A fine-tuning step of UNETR and Swin UNETR: MONAI's nets with their defaults against the settings of the bundles.

The bundles keep 3-D nets in ``channels_last_3d`` (through instance norms, too), reuse freed memory on a CPU, compute
UNETR's attention with ``scaled_dot_product_attention``, and use torch's fused AdamW. Both sides have the same weights
and give the same output. The memory allocator's settings hold for a whole process, so each side has its own process.
The two sides are timed in turns.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
from timing import Row, Side, assert_close, compare

SEED = 0


def rows(quick: bool, device: torch.device) -> list[Row]:
    if quick:
        cases = [("UNETR", 4, 48, 32, 1), ("Swin UNETR", 12, 0, 64, 1)]
    else:
        cases = [
            ("UNETR", 8, 192, 96, 1),
            ("UNETR", 8, 192, 96, 2),
            ("UNETR", 16, 768, 96, 1),
            ("Swin UNETR", 24, 0, 96, 1),
        ]
    return [_row(*case, quick, device) for case in cases]


def _row(net: str, features: int, hidden: int, size: int, batch: int, quick: bool, device: torch.device) -> Row:
    width = f"{features}/{hidden}" if hidden else str(features)
    name = f"fine-tuning step, {net} {width}, {batch} x {size}^3 (baseline: MONAI's net as it comes)"
    sides = [Side(_work, ours, net, features, hidden, size, batch, device) for ours in (False, True)]
    try:
        # float32 sums in another order through a dozen norms: a few of millions of voxels differ in the third decimal
        assert_close(*(torch.from_numpy(side.ask("output")) for side in sides), 5e-3)
        return compare(name, *(lambda side=side: side.ask("step") for side in sides), 1 if quick else 5)
    finally:
        for side in sides:
            side.stop()


def _work(
    pipe: Connection,
    threads: int,
    ours: bool,
    net: str,
    features: int,
    hidden: int,
    size: int,
    batch: int,
    device: torch.device,
) -> None:
    from monai.losses import DiceCELoss
    from monai.networks import nets

    from common.allocator import keep_freed_memory
    from common.networks import UNETR, to_channels_last

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    arguments = {"in_channels": 1, "out_channels": 5, "feature_size": features}
    if net == "UNETR":
        arguments |= {"img_size": size, "hidden_size": hidden, "mlp_dim": 4 * hidden}
    network = getattr(nets, net.replace(" ", ""))(**arguments)
    if ours:
        keep_freed_memory(device.type == "cpu")
        if net == "UNETR":
            baseline, network = network, UNETR(**arguments, skip_blocks=(4, 7, 10))
            network.load_state_dict(baseline.state_dict())
        to_channels_last(network, device)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True if ours else None)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True)
    torch.manual_seed(SEED)
    image = torch.rand(batch, 1, size, size, size, device=device)
    label = torch.randint(5, (batch, 1, size, size, size), device=device)
    while (asked := pipe.recv()) != "stop":
        if asked == "output":
            with torch.no_grad():
                # as a NumPy array, since tensors would be shared by file descriptors
                pipe.send(torch.as_tensor(network(image)).cpu().contiguous().numpy())
            continue
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send("done")
