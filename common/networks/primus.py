from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.networks.layers import DropPath
from torch import nn
from torch.nn import functional as F

from ..weights.adapt import resample_positions
from .encoder_unet import refuse_decoder
from .float_layer_norm import layer_norm
from .foreign import Kind, Source, State, count
from .unet_encoders import plan_of_nnssl

__all__ = ["CHECKPOINTS", "Primus", "PrimusEncoder"]

HEADS = {396: 6, 792: 12, 864: 12, 1056: 16}
"""Heads of the published sizes S, B, M and L by their channels; no tensor shows them."""


class Primus(nn.Module):
    """A transformer that segments volumes with almost no convolutions.

    It has patches of 8, rotary and learned positions, gated MLPs, and a decoder of a few transposed convolutions (Wald
    et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", 2025). Names and shapes of its
    tensors are those of the package ``dynamic_network_architectures``, so weights of OpenMind fit. The defaults are
    Primus-M as nnssl pre-trains it.

    Args:
        in_channels, out_channels: channels of the image, classes.
        img_size: voxels per axis of every input, multiples of ``patch_size``.
        patch_size: voxels of a patch along each axis, a power of two.
        hidden_size, num_layers, num_heads: sizes of the transformer; the channels of a head must be a multiple of 6.
        layer_scale: initial value of the learned scale of each residual branch; None for none.
        attention_norm: whether to normalise the output of attention.
        drop_path: rate of dropped residual branches at the last block, growing linearly from 0.

    ``forward(image (B, C, *img_size))`` returns logits (B, out_channels, *img_size).

    Raises:
        ValueError: sizes do not fit; when called, the image has another size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_size: Sequence[int],
        patch_size: int = 8,
        hidden_size: int = 864,
        num_layers: int = 16,
        num_heads: int = 12,
        layer_scale: float | None = 0.1,
        attention_norm: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden_size % (6 * num_heads) or any(size % patch_size for size in img_size) or patch_size.bit_count() != 1:
            raise ValueError(
                f"Primus needs a multiple of 6 channels per head (hidden_size {hidden_size}, num_heads "
                f"{num_heads}), a patch_size {patch_size} that is a power of two, and an img_size "
                f"{tuple(img_size)} of multiples of it."
            )
        self.grid = tuple(int(size) // patch_size for size in img_size)
        self.down_projection = nn.ModuleDict({"proj": nn.Conv3d(in_channels, hidden_size, patch_size, patch_size)})
        rates = [drop_path * number / max(1, num_layers - 1) for number in range(num_layers)]
        self.eva = _Transformer(hidden_size, self.grid, num_heads, layer_scale, attention_norm, rates)
        self.up_projection = nn.ModuleDict({"decode": _decoder(hidden_size, out_channels, patch_size)})

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.up_projection["decode"](_encode(self, image))


class PrimusEncoder(nn.Module):
    """All of a :class:`Primus` except its decoder, as a view on its modules.

    Args:
        network: the segmentation network.
        decoder: False, as in the encoders of U-Nets without theirs; an encoder file of Primus has none.

    ``forward(image (B, C, *img_size))`` returns one map (B, hidden_size, *grid), of the stride of the patches.
    """

    layer_names: ClassVar[tuple[str, ...]] = (
        r"down_projection\.|eva\.pos_embed",
        r"eva\.blocks\.(\d+)\.",
        r"eva\.norm\.",
    )

    def __init__(self, network: Primus, decoder: bool = False) -> None:
        super().__init__()
        refuse_decoder(self, decoder)
        self.down_projection, self.eva = network.down_projection, network.eva
        projection: Any = network.down_projection["proj"]
        self.in_channels, self.grid = projection.in_channels, network.grid
        self.channels = (projection.out_channels,)
        self.strides = (tuple(projection.stride),)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [_encode(self, image)]

    def adapt_weight(
        self, name: str, source: torch.Tensor, tensor: torch.Tensor, record: Mapping[str, Any], inflation: str
    ) -> tuple[torch.Tensor | None, str] | None:
        """Fill a tensor for ``common.weights.load_encoder``: positions are resampled to another grid."""
        grid = record.get("architecture", {}).get("grid")
        if name != "eva.pos_embed" or grid is None or tuple(grid) == self.grid:
            return None
        if source.shape[2] != tensor.shape[2] or math.prod(grid) != source.shape[1]:
            return None
        return resample_positions(source, grid, self.grid), f"positions resampled from grid {grid} to {list(self.grid)}"

    def architecture(self) -> dict[str, Any]:
        """Name and arguments of the network, for the record of an encoder file."""
        first: Any = self.eva.blocks
        heads = first[0].attn.num_heads
        return _architecture(self.state_dict()) | {"grid": list(self.grid), "num_heads": heads}


def _encode(network: Any, image: torch.Tensor) -> torch.Tensor:
    """The normed tokens of the last block, folded back onto their grid."""
    projection = network.down_projection["proj"]
    expected = tuple(size * stride for size, stride in zip(network.grid, projection.stride, strict=True))
    if tuple(image.shape[2:]) != expected:
        raise ValueError(
            f"the network is built for images of {expected} voxels, not {tuple(image.shape[2:])}: set roi_size to the "
            "size of the crops."
        )
    tokens = network.eva(projection(image).flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).unflatten(2, network.grid)


class _Transformer(nn.Module):
    rotation: torch.Tensor

    def __init__(
        self,
        width: int,
        grid: Sequence[int],
        num_heads: int,
        layer_scale: float | None,
        attention_norm: bool,
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(grid), width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, layer_scale, attention_norm, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("rotation", _rotation(grid, width // num_heads // 6), persistent=False)
        for name, parameter in self.named_parameters():
            if name == "pos_embed" or (name.endswith(".weight") and parameter.ndim == 2):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("proj.bias") or name.endswith("fc2.bias") or ".fc1_" in name:
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, self.rotation)
        return self.norm(tokens)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, scale: float | None, attention_norm: bool, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = _Attention(width, num_heads, attention_norm), _GatedMLP(width)
        self.gamma_1 = self.gamma_2 = None
        if scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((width,), scale))
            self.gamma_2 = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        x = x + self._scaled(self.attn(self.norm1(x), rotation), self.gamma_1)
        return x + self._scaled(self.mlp(self.norm2(x)), self.gamma_2)

    def _scaled(self, x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return self.drop_path(x if scale is None else scale * x)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, normed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (_rotate(part, rotation).to(value.dtype) for part in (query, key))
        x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.proj(self.norm(x))


class _GatedMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * 4 * 2 / 3)
        self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.norm, self.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x.movedim(1, -1), list(self.weight.shape), self.weight, self.bias, 1e-6).movedim(-1, 1)


def _decoder(width: int, out_channels: int, patch_size: int) -> nn.Sequential:
    """Upsampling steps of two; channels shrink geometrically to the number of classes."""
    steps = patch_size.bit_length() - 1
    ratio = (width / (2 * out_channels)) ** (1 / steps)
    widths = [width, *(max(8, round(width / ratio ** (step + 1) / 8 + 1e-7) * 8) for step in range(steps))]
    layers: list[nn.Module] = []
    for step in range(steps - 1):
        convolution = nn.ConvTranspose3d(widths[step], widths[step + 1], 2, 2)
        layers.append(nn.Sequential(convolution, _ChannelNorm(widths[step + 1]), nn.GELU()))
    return nn.Sequential(*layers, nn.ConvTranspose3d(widths[steps - 1], out_channels, 2, 2))


def _rotation(grid: Sequence[int], bands: int) -> torch.Tensor:
    """Sines and cosines (2, L, 6 bands) of rotary angles, with ``bands`` frequencies along each of the three axes."""
    frequencies = 10000.0 ** -(torch.arange(bands) / bands)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in grid), indexing="ij")
    angles = (torch.stack(axes, -1)[..., None] * frequencies).reshape(math.prod(grid), -1).repeat_interleave(2, -1)
    return torch.stack((angles.sin(), angles.cos()))


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * rotation[1] + turned * rotation[0]


def _architecture(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    projection = state["down_projection.proj.weight"]
    return {
        "name": "PrimusEncoder",
        "in_channels": projection.shape[1],
        "patch_size": projection.shape[-1],
        "hidden_size": projection.shape[0],
        "num_layers": count(state, r"eva\.blocks\.(\d+)\."),
    }


def _read(state: State, source: Source) -> dict[str, Any]:
    tokens, patch = state["eva.pos_embed"].shape[1], state["down_projection.proj.weight"].shape[-1]
    size = source.settings("nnssl_adaptation_plan").get("recommended_downstream_patchsize")
    grid = [int(side) // patch for side in size] if size else [round(tokens ** (1 / 3))] * 3
    if math.prod(grid) != tokens:
        raise ValueError(f"its {tokens} positions are not those of a grid of {grid} tokens")
    architecture = _architecture(state)
    return architecture | {"grid": grid, "num_heads": HEADS.get(architecture["hidden_size"])}


def _network(architecture: Mapping[str, Any], state: State) -> nn.Module:
    patch = architecture["patch_size"]
    network = Primus(
        architecture["in_channels"],
        1,
        [side * patch for side in architecture["grid"]],
        patch,
        architecture["hidden_size"],
        architecture["num_layers"],
        num_heads=1,
        layer_scale=1.0 if "eva.blocks.0.gamma_1" in state else None,
        attention_norm="eva.blocks.0.attn.norm.weight" in state,
    )
    return PrimusEncoder(network)


CHECKPOINTS = {
    # Of `dynamic_network_architectures`, as nnssl pre-trains them (OpenMind), also as an autoencoder (`EvaMAE`).
    "primus": Kind(
        _network,
        _read,
        (r"^down_projection\.proj\.weight 5d", r"^eva\.blocks\.0\.attn\.q_proj\.weight 2d"),
        left_out={"decoder": r"^(up_projection|decoder)\.", "mask token": r"^mask_token$"},
        prepared=plan_of_nnssl,
    )
}
"""Checkpoints of other projects that fill a :class:`PrimusEncoder`."""
