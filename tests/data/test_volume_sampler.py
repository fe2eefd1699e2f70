from __future__ import annotations

from collections import Counter

import pytest
from monai.data import DataLoader, Dataset

from common.data.volume_sampler import VolumeSampler, first_volumes

SUBJECTS = [{"subject": name} for name in "aabbcde"]


def batches(sampler, size):
    order = list(sampler)
    assert len(order) == len(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_batch_has_a_volume_twice(size):
    sampler = VolumeSampler(SUBJECTS, size, batches=200)
    for batch in batches(sampler, size):
        assert len(batch) == size == len({SUBJECTS[item]["subject"] for item in batch})


def test_items_are_used_equally_often():
    counts = Counter(VolumeSampler(SUBJECTS, 2, batches=350))
    assert set(counts) == set(range(7)) and max(counts.values()) - min(counts.values()) <= 2


def test_one_pass_by_default_and_a_loader_that_agrees():
    data = [{"x": number} for number in range(7)]
    sampler = VolumeSampler(data, 3)
    loader = DataLoader(Dataset(data), batch_size=3, sampler=sampler)
    seen = [batch["x"].tolist() for batch in loader]
    assert len(loader) == 2 and [len(batch) for batch in seen] == [3, 3]
    assert len({number for batch in seen for number in batch}) == 6


def test_a_function_of_seed_and_epoch():
    def orders(seed):
        sampler, result = VolumeSampler(SUBJECTS, 2, batches=5, seed=seed), []
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            result.append(list(sampler))
        return result

    assert orders(0) == orders(0) and orders(0)[0] != orders(0)[1] and orders(0) != orders(1)


def test_fixed_is_the_order_of_the_first_epoch_in_every_epoch():
    sampler, other = (VolumeSampler(SUBJECTS, 2, batches=5, seed=seed, fixed=True) for seed in (0, 1))
    first = list(VolumeSampler(SUBJECTS, 2, batches=5))
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        assert list(sampler) == first != list(other)


def test_processes_share_each_batch():
    alone = batches(VolumeSampler(SUBJECTS, 4, batches=6), 4)
    shares = [batches(VolumeSampler(SUBJECTS, 4, batches=6, num_replicas=2, rank=rank), 2) for rank in (0, 1)]
    assert [one + other for one, other in zip(*shares, strict=True)] == alone
    with pytest.raises(ValueError, match=r"batch_size is 3 over all processes, and 2 .* a multiple of 2"):
        VolumeSampler(SUBJECTS, 3, num_replicas=2, rank=0)


def test_processes_have_whole_batches_of_validation():
    alone = batches(VolumeSampler(SUBJECTS, 2, batches=6, fixed=True), 2)
    shares = [
        batches(VolumeSampler(SUBJECTS, 2, batches=6, fixed=True, num_replicas=2, rank=rank), 2) for rank in (0, 1)
    ]
    assert shares == [alone[0::2], alone[1::2]]


def test_a_volume_with_most_items_does_not_grow_the_queue():
    items = [{"subject": "a"}] * 60 + [{"subject": "b"}]
    counts = Counter(VolumeSampler(items, 2, batches=600))
    assert counts[60] == 600 and max(counts[item] for item in range(60)) < 30


def test_one_name_in_two_domains_is_two_volumes():
    items = [{"subject": "001", "domain": "a"}, {"subject": "001", "domain": "b"}]
    assert sorted(VolumeSampler(items, 2)) == [0, 1]


def test_a_named_list_asks_for_scans():
    with pytest.raises(ValueError, match=r"the validation list has 1 volumes, too few for .* give 2 scans"):
        VolumeSampler([{"subject": "a"}] * 3, 2, name="the validation list")
    with pytest.raises(ValueError, match=r"list has 3 scans, which make no batch of 2 for each of 2 .* give 4 scans"):
        VolumeSampler([{}] * 3, 2, name="the validation list", fixed=True, num_replicas=2, rank=0)
    assert len(VolumeSampler([{}] * 4, 2, name="the validation list", fixed=True, num_replicas=2, rank=0)) == 2


def test_without_a_key_or_a_value_each_item_is_a_volume():
    items = [{"subject": None}, {"subject": None}, {}]
    assert sorted(VolumeSampler(items, 3)) == [0, 1, 2]
    assert sorted(VolumeSampler([{"subject": "a"}] * 3, 3, key=None)) == [0, 1, 2]


def test_not_distinct_repeats_a_single_volume():
    assert list(VolumeSampler([{}], 2, batches=3, distinct=False)) == [0] * 6


def test_too_few():
    with pytest.raises(ValueError, match="1 volumes cannot fill a batch of 2 different ones: lower batch_size"):
        VolumeSampler([{"subject": "a"}] * 4, 2)
    with pytest.raises(ValueError, match="0 volumes"):
        VolumeSampler([], 1, distinct=False)
    with pytest.raises(ValueError, match="no batch of 3 for each of 4 processes"):
        VolumeSampler(SUBJECTS, 3, fixed=True, num_replicas=4, rank=0)


def test_the_first_items_that_fill_a_batch():
    """Of scans of one subject after the other: as --plan of a comparison takes them."""
    assert [len(first_volumes(SUBJECTS, count)) for count in (1, 2, 3, 5, 6)] == [1, 3, 5, 7, 7]
    VolumeSampler(first_volumes(SUBJECTS, 3), 3)
    assert len(first_volumes([{}] * 4, 2)) == 2
