from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TransferReport"]

MAX_NAMES = 10
"""How many names of a kind a report prints."""


@dataclass
class TransferReport:
    """What happened to each tensor when an encoder file was loaded.

    Names of the encoder are in ``loaded``, ``adapted`` (with how) or ``new`` (with why). Names of the file without a
    place are in ``unused`` (with why). ``sizes`` holds the number of elements of every tensor of the encoder.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def share(self, names: list[str] | dict[str, str]) -> float:
        """Share (0 to 1) of the encoder's elements that belong to ``names``."""
        return sum(self.sizes[name] for name in names) / max(1, sum(self.sizes.values()))

    @property
    def covered(self) -> float:
        """Share of the encoder's elements that come from the file, unchanged or adapted."""
        return self.share(self.loaded) + self.share(self.adapted)

    def __str__(self) -> str:
        return self.text(MAX_NAMES)

    def text(self, limit: int | None = None) -> str:
        """The report with at most ``limit`` names of a kind and the number of the rest; None is all of them."""
        lines = [f"transfer report for {self.source}"]
        rows = (("loaded", self.loaded), ("adapted", self.adapted), ("newly initialised", self.new))
        lines += [f"  {title:<18}{len(names):5d} tensors  {self.share(names):7.1%}" for title, names in rows]
        lines += [f"  {'unused':<18}{len(self.unused):5d} tensors of the file"]
        lists = {
            "adapted": [f"{name}: {how}" for name, how in self.adapted.items()],
            "new": [f"{name}: {why}" for name, why in self.new.items()],
            "unused": [f"{name}: {why}" for name, why in self.unused.items()],
        }
        for kind, names in lists.items():
            lines += [f"    {kind:<8} {name}" for name in names[:limit]]
            if names[limit:] and limit is not None:
                lines.append(f"    {kind:<8} and {len(names) - limit} more")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)
