"""A step of masked-autoencoder pre-training: the encoder sees only visible tokens, against all of them.

The baseline has the same nets, decoder and loss.
"""

from __future__ import annotations

import math

import torch
from timing import Row, compare

from common.losses import MaskedReconstructionLoss
from common.networks import UNETR, ViTEncoder
from common.pretexts import MAE


class EveryTokenMAE(MAE):
    """Embeds all patches with MONAI's convolution, encodes all tokens, and then passes on the visible ones."""

    def embed(self, image, keep):
        return self.encoder.embed(image)

    def encode(self, image, keep):
        tokens = math.prod(self.token_grid)
        encoded = super().encode(image, torch.arange(tokens, device=image.device).expand(len(image), -1))
        return encoded.gather(1, keep[..., None].expand(-1, -1, encoded.shape[-1]))


def rows(quick: bool, device: torch.device) -> list[Row]:
    return [_row(ratio, quick, device) for ratio in (0.75, 0.85)]


def _row(mask_ratio: float, quick: bool, device: torch.device) -> Row:
    size, batch = (32, 1) if quick else (96, 2)
    sizes = {"hidden_size": 48, "mlp_dim": 96} if quick else {"hidden_size": 768, "mlp_dim": 3072}
    decoder = {"decoder_hidden_size": 32, "decoder_num_layers": 1, "decoder_num_heads": 2} if quick else {}
    image = torch.rand(batch, 1, size, size, size, device=device)
    loss = MaskedReconstructionLoss()

    def make(pretext):
        encoder = ViTEncoder(UNETR(1, 2, img_size=size, **sizes).vit)
        net = pretext(encoder, [size] * 3, mask_ratio=mask_ratio, **decoder).to(device)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)

        def step():
            optimizer.zero_grad()
            loss(net(image), image).backward()
            optimizer.step()

        return step

    name = f"MAE step, {batch} x {size}^3, mask ratio {mask_ratio} (baseline: every token through the encoder)"
    return compare(name, make(EveryTokenMAE), make(MAE), 1 if quick else 7)
