"""Handing out tasks and taking back results, whatever becomes of the workers.

Tasks run in company as long as that goes well. Those that were under way when a worker died, and those that found no memory, run
again one at a time: so the one that is to blame shows itself, and the others get their results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

from normlib.errors import NormlibError
from normlib.lab.running.executors import Place, packed
from normlib.lab.running.trial import Task, execute, is_out_of_memory

ALONE = 2  # times that a task may end its worker when it runs alone; one of them may be somebody else's doing
IN_A_ROW = 3  # tasks in a row that end their worker alone, before the machine is to blame
LOOK = 5.0  # seconds between two looks at the clock and the cluster while trials run
Bodies = list[dict[str, Any]]
IsOver = Callable[[], bool]


def measured(tasks: list[Task], place: Place, is_over: IsOver) -> Iterator[Bodies]:
    """Yield the bodies of each task's records as they come.

    Args:
        tasks: what to run.
        place: where.
        is_over: tells that no further task shall begin.

    Raises:
        NormlibError: no worker can be started, or worker after worker dies.
    """
    waiting, again = list(tasks), []
    while waiting and place.measures_first and not is_over():
        first = waiting.pop(0)
        for _, bodies in _attempt([first], place, is_over):
            assert bodies is not None  # this process does not die
            yield bodies
            if bodies[0]["status"] != "failed":
                place = packed(bodies, len(waiting), first.device)
    while waiting and not is_over():
        before = len(waiting)
        for task, result in _attempt(waiting, place, is_over):
            if result is None or (place.is_shared and is_out_of_memory(result[0]["reason"])):
                again.append(task)
            else:
                yield result
        if len(waiting) == before and not is_over():
            raise NormlibError(f"no worker could be started; {before} trials are left. Run with --workers 1 to see why.")
    yield from _one_by_one(again, place, is_over)


def _one_by_one(tasks: list[Task], place: Place, is_over: IsOver) -> Iterator[Bodies]:
    """Run tasks alone; one that ends its worker time and again is recorded as failed."""
    dead = 0
    for position, task in enumerate(tasks):
        if is_over():
            return
        result = _alone(task, place, is_over)
        if result is None:
            return
        dead = dead + 1 if str(result[0]["reason"]).startswith("WorkerDied") else 0
        if dead == IN_A_ROW:
            raise NormlibError(
                f"{task.study}: {IN_A_ROW} trials in a row ended their worker (killed, or out of memory?); "
                f"{len(tasks) - position} or more are left. What was measured is kept; run the same command again."
            )
        yield result


def _alone(task: Task, place: Place, is_over: IsOver) -> Bodies | None:
    age = 0.0
    for _ in range(ALONE):
        begun, waiting = time.monotonic(), [task]
        for _, result in _attempt(waiting, place, is_over, alone=True):
            if result is not None:
                return result
        if waiting:
            return None  # the time was over before it began
        age = time.monotonic() - begun
        if task.limit is not None and age >= task.limit:
            limit = f"TimeLimit: it took longer than {task.limit:g} s and did not answer to being interrupted"
            return task.failed(f"{limit}; its worker was ended", age)
    return task.failed(f"WorkerDied: {ALONE} workers that ran nothing else died of it (killed, or out of memory?)", age)


def _attempt(waiting: list[Task], place: Place, is_over: IsOver, alone: bool = False) -> Iterator[tuple[Task, Bodies | None]]:
    """Hand out tasks from `waiting`, which it empties, until an executor breaks; yield each with its bodies, None if lost."""
    with (place.open_alone or place.open)() if alone else place.open() as (executor, slots):
        running: dict[Future[Any], Task] = {}
        while waiting or running:
            width = 1 if alone else slots()
            while waiting and len(running) < width and not is_over():
                try:
                    future = executor.submit(execute, waiting[0])
                except BrokenExecutor:
                    break
                running[future] = waiting.pop(0)
            if not running:
                return
            for future in wait(running, timeout=LOOK, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    yield task, future.result()
                except BrokenExecutor:
                    yield task, None
