from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that the command line of this package starts without loading torch
    import torch


def prepare_domain_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, int]]:
    """`prepare_batch` of MONAI's engines for a net with one branch per domain: image, label, and the batch's `branch`.

    Args:
        batchdata: batch with `image` and `label`, shapes (B, C, *spatial) and (B, 1, *spatial), and the `branch` of
            each item, which must be the same for all.
        device: where image and label are moved to.
        non_blocking: whether the copies may overlap with the host.
        kwargs: passed on to `Tensor.to` for the image, such as `memory_format`.

    Raises:
        ValueError: the batch mixes domains.
        KeyError: it lacks one of the three.
    """
    lacking = [key for key in ("image", "label", "branch") if key not in batchdata]
    if lacking:
        raise KeyError(f"The batch has no {' and no '.join(map(repr, lacking))}, only {sorted(map(str, batchdata))}.")
    branches = sorted({int(branch) for branch in batchdata["branch"]})
    if len(branches) > 1:
        names = ", ".join(sorted(set(map(str, batchdata.get("domain", branches)))))
        raise ValueError(
            f"A batch mixes the domains {names}, but each domain has its own branch: draw batches with "
            "common.data.domain_sampler.DomainSampler of the loader's batch_size."
        )
    image, label = batchdata["image"], batchdata["label"]
    image = image.to(device=device, non_blocking=non_blocking, **kwargs)
    label = label.to(device=device, non_blocking=non_blocking)
    # MetaTensors: neither net nor loss needs the metadata, and it slows every operation down.
    image, label = (x.as_tensor() if hasattr(x, "as_tensor") else x for x in (image, label))
    return image, label, (), {"branch": branches[0]}
