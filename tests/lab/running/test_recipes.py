"""The recipes for clusters that the book gives: what can be tried without the cluster is tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "chapters" / "running.md"


def test_the_slurm_recipe_writes_a_job_script_for_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if "SLURM" in block)
    made: list[Any] = []

    class Local(jobqueue.SLURMCluster):
        """The same cluster, whose scheduler takes any free port of this machine and which submits nothing."""

        def __init__(self, **options: Any) -> None:
            here = {"port": 0, "host": "tcp://127.0.0.1", "dashboard_address": None}
            super().__init__(**options, scheduler_options=here)
            made.append(self)

        def adapt(self, **bounds: int) -> None:
            self.bounds = bounds

    monkeypatch.setattr(jobqueue, "SLURMCluster", Local)
    exec(code, {})
    (cluster,) = made
    try:
        script = cluster.job_script()
        address = str(cluster.scheduler_address)
    finally:
        cluster.close()
    assert cluster.bounds == {"minimum": 0, "maximum": 16}
    assert "#SBATCH --gres=gpu:1" in script
    assert "#SBATCH -p gpu" in script
    assert "source ~/normlib/.venv/bin/activate" in script
    assert re.search(r"distributed.cli.dask_worker tcp://\S+ .*--nthreads 1 .*--nanny", script)
    assert address.startswith("tcp://127.0.0.1:")


def test_the_page_names_only_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from normlib.cli import main

    text = PAGE.read_text(encoding="utf-8")
    for command in ("run", "export", "import", "diff", "status"):
        options = {o for line in re.findall(rf"^normlib {command} .*$", text, re.M) for o in re.findall(r"--[\w-]+", line)}
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        assert options <= known, f"normlib {command} has no {sorted(options - known)}"
