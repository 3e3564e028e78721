"""A real Dask scheduler with real worker processes: what is measured there is what is measured here, whatever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_studies as toys

from normlib.errors import NormlibError
from normlib.lab import Record, Store, run
from normlib.lab.running.cluster import ClusterError, RefusedWorkerWarning

pytest.importorskip("distributed")
HERE = Path(toys.__file__).parent
VOLATILE = ("start", "seconds", "peak_mb")


class Cluster:
    """A scheduler and its workers, as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard", path=HERE)

    def _start(self, what: str, *arguments: str, path: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self.file), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(path), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
        with (self.folder / f"{what}{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def worker(self, path: Path = HERE) -> subprocess.Popen[bytes]:
        """Start a worker whose own modules lie at `path`."""
        folder = self.folder / f"w{len(self.processes)}"
        options = ("--nthreads", "1", "--no-dashboard", "--local-directory", str(folder), "--no-nanny", "--host", "127.0.0.1")
        return self._start("worker", *options, path=path)

    @property
    def address(self) -> str:
        import json

        end = time.monotonic() + 60
        while not (self.file.exists() and self.file.read_text()):
            assert time.monotonic() < end, "the scheduler did not start"
            time.sleep(0.05)
        return str(json.loads(self.file.read_text())["address"])

    def wait_for(self, workers: int) -> str:
        from distributed import Client

        with Client(self.address, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=90)
        return self.address

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(timeout=30)


@pytest.fixture
def cluster(tmp_path: Path, toy_folder: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    yield cluster
    cluster.close()


def records_of(study: Any, store: Store) -> list[Record]:
    records = store.read(study.id, "quick")
    assert len(store.path(study.id, "quick").read_bytes().splitlines()) == len(records), "a record was doubled or lost"
    return records


def stable(record: Record) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in VOLATILE}


def pids(folder: Path, name: str) -> set[int]:
    return {int(line) for line in (folder / name).read_text().split()}


def test_two_workers_measure_what_one_process_measures(tmp_path: Path, cluster: Cluster, toy_folder: Path) -> None:
    cluster.worker(), cluster.worker()
    address = cluster.wait_for(2)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    run(toys.noise, store=here, seeds=3)
    assert run(toys.noise, store=there, seeds=3, cluster=address).ran == 9
    found = [sorted((stable(r) for r in records_of(toys.noise, s)), key=str) for s in (here, there)]
    assert found[0] == found[1]

    os.environ["TOY_SLEEP"] = "0.1"  # the workers have their own environment; this one only shows that it is not theirs
    try:
        assert run(toys.slow, store=there, cluster=address).ran == 12
    finally:
        del os.environ["TOY_SLEEP"]
    assert pids(toy_folder, "pids") == {p.pid for p in cluster.processes[1:]}, "one of the workers had nothing to do"


def test_a_worker_killed_in_mid_run_costs_a_repetition(store: Store, cluster: Cluster, toy_folder: Path) -> None:
    cluster.worker(), cluster.worker()
    outcome = run(toys.fragile, store=store, cluster=cluster.wait_for(2))  # one trial kills its worker, once
    assert (outcome.ran, outcome.left, outcome.failures) == (6, 0, [])
    assert sorted(r.config["i"] for r in records_of(toys.fragile, store)) == list(range(6))
    assert len(pids(toy_folder, "killed")) == 2
    dead = [p for p in cluster.processes[1:] if p.poll() is not None]
    assert len(dead) == 1, "no worker was killed"


def test_a_scheduler_that_goes_away_is_told_and_the_run_goes_on_later(
    store: Store, cluster: Cluster, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    monkeypatch.setenv("TOY_SLEEP", "0.5")
    cluster.worker()
    address = cluster.wait_for(1)
    appended: Callable[[Record], bool] = store.append

    def kill_after_the_second(record: Record) -> bool:
        done = appended(record)
        if len(store.read("toy.slow", "quick")) == 2:
            cluster.scheduler.kill()
        return done

    monkeypatch.setattr(store, "append", kill_after_the_second)
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}), pytest.raises(ClusterError, match="went away"):
        run(toys.slow, store=store, cluster=address)
    kept = records_of(toys.slow, store)
    assert 2 <= len(kept) < 12
    monkeypatch.setenv("TOY_SLEEP", "0")
    assert run(toys.slow, store=store).ran == 12 - len(kept)
    assert sorted(r.config["i"] for r in records_of(toys.slow, store)) == list(range(12))


