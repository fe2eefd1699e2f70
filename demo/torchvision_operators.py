"""Let PyPI's torchvision be imported beside a torch without CUDA. `label.py` puts it into MONAI Label's environment.

The wheel is built for CUDA. Its library does not load beside a CPU build of torch, so `import torchvision` fails with
"operator torchvision::nms does not exist" (https://github.com/pytorch/vision/issues/9085). Label imports torchvision
when it starts and uses nothing of that library for volumes, so it is enough that the names exist. Because of a file
`torchvision_operators.pth` beside this module, every process of the environment imports it, including those that the
server starts for training. Torch is loaded only when torchvision is.
"""

from __future__ import annotations

import importlib.abc
import sys

OPERATORS = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor dets) -> Tensor")


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            # Kept for the life of the process: a library that is collected takes its operators along.
            global library
            library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(operator)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
