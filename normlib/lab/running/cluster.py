"""A Dask cluster as a place to run: what `--cluster ADDRESS` uses. It needs `pip install 'normlib[cluster]'`.

The workers must have the code of the one who asks. One with other code is refused by name, whether it was there from the start or
came later, and its tasks go to the others. When a worker dies, the scheduler gives its task to another one.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from normlib.errors import NormlibError
from normlib.lab.running.trial import OtherCodeError

CONNECT_SECONDS = 20
LOOK_SECONDS = 2.0


class ClusterError(NormlibError):
    """The cluster cannot be reached, went away, or has no worker that can be used."""


class ClusterWarning(UserWarning):
    """The cluster does less than it could."""


class RefusedWorkerWarning(ClusterWarning):
    """A worker of the cluster has other code and gets no trials."""


@contextmanager
def dask_cluster(address: str) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Connect to a Dask scheduler and open an executor on its workers.

    Args:
        address: of the scheduler, as "tcp://10.0.0.1:8786".

    Raises:
        ClusterError: Dask is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("--cluster needs Dask; install it with: pip install 'normlib[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address!r} ({error}); start one with `dask scheduler`, and pass the address it prints"
        ) from error
    executor = ClusterExecutor(client)
    try:
        yield executor, executor.slots
    finally:
        executor.shutdown()
        client.close(timeout=5)


@dataclass(frozen=True)
class _Call:
    """A call that the cluster has: how to send it again, its Dask future, and the workers it may go to (None for any)."""

    send: Callable[..., Any]
    inner: Any
    workers: frozenset[str] | None


class ClusterExecutor(Executor):
    """The interface of `concurrent.futures` over a Dask client, which keeps away from workers that were refused.

    Args:
        client: a connected client.

    Attributes:
        refused: addresses of workers with other code.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._turn = threading.RLock()
        self._calls: dict[Future[Any], _Call] = {}
        self._seen: tuple[float, dict[str, int]] = (-math.inf, {})
        self._told = False
        self.refused: set[str] = set()

    def slots(self) -> int:
        """Return how many tasks to keep in flight: twice the threads of the usable workers.

        The engine asks at every turn, so this is also where calls are taken from workers that are gone.

        Raises:
            ClusterError: the scheduler went away, or every worker was refused.
        """
        usable = self._usable()
        with self._turn:
            stranded = [(outer, c) for outer, c in self._calls.items() if c.workers is not None and not c.workers & usable.keys()]
            for outer, _ in stranded:
                del self._calls[outer]
        for outer, call in stranded:
            self._client.cancel([call.inner], force=True)
            self._hand_out(outer, call.send)
        return 2 * max(1, sum(usable.values()))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call to the cluster.

        Its future raises `BrokenExecutor` if the workers that took it died time and again, and `ClusterError` if the scheduler
        went away or no worker can be used.
        """
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()
        self._hand_out(outer, lambda **where: self._client.submit(fn, *args, **kwargs, pure=False, **where))
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Give up what has not come back."""
        with self._turn:
            calls, self._calls = list(self._calls.values()), {}
        if calls and self._client.status == "running":
            self._client.cancel([call.inner for call in calls], force=True)

    def _usable(self) -> dict[str, int]:
        """Return the threads of each worker that was not refused, asking the scheduler at most every few seconds."""
        if time.monotonic() - self._seen[0] > LOOK_SECONDS:
            try:
                self._seen = time.monotonic(), dict(self._client.nthreads())
            except Exception as error:  # whatever the connection raises when it is lost
                raise _gone(error) from error
        usable = {worker: threads for worker, threads in self._seen[1].items() if worker not in self.refused}
        if self.refused and not usable:
            raise _no_worker(self.refused)
        if not usable and not self._told:
            warnings.warn("the cluster has no workers yet; waiting for one", ClusterWarning, stacklevel=3)
        self._told = not usable
        return usable

    def _hand_out(self, outer: Future[Any], send: Callable[..., Any]) -> None:
        workers = frozenset(self._usable()) if self.refused else None
        inner = send() if workers is None else send(workers=sorted(workers), allow_other_workers=False)
        with self._turn:
            self._calls[outer] = _Call(send, inner, workers)
        inner.add_done_callback(lambda done: self._take(outer, done))

    def _take(self, outer: Future[Any], inner: Any) -> None:
        """Pass on what became of a call; one that a worker of other code refused goes to another worker."""
        with self._turn:
            call = self._calls.get(outer)
            if call is None or call.inner is not inner:
                return  # it was given up, or handed out anew
            del self._calls[outer]
        try:
            problem = None if inner.status == "finished" else _problem(inner)
            if isinstance(problem, OtherCodeError):
                self._refuse(problem)
                self._hand_out(outer, call.send)
            elif problem is not None:
                outer.set_exception(problem)
            else:
                outer.set_result(inner.result())
        except Exception as error:
            outer.set_exception(error if isinstance(error, NormlibError) else _gone(error))

    def _refuse(self, error: OtherCodeError) -> None:
        with self._turn:
            known = error.worker in self.refused
            self.refused.add(error.worker)
        if not known:
            message = f"{error}. This worker gets no trials; give it the code of this commit and start it again"
            warnings.warn(message, RefusedWorkerWarning, stacklevel=2)


def _problem(inner: Any) -> BaseException:
    """Say why a call has no result, in terms of the engine."""
    from distributed.scheduler import KilledWorker

    if inner.status in ("cancelled", "lost"):
        return _gone(CancelledError("its calls were cancelled"))
    error: BaseException = inner.exception()
    if isinstance(error, KilledWorker):
        return BrokenExecutor(str(error))
    if isinstance(error, (ImportError, AttributeError)):
        return ClusterError(
            f"a worker of the cluster cannot load the code ({error}); install normlib of this commit on each worker"
        )
    return error


def _gone(error: BaseException) -> ClusterError:
    return ClusterError(
        f"the cluster went away ({type(error).__name__}: {error}). What was measured is kept; start it again, then run the same "
        "command again."
    )


def _no_worker(refused: set[str]) -> ClusterError:
    return ClusterError(
        f"every worker of the cluster has other code than this process: {', '.join(sorted(refused))}; give them the code of this "
        "commit (the same files of normlib) and start them again"
    )
