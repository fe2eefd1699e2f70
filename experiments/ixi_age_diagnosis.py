"""Test what the vectors of Medical Transformer's frozen plane encoders tell of age, before and after pre-training.

    python experiments/ixi_age_diagnosis.py --dataset_dir /data/ixi \
        --stage1 runs/age/pretrain/exemplar/encoder.safetensors \
        --stage2 runs/age/pretrain/medical_transformer/encoder.safetensors

The encoders come from `common.compare` with the bundle's `compare_ixi_age.json` (for the bundle's page that of commit
c09b0f0, with a shorter pre-training). For random and for pre-trained plane
encoders it prints the size (root mean square) of the slices' vectors, and the share of their variance that lies between
brains at one slice. It also prints the mean absolute error in years of ridge regression on the test list. The
regression reads the mean vector of each plane, every fourth slice's vector, or the means after the transformer (a
random one, or that of stage 2).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.data.encoded_volumes import EncodedVolumes  # noqa: E402
from common.networks import MultiViewEncoder  # noqa: E402
from common.networks.planes import PLANES  # noqa: E402
from common.weights import load_encoder  # noqa: E402

CONFIGS = ROOT / "bundles" / "medical_transformer" / "configs"
FILES = ("train.json", "tasks/age.json", "datasets/ixi_2mm.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("dataset_dir", "stage1", "stage2"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--datalist", help="by default ixi.json in the folder of the data set")
    parser.add_argument("--spacing", type=float, nargs=3, help="mm, if pre-training had others than 2 mm")
    parser.add_argument("--pooling", type=int)
    parser.add_argument("--roi_size", type=int, nargs=3)
    arguments = parser.parse_args()
    config = ConfigParser()
    config.read_config([str(CONFIGS / name) for name in FILES])
    for name in ("dataset_dir", "datalist", "spacing", "pooling", "roi_size"):
        if getattr(arguments, name) is not None:
            config[name] = getattr(arguments, name)
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
        mixer = MultiViewEncoder().eval()
        load_encoder(mixer, arguments.stage2 if stage1 else None)
        with torch.no_grad():
            features = {
                "the mean vectors": {n: planes_means(v.split(sizes, dim=1)) for n, v in vectors.items()},
                "every fourth vector": {n: v[:, ::4].flatten(1) for n, v in vectors.items()},
                "the means behind the transformer": {
                    n: planes_means(
                        [mixer.mix(p, plane) for p, plane in zip(v.split(sizes, dim=1), PLANES, strict=True)]
                    )
                    for n, v in vectors.items()
                },
            }
        for name, found in features.items():
            ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 6, 17)))
            ridge.fit(found["training"].numpy(), ages["training"].numpy())
            error = np.abs(ridge.predict(found["test"].numpy()) - ages["test"].numpy()).mean()
            print(f"  ridge on {name}: {error:.2f}", flush=True)


def planes_means(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average over the slices of each plane; the planes are concatenated."""
    return torch.cat([v.mean(dim=1) for v in vectors], dim=1)


if __name__ == "__main__":
    main()
