"""What the vectors of Medical Transformer's plane encoders tell of age, frozen, before and after pre-training.

    python experiments/ixi_age_diagnosis.py --dataset_dir /data/ixi \\
        --stage1 runs/age/pretrain/exemplar/encoder.safetensors \\
        --stage2 runs/age/pretrain/medical_transformer/encoder.safetensors

The encoders are those of `common.compare` with the bundle's `compare_ixi_age.json`. For random and for pre-trained
plane encoders it prints the size of the slices' vectors, the share of their variance that lies between brains at one
slice, and the mean absolute error in years on the test list of (a) ridge regression on the mean vector of each plane
and (b) the transformer and the linear head trained on the frozen vectors (Adam 1e-3, 200 steps of 8, the best of 10
validations, three seeds), the transformer being random or that of stage 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.data.encoded_volumes import EncodedVolumes  # noqa: E402
from common.networks import MultiViewEncoder, MultiViewRegressor  # noqa: E402
from common.networks.planes import PLANES  # noqa: E402
from common.weights import load_encoder  # noqa: E402

CONFIGS = ROOT / "bundles" / "medical_transformer" / "configs"
FILES = ("train.json", "tasks/age.json", "datasets/ixi_2mm.json")
STEPS, BATCH, VALIDATIONS = 200, 8, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("dataset_dir", "stage1", "stage2"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    config = ConfigParser()
    config.read_config([str(CONFIGS / name) for name in FILES])
    config["dataset_dir"] = arguments.dataset_dir
    lists = config.get_parsed_content("data")
    transform = config.get_parsed_content("validate#preprocessing")
    sizes = config.get_parsed_content("roi_size")
    ages = {name: torch.tensor([float(item["label"]) for item in items]) for name, items in lists.items()}
    for title, stage1 in (("random plane encoders", None), ("plane encoders of stage 1", arguments.stage1)):
        torch.manual_seed(0)
        encoder = MultiViewEncoder()
        load_encoder(encoder, stage1)
        vectors = {}
        for name, items in lists.items():
            encoded = EncodedVolumes(items, transform, encoder)
            vectors[name] = torch.stack([encoded[number]["image"] for number in range(len(encoded))])
        train = vectors["training"]
        between = train.var(dim=0).mean() / (train - train.mean(dim=(0, 1))).square().mean()
        print(f"{title}: root mean square {train.square().mean().sqrt():.3f}, between brains {between:.1%}", flush=True)
        means = {
            n: torch.cat([p.mean(dim=1) for p in v.split(sizes, dim=1)], dim=1).numpy() for n, v in vectors.items()
        }
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 6, 17))).fit(
            means["training"], ages["training"]
        )
        print(f"  ridge on the mean vectors: {np.abs(ridge.predict(means['test']) - ages['test'].numpy()).mean():.2f}")
        scale = train.std()
        for name, start, factor in (
            ("random transformer", None, 1.0),
            ("random transformer, vectors scaled to deviation 1", None, 1 / scale),
            *((("transformer of stage 2", arguments.stage2, 1.0),) if stage1 else ()),
        ):
            scaled = {key: value * factor for key, value in vectors.items()}
            errors = [tune(scaled, ages, sizes, start, seed) for seed in range(3)]
            test, last = zip(*errors, strict=True)
            spread = f"{statistics.mean(test):.2f} ± {statistics.stdev(test):.2f}"
            print(f"  {name}: {spread}, training {statistics.mean(last):.2f}", flush=True)


def tune(vectors: dict, ages: dict, sizes: list[int], start: str | None, seed: int) -> tuple[float, float]:
    """Test error of the best validation, and mean training error of the last tenth of the steps."""
    torch.manual_seed(seed)
    encoder = MultiViewEncoder()
    load_encoder(encoder, start)
    net = MultiViewRegressor(encoder, float(ages["training"].mean()), float(ages["training"].std()))

    def predict(given: torch.Tensor) -> torch.Tensor:
        mixed = [encoder.mix(v, plane).mean(dim=1) for v, plane in zip(given.split(sizes, dim=1), PLANES, strict=True)]
        return (net.head(torch.cat(mixed, dim=1)) * net.std + net.mean)[:, 0]

    parameters = [*encoder.transformer.parameters(), *net.head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    best, found, losses = np.inf, np.nan, []
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(ages["training"]), (BATCH,))
        loss = F.l1_loss(predict(vectors["training"][chosen]), ages["training"][chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % (STEPS // VALIDATIONS) == 0:
            net.eval()
            with torch.no_grad():
                error, test = (F.l1_loss(predict(vectors[n]), ages[n]).item() for n in ("validation", "test"))
            net.train()
            if error < best:
                best, found = error, test
    return found, statistics.mean(losses[-STEPS // 10 :])


if __name__ == "__main__":
    main()
