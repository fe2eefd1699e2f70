"""The share of a pre-training step on synthetic images that drawing the images takes (`ssl3d`).

A step is the bundle's own: label maps of the sample are deformed, folded and stripped, an image of random contrast is
drawn and normalised (the generator, on the same device as the network); then come the forward pass, the loss, the
backward pass and the optimiser, in the precision that the bundle chooses. Reading the maps is left out. The baseline is
the generator alone, and the other side is the whole step. So the ratio is the share of the step that the generator
takes; a step with images from elsewhere would take the rest.
"""

from __future__ import annotations

import json
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from timing import Row, Side, compare

BUNDLE = Path(__file__).resolve().parents[1] / "bundles/ssl3d"
FILES = ("pretrain.json", "datasets/sample.json", "presets/cpu.json")
CASES: dict[str, tuple[tuple[str, ...], dict[str, list[int]]]] = {
    "net and sizes of presets/cpu.json": (FILES, {}),
    # the nearest multiples of the net's last stride
    "default net, nearly the same size": ((*FILES, "networks/resenc.json"), {"roi_size": [64, 96, 64]}),
}


def rows(quick: bool, device: torch.device) -> list[Row]:
    cases = list(CASES.items())[: 1 if quick else None]
    return [_row(name, files, sizes, quick, device) for name, (files, sizes) in cases]


def _row(name: str, files: tuple[str, ...], sizes: dict[str, list[int]], quick: bool, device: torch.device) -> Row:
    side = Side(_work, files, sizes, quick, device)  # a process for itself, since the run keeps freed memory
    try:
        text = f"pre-training step on synthetic images, {name}, {side.ask('size')} (baseline: the generator alone)"
        return compare(text, lambda: side.ask("generator"), lambda: side.ask("step"), 1 if quick else 7)
    finally:
        side.stop()


def _work(
    pipe: Connection,
    threads: int,
    files: tuple[str, ...],
    sizes: dict[str, list[int]],
    quick: bool,
    device: torch.device,
) -> None:
    from monai.bundle import ConfigWorkflow
    from monai.data import list_data_collate

    from common.data import make_sample, prepare_pretext_batch

    torch.set_num_threads(threads)
    small = json.loads((BUNDLE / "small.json").read_text(encoding="utf-8"))["values"] if quick else {}
    with tempfile.TemporaryDirectory() as folder:
        workflow = ConfigWorkflow(
            workflow_type="train",
            config_file=[str(BUNDLE / "configs" / file) for file in files],
            meta_file=str(BUNDLE / "configs/metadata.json"),
            logging_file=False,
            bundle_root=str(BUNDLE),
            output_dir=folder,
            dataset_dir=make_sample(f"{folder}/sample", 3, 1, spacing=4.0, progress=False) if quick else make_sample(),
            device=str(device),
            **small,
            **sizes,
            **{"train#dataset#data": "$@data['training'][:@batch_size]"},
        )
        workflow.initialize()
        get = workflow.parser.get_parsed_content
        pretext, network, loss, optimizer = (get(id) for id in ("pretext", "network", "loss", "optimizer"))
        maps, _ = prepare_pretext_batch(list_data_collate(list(get("train#dataset"))), device)

        def step() -> None:
            optimizer.zero_grad()
            loss(network(maps), maps).backward()
            optimizer.step()

        while (asked := pipe.recv()) != "stop":
            if asked == "size":
                pipe.send(f"{len(maps)} x {' x '.join(map(str, get('roi_size')))}")
                continue
            pretext.draw(maps) if asked == "generator" else step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            pipe.send("done")
