"""Export the bundles' nets to TorchScript and ONNX with each exporter, and compare the outputs with the nets'.

    python experiments/exports.py > exports.md

It builds each net that inference uses from the bundle's own configs, made small. It exports the net with the functions
behind `python -m monai.bundle ckpt_export` and `onnx_export`: TorchScript by script and by trace, ONNX by torch's older
exporter and by the one based on torch.export. Each ONNX export is made twice: with a free batch (and free slices if
`transseg` is given runs of them), and with a batch of 1.

The export and the net then compute random images in batches of 1 and 3 (and runs of slices), or only of 1 if the batch
is fixed. The script prints a table with the largest difference relative to the largest output, and below it the reasons
for failures. With `--scan`, the inferer of `inference.json` also predicts a brain of the sample, and a column says how
many voxels get another label.

Each try is a forked process that ends after `--limit` seconds, so the script runs on Linux and macOS only. All ways
take half an hour on one thread. It needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import torch
from monai.bundle import ConfigParser
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from monai.transforms import ResizeWithPadOrCrop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Net(NamedTuple):
    """A net of a bundle: overlays of its `configs/` to name after `inference.json`, and values that make it small."""

    bundle: str
    name: str
    files: list[str]
    image: list[int]
    values: dict[str, Any]
    slices: int | None = None
    """Number of the axis whose size is also free."""


def med3d(name: str, *files: str, **values: Any) -> Net:
    small = {"roi_size": [32] * 3, "segmentation_net#width": 8} | {
        f"segmentation_net#{key}": value for key, value in values.items()
    }
    if not any(file.startswith("tasks/") for file in files):
        small["head#features"] = 16
    if "tasks/liver_fine.json" in files:
        small |= {"head#hidden": 16, "head#growth": 8}
    return Net("med3d", name, list(files), [1, 32, 32, 32], small)


def medical_transformer(name: str, *files: str, channels: int = 1, **values: Any) -> Net:
    small = {"widths": [4, 4, 8, 8], "embed_dim": 16, "num_heads": 2, "dim_head": 8, "mlp_dim": 16} | values
    return Net(
        "medical_transformer",
        name,
        list(files),
        [channels, 40, 48, 40],
        {f"encoder#{key}": value for key, value in small.items()},
    )


def transseg(name: str, file: str, side: int, encoder: dict[str, Any], **values: Any) -> Net:
    small = {"segmentation_net#decoder_channels": 8, "image_size": [side, side]} | values
    small |= {f"segmentation_net#encoder#{key}": value for key, value in encoder.items()}
    return Net("transseg", name, [file], [1, side, side, 5], small, None if values.get("target") == "all" else 4)


UNETR = {"num_layers": 4, "feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
UNETR_VALUES = {"roi_size": [32, 48, 32]} | {f"segmentation_net#{key}": value for key, value in UNETR.items()}
TOKENS = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_layers": 4, "num_heads": 3}
TOKENS |= {"out_blocks": [1, 2, 3, 4]}
PYRAMID = {"patch_size": 2, "embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
STAGES = {"embed_dim": 24, "num_heads": [1, 2, 4, 8]}

NETS = [
    Net("pretrain_once", "UNETR", ["networks/unetr_small.json"], [1, 32, 48, 32], UNETR_VALUES),
    Net("pretrain_once", "Swin UNETR", ["networks/swin_unetr_small.json"], [1, 64, 64, 64], {}),
    Net(
        "simtrot",
        "nnFormer",
        ["networks/nnformer.json"],
        [1, 32, 64, 64],
        {"roi_size": [32, 64, 64]} | {f"segmentation_net#{key}": value for key, value in STAGES.items()},
    ),
    Net(
        "simtrot",
        "nnFormer for brain tumours",
        ["datasets/brats.json", "networks/nnformer_tumour.json"],
        [4, 32, 32, 32],
        {"roi_size": [32] * 3, "segmentation_net#embed_dim": 24, "segmentation_net#num_heads": [1, 2, 4, 8]},
    ),
    Net("simtrot", "UNETR, patches of 8, 16, 16", ["networks/unetr.json"], [1, 32, 48, 32], UNETR_VALUES),
    medical_transformer("brain tumour", channels=4),
    medical_transformer("structures, norm of each slice", "tasks/structures4.json", norm_scope="slice"),
    medical_transformer(
        "structures, without transformer", "tasks/structures4.json", "networks/without_transformer.json"
    ),
    medical_transformer("age", "tasks/age.json"),
    medical_transformer("diagnosis", "tasks/diagnosis.json"),
    transseg("BEiT", "networks/beit.json", 48, TOKENS),
    transseg("BEiT, sides of 44", "networks/beit.json", 44, TOKENS),
    transseg("BEiT, one slice", "networks/beit.json", 48, TOKENS, **{"slices": 1, "offsets": [0]}),
    transseg("BEiT, all slices", "networks/beit.json", 48, TOKENS, target="all"),
    transseg("DINO", "networks/dino.json", 48, TOKENS),
    transseg("Swin", "networks/swin.json", 64, PYRAMID | {"window_size": 4}),
    transseg("Video Swin", "networks/videoswin.json", 64, PYRAMID | {"window_size": [8, 4, 4]}),
    med3d("lung, ResNet-10", "networks/resnet10.json"),
    med3d("lung, ResNet-18 (shortcut A)", "networks/resnet18.json"),
    med3d("lung, ResNet-50", "networks/resnet50.json"),
    med3d("lung, pre-activation", "networks/resnet10.json", preactivation=True),
    med3d("liver, coarse", "networks/resnet10.json", "tasks/liver_coarse.json"),
    med3d("liver, fine", "networks/resnet10.json", "tasks/liver_fine.json"),
    med3d("nodule (age group, lesion size)", "networks/resnet10.json", "tasks/nodule.json"),
]
"""List the nets. Swin UNETR is the same in `simtrot`; the two-stage liver uses the coarse and the fine net."""

WAYS = {
    "script": {},
    "trace": {},
    "older, free batch": {"dynamo": False, "free": True},
    "older, batch 1": {"dynamo": False, "free": False},
    "newer, free batch": {"dynamo": True, "free": True},
    "newer, batch 1": {"dynamo": True, "free": False},
}


class Result(NamedTuple):
    seconds: float
    difference: float = 0.0
    scale: float = 0.0
    opset: int | None = None
    why: str | None = None
    differing: int | None = None
    """Number of the scan's voxels that get another label."""


