from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["whole_weights"]


def whole_weights(network: nn.Module) -> nn.Module:
    """Let a network refuse a state dict that is not its own, also where the caller asks for a tolerant load.

    MONAI Label loads ``models/model.pt`` with ``strict=False``, for inference and before training, and only logs which
    names did not fit (https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/tasks/infer/basic_infer.py,
    ``_get_network``). A net of which nothing was loaded then answers with a mask of noise. Copies of
    the network refuse as it does; parts that are loaded on their own, such as an encoder, are not concerned.

    Returns:
        the network, whose ``load_state_dict`` raises a RuntimeError when names are missing or left over.
    """
    network.register_load_state_dict_post_hook(_refuse_others)
    return network


def _refuse_others(network: nn.Module, keys: Any) -> None:
    missing, unexpected = list(keys.missing_keys), list(keys.unexpected_keys)
    if missing or unexpected:
        own = len(network.state_dict())
        raise RuntimeError(
            f"these weights are of another network: {own - len(missing)} of {own} tensors of this "
            f"{type(network).__name__} are among them (not, for example, {(missing + unexpected)[0]}); use the config "
            "that they were trained with: for MONAI Label, pack the bundle with those files "
            "(python -m common.pack BUNDLE --config_file ...)."
        )
