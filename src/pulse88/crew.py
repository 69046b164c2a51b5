"""Work shared out to processes that may die without taking the whole with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
WAITING = 2  # tasks handed out for each process, so that none waits for the next and little memory is held


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task and what came of it; None if every process that took it up died."""

    task: Task
    result: Result | None


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(
    function: Callable[[Task], Result], tasks: Iterable[Task], processes: int
) -> Iterator[Done[Task, Result]]:
    """The results of `function` (of a module, with arguments that pickle) for all tasks, in no particular order.

    0 processes works in this one. If a process dies, the tasks that were out are tried again one at a time, and what
    kills its process again comes back without a result. Exceptions of the function are raised here.
    """
    if processes == 0:
        for task in tasks:
            yield Done(task, function(task))
        return
    suspects: list[Task] = []
    tasks = iter(tasks)
    more = True
    while more:
        more = False
        with _pool(processes) as pool:
            try:
                yield from _through(pool, function, tasks, WAITING * processes, suspects)
            except BrokenProcessPool:
                more = True
    for task in suspects:
        with _pool(1) as pool:
            try:
                yield Done(task, pool.submit(function, task).result())
            except BrokenProcessPool:
                yield Done(task, None)


def _through(
    pool: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    most: int,
    suspects: list[Task],
) -> Iterator[Done[Task, Result]]:
    """Runs tasks in a pool; if it breaks, what was out is left in `suspects`, and BrokenProcessPool is raised."""
    out: dict[Future[Result], Task] = {}
    try:
        while True:
            while len(out) < most and (task := next(tasks, None)) is not None:
                try:
                    out[pool.submit(function, task)] = task
                except BrokenProcessPool:
                    suspects.append(task)
                    raise
            if not out:
                return
            for future in wait(out, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield Done(out.pop(future), result)
    except BrokenProcessPool:
        suspects += out.values()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned, because a process that has threads can't be forked safely, and Windows and macOS spawn anyway.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)


def _begin() -> None:
    """In each process: Ctrl-C is the parent's business, and nobody outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)
