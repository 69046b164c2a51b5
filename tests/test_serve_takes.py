"""Takes under way without workers: whatever ends one, it is done, whoever listens is told, and nothing of it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")

from pulse88.serve.limits import Limits
from pulse88.serve.memory import Memory, Seed, Take
from pulse88.serve.messages import Message
from pulse88.serve.metrics import Metrics
from pulse88.serve.pool import Pool, Worker
from pulse88.serve.problems import Problem
from pulse88.serve.schemas import Settings
from pulse88.serve.takes import Takes

Event = dict[str, Any]

SECONDS = 20.0  # that anything may take on a busy machine


class OneNote(Pool):
    """No workers: a take is played at once, and is one note; what an inspection does is given."""

    def __init__(self, inspect: Callable[[], Awaitable[None]]) -> None:
        super().__init__(0, {}, "numpy", Limits(), Metrics())
        self.inspects, self._inspect = True, inspect

    async def do(self, visitor: str, kind: str, *_: Any, **asked: Any) -> tuple[Worker, Message]:
        head: dict[str, Any] = {"is": "played", "notes": 1, "seconds": 0.5, "reason": "notes"}
        if kind == "inspect":
            await self._inspect()
            head = {"is": "inspected", "originality": {"longest": 1}}
        else:
            asked["tell"]({"is": "note", "index": 0, "note": [0.5, 60, 64, 0.5], "ids": "01020304"})
        return Worker(1, None), Message(head, [b"", b""])  # type: ignore[arg-type]


async def at_once() -> None:
    """An inspection that finds nothing to wait for."""


class Asked:
    """A visitor's takes in an empty memory, and what is told of them."""

    def __init__(self, inspect: Callable[[], Awaitable[None]] = at_once, takes: int = 1) -> None:
        self.memory, self.told = Memory(Limits(), Metrics()), list[Event]()
        self.under_way = Takes(OneNote(inspect), self.memory, Limits(), Metrics())
        settings, seed = Settings(notes=1).resolved(), Seed("me", b"", b"{}")
        self.takes = [Take("me", seed, settings, 0, number) for number in range(takes)]
        self.under_way.begin(self.takes, self.told.append)

    async def over(self) -> None:
        """Returns when none is under way."""
        await asyncio.wait_for(self._none_under_way(), SECONDS)

    async def _none_under_way(self) -> None:
        while self.under_way._under_way:
            await asyncio.sleep(0.001)

    def last(self, take: Take) -> Event:
        """What was told of a take at the end."""
        return [event for event in self.told if event["take"] == take.id][-1]


def test_a_take_that_is_played_is_told_with_its_originality() -> None:
    async def ask() -> None:
        asked = Asked()
        await asked.over()
        (take,) = asked.takes
        assert (take.state, take.reason, take.originality) == ("done", "notes", {"longest": 1})
        assert asked.last(take)["type"] == "done" and asked.memory.takes.find(take.id) is take

    asyncio.run(ask())


@pytest.mark.parametrize("closing", [False, True])
def test_a_take_that_is_stopped_before_its_first_step_does_not_wait_for_ever(closing: bool) -> None:
    async def ask() -> None:
        asked = Asked(takes=2)
        stopped, other = asked.takes
        if closing:
            await asked.under_way.close()
        else:
            asked.under_way.stop(stopped)
        await asked.over()
        assert (stopped.state, stopped.reason) == ("done", "stopped")
        assert asked.last(stopped)["type"] == "done", "who listens would wait for ever"
        assert asked.memory.takes.find(stopped.id) is None and stopped.id not in asked.memory.takes._growing
        assert other.reason == ("stopped" if closing else "notes")

    asyncio.run(ask())


def test_a_take_that_is_stopped_while_it_is_inspected_is_done() -> None:
    async def ask() -> None:
        inspected = asyncio.Event()

        async def inspect() -> None:
            inspected.set()
            await asyncio.Event().wait()

        asked = Asked(inspect)
        (take,) = asked.takes
        await asyncio.wait_for(inspected.wait(), SECONDS)
        asked.under_way.stop(take)
        await asked.over()
        assert (take.state, take.reason, len(take.notes)) == ("done", "stopped", 1)
        assert asked.last(take)["type"] == "done" and not asked.memory.takes._growing

    asyncio.run(ask())


def test_a_take_whose_inspection_fails_ends_with_an_error() -> None:
    async def ask() -> None:
        async def inspect() -> None:
            raise Problem(503, "the server is going down: come back later")

        asked = Asked(inspect)
        (take,) = asked.takes
        await asked.over()
        assert (take.state, take.reason, len(take.notes)) == ("done", "error", 1)
        assert asked.last(take)["problem"]["status"] == 503 and not asked.memory.takes._growing

    asyncio.run(ask())
