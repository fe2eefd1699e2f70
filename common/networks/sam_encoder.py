from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .encoder_unet import refuse_decoder
from .foreign import Kind, Source, State, count

__all__ = ["CHECKPOINTS", "SamEncoder3D"]


class SamEncoder3D(nn.Module):
    """The image encoder of SAM-Med3D (Wang et al., 2023, arXiv 2310.15161).

    It is a transformer. Most blocks attend within windows, some to all tokens. It has learned positions, and position
    terms along each axis are added to attention; like the published code, it mixes up the axes. Names and shapes of its
    tensors are those of the published weights, without the neck before the mask decoder. The defaults are the published
    sizes.

    Args:
        in_channels: channels of the image.
        img_size: voxels along each axis of every input, a multiple of ``patch_size``.
        patch_size, hidden_size, num_layers, num_heads, mlp_dim: of the transformer.
        windows: side of the windows of each block in tokens, 0 for all tokens. Incomplete windows are filled with
            zeros, which are attended to, as in the published code.
        maps: blocks (counted from 1) to return tokens of.
        decoder: False, as in the encoders of U-Nets without theirs; this one has none.

    ``forward(image (B, C, *spatial))`` returns maps (B, hidden_size, *grid), all with the stride of the patches.

    Raises:
        ValueError: there is not one window per block; when called, the image has another size.
    """

    layer_names: ClassVar[tuple[str, ...]] = (r"patch_embed\.|pos_embed$", r"blocks\.(\d+)\.")

    def __init__(
        self,
        in_channels: int = 1,
        img_size: int = 128,
        patch_size: int = 16,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        windows: Sequence[int] = (14, 14, 0) * 4,
        maps: Sequence[int] = (3, 6, 9, 12),
        decoder: bool = False,
    ) -> None:
        super().__init__()
        refuse_decoder(self, decoder)
        if len(windows) != num_layers:
            raise ValueError(f"windows needs one side for each of {num_layers} blocks, not {len(windows)}.")
        grid = img_size // patch_size
        self.in_channels, self.img_size, self.windows, self.maps = in_channels, img_size, tuple(windows), tuple(maps)
        self.num_heads = num_heads
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(in_channels, hidden_size, patch_size, patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, hidden_size))
        self.blocks = nn.ModuleList(
            _Block(hidden_size, num_heads, mlp_dim, window, window or grid) for window in windows
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.channels = (hidden_size,) * len(self.maps)
        self.strides = ((patch_size,) * 3,) * len(self.maps)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        if tuple(image.shape[2:]) != (self.img_size,) * 3:
            raise ValueError(
                f"the network is built for cubes of {self.img_size} voxels, not {tuple(image.shape[2:])}: set roi_size "
                "to such a size."
            )
        x = self.patch_embed["proj"](image).movedim(1, -1) + self.pos_embed
        found = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in self.maps:
                found.append(x.movedim(-1, 1))
        return found

    def architecture(self) -> dict[str, Any]:
        """Name and arguments of the network, for the record of an encoder file."""
        return _architecture(self.state_dict(), self.num_heads)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_dim: int, window: int, side: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, num_heads, side)
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(width, mlp_dim), "lin2": nn.Linear(mlp_dim, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + (_in_windows(self.attn, y, self.window) if self.window else self.attn(y))
        return x + self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.norm2(x))))


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        for axis in "dhw":
            setattr(self, f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * side - 1, width // num_heads)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, *grid, width = x.shape  # of equal sides
        query, key, value = self.qkv(x).flatten(1, 3).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        placed, bias = query.unflatten(2, grid), x.new_zeros(())
        for place, name in enumerate("dhw"):
            side = grid[place]
            offsets = torch.arange(side, device=x.device)[:, None] - torch.arange(side, device=x.device) + side - 1
            table = getattr(self, f"rel_pos_{name}")[offsets]  # of query by key along this axis
            along = torch.einsum(f"bndhwc,{name}kc->bndhwk", placed, table)
            # Not as one would add them: the published code takes the query's last axis for one of the key's in two of
            # the three, and the key's last axis for each. The weights were trained so.
            bias = bias + along.reshape(*along.shape[:4], *(side if i == place else 1 for i in range(3)), grid[2])
        mask = bias.flatten(5, 7).flatten(2, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))
        return self.proj(out.transpose(1, 2).reshape(batch, *grid, width))


def _in_windows(attention: nn.Module, x: torch.Tensor, window: int) -> torch.Tensor:
    batch, *grid, width = x.shape
    full = [-(-side // window) * window for side in grid]
    x = F.pad(x, (0, 0, *(n for side, to in zip(grid[::-1], full[::-1], strict=True) for n in (0, to - side))))
    counts = [side // window for side in full]
    x = x.reshape(batch, counts[0], window, counts[1], window, counts[2], window, width)
    x = attention(x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window, window, window, width))
    x = x.reshape(batch, *counts, window, window, window, width).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(batch, *full, width)[:, : grid[0], : grid[1], : grid[2]]


def _architecture(state: Mapping[str, torch.Tensor], num_heads: int) -> dict[str, Any]:
    projection, grid = state["patch_embed.proj.weight"], state["pos_embed"].shape[1]
    layers = count(state, r"blocks\.(\d+)\.")
    sides = [(len(state[f"blocks.{layer}.attn.rel_pos_d"]) + 1) // 2 for layer in range(layers)]
    return {
        "name": "SamEncoder3D",
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "hidden_size": projection.shape[0],
        "grid": [grid] * 3,
        "num_layers": layers,
        "num_heads": num_heads,
        "mlp_dim": len(state["blocks.0.mlp.lin1.weight"]),
        # A window of the size of the grid computes what no window does.
        "windows": [0 if side == grid else side for side in sides],
    }


def _read(state: State, source: Source) -> dict[str, Any]:
    width, head = state["patch_embed.proj.weight"].shape[0], state["blocks.0.attn.rel_pos_d"].shape[1]
    return _architecture(state, width // head)


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    keys = ("in_channels", "patch_size", "hidden_size", "num_layers", "num_heads", "mlp_dim", "windows")
    size = architecture["grid"][0] * architecture["patch_size"]
    return SamEncoder3D(img_size=size, maps=(1,), **{key: architecture[key] for key in keys})


CHECKPOINTS = {
    "sam_med3d": Kind(
        _network,
        _read,
        (r"^pos_embed 5d", r"^patch_embed\.proj\.weight 5d", r"^blocks\.0\.attn\.rel_pos_d 2d"),
        left_out={"neck": r"^neck\.", "prompts and mask decoder": r"^(prompt_encoder|mask_decoder|pixel_(mean|std))\b"},
    )
}
"""Checkpoints that fill a :class:`SamEncoder3D`."""
