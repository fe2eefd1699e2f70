from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from ..volumes import format_values, volume_name, whole_labels


class MapLabelsd(MapTransform):
    """Change label images to the class numbers of a task: each group of source labels becomes one class.

    Data type and metadata stay. Any number of labels takes one look-up per voxel.

    Args:
        keys: label images of any shape.
        groups: class -> its source labels, as made by `common.data.label_map` or read from JSON (keys may be strings).
            Empty groups are allowed. Background, 0, stays 0 unless a group names it. For mixed sets with different
            label schemes: domain -> groups; an item's `domain_key` then selects the groups.
        other: class of source labels that no group names; `"error"` refuses them.
        allow_missing_keys: whether items may lack keys.
        domain_key: key of an item that names its domain.

    Raises:
        ValueError: a label is in two groups, or a label image has values that are not whole numbers or, with
            `other="error"`, labels outside all groups (names the file, the labels and the domain).
    """

    def __init__(
        self,
        keys: KeysCollection,
        groups: Mapping[int | str, Sequence[int]] | Mapping[str, Mapping[int | str, Sequence[int]]],
        other: int | str = 0,
        allow_missing_keys: bool = False,
        domain_key: str = "domain",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.domain_key = domain_key
        if not (other == "error" or (isinstance(other, int) and other >= 0)):
            raise ValueError(f'`other` is {other!r}; it must be a class or "error".')
        # The last place of a table is for whatever lies outside of it.
        self._unknown = -1 if other == "error" else int(other)
        by_domain: Mapping[Any, Any] = (
            groups if any(isinstance(group, Mapping) for group in groups.values()) else {None: groups}
        )
        self._tables = {domain: _look_up_table(part, self._unknown) for domain, part in by_domain.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        domain = None if None in self._tables else d.get(self.domain_key)
        for key in self.key_iterator(d):
            if domain not in self._tables:
                raise ValueError(
                    f"{volume_name(d[key], key)} is of the domain {domain!r}, which has no label groups; groups are "
                    f"given for {', '.join(map(str, self._tables))}: give the items of the datalist "
                    f"their `{self.domain_key}`."
                )
            d[key] = self._map(d[key], key, domain)
        return d

    def _map(self, label: Any, key: Hashable, domain: Any) -> Any:
        table = self._tables[domain]
        # A plain tensor: indexing a MetaTensor would cost several times as much.
        values = label.as_tensor() if hasattr(label, "as_tensor") else torch.as_tensor(label)
        index = values.long()
        if values.is_floating_point() and not torch.equal(index.to(values.dtype), values):
            whole = whole_labels(values.numpy(force=True), volume_name(label, key))
            values = torch.as_tensor(whole, device=values.device)
            index = values.long()
        if values.is_floating_point() and not torch.equal(index.to(values.dtype), values):
            fractional = format_values(values[index.to(values.dtype) != values].numpy(force=True))
            raise ValueError(f"{volume_name(label, key)} has labels that are not whole numbers ({fractional}).")
        last = table.numel() - 1
        index = torch.where((index < 0) | (index > last), last, index)
        mapped = table.to(index.device)[index]
        if self._unknown < 0 and (mapped < 0).any():
            unknown = format_values(values[mapped < 0].numpy(force=True), 10)
            if domain is None:
                raise ValueError(
                    f"{volume_name(label, key)} has labels that no class names ({unknown}): set the label scheme of "
                    "the masks (config id `label_scheme`), name these labels in `groups` (config id `label_map`), or "
                    "give `other` (config id `unknown_labels`) a class."
                )
            raise ValueError(
                f"{volume_name(label, key)} has labels that no class of the domain {domain!r} names ({unknown}): set "
                "that domain's `num_classes`, or its `label_scheme` and `task`, so that each of its labels has a class."
            )
        return convert_to_dst_type(mapped, label, dtype=label.dtype)[0]


def _look_up_table(groups: Mapping[Any, Any], unknown: int) -> torch.Tensor:
    """Class of every source label up to the largest, with one more place for all other labels."""
    class_of = {0: 0}
    named: dict[int, int] = {}
    for target, labels in groups.items():
        for label in labels:
            if int(label) < 0 or named.setdefault(int(label), int(target)) != int(target):
                raise ValueError(f"`groups` names the label {label} in two classes, or it is negative.")
    class_of |= named
    table = torch.full((max(class_of) + 2,), unknown, dtype=torch.long)
    table[list(class_of)] = torch.tensor(list(class_of.values()))
    return table
