from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import nn
from torch.nn import functional as F

from ..networks import SeparablePositions, ViTEncoder
from ..transforms import patchify, random_keep_indices, unpatchify

__all__ = ["MAE"]


class MAE(nn.Module):
    """Masked autoencoder [1] on the ViT of a UNETR, as in [2].

    The encoder runs on the visible tokens only; a lighter transformer fills in the rest from mask tokens and positions.
    The prediction head runs on masked positions only, since the loss reads no others.

    Args:
        encoder: encoder with a ViT; its blocks and norm are used unchanged, so fine-tuning needs no renaming.
        img_size: voxels per axis of the crops.
        mask_ratio: share of tokens dropped; ``round((1 - mask_ratio) * L)`` tokens stay. [2]'s code uses 0.85.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads: the decoder of [2] (four blocks, section III-A).
        position: ``"learnable"`` or ``"separable"`` decoder positions (see ``common.networks.UNETR``).
        normalise_patches: predict each masked patch less its own mean, over its own deviation ([1]'s ``norm_pix_loss``,
            which it found better; off in [2]). Pictures show the prediction with the true patch's mean and deviation.

    ``forward(image (B, C, *img_size))`` returns ``patches`` (B, M, P), the prediction for the M masked patches of
    P = 16^3 C voxels, their ``target`` (B, M, P), and ``masked`` (B, M), their token numbers.

    Raises:
        ValueError: the encoder holds no ViT, ``mask_ratio`` is not between 0 and 1, ``position`` is unknown, or
            ``img_size`` is not a multiple of the patch size.

    References:
        - [1] He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
        - [2] Zhang et al., Pretrain Once and Finetune Many Times, BIBM 2023, section III-A.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        img_size: list[int],
        mask_ratio: float = 0.85,
        decoder_hidden_size: int = 512,
        decoder_num_layers: int = 4,
        decoder_num_heads: int = 16,
        position: str = "learnable",
        normalise_patches: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, ViTEncoder):
            raise ValueError(
                f"MAE drops tokens before the encoder, which only a ViT allows, not {type(encoder).__name__}. "
                "Use the RCR pretext for Swin UNETR."
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, not {mask_ratio}.")
        if position not in ("learnable", "separable"):
            raise ValueError(f"position must be 'learnable' or 'separable', not {position!r}.")
        self.encoder = encoder
        self.mask_ratio, self.normalise_patches = mask_ratio, normalise_patches
        self.token_grid = encoder.grid(img_size)
        self.first = int(encoder.has_class_token)

        block: Any = encoder.vit.blocks[0]
        mlp_ratio = block.mlp.linear1.out_features / encoder.hidden_size
        self.decoder_embed = nn.Linear(encoder.hidden_size, decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_hidden_size).normal_(std=0.02))
        # A list and not a parametrization, which would rename this class.
        axial, planar = self.token_grid[0], self.token_grid[1] * self.token_grid[2]
        self.position_table = SeparablePositions(self.token_grid) if position == "separable" else nn.Identity()
        self.decoder_positions = nn.ParameterList(
            torch.empty(1, length, decoder_hidden_size).normal_(std=0.02)
            for length in ((axial, planar) if position == "separable" else (axial * planar,))
        )
        if self.first:
            self.decoder_class_position = nn.Parameter(torch.empty(1, 1, decoder_hidden_size).normal_(std=0.02))
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(
                decoder_hidden_size,
                round(mlp_ratio * decoder_hidden_size),
                decoder_num_heads,
                qkv_bias=block.attn.qkv.bias is not None,
                use_flash_attention=True,
            )
            for _ in range(decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=encoder.vit.norm.eps)
        for layer in self.decoder_blocks.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = encoder.vit.norm.eps
        voxels = encoder.patch_size[0] * encoder.patch_size[1] * encoder.patch_size[2]
        self.decoder_head = nn.Linear(decoder_hidden_size, voxels * encoder.in_channels)
        self.decoder_head.apply(_init_linear)
        self.decoder_embed.apply(_init_linear)
        self.decoder_blocks.apply(_init_linear)

    def encode(self, image: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Normalised tokens (B, K, hidden) at the positions ``keep`` (B, K), after a class token if there is one."""
        vit = self.encoder.vit
        tokens = self.embed(image, keep)
        if self.first:
            tokens = torch.cat((vit.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)

    def embed(self, image: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Embedded patches with positions, (B, K, hidden), of the tokens ``keep`` (B, K) alone.

        As one matrix product, since the convolution of the encoder embeds every patch, and takes twice as long for each
        on a CPU.
        """
        self.encoder.check_size(image)
        embedding: Any = self.encoder.vit.patch_embedding
        project = embedding.patch_embeddings
        patches = take(patchify(image, self.encoder.patch_size), keep)
        tokens = F.linear(patches, project.weight.movedim(1, -1).flatten(1), project.bias)
        return embedding.dropout(tokens + take(embedding.position_embeddings.expand(len(image), -1, -1), keep))

    def decode(self, tokens: torch.Tensor, keep: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Predicted patches (B, M, P) at ``masked`` (B, M) from encoded tokens at ``keep`` (B, K)."""
        tokens = self.decoder_embed(tokens)
        full = self.mask_token.to(tokens.dtype).repeat(len(tokens), math.prod(self.token_grid), 1)
        index = keep[..., None].expand(-1, -1, full.shape[-1])
        full = full.scatter(1, index, tokens[:, self.first :]) + self.position_table(*self.decoder_positions)
        if self.first:
            full = torch.cat((tokens[:, :1] + self.decoder_class_position, full), dim=1)
        for block in self.decoder_blocks:
            full = block(full)
        return self.decoder_head(self.decoder_norm(take(full, masked + self.first)))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = math.prod(self.token_grid)
        keep, masked = random_keep_indices(len(image), tokens, self.mask_ratio, device=image.device)
        patches = self.decode(self.encode(image, keep), keep, masked)
        target = take(patchify(image, self.encoder.patch_size), masked)
        if self.normalise_patches:
            mean, deviation = statistics(target)
            target = (target.float() - mean) / deviation
        return {"patches": patches, "target": target, "masked": masked}

    def pictures(
        self, image: torch.Tensor, prediction: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target, input and reconstruction (B, C, *img_size): the image, masked patches blanked, masked patches filled.

        ``prediction`` is what ``forward`` returned for this image.
        """
        patches = patchify(image, self.encoder.patch_size)
        index, predicted = prediction["masked"][..., None].expand_as(prediction["patches"]), prediction["patches"]
        if self.normalise_patches:
            mean, deviation = statistics(take(patches, prediction["masked"]))
            predicted = predicted * deviation + mean
        filled = patches.scatter(1, index, predicted.to(patches.dtype))
        blanked = patches.scatter(1, index, 0.0)
        filled, blanked = (unpatchify(part, self.token_grid, self.encoder.patch_size) for part in (filled, blanked))
        return image, blanked, filled


def statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each patch (B, M, P), both (B, M, 1) in float32; no deviation is 0."""
    variance, mean = torch.var_mean(patches.float(), -1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` (B, K) of ``tokens`` (B, L, C), for each sample separately."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
