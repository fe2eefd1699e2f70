"""A pre-training step of SimTROT on nnFormer: as in the bundle, against a plain version of the same function.

The plain version runs one pass per view, computes attention as a softmax of explicit logits (with -100 for tokens that
must not see each other, as in the published code), uses row-major convolutions, and returns memory to the system after
each use. In the last row the baseline is ours but for the -100, which leaves subnormal weights; Intel cores multiply
these slowly. Both sides have the same weights and see the same views. The memory allocator's settings hold for a whole
process, so each side has its own process. They are timed in turns.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
from timing import Row, Side, assert_close, compare

SEED = 0


def rows(quick: bool, device: torch.device) -> list[Row]:
    if quick:
        cases = [(12, 2, 3, 32, 2, "plain")]
    else:  # the last is the net of the preset for hippocampi on a CPU
        cases = [(48, 4, 3, 64, 2, "plain"), (96, 4, 3, 64, 2, "plain"), (48, 4, 2, 32, 8, "-100")]
    return [_row(*case, quick, device) for case in cases]


def _row(
    embed: int, patch: int, stages: int, size: int, batch: int, baseline: str, quick: bool, device: torch.device
) -> Row:
    said = "written plainly" if baseline == "plain" else "-100 for masked pairs"
    name = f"SimTROT step, nnFormer {embed}, {batch} x {size}^3 (baseline: {said})"
    sides = [Side(_work, way, embed, patch, stages, size, batch, device) for way in (baseline, "ours")]
    try:
        assert_close(*(torch.tensor(side.ask("loss")) for side in sides), 1e-4)
        return compare(name, *(lambda side=side: side.ask("step") for side in sides), 1 if quick else 5)
    finally:
        for side in sides:
            side.stop()


def _plain_attention(q, k, v, bias, mask=None):
    """Compute the same as ``window_attention``."""
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return logits.softmax(-1) @ v


def _work(
    pipe: Connection,
    threads: int,
    way: str,
    embed: int,
    patch: int,
    stages: int,
    size: int,
    batch: int,
    device: torch.device,
) -> None:
    from common.allocator import keep_freed_memory
    from common.losses import TokenContrastiveLoss
    from common.networks import NNFormer, nnformer, to_channels_last
    from common.pretexts import TokenContrast
    from common.transforms import TokenViews

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    if way != "ours":
        nnformer.MASKED = -100.0
    if way == "plain":
        nnformer.window_attention = _plain_attention
    heads = (3, 6, 12)[:stages]
    net = NNFormer(1, 2, (size,) * 3, embed, patch, (2,) * stages, heads, drop_path_rate=0.0)
    pretext = TokenContrast(net.model_down, TokenViews(axes=None, mask_ratio=0)).to(device)
    loss = TokenContrastiveLoss()
    optimizer = torch.optim.SGD(pretext.parameters(), lr=1e-4, momentum=0.99, nesterov=True)
    torch.manual_seed(SEED)
    views = torch.rand(2, batch, 1, size, size, size, device=device)
    if way != "plain":
        keep_freed_memory(device.type == "cpu")
        to_channels_last(pretext, device)

    def forward() -> torch.Tensor:
        if way != "plain":
            maps = pretext.encoder(torch.cat((views[0], views[1])))[-1].chunk(2)
        else:
            maps = [pretext.encoder(view)[-1] for view in views]
        tokens = [pretext.projector(map.flatten(2).transpose(1, 2)) for map in maps]
        return loss({"view1": tokens[0], "view2": tokens[1]})

    while (asked := pipe.recv()) != "stop":
        if asked == "loss":
            pipe.send(forward().item())
            continue
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send("done")
