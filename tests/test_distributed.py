from __future__ import annotations

import ignite.distributed as idist
import pytest
import torch
import torch.distributed as dist

from common import distributed


def test_rank_and_device_are_torchruns(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.rank() == 5
    for cuda, device in ((False, "cpu"), (True, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert distributed.local_device() == torch.device(device)


@pytest.mark.parametrize(
    ("function", "variable"),
    [(distributed.rank, "RANK"), (distributed.local_device, "LOCAL_RANK")],
)
def test_without_torchrun(monkeypatch, function, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(RuntimeError, match=rf"^{variable} is not set: start multi_gpu_\*.json configs with torchrun"):
        function()


def test_a_group_of_one(monkeypatch, tmp_path):
    if torch.cuda.is_available() or dist.is_initialized():
        pytest.skip("needs a process of its own without GPU")
    init = dist.init_process_group
    store = f"file://{tmp_path}/store"
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend: init(backend, init_method=store, rank=0, world_size=1)
    )
    try:
        distributed.start()
        distributed.start()  # a second call finds the group
        assert dist.is_initialized() and dist.get_backend() == "gloo"
        assert idist.backend() == "gloo" and idist.get_world_size() == 1
    finally:
        distributed.stop()
        idist.sync(temporary=False)
    distributed.stop()
    assert not dist.is_initialized()
