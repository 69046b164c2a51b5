"""The workers as the server sees them: works go to whoever is free, in turns, and a worker that is lost is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pulse88.serve.limits import Limits
from pulse88.serve.messages import Message, packed, receive_async
from pulse88.serve.metrics import Metrics
from pulse88.serve.problems import Problem, WorkerLost
from pulse88.serve.turns import Turns
from pulse88.vocabulary import TimeGrid

TRIES = 3  # of a work whose worker died
LONGEST_PAUSE = 10.0  # seconds before a worker is started that could not be started again and again
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_log = logging.getLogger(__name__)


Prepare = Callable[["Worker"], tuple[dict[str, Any], Sequence[bytes]]]


@dataclass(eq=False)
class Work:
    """Something for a worker to do, once."""

    visitor: str
    kind: str  # for the log and the metrics
    prepare: Prepare
    tell: Callable[[dict[str, Any]], None]  # what the worker tells on the way
    answer: asyncio.Future[tuple[Worker, Message]]
    tries: int = 0
    number: int = 0
    waiting_since: float = field(default_factory=time.monotonic)
    deadline: asyncio.TimerHandle | None = None


class Worker:
    """One worker process."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number, self.process = number, process
        self.ready = self.was_ready = False
        self.work: Work | None = None
        self.latest = ""  # the take, and how far, whose state it still has
        self.duets = 0
        self.asides: dict[int, asyncio.Future[dict[str, Any]]] = {}  # works of duets, by number

    def send(self, head: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Sends a message, without waiting until it is taken; nothing if the worker is gone."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):
            for piece in packed(head, blobs):
                self.process.stdin.write(piece)

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            if os.name != "posix":
                self.process.kill()
            elif self.process.returncode is None:
                os.kill(self.process.pid, signal.SIGKILL)  # Popen.kill looks first, and takes its end from asyncio.


class Pool:
    """So many workers, and what waits for them."""

    def __init__(
        self, count: int, files: Mapping[str, Path | None], engine: str, limits: Limits, metrics: Metrics
    ) -> None:
        self.count, self.limits, self.metrics = count, limits, metrics
        self.model: dict[str, Any] | None = None  # as the first worker that was ready told it
        self.grid: TimeGrid | None = None
        self.inspects = False  # whether they can say how original a take is
        self.unable = ""  # why a worker could not begin
        asked: dict[str, Any] = {name: str(path.resolve()) if path else None for name, path in files.items()}
        self._asked = json.dumps(asked | {"engine": engine, "limits": asdict(limits)})
        self._turns: Turns[Work] = Turns()
        self._workers: list[Worker] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._closing = self.started = False

    def start(self) -> None:
        """Starts the workers; `wait_until_ready` waits for one of them."""
        self._keepers = [asyncio.create_task(self._keep_one()) for _ in range(self.count)]
        self.started = True

    async def wait_until_ready(self) -> None:
        """Returns when a worker is ready; Problem if none can begin."""
        while not self.ready:
            if self.unable:
                raise Problem(503, self.unable)
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Ends all workers; what waits is answered with an error."""
        self._closing = True
        while (work := self._turns.next()) is not None:
            _fail(work, Problem(503, "the server is going down: come back later"))
        processes = [worker.process for worker in self._workers]
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*(process.wait() for process in processes))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    @property
    def ready(self) -> int:
        """Workers that are ready."""
        return sum(worker.ready for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Works that wait for a worker."""
        return len(self._turns)

    @property
    def duets(self) -> int:
        """Duets under way."""
        return sum(worker.duets for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    @property
    def is_idle(self) -> bool:
        """Whether a worker has nothing to do, and nobody plays a duet with it."""
        return any(worker.ready and worker.work is None and not worker.duets for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """Whether anything waits."""
        return len(self._turns) > 0

    def before(self, visitor: str) -> int:
        """How many works come before the next one of a visitor."""
        return self._turns.before(visitor)

    async def do(
        self,
        visitor: str,
        kind: str,
        head: dict[str, Any],
        blobs: Sequence[bytes] = (),
        *,
        prepare: Prepare | None = None,
        tell: Callable[[dict[str, Any]], None] = lambda told: None,
        first: bool = False,
        admitted: bool = False,
    ) -> tuple[Worker, Message]:
        """The answer of a worker. `prepare` says what to send, when it is known to whom, instead of `head` and `blobs`.

        `first`: before what else the visitor has waiting. `admitted`: part of something that has been let in.
        Problem as the worker says it, 429 where too much waits already, WorkerLost if workers die of it. Cancelling
        takes the work out or stops it.
        """
        if not admitted and self._turns.of(visitor) >= self.limits.waiting_per_visitor:
            raise Problem(429, "you have too much waiting already: let some of it finish", retry_after=5)
        if not admitted and len(self._turns) >= self.limits.waiting:
            raise Problem(429, "too many people wait already: come back in a minute", retry_after=30)
        loop = asyncio.get_running_loop()
        work = Work(visitor, kind, prepare or (lambda worker: (head, blobs)), tell, loop.create_future())
        self._turns.add(visitor, work, first=first)
        self._hand_out()
        try:
            worker, message = await work.answer
        except asyncio.CancelledError:
            self._abandon(work)
            raise
        answer = message.head
        if answer["is"] == "refused":
            raise Problem(answer["status"], answer["detail"])
        if answer["is"] == "failed":
            _log.error("a worker failed at %s: %s", kind, answer["detail"])
            raise Problem(500, "this went wrong here, not with you: try again, and report it with the request's id")
        return worker, message

    def aside(self) -> Worker:
        """The worker for a new duet: with the fewest of them. Problem 503 if none is ready. Give it back by `leave`."""
        ready = [worker for worker in self._workers if worker.ready]
        if not ready:
            raise Problem(503, "no worker is ready: come back in a few seconds", retry_after=3)
        worker = min(ready, key=lambda worker: worker.duets)
        worker.duets += 1
        return worker

    def leave(self, worker: Worker) -> None:
        """A duet is over, or goes on with another worker."""
        worker.duets -= 1
        self._hand_out()

    async def do_aside(self, worker: Worker, head: dict[str, Any]) -> dict[str, Any]:
        """The answer of a worker to a work of a duet, which does not wait for its turn.

        WorkerLost if the worker is gone, Problem as it says it.
        """
        if not worker.ready:
            raise WorkerLost("the worker of this duet was lost")
        number = next(self._numbers)
        worker.asides[number] = asyncio.get_running_loop().create_future()
        worker.send(head | {"work": number})
        try:
            answer = await worker.asides[number]
        finally:
            worker.asides.pop(number, None)
        if answer["is"] == "refused":
            raise Problem(answer["status"], answer["detail"])
        return answer

    def _abandon(self, work: Work) -> None:
        """Nobody waits for the work any more."""
        if not self._turns.drop(work.visitor, work):
            for worker in self._workers:
                if worker.work is work:
                    worker.send({"is": "stop", "work": work.number})

    def _hand_out(self) -> None:
        """Gives works to free workers; those that play duets come last, so that nothing long gets between."""
        free = [worker for worker in self._workers if worker.ready and worker.work is None]
        others = any(worker.ready and not worker.duets for worker in self._workers)
        for worker in sorted(free, key=lambda worker: worker.duets):
            if worker.duets and others:
                continue
            work = self._turns.next()
            if work is None:
                break
            work.number = next(self._numbers)
            worker.work = work
            self.metrics.waited(work.kind, time.monotonic() - work.waiting_since)
            head, blobs = work.prepare(worker)
            worker.latest = ""
            worker.send(head | {"work": work.number}, blobs)
            work.deadline = asyncio.get_running_loop().call_later(
                self.limits.work_seconds, self._too_long, worker, work
            )
        self.metrics.queued(len(self._turns))

    def _too_long(self, worker: Worker, work: Work) -> None:
        if worker.work is work:
            _log.warning(
                "worker %d is ended: %s takes longer than %g s", worker.number, work.kind, self.limits.work_seconds
            )
            work.tries = TRIES
            worker.kill()

    async def _keep_one(self) -> None:
        """Keeps one worker alive, with pauses that grow where it can't begin."""
        pause = 0.5
        while not self._closing:
            began = time.monotonic()
            try:
                worker = await self._started()
            except OSError as error:
                _log.error("no worker can be started (%s)", error)
                await asyncio.sleep(LONGEST_PAUSE)
                continue
            self._workers.append(worker)
            try:
                await self._listen(worker)
            except Exception:  # noqa: BLE001 - whatever it is, the next worker has to be kept too
                _log.exception("worker %d is given up", worker.number)
            finally:
                self._lose(worker)
            if self._closing:
                return
            pause = 0.5 if time.monotonic() - began > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            if not worker.was_ready:
                await asyncio.sleep(pause)

    async def _started(self) -> Worker:
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
        command = (sys.executable, "-m", "pulse88.serve.worker", self._asked)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment, limit=2**22)
        return Worker(next(self._numbers), process)

    async def _listen(self, worker: Worker) -> None:
        """Takes what a worker says until it says no more."""
        assert worker.process.stdout is not None
        while (message := await receive_async(worker.process.stdout)) is not None:
            head = message.head
            if head["is"] == "unable":
                self.unable = head["detail"]
                _log.error("a worker can't begin: %s", self.unable)
                self._changed.set()
            elif head["is"] == "ready":
                worker.ready = worker.was_ready = True
                self.model, self.unable, self.inspects = head["model"], "", head["inspects"]
                self.grid = TimeGrid.from_json(head["grid"])
                _log.info("worker %d (process %d) is ready", worker.number, worker.process.pid)
                self.metrics.workers(self.ready)
                self._changed.set()
                self._hand_out()
            elif head["work"] in worker.asides:
                aside = worker.asides[head["work"]]
                if not aside.done():
                    aside.set_result(head)
            elif worker.work is not None and head["work"] == worker.work.number:
                self._heard(worker, worker.work, message)

    def _heard(self, worker: Worker, work: Work, message: Message) -> None:
        if "cpu_s" not in message.head:
            work.tell(message.head)
            return
        worker.work = None
        if work.deadline is not None:
            work.deadline.cancel()
        self.metrics.did(work.kind, message.head["is"], message.head["cpu_s"])
        if not work.answer.done():
            work.answer.set_result((worker, message))
        # The one who was answered may have more to do; where nobody else waits, it goes on with the same worker.
        asyncio.get_running_loop().call_soon(self._hand_out)

    def _lose(self, worker: Worker) -> None:
        """A worker is gone: its work is tried again with another, a few times."""
        self._workers.remove(worker)
        was_ready, worker.ready = worker.ready, False
        worker.kill()
        if was_ready and not self._closing:
            _log.warning("worker %d (process %d) is lost and will be replaced", worker.number, worker.process.pid)
            self.metrics.lost()
        self.metrics.workers(self.ready)
        for aside in worker.asides.values():
            if not aside.done():
                aside.set_exception(WorkerLost("the worker of this duet was lost"))
        work, worker.work = worker.work, None
        if work is None:
            return
        if work.deadline is not None:
            work.deadline.cancel()
        work.tries += 1
        if self._closing:
            _fail(work, Problem(503, "the server is going down: come back later"))
        elif work.answer.done():
            pass
        elif work.tries >= TRIES:
            _fail(
                work,
                WorkerLost("this could not be done: it takes too long, or ends whoever tries; send something else"),
            )
        else:
            self._turns.give_back(work.visitor, work)
            self._hand_out()


def _fail(work: Work, problem: Problem) -> None:
    if not work.answer.done():
        work.answer.set_exception(problem)