def build(net: Net) -> tuple[torch.nn.Module, Any]:
    """Build the net of inference and the inferer.

    The weights are random and large enough that the output depends on the image. With small or constant weights a
    mistake would not show.
    """
    configs = ROOT / "bundles" / net.bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in ("inference.json", *net.files)])
    parser.update(net.values)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn_like(parameter)
            parameter.data = 2 * noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else parameter + 0.3 * noise
    return network, parser.get_parsed_content("inferer")


def export(network: torch.nn.Module, net: Net, way: str, file: str) -> tuple[Any, int | None, list[list[int]]]:
    """Export the net; return it as a function, with the opset and the shapes to try it on."""
    image = net.image
    shapes = [[batch, *image] for batch in (1, 3)]
    if net.slices is not None:
        shapes.append([1, *image[:-1], 2 * image[-1]])
    if not WAYS[way]:
        traced = {"use_trace": True, "inputs": [torch.rand(1, *image)]} if way == "trace" else {}
        return convert_to_torchscript(network, filename_or_obj=file, **traced), None, shapes
    free = WAYS[way]["free"]
    axes = {"image": {0: "batch"}, "pred": {0: "batch"}}
    if net.slices is not None:
        axes["image"][net.slices], axes["pred"][net.slices] = "slices", "predicted"
        image = [*image[:-1], 2 * image[-1]] if free else image
    convert_to_onnx(
        network,
        [torch.rand(2 if free else 1, *image)],
        filename=file,
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes=axes if free else None,
        dynamo=WAYS[way]["dynamo"],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    opset = max(entry.version for entry in onnx.load(file).opset_import if entry.domain in ("", "ai.onnx"))
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), opset, shapes if free else shapes[:1]


def sample_scan() -> torch.Tensor:
    """Load a brain of the sample at 4 mm, (40, 48, 40), in 0..1."""
    from common.data import make_sample

    with tempfile.TemporaryDirectory() as folder:
        make_sample(folder, subjects=3, unlabelled=0, spacing=4.0, progress=False)
        image = np.asarray(nib.load(next(Path(folder).glob("t1_brain/*.nii.gz"))).dataobj, np.float32)
    return torch.from_numpy(image / image.max())


