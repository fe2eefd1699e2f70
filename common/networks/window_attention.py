from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.networks.blocks import SABlock
from monai.networks.nets.swin_unetr import BasicLayer, WindowAttention, compute_mask, get_window_size
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .substitution import is_recorded, substitute

__all__ = ["MASKED", "shifted_window_mask", "speed_up_windows", "window_attention"]

CACHED_BYTES = 2**21
"""Size of the scores that are computed at a time, which stay in the cache of a core."""


MASKED = -1e4
"""Added to the scores of tokens that must not see each other, which makes their weights exactly 0.

MONAI and the published networks add -100. That leaves weights of 4e-44, which are subnormal in float32, and an Intel
core takes about twenty times as long for products with them.
"""

MOST_TOKENS = 1024
"""Of more, torch's fused attention keeps no weights, which would be hundreds of megabytes in all blocks."""


def window_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention in windows of N tokens, with a bias for each pair of tokens: ``softmax(q k^T / sqrt(D) + bias) v``.

    On a CPU it goes a few windows at a time, so that their scores never leave the processor's cache, and has a gradient
    of its own. torch's fused attention has none for a bias that is learned, and computes every score of all windows
    several times over in memory. Scores and softmax are float32 at least, whatever the type of the tokens.

    Args:
        query, key, value: (windows, heads, N, D).
        bias: (heads, N, N), or None.
        mask: what is added to the scores of each window, (windows of an image, N, N).

    Returns:
        (windows, heads, N, D).
    """
    plain = is_recorded() or query.device.type != "cpu"
    if not plain:
        tokens = (tensor.as_subclass(torch.Tensor) for tensor in (query, key, value))  # a MetaTensor follows each step
        return _WindowAttention.apply(*tokens, bias, mask)
    if mask is None:
        every = None if bias is None else bias[None].to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=every)
    # (images, windows of an image, heads, N, D), so that a traced network takes any number of images
    query, key, value = (tensor.reshape(-1, len(mask), *tensor.shape[1:]) for tensor in (query, key, value))
    every = (mask[:, None] if bias is None else bias + mask[:, None]).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=every).flatten(0, 1)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        windows, heads, count, width = query.shape
        precision = torch.promote_types(query.dtype, torch.float32)
        used, scale = float(bias is not None), width**-0.5
        none = query.new_zeros(1, 1, 1, dtype=precision).expand(heads, count, count)
        bias = none if bias is None else bias.to(precision).contiguous()  # a table is read out in another order
        q, k, v = (tensor.reshape(-1, count, width) for tensor in (query, key, value))
        high_q, high_k = q.to(precision), k.to(precision).mT
        masked = [] if mask is None else mask.flatten(1).any(1).tolist()
        keeps = any(ctx.needs_input_grad)
        result, scores = torch.empty_like(q), bias.new_empty(0)
        kept = q.new_empty(len(q) if keeps else _step(bias), count, count)
        with torch.autocast("cpu", enabled=False):
            for rows, repeated in _rows(len(q), bias):
                scores = _like(scores, repeated)
                torch.baddbmm(repeated, high_q[rows], high_k[rows], beta=used, alpha=scale, out=scores)
                if mask is not None:
                    _add_mask(scores, mask, masked, rows, heads)
                weights = kept[rows] if keeps else kept[: len(scores)]
                weights.copy_(scores.softmax(-1))
                result[rows] = _times(weights, v[rows])
        if keeps:
            ctx.save_for_backward(q, k, v, bias, kept, result)
        return result.view(windows, heads, count, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias, kept, result = ctx.saved_tensors
        change, scale, heads = gradient.to(q.dtype).reshape(q.shape), q.shape[-1] ** -0.5, len(bias)
        high_change, high_v = change.to(bias.dtype), v.to(bias.dtype).mT
        # The softmax takes from the gradient of a token's weights their mean, which is that of its result, too.
        mean = -(result.to(bias.dtype) * high_change).sum(-1, keepdim=True)
        turned, scaled_k, scaled_q = change.mT.contiguous(), k * scale, (q * scale).mT.contiguous()
        by_q, by_k, by_v = (torch.empty_like(like) for like in (q, turned, turned))
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else bias
        by_scores, narrow = bias.new_empty(0), q.new_empty(0)
        for rows, repeated in _rows(len(q), bias):
            weights = kept[rows]
            # Products with the transposed weights have the narrow factor first, so that nothing is copied.
            torch.bmm(turned[rows], weights, out=by_v[rows])
            by_scores = torch.baddbmm(mean[rows], high_change[rows], high_v[rows], out=_like(by_scores, repeated))
            by_scores.mul_(weights)
            first = rows.start % heads
            if not ctx.needs_input_grad[3]:
                pass
            elif len(by_scores) > heads:
                by_bias += by_scores.unflatten(0, (-1, heads)).sum(0)
            else:
                by_bias[first : first + len(by_scores)] += by_scores
            narrow = _like(narrow, repeated).copy_(by_scores)
            by_q[rows] = _times(narrow, scaled_k[rows])
            torch.bmm(scaled_q[rows], narrow, out=by_k[rows])
        return (
            *(tensor.view(gradient.shape) for tensor in (by_q, by_k.mT.contiguous(), by_v.mT.contiguous())),
            by_bias if ctx.needs_input_grad[3] else None,
            None,
        )


def _like(buffer: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """The buffer of the part before, in whose memory the cache has, or a new one where the part has another size."""
    return buffer if buffer.shape == shape.shape else buffer.new_empty(shape.shape)


def _step(bias: torch.Tensor) -> int:
    """How many heads make a part that fits the cache: all of some windows, or some of one window."""
    heads, one = len(bias), bias[0].numel() * bias.element_size()
    fit = max(1, CACHED_BYTES // one)
    return fit - fit % heads if fit >= heads else max(part for part in range(1, fit + 1) if heads % part == 0)


def _rows(count: int, bias: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The parts of all windows' heads, each with the bias of its heads."""
    step = _step(bias)
    times = max(1, step // len(bias))
    repeated = bias if times == 1 else bias.repeat(times, 1, 1)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        first = start % len(repeated)
        yield rows, repeated[first : first + rows.stop - start]


def _add_mask(scores: torch.Tensor, mask: torch.Tensor, masked: Sequence[bool], rows: slice, heads: int) -> None:
    """Add the masks of windows to the scores of their heads; most windows of an image have none."""
    for start in range(rows.start, rows.stop, heads):
        window = start // heads % len(mask)
        if masked[window]:
            scores[start - rows.start : start - rows.start + heads] += mask[window]


def _times(square: torch.Tensor, narrow: torch.Tensor) -> torch.Tensor:
    """(B, N, N) times (B, N, D). In float32, MKL takes a quarter of the time for the transposed product."""
    if square.dtype == torch.bfloat16 or narrow.shape[-1] > 8:
        return square @ narrow
    return (narrow.mT @ square.mT).mT


class _FastWindowAttention(WindowAttention):
    """MONAI's attention, by ``window_attention``."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        dropped = self.training and self.attn_drop.p > 0
        if dropped or x.device.type != "cpu" or is_recorded():
            return super().forward(x, mask)
        batch, count, channels = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        index: Any = self.relative_position_index
        bias = self.relative_position_bias_table[index[:count, :count]].permute(2, 0, 1)
        made = window_attention(query, key, value, bias, mask)
        return self.proj_drop(self.proj(made.transpose(1, 2).reshape(batch, count, channels)))


class _FastLayer(BasicLayer):
    """MONAI's stage of a Swin transformer, whose mask of shifted windows is made once for each size of image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        usual = x.ndim == 5 and x.device.type == "cpu" and not self.use_hyena
        if not usual or is_recorded():
            return super().forward(x)
        grid = tuple(x.shape[2:])
        window, shift = get_window_size(grid, self.window_size, self.shift_size)
        padded = tuple(-(-size // side) * side for size, side in zip(grid, window, strict=True))
        mask = _shift_mask(padded, tuple(window), tuple(shift))
        tokens = x.movedim(1, -1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        if self.downsample is not None:
            tokens = self.downsample(tokens)
        return tokens.movedim(-1, 1)


class _FastSelfAttention(SABlock):
    """MONAI's self-attention, by ``window_attention`` where torch's fused one is slow: few tokens in bfloat16."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        usual = self.use_flash_attention and self.use_combined_linear and self.attention_dtype is None
        if (
            not usual
            or attn_mask is not None
            or self.causal
            or self.dropout_rate > 0
            or x.device.type != "cpu"
            or x.shape[1] > MOST_TOKENS
            or is_recorded()
        ):
            return super().forward(x, attn_mask)
        query, key, value = self.input_rearrange(self.qkv(x))
        if query.dtype != torch.bfloat16:
            made = F.scaled_dot_product_attention(query, key, value)
        else:
            made = window_attention(query, key, value, None)
        return self.drop_output(self.out_proj(self.out_rearrange(made)))


def shifted_window_mask(
    grid: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> torch.Tensor:
    """What keeps apart the tokens of a shifted window that are no neighbours in the grid, as MONAI's ``compute_mask``.

    Args:
        grid: tokens along each axis, whole windows.
        window, shift: tokens along each axis.

    Returns:
        0 or ``MASKED``, (windows, N, N).
    """
    mask = compute_mask(list(grid), window, shift, device)
    return torch.where(mask == 0, 0.0, MASKED)


@functools.lru_cache(maxsize=8)
def _shift_mask(padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode(False):
        return shifted_window_mask(padded, window, shift, torch.device("cpu"))


def speed_up_windows(network: nn.Module) -> nn.Module:
    """Let the transformers of MONAI that a network holds compute their attention by ``window_attention``.

    These are Swin transformers, and in bfloat16 also those that ask for torch's fused attention.

    Changes the network in place. Names in its state dict and its function stay.

    Returns:
        the network.
    """
    classes = {WindowAttention: _FastWindowAttention, BasicLayer: _FastLayer, SABlock: _FastSelfAttention}
    return substitute(network, classes)
