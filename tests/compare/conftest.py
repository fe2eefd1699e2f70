"""What tests of comparisons share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.compare.plan import Plan, make_plan
from common.compare.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan_of(cohort, tiny, tmp_path) -> Callable[..., Plan]:
    """``plan_of(**settings)`` lays out runs of a tiny UNETR on the cohort, from scratch and pre-trained by MAE."""

    def make(try_items: bool = False, chosen: dict | None = None, **given) -> Plan:
        arguments = {
            "bundle": str(ROOT / "bundles/pretrain_once"),
            "arms": "scratch,mae=pretrain.json",
            "output": str(tmp_path / "out"),
            "config_file": tiny["unetr"],
            "dataset_dir": str(cohort),
            "seeds": "0",
        }
        return make_plan(read_settings(**{**arguments, **given}), try_items=try_items, chosen=chosen)

    return make
