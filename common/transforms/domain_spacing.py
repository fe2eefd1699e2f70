from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from .spacing import Spacingd


class DomainSpacingd(MapTransform):
    """`Spacingd` with a spacing for each domain (Chen et al., arXiv 1904.00625, section 3.1).

    Args:
        keys: images and labels, channel first.
        spacings: name of a domain -> spacing in mm, as `common.data.domain_spacings` makes it.
        mode: as in `Spacingd`; give labels `nearest`, which keeps their set of values.
        domain_key: key of an item that names its domain.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: an item's domain has no spacing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacings: Mapping[str, Sequence[float]],
        mode: str | Sequence[str] = "bilinear",
        domain_key: str = "domain",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.domain_key = domain_key
        self.resample = {
            name: Spacingd(keys, pixdim=tuple(spacing), mode=mode, allow_missing_keys=allow_missing_keys)
            for name, spacing in spacings.items()
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        domain: Any = data.get(self.domain_key)
        if domain not in self.resample:
            raise ValueError(
                f"An item is of the domain {domain!r}, which has no spacing; spacings are known for "
                f"{', '.join(self.resample)}: read the items with common.data.load_domains."
            )
        return self.resample[domain](data)  # type: ignore[arg-type]
