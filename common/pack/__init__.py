"""Make a bundle self-contained: ``python -m common.pack bundles/NAME``.

A bundle of this collection names shared code by ``common.`` paths, so it needs the installed collection. A packed
bundle carries the part of that code that its configs use, in ``scripts/common/``. MONAI's model zoo and MONAI Label
expect it there, and the packed configs name it there.

MONAI Label reads one file per purpose, ``configs/inference.json`` and ``configs/train.json``, and no overlays.
``--config_file`` and ``--override`` write overlays and values into these files, to serve another network, task or size.
"""

from .archive import pack

__all__ = ["pack"]
