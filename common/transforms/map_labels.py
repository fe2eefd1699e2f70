from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type


class MapLabelsd(MapTransform):
    """Give label images the numbers of a task: each group of source labels becomes one class.

    Data type and metadata stay; one look-up a voxel, whatever the number of labels.

    Args:
        keys: label images of any shape.
        groups: class -> its source labels, as `common.data.label_map` makes it or as JSON has it (keys may be
            strings). Empty groups are allowed. Background, 0, stays 0 unless a group names it.
        other: class of source labels that no group names; `"error"` refuses them.
        allow_missing_keys: whether items may lack keys.

    Raises:
        ValueError: a label is in two groups, a label image has values that are no whole numbers or, with
            `other="error"`, labels of no group; names the file and the labels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        groups: Mapping[int | str, Sequence[int]],
        other: int | str = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not (other == "error" or (isinstance(other, int) and other >= 0)):
            raise ValueError(f'`other` is {other!r}; it has to be a class or "error".')
        class_of = {0: 0}
        named: dict[int, int] = {}
        for target, labels in groups.items():
            for label in labels:
                if int(label) < 0 or named.setdefault(int(label), int(target)) != int(target):
                    raise ValueError(f"`groups` names the label {label} in two classes, or it is negative.")
        class_of |= named
        # The last place of the table is for whatever lies outside of it.
        self._unknown = -1 if other == "error" else int(other)
        self._table = torch.full((max(class_of) + 2,), self._unknown, dtype=torch.long)
        self._table[list(class_of)] = torch.tensor(list(class_of.values()))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._map(d[key], key)
        return d

    def _map(self, label: Any, key: Hashable) -> Any:
        # A plain tensor: indexing a MetaTensor would cost several times as much.
        values = label.as_tensor() if hasattr(label, "as_tensor") else torch.as_tensor(label)
        index = values.long()
        if values.is_floating_point() and not torch.equal(index.to(values.dtype), values):
            fractional = torch.unique(values[index.to(values.dtype) != values])[:5].tolist()
            raise ValueError(f"{_name(label, key)} has labels that are no whole numbers ({fractional}).")
        last = self._table.numel() - 1
        index = torch.where((index < 0) | (index > last), last, index)
        mapped = self._table.to(index.device)[index]
        if self._unknown < 0 and (mapped < 0).any():
            unknown = torch.unique(values[mapped < 0])
            some = ", ".join(f"{v:g}" for v in unknown[:10].tolist()) + (", ..." if unknown.numel() > 10 else "")
            raise ValueError(
                f"{_name(label, key)} has labels that no class names ({some}): choose the numbering of the masks, "
                "name these labels in `groups`, or set `other` to a class."
            )
        return convert_to_dst_type(mapped, label, dtype=label.dtype)[0]


def _name(label: Any, key: Hashable) -> str:
    file = getattr(label, "meta", {}).get("filename_or_obj")
    return str(file) if file else f"The volume under the key {key!r}"
