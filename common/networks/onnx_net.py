from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint_file import RECORD, parse_record
from ..volumes import first_line, format_shape

__all__ = ["OnnxNet"]


class OnnxNet(nn.Module):
    """A network that `onnxruntime` computes from an ONNX file, for inferers that expect a torch network.

    The file has one input, and its first output is the prediction, as written by `python -m monai.bundle onnx_export`.
    If the file fixes the batch size at 1, a batch is computed image by image. It runs on CUDA if `device` is a CUDA
    device and the installed onnxruntime supports it, else on the CPU with as many threads as torch. The prediction is
    moved to the image's device. There are no parameters and no gradients.

    Args:
        path: the ONNX file.
        device: where to compute.
        out_channels: channels of the prediction, such as the number of classes; any if left out.

    ``record`` is the file's record of how its images were prepared (``common.exported``), empty if it has none.

    Raises:
        ImportError: onnxruntime is not installed.
        FileNotFoundError, ValueError: there is no such file, or onnxruntime cannot read it.
    """

    def __init__(
        self, path: str | os.PathLike, device: torch.device | str = "cpu", out_channels: int | None = None
    ) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"ONNX files need onnxruntime, which cannot be imported ({error}); run `pip install onnxruntime` "
                "(extra onnx), or leave out inference_onnx.json."
            ) from error
        self.path = Path(path).absolute()
        self.out_channels = out_channels
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no ONNX file {self.path}: write it with `python -m monai.bundle onnx_export` (docs/exports.md), or "
                "set onnx_path."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; the optimiser's remarks are about the exporter's work
        wanted = ["CUDAExecutionProvider"] * (torch.device(device).type == "cuda") + ["CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers)
        except Exception as error:  # onnxruntime's own kinds, which share no base class
            raise ValueError(
                f"{self.path} is not an ONNX file that onnxruntime can read ({first_line(error)})."
            ) from error
        self.record = parse_record(self._session.get_modelmeta().custom_metadata_map.get(RECORD), self.path)
        self.input_shape: Sequence[Any] = self._session.get_inputs()[0].shape

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Prediction of float32 for an image (B, C, *spatial).

        Raises:
            ValueError: the file was exported for another shape, or its prediction has other channels.
        """
        sizes = [
            size if isinstance(size, int) else given  # free ones have names
            for size, given in zip(self.input_shape, image.shape, strict=False)
        ]
        batch = sizes[0]
        fits = len(self.input_shape) == image.ndim and sizes[1:] == list(image.shape[1:])
        if not fits or image.shape[0] % batch:
            raise ValueError(
                f"{self.path} takes images of the shape {format_shape(self.input_shape)}, not "
                f"{format_shape(image.shape)}: set roi_size to its size, or export it again for this size or "
                "with that axis free (docs/exports.md)."
            )
        parts = image.split(batch)
        prediction = torch.cat([self._run(part) for part in parts])
        if self.out_channels is not None and prediction.shape[1] != self.out_channels:
            raise ValueError(
                f"{self.path} predicts {prediction.shape[1]} channels, but {self.out_channels} are needed: it "
                "belongs to another net; set onnx_path, or the task (num_classes) that it was exported with."
            )
        return prediction

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        array = image.detach().to("cpu", torch.float32).contiguous().numpy()
        prediction = self._session.run(None, {self._session.get_inputs()[0].name: array})[0]
        return torch.from_numpy(prediction).to(image.device)
