from __future__ import annotations

import pytest
from ignite.engine import Engine

from common.handlers import OutputFolder


@pytest.mark.parametrize("rank", [0, 1])
def test_the_whole_path_is_logged_once_at_the_end(tmp_path, monkeypatch, caplog, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.handlers.output_folder.idist.get_rank", lambda: rank)
    engine = Engine(lambda engine, batch: seen.append(caplog.text))
    seen: list[str] = []
    OutputFolder("out/eval", "label maps").attach(engine)
    with caplog.at_level("INFO"):
        engine.run([0, 1], max_epochs=1)
    assert caplog.text.count(f"label maps: {tmp_path / 'out/eval'}") == (rank == 0)
    assert not any("label maps" in text for text in seen)
