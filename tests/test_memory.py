"""What is read of the limits of containers and of jobs."""

from __future__ import annotations

import pytest

from common import memory


@pytest.mark.parametrize(
    ("line", "below", "limit", "used"),
    [
        ("0::/slurm/job_7/step_0", "", "memory.max", "memory.current"),
        ("4:cpu,memory:/slurm/job_7/step_0", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_limit_of_a_job_counts(tmp_path, monkeypatch, line, below, limit, used):
    (tmp_path / "cgroup").write_text(f"{line}\n")
    job = tmp_path / below / "slurm" / "job_7"
    job.mkdir(parents=True)
    (job / limit).write_text("5000\n")
    (job / used).write_text("3000\n")
    (job / "memory.stat").write_text("anon 2000\ninactive_file 500\n")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    assert memory.available_memory() == 2500
