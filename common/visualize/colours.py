from __future__ import annotations

__all__ = ["CLASSES", "class_colours"]

# Okabe and Ito's palette, which colour-blind readers tell apart.
CLASSES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def class_colours(count: int) -> list[str]:
    """Colours of the classes 1 to ``count`` as ``#rrggbb``, all different."""
    if count <= len(CLASSES):
        return list(CLASSES[:count])
    from matplotlib import colormaps  # here, since every run imports the handlers, and few need it
    from matplotlib.colors import to_hex

    many = [to_hex(colormaps[name](n)) for name in ("tab20", "tab20b") for n in range(20)]
    if count <= len(many):
        return many[:count]
    return [to_hex(colormaps["nipy_spectral"](0.05 + 0.9 * n / (count - 1))) for n in range(count)]
