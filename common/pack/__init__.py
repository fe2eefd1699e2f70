"""Make a bundle self-contained: ``python -m common.pack bundles/NAME``.

A bundle of this collection names shared code by ``common.`` paths and so needs the collection installed. The packed
bundle carries what its configs use of that code under ``scripts/common/``, the place that MONAI's model zoo and MONAI
Label expect, and its configs name it there.

MONAI Label reads one file a purpose, ``configs/inference.json`` and ``configs/train.json``, and no overlays.
``--config_file`` and ``--override`` write them into these files, so that another network, task or size can be served.
"""

from .archive import pack

__all__ = ["pack"]
