from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..networks import MultiViewEncoder
from ..networks.planes import PLANES

__all__ = ["MaskedEncodingVectors"]


class MaskedEncodingVectors(nn.Module):
    """Masked encoding vector prediction, stage 2 of Medical Transformer [1, section 3.3.1].

    The plane encoders are frozen. In each plane of each sample, a random tenth of the slices is masked: the vector of
    an image of -1 replaces theirs. The transformer learns to predict the original vectors from those of the other
    slices. Targets are the encoders' vectors before scaling and before positions and planes are added.

    Args:
        encoder: a ``MultiViewEncoder`` with a transformer; its plane encoders are frozen here.
        img_size: size of the images (X, Y, Z), which is also the number of slices in each plane.
        mask_ratio: share of masked slices, rounded down, but at least one per plane.

    ``forward(image)`` takes images (B, C, X, Y, Z), or their vectors (B, X + Y + Z, d) from
    ``common.data.EncodedVolumes``, which gives the same at a fraction of the cost. It returns ``prediction`` and
    ``target`` (B, M, d) of the M masked slices of all planes, and ``weight`` (M,), the inverse of the number of masked
    slices in a slice's plane.

    Raises:
        ValueError: the encoder has no transformer, or ``mask_ratio`` is not between 0 and 1; in ``forward``, images
            have another size.

    References:
        - [1] Jun et al., Medical Transformer: Universal Brain Encoder for 3D MRI Analysis.
    """

    def __init__(self, encoder: MultiViewEncoder, img_size: Sequence[int], mask_ratio: float = 0.1) -> None:
        super().__init__()
        if encoder.transformer is None:
            raise ValueError(
                "the transformer predicts masked encoding vectors, but this encoder has none (0 layers): leave "
                "stage 2 out."
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; it must be above 0 and below 1.")
        self.encoder = encoder
        self.encoder.planes.requires_grad_(False)
        self.img_size = tuple(img_size)
        self.masked = [max(1, int(mask_ratio * count)) for count in self.img_size]
        self._mask_vectors: list[torch.Tensor] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = self._vectors(image)
        predictions, targets = [], []
        for plane, target, blank, masked in zip(PLANES, vectors, self.mask_vectors(), self.masked, strict=True):
            chosen = torch.rand(target.shape[:2], device=target.device).topk(masked).indices[..., None]
            chosen = chosen.expand(-1, -1, target.shape[2])
            hidden = target.scatter(1, chosen, blank.to(target).expand_as(chosen))
            predictions.append(self.encoder.mix(hidden, plane).gather(1, chosen))
            targets.append(target.gather(1, chosen))
        counts = torch.tensor(self.masked, device=image.device)
        return {
            "prediction": torch.cat(predictions, dim=1),
            "target": torch.cat(targets, dim=1),
            "weight": (1 / counts).repeat_interleave(counts),
        }

    def pooled(self, image: torch.Tensor) -> torch.Tensor:
        """What a head gets of each volume, (B, 3 d): the means of its planes' vectors past the transformer."""
        mixed = [self.encoder.mix(vectors, plane) for vectors, plane in zip(self._vectors(image), PLANES, strict=True)]
        return torch.cat([vectors.float().mean(dim=1) for vectors in mixed], dim=1)

    @torch.no_grad()
    def mask_vectors(self) -> list[torch.Tensor]:
        """The vector (d,) of each plane encoder for a slice of -1; computed once, since the weights are frozen.

        It does not depend on the number of such slices, since all have the same statistics.
        """
        if self._mask_vectors is None:
            weight = next(self.encoder.planes.parameters())
            blank = weight.new_full((1, self.encoder.in_channels, *self.img_size), -1.0)
            self._mask_vectors = [vectors[0, 0] for vectors in self._encode(blank)]
        return self._mask_vectors

    def _vectors(self, image: torch.Tensor) -> list[torch.Tensor]:
        if image.ndim == 5 and tuple(image.shape[2:]) == self.img_size:
            return self._encode(image)
        if image.ndim == 3 and tuple(image.shape[1:]) == (sum(self.img_size), self.encoder.embed_dim):
            return list(image.split(self.img_size, dim=1))
        raise ValueError(
            f"stage 2 was set up for images of {' x '.join(map(str, self.img_size))} voxels (roi_size), or for their "
            f"vectors (batch, {sum(self.img_size)}, {self.encoder.embed_dim}), not for the shape {tuple(image.shape)}."
        )

    @torch.no_grad()
    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        # In float32 as the cached vectors are, whatever the precision of the training.
        with torch.autocast(image.device.type, enabled=False):
            return self.encoder.encode_planes(image.float())

    def _forget(self) -> None:
        self._mask_vectors = None
