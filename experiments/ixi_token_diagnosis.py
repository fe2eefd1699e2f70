"""Test what a UNETR's transformer adds on IXI, and what pre-training changed in its tokens.

    python experiments/ixi_token_diagnosis.py --datalist /data/ixi/ixi.json \
        --model runs/ixi/runs/scratch/labels-0005/seed-0/model.pt --encoder runs/ixi/pretrain/mae_85/encoder.safetensors

The model and the encoders come from `common.compare` with the bundle's `compare_ixi.json`. For an untrained encoder and
for each encoder file it prints the length and the effective rank of the tokens, and the share of their variance that
lies between brains at one position. Then, for ten test volumes, it prints the Dice of the model with its own tokens,
with those of another brain, with the mean tokens of the ten, and without tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.metrics import effective_rank  # noqa: E402
from common.weights import load_encoder  # noqa: E402
from common.weights.model_file import load_model  # noqa: E402

CONFIGS = ROOT / "bundles" / "pretrain_once" / "configs"
FILES = ("train.json", "datasets/ixi.json", "presets/cpu.json")


@torch.no_grad()
def dice(network: torch.nn.Module, image: torch.Tensor, label: torch.Tensor) -> float:
    metric = DiceMetric(include_background=False, reduction="mean")
    for number in range(len(image)):
        network.vit.current = number
        prediction = network(image[number : number + 1]).argmax(1, keepdim=True)
        metric(one_hot(prediction, 5), one_hot(label[number : number + 1], 5))
    return float(metric.aggregate())


@torch.no_grad()
def describe(name: str, encoder: torch.nn.Module, image: torch.Tensor) -> None:
    for depth, tokens in zip(("z3", "z6", "z9", "last"), encoder(image), strict=True):
        tokens = tokens.flatten(2).transpose(1, 2)
        rows = tokens.flatten(0, 1)
        between = tokens.var(0).mean(0).sum() / rows.var(0).sum()
        print(
            f"{name:<10} {depth:<5} length {tokens.norm(dim=-1).mean():7.1f}  "
            f"effective rank {effective_rank(rows):5.1f}  between brains {between:5.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, nargs="*", default=[])
    parser.add_argument("--volumes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in FILES])
    parser["dataset_dir"], parser["datalist"] = str(arguments.datalist.parent), str(arguments.datalist)
    preprocess = parser.get_parsed_content("validate#preprocessing")
    items = [preprocess(item) for item in parser.get_parsed_content("data")["test"][: arguments.volumes]]
    image, label = (torch.stack([item[key].as_tensor() for item in items]) for key in ("image", "label"))

    torch.manual_seed(0)
    network = parser.get_parsed_content("segmentation_net").eval()
    encoder = parser.get_parsed_content("encoder")
    describe("untrained", encoder, image)
    for path in arguments.encoder:
        load_encoder(encoder, path)
        describe(path.parent.name, encoder, image)

    load_model(network, arguments.model)
    own = network.vit.forward
    with torch.no_grad():
        tokens = [own(image[number : number + 1]) for number in range(len(image))]
    mean = (
        torch.stack([last for last, _ in tokens]).mean(0),
        [torch.stack(level).mean(0) for level in zip(*(hidden for _, hidden in tokens), strict=True)],
    )
    without = (torch.zeros_like(mean[0]), [torch.zeros_like(level) for level in mean[1]])
    cases = {
        "its own tokens": own,
        "tokens of another brain": lambda _: tokens[(network.vit.current + 1) % len(tokens)],
        "mean tokens": lambda _: mean,
        "no tokens": lambda _: without,
    }
    for name, forward in cases.items():
        network.vit.forward = forward
        print(f"{name:<24} mean Dice {dice(network, image, label):.3f}")


if __name__ == "__main__":
    main()
