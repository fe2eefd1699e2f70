from __future__ import annotations

import pytest
import torch

from common.precision import bfloat16_pays


@pytest.mark.parametrize(
    ("capabilities", "pays"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_bfloat16_pays_where_the_cpu_multiplies_it(monkeypatch, capabilities, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bfloat16_pays("cpu") is pays


def test_bfloat16_on_a_gpu_is_asked_of_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert bfloat16_pays("cuda:0")
    assert not bfloat16_pays("mps")
