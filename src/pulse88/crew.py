"""Work shared out to processes that may die without taking the whole with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
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

    0 processes works in this one. If a process dies, the tasks that it had are tried again at last, one at a time, and
    what kills its process again comes back without a result. Exceptions of the function are raised here.
    """
    if processes == 0:
        for task in tasks:
            yield Done(task, function(task))
        return
    hands = _Hands(function, processes)
    with hands:
        yield from hands.through(iter(tasks))
    for task in hands.suspects:
        with _process() as process:
            try:
                yield Done(task, process.submit(function, task).result())
            except BrokenProcessPool:
                yield Done(task, None)


class _Hands(Generic[Task, Result]):
    """Processes, each a pool of its own, and what each has to do."""

    def __init__(self, function: Callable[[Task], Result], processes: int) -> None:
        self.suspects: list[Task] = []  # of which one may have killed its process
        self._function = function
        self._processes = [_process() for _ in range(processes)]
        self._out: dict[Future[Result], tuple[ProcessPoolExecutor, Task]] = {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.shutdown(cancel_futures=True)

    def through(self, tasks: Iterator[Task]) -> Iterator[Done[Task, Result]]:
        """Does all tasks but the suspects."""
        self._hand_out(tasks)
        while self._out:
            for future in wait(self._out, return_when=FIRST_COMPLETED).done:
                process, task = self._out.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    self._died(process, task)
                    continue
                yield Done(task, result)
            self._hand_out(tasks)

    def _hand_out(self, tasks: Iterator[Task]) -> None:
        """To whom has least, until all have as much as they may have."""
        while True:
            has = Counter(process for process, _ in self._out.values())
            process = min(self._processes, key=lambda process: has[process])
            if has[process] == WAITING or (task := next(tasks, None)) is None:
                return
            try:
                self._out[process.submit(self._function, task)] = process, task
            except BrokenProcessPool:
                self._died(process, task)

    def _died(self, process: ProcessPoolExecutor, task: Task) -> None:
        """Another process takes its place, unless one has already."""
        self.suspects.append(task)
        if process in self._processes:
            process.shutdown()
            self._processes[self._processes.index(process)] = _process()


def _process() -> ProcessPoolExecutor:
    """A pool of one: a pool of several, of which one dies while another is born, waits for that one for ever."""
    # Spawned, because a process that has threads can't be forked safely, and Windows and macOS spawn anyway.
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        with suppress(BrokenPipeError):  # Python's tracker of semaphores died at this moment; it starts another one.
            return ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """In each process: Ctrl-C is the parent's business, and nobody outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)