def differing(net: Net, network: torch.nn.Module, exported: Any, inferer: Any, scan: torch.Tensor) -> int | None:
    """Count the scan's voxels that the exported net labels differently; None if the net predicts no label map.

    The mean of each class is subtracted first. Otherwise random weights could give one class everywhere.
    """
    if net.bundle == "transseg":  # the size of slices that its transforms make
        scan = ResizeWithPadOrCrop([*net.image[1:3], -1])(scan[None])[0]
    image = scan.expand(1, net.image[0], *scan.shape)
    ours = inferer(image, network)
    if ours.ndim != 5:
        return None
    means = ours.mean((2, 3, 4), keepdim=True)
    labels = [(logits - means).argmax(1) for logits in (ours, inferer(image, exported))]
    assert len(labels[0].unique()) > 1
    return int((labels[0] != labels[1]).sum())


def attempt(net: Net, way: str, scan: torch.Tensor | None, pipe: Any) -> None:
    """Do one export and its check in a separate process; send the result through the pipe."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)  # exporters print graphs
    (network, inferer), began = build(net), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            exported, opset, shapes = export(network, net, way, f"{folder}/net")
        except Exception as error:  # each exporter raises its own kinds
            pipe.send(Result(time.perf_counter() - began, why=f"{type(error).__name__}: {error}"))
            return
        seconds, differences, scale = time.perf_counter() - began, [], 0.0
        for shape in shapes:
            image = torch.rand(shape)
            try:
                ours, theirs = network(image), exported(image)
            except Exception as error:
                why = f"exported, but fails on {tuple(shape)}: {type(error).__name__}: {error}"
                pipe.send(Result(seconds, opset=opset, why=why))
                return
            if ours.shape != theirs.shape:
                pipe.send(Result(seconds, opset=opset, why=f"gives the shape {tuple(theirs.shape)} for {tuple(shape)}"))
                return
            differences.append(float((ours - theirs).abs().max()))
            scale = max(scale, float(ours.abs().max()))
        free = not WAYS[way] or WAYS[way]["free"]
        try:
            voxels = differing(net, network, exported, inferer, scan) if scan is not None and free else None
        except Exception as error:
            why = f"exported, but fails on the scan: {type(error).__name__}: {error}"
            pipe.send(Result(seconds, max(differences), scale, opset, why))
            return
        pipe.send(Result(seconds, max(differences), scale, opset, differing=voxels))


def run(net: Net, way: str, limit: float, scan: torch.Tensor | None) -> Result:
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(net, way, scan, send))
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(limit) else Result(limit, why=f"> {limit:g} s")
    except EOFError:
        return Result(0.0, why="the process ended without a result")
    finally:
        process.terminate()
        process.join()


def cell(result: Result, reasons: list[str]) -> str:
    if result.why is None:
        return f"{result.difference / result.scale:.0e}, {result.seconds:.0f} s".replace("0e+00", "0")
    if result.why.startswith("> "):
        return result.why
    why = " ".join(result.why.split()).split(' File "')[0].rstrip(": ").removesuffix(" at")[:250]
    if why not in reasons:
        reasons.append(why)
    return f"no ({reasons.index(why) + 1})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of a try")
    parser.add_argument("--bundle", nargs="*", help="only these")
    parser.add_argument("--net", nargs="*", help="only those whose name is one of these")
    parser.add_argument("--scan", action="store_true", help="predict a scan of the sample, too")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # of a process that is forked
    versions = {package.__name__: package.__version__ for package in (torch, onnx, onnxruntime)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    scan = sample_scan() if arguments.scan else None
    columns = [*arguments.ways, *(["voxels that differ"] if arguments.scan else [])]
    print(f"| bundle | net | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    reasons: list[str] = []
    opsets: dict[str, set[int]] = {}
    for net in NETS:
        if (arguments.bundle and net.bundle not in arguments.bundle) or (
            arguments.net and net.name not in arguments.net
        ):
            continue
        results = {way: run(net, way, arguments.limit, scan) for way in arguments.ways}
        for way, result in results.items():
            if result.opset is not None:
                opsets.setdefault(way.split(",")[0], set()).add(result.opset)
        cells = [cell(result, reasons) for result in results.values()]
        if arguments.scan:
            voxels = [result.differing for result in results.values() if result.differing is not None]
            cells.append(f"{max(voxels)} of {scan.numel():,}" if voxels else "no label map")
        print(f"| `{net.bundle}` | {net.name} | {' | '.join(cells)} |", flush=True)
    print("\nOpset: " + ", ".join(f"{way} exporter {sorted(found)}" for way, found in opsets.items()) + "\n")
    for number, why in enumerate(reasons, start=1):
        print(f"{number}. {why}")


if __name__ == "__main__":
    main()
