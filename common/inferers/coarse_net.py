"""The network of the first of two stages, built from the file of its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint_file import read_checkpoint
from ..networks import Med3DNet
from ..networks.dilated_resnet import resnet_depth

__all__ = ["med3d_of_file"]


def med3d_of_file(
    path: str | os.PathLike, head: Callable[[Sequence[int]], nn.Module], in_channels: int = 1
) -> Med3DNet:
    """A ``Med3DNet`` of the depth, width, shortcut, norm and stride that a ``model.pt`` was trained with.

    All of these follow from the tensors, so a config need not state them for the first stage.

    Args:
        path: path of the ``model.pt``; without such a file, which loading reports later, the net is the default one.
        head: as in ``Med3DNet``.
        in_channels: channels of the image.

    Returns:
        the net with random weights; the file's weights are not loaded yet.

    Raises:
        ValueError: the file is damaged or holds no ResNet.
    """
    if not Path(path).is_file():
        return Med3DNet(head, depth=50, in_channels=in_channels)
    content: Any = read_checkpoint(path)[0]
    state = content.get("model", content) if isinstance(content, dict) else {}
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if "conv1.weight" not in state:
        raise ValueError(
            f"{path} does not hold a ResNet for the first stage: train one with configs/tasks/liver_coarse.json."
        )
    try:
        depth = resnet_depth(state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be the first stage: {error}.") from error
    return Med3DNet(
        head,
        depth=depth,
        in_channels=in_channels,
        shortcut="B" if any(".downsample." in name for name in state) else "A",
        width=len(state["conv1.weight"]),
        preactivation="bn_last.weight" in state,
        norm="batch" if "bn1.running_mean" in state else "group",
        output_stride=int(state.get("output_stride", 8)),
    )
