"""Operations and parameters of a bundle's network, one line for each of its parts.

`python -m common.flops --config_file configs/train.json --input_shape "1,1,512,512,5"`, in the bundle's folder, counts
the multiplications and additions of a forward pass in matrix products and convolutions. The network takes no memory,
and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .command_line import run_command
from .overlays import merge_files, parse_files

__all__ = ["count_operations"]


def count_operations(
    config_file: str | Sequence[str],
    input_shape: str | Sequence[int],
    net_id: str = "segmentation_net",
    **override: Any,
) -> str:
    """Count the operations of a network that JSON files describe.

    Args:
        config_file: the files, separated by commas or as for MONAI; later ones win.
        input_shape: shape of the image, batch and channels first.
        net_id: id of the network in them.
        override: ids and values, such as `--slices 1`.

    Returns:
        a table of the network's parts, in GFLOP (a multiplication and an addition are two) and millions of parameters.

    Raises:
        ValueError: the files do not fit together or have no such network, or it takes no image of this shape.
    """
    parser = ConfigParser()
    parser.read_config(merge_files(parse_files(config_file)))
    for key, value in override.items():
        parser[key] = value
    if net_id not in parser:
        raise ValueError(f"the files have no id {net_id!r}: give the network's with --net_id.")
    parts = input_shape.strip("[]()").split(",") if isinstance(input_shape, str) else input_shape
    shape = [int(part) for part in parts]
    with torch.device("meta"):
        net: nn.Module = parser.get_parsed_content(net_id).eval()
        image = torch.empty(shape)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(image)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{net_id} does not accept an image of the shape {shape}: {error}".splitlines()[0]) from error
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    root = type(net).__name__
    lines = [f"{'':<24}{'GFLOP':>12}{'M parameters':>14}"]
    for name, part in net.named_children():
        lines.append(f"{name:<24}{_operations(part, f'{root}.{name}', counts) / 1e9:>12.3f}{_millions(part):>14.3f}")
    lines.append(f"{root:<24}{counter.get_total_flops() / 1e9:>12.3f}{_millions(net):>14.3f}")
    return "\n".join(lines)


def _operations(module: nn.Module, name: str, counts: Mapping[str, int]) -> int:
    """Operations of a part; if a method other than ``forward`` is called, only its sub-parts are counted."""
    if name in counts:
        return counts[name]
    return sum(_operations(part, f"{name}.{child}", counts) for child, part in module.named_children())


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


if __name__ == "__main__":
    run_command(count_operations, "python -m common.flops")
