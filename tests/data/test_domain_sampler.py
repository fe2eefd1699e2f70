from __future__ import annotations

from collections import Counter

import pytest

from common.data.domain_sampler import DomainSampler

DATA = [{"image": n, "domain": "large"} for n in range(20)] + [{"image": n, "domain": "small"} for n in range(20, 23)]


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    return [order[at : at + sampler.batch_size] for at in range(0, len(order), sampler.batch_size)]


def domain_of(batch):
    (name,) = {DATA[number]["domain"] for number in batch}
    return name


def test_a_batch_is_of_one_domain_and_domains_have_equal_shares():
    found = batches(DomainSampler(DATA, 2, batches=10))
    assert Counter(map(domain_of, found)) == {"large": 5, "small": 5}
    assert [domain_of(batch) for batch in found] != sorted(domain_of(batch) for batch in found)  # mixed


@pytest.mark.parametrize(("balance", "small"), [(0, 3), (0.5, 6), (1, 12)])
def test_balance(balance, small):
    """Of 23 batches in proportion to items, to their square roots, and equally; each has one at least."""
    found = batches(DomainSampler(DATA, 1, balance=balance), epoch=3)
    assert len(found) == 23
    assert abs(Counter(map(domain_of, found))["small"] - small) <= 1


def test_every_item_comes_before_one_comes_again():
    """Also over the end of an epoch; passes are in different orders."""
    sampler = DomainSampler(DATA, 2, batches=4)
    seen = [n for epoch in range(10) for batch in batches(sampler, epoch) if domain_of(batch) == "large" for n in batch]
    assert len(seen) == 40
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20)) and seen[:20] != seen[20:]


def test_a_small_domain_fills_a_batch():
    found = batches(DomainSampler(DATA, 8, batches=2))
    small = next(batch for batch in found if domain_of(batch) == "small")
    assert Counter(small).most_common()[-1][1] >= 2


def test_order_is_a_function_of_seed_and_epoch():
    one, same, other = (DomainSampler(DATA, 2, batches=6, seed=seed) for seed in (0, 0, 1))
    assert batches(one, 4) == batches(same, 4) != batches(other, 4)
    assert batches(one, 4) != batches(one, 5)


def test_processes_share_each_batch():
    """So that they have one domain at a time."""
    whole = list(DomainSampler(DATA, 4, batches=6))
    parts = [list(DomainSampler(DATA, 4, batches=6, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert [number for at in range(0, 12, 2) for part in parts for number in part[at : at + 2]] == whole


def test_refusals():
    with pytest.raises(ValueError, match="from 0"):
        DomainSampler(DATA, 2, balance=2)
    for lacking in ({}, {"domain": ""}):  # the latter from `load_datalist`, beside items that have one
        with pytest.raises(ValueError, match=r"Item 1 \(x.nii\) has no 'domain'"):
            DomainSampler([DATA[0], {"image": "x.nii", **lacking}], 1)
    with pytest.raises(ValueError, match="1 batches per epoch are fewer than the 2 domains"):
        DomainSampler(DATA, 2, batches=1)
    with pytest.raises(ValueError, match="batch_size is 2 over all processes, and 4 processes cannot"):
        DomainSampler(DATA, 2, batches=3, num_replicas=4, rank=0)
