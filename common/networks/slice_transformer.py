from __future__ import annotations

import math

import torch
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from torch import nn

from .planes import PLANES

__all__ = ["SliceTransformer", "sinusoidal_positions"]


class SliceTransformer(nn.Module):
    """Transformer over the slices of one plane, shared by the planes [1, section 3.3.1, equations 2 and 3].

    Vectors are scaled by the square root of their length. Sinusoids of the slice's number and a learned vector of the
    plane (the segment encoding) are added. Then follow pre-norm layers and a final norm. The paper describes one head
    without projections. This is the layer of the published code, with four heads of 256, which matches the paper's
    parameter counts.

    Args:
        embed_dim: length of a slice's vector.
        num_heads, dim_head: of the attention.
        mlp_dim: width of the hidden layer.
        num_layers: number of layers, 1 or more.
        dropout: of attention weights, and of both residual branches.

    ``forward(vectors (B, N, embed_dim), plane)`` returns (B, N, embed_dim); N is any number of slices.

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(
        self,
        embed_dim: int = 64,
        num_heads: int = 4,
        dim_head: int = 256,
        mlp_dim: int = 128,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.segments = nn.Embedding(len(PLANES), embed_dim)
        self.layers = nn.ModuleList(_Layer(embed_dim, num_heads, dim_head, mlp_dim, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, vectors: torch.Tensor, plane: str) -> torch.Tensor:
        count = vectors.shape[1]
        x = math.sqrt(self.embed_dim) * vectors
        x = x + sinusoidal_positions(count, self.embed_dim, vectors.device)
        x = x + self.segments.weight[PLANES.index(plane)]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, dim_head: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        # Not MONAI's fused attention, which (1.6.1) drops weights in evaluation as well.
        self.attention = SABlock(embed_dim, num_heads, dropout, qkv_bias=True, dim_head=dim_head)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = MLPBlock(embed_dim, mlp_dim, dropout, act="RELU")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sinusoidal_positions(count: int, length: int, device: torch.device | None = None) -> torch.Tensor:
    """Sine and cosine of the position at falling frequencies, (count, length) (Vaswani et al., 2017, section 3.5).

    Args:
        count: number of positions.
        length: of a vector, an even number.
    """
    place = torch.arange(count, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(0, length, 2, device=device, dtype=torch.float32) / length)
    angle = place[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)