@pytest.fixture
def other_code(tmp_path: Path) -> Path:
    """A folder with toy studies whose trial of `noise` is another one."""
    folder = tmp_path / "other"
    folder.mkdir()
    source = (HERE / "toy_studies.py").read_text()
    changed = source.replace("np.random.rand()", "np.random.rand() + 1").replace('"x": c.i}', '"x": c.i + 1}')
    assert changed != source
    (folder / "toy_studies.py").write_text(changed)
    return folder


def test_a_worker_with_other_code_is_refused_by_name(store: Store, cluster: Cluster, other_code: Path) -> None:
    cluster.worker(), cluster.worker(other_code)
    address = cluster.wait_for(2)
    with pytest.warns(RefusedWorkerWarning, match=r"the code of toy\.noise on tcp://127\.0\.0\.1:\d+ is \w{16}, not \w{16}"):
        outcome = run(toys.noise, store=store, seeds=3, cluster=address)
    assert (outcome.ran, outcome.left, outcome.failures) == (9, 0, [])
    here = Store(store.folder.parent / "here")
    run(toys.noise, store=here, seeds=3)
    assert {r.table["numpy"] for r in records_of(toys.noise, store)} == {r.table["numpy"] for r in records_of(toys.noise, here)}


def test_trials_meant_for_a_worker_that_died_go_to_one_that_came_later(
    store: Store, cluster: Cluster, other_code: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SLEEP", "0.5")
    cluster.worker(other_code)
    good = cluster.worker()
    address = cluster.wait_for(2)
    appended: Callable[[Record], bool] = store.append

    def replace_the_good_one(record: Record) -> bool:
        done = appended(record)
        if len(store.read("toy.slow", "quick")) == 3:
            cluster.worker()
            cluster.wait_for(3)
            good.kill()
        return done

    monkeypatch.setattr(store, "append", replace_the_good_one)
    monkeypatch.setattr("normlib.lab.running.dispatch.LOOK", 0.5)
    with pytest.warns(RefusedWorkerWarning):
        assert run(toys.slow, store=store, cluster=address).ran == 12
    assert sorted(r.config["i"] for r in records_of(toys.slow, store)) == list(range(12))


def test_a_cluster_of_other_code_alone_is_an_error(store: Store, cluster: Cluster, other_code: Path) -> None:
    cluster.worker(other_code)
    with pytest.warns(RefusedWorkerWarning), pytest.raises(ClusterError, match="every worker of the cluster has other code"):
        run(toys.noise, store=store, cluster=cluster.wait_for(1))
    assert not store.read("toy.noise", "quick")


def test_a_worker_that_lacks_the_study_is_refused_and_memory_is_sought_on_the_cluster(
    store: Store, cluster: Cluster, other_code: Path, toy_folder: Path
) -> None:
    module = other_code / "toy_studies.py"
    module.write_text(module.read_text().replace('declare("hungry"', 'declare("thirsty"'))
    good = cluster.worker()
    cluster.worker(other_code)
    with pytest.warns(RefusedWorkerWarning, match=r"tcp://\S+ has no toy\.hungry \(KeyError: 'toy\.hungry'"):
        outcome = run(toys.hungry, store=store, cluster=cluster.wait_for(2))
    assert (outcome.ran, outcome.left, len(outcome.failures)) == (4, 0, 1)
    assert pids(toy_folder, "too-large") == {good.pid}  # again alone, and not in this process


def test_an_address_where_nothing_answers_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normlib.lab.running.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        run(toys.noise, store=store, cluster="tcp://127.0.0.1:9")
    with pytest.raises(NormlibError, match="no Dask scheduler answers at 'nonsense:x'"):
        run(toys.noise, store=store, cluster="nonsense:x")
    assert not store.read("toy.noise", "quick")
