"""Takes under way: a take is played in turns, each a work of its own, until it is done, stopped or can't go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pulse88 import key
from pulse88.serve.limits import Limits
from pulse88.serve.memory import Memory, Take, events_of, reading
from pulse88.serve.metrics import Metrics
from pulse88.serve.pool import Pool, Worker
from pulse88.serve.problems import Problem

Event = dict[str, Any]
Sink = Callable[[Event], None]

_log = logging.getLogger(__name__)


class Takes:
    """Everybody's takes under way."""

    def __init__(self, pool: Pool, memory: Memory, limits: Limits, metrics: Metrics) -> None:
        self._pool, self._memory, self._limits, self._metrics = pool, memory, limits, metrics
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._by_visitor: Counter[str] = Counter()

    def begin(self, takes: Sequence[Take], sink: Sink) -> None:
        """Lets takes of one visitor be played; `sink` gets their events. Problem 429 if there are too many."""
        visitor = takes[0].visitor
        if self._by_visitor[visitor] + len(takes) > self._limits.waiting_per_visitor:
            most = self._limits.waiting_per_visitor
            raise Problem(429, f"at most {most} takes at once: let some finish or stop them", retry_after=5)
        if len(self._under_way) + len(takes) > self._limits.waiting:
            raise Problem(429, "too many people wait already: come back in a minute", retry_after=30)
        for take in takes:
            self._memory.takes.add(take)
            ahead = self._pool.before(visitor)
            sink({"type": "queued", "take": take.id, "number": take.number, "position": ahead})
            self._by_visitor[visitor] += 1
            task = asyncio.create_task(self._run(take, sink))
            self._under_way[take.id] = task
            task.add_done_callback(partial(self._over, take, sink))

    def stop(self, take: Take) -> None:
        """Stops it, if it is under way; what is made stays."""
        if task := self._under_way.get(take.id):
            task.cancel()

    async def close(self) -> None:
        """Stops all."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _over(self, take: Take, sink: Sink, task: asyncio.Task[None]) -> None:
        del self._under_way[take.id]
        self._by_visitor[take.visitor] -= 1
        if not self._by_visitor[take.visitor]:
            del self._by_visitor[take.visitor]
        if task.cancelled():  # Told here: a task that is cancelled before its first step runs none of its lines.
            self._end(take, sink, "stopped")
        if not take.notes and take.reason == "stopped":
            self._memory.takes.drop(take.id)  # Nobody has anything of it; takes with notes keep their places.
        self._memory.takes.settle()

    async def _run(self, take: Take, sink: Sink) -> None:
        """Plays a take to its end and tells so, unless it is cancelled."""
        try:
            best_of = take.settings["best_of"]
            if best_of == 1:
                reason = await _Playing(self, take, sink, 0).play()
            else:
                reason = await self._best(take, sink, best_of)
            await self._inspect(take)
            self._end(take, sink, reason)
        except Problem as problem:
            take.state, take.reason = "done", "error"
            sink({"type": "error", "take": take.id, "problem": problem.to_json()})
        except Exception:  # noqa: BLE001 - whatever it is, who listens has to hear that it is over
            _log.exception("take %s can't go on", take.id)
            take.state, take.reason = "done", "error"
            fault = Problem(500, "this went wrong here, not with you: try again")
            sink({"type": "error", "take": take.id, "problem": fault.to_json()})

    def _end(self, take: Take, sink: Sink, reason: str) -> None:
        take.state, take.reason = "done", reason
        told = {name: getattr(take, name) for name in ("reason", "seconds", "choice", "originality")}
        sink({"type": "done", "take": take.id, "notes": len(take.notes)} | told)

    async def _inspect(self, take: Take) -> None:
        """How original the take is, where there is something to compare it with."""
        if not self._pool.inspects or not take.notes:
            return
        head = {name: getattr(take, name) for name in ("settings", "random_seed", "seed_ids", "pitch_classes")}
        head |= {"is": "inspect", "number": take.drawn, "made": take.made.hex()}
        _, inspected = await self._pool.do(take.visitor, "inspect", head, [take.seed.midi], admitted=True)
        take.originality = inspected.head["originality"]

    async def _best(self, take: Take, sink: Sink, best_of: int) -> str:
        """Plays several candidates, and tells the notes of the best one."""
        candidates = [_Playing(self, take, sink, candidate, aloud=False) for candidate in range(best_of)]
        reasons = [await candidate.play() for candidate in candidates]
        head = {
            "is": "judge",
            "settings": take.settings,
            "random_seed": take.random_seed,
            "number": take.drawn,
            "seed_ids": take.seed_ids,
            "pitch_classes": take.pitch_classes,
            "candidates": [candidate.made.hex() for candidate in candidates],
        }
        _, judged = await self._pool.do(take.visitor, "judge", head, [take.seed.midi], admitted=True)
        best = judged.head["best"]
        take.choice = {
            "candidate": best,
            "points": judged.head["points"],
            "why": judged.head["why"],
        }
        candidates[best].told()
        for candidate in candidates:
            candidate.forget()
        return reasons[best]


class _Playing:
    """One take, or one candidate of it, turn after turn."""

    def __init__(self, takes: Takes, take: Take, sink: Sink, candidate: int, *, aloud: bool = True) -> None:
        self._pool, self._memory, self._limits = takes._pool, takes._memory, takes._limits
        self._metrics = takes._metrics
        self._take, self._sink, self._candidate, self._aloud = take, sink, candidate, aloud
        self._owner = take.id if aloud else f"{take.id}.{candidate}"
        self._number = take.number * take.settings["best_of"] + candidate
        self._asked_at = time.monotonic()
        self._is_shared = take.settings["best_of"] > 1 or take.siblings > 1
        self.made = b""
        self.notes: list[list[float]] = []
        self.seconds = 0.0

    async def play(self) -> str:
        """Plays to the end; why it ended."""
        try:
            return await self._play()
        finally:
            self._memory.snapshots.finish(self._owner)

    async def _play(self) -> str:
        take = self._take
        while True:
            first = len(self.made) == 0
            worker, (head, blobs) = await self._pool.do(
                take.visitor, "play", {}, prepare=self._prepare, tell=self._hear, admitted=True
            )
            at_seed, here = blobs
            if at_seed and first:
                self._memory.snapshots.put(take.visitor, reading(take), 0, at_seed)
            assert events_of(self.made) == head["notes"], "a note was lost on its way"
            self.seconds = head["seconds"]
            if here:
                over = head["reason"] != "turn"
                self._memory.snapshots.put(take.visitor, self._owner, events_of(self.made), here, under_way=not over)
                worker.latest = self._place
            self._sink(
                {
                    "type": "progress",
                    "take": take.id,
                    "notes": events_of(self.made),
                    "seconds": round(self.seconds, 3),
                    "share": round(self._share(head["reason"] != "turn"), 4),
                    "candidate": self._candidate,
                }
            )
            if head["reason"] != "turn":
                return head["reason"]

    def told(self) -> None:
        """Tells the notes of a candidate that was played in silence; it is the take from now on."""
        take = self._take
        take.made, take.seconds, take.drawn = self.made, round(self.seconds, 6), self._number
        for index, note in enumerate(self.notes):
            self._tell(index, note)

    def forget(self) -> None:
        """Its snapshots are of no use any more."""
        self._memory.snapshots.forget(self._owner)

    @property
    def _place(self) -> str:
        return f"{self._owner} {len(self.made)}"

    def _share(self, over: bool) -> float:
        settings = self._take.settings
        shares = [1.0] if over else [0.0]
        if settings["notes"]:
            shares.append(events_of(self.made) / settings["notes"])
        if seconds := settings["end_within"] or settings["seconds"]:
            shares.append(self.seconds / seconds)
        of = settings["best_of"]
        return (self._candidate + min(max(shares), 1.0)) / of

    def _prepare(self, worker: Worker) -> tuple[dict[str, Any], Sequence[bytes]]:
        """The next turn, when it is known whose it is: short while others wait, and first turns shortest."""
        take, busy = self._take, self._pool.is_busy
        take.drawn = self._number
        made = events_of(self.made)
        snapshot = b""
        if worker.latest != self._place:
            found = self._memory.snapshots.nearest(self._owner, made) or self._memory.snapshots.nearest(
                reading(take), 0
            )
            snapshot = found[1] if found else b""
        head = {
            "is": "play",
            "take": self._owner,
            "settings": take.settings | ({} if take.seed.read_notes is None else {"seed_notes": self._seed_notes()}),
            "random_seed": take.random_seed,
            "number": self._number,
            "seed_ids": take.seed_ids or take.seed.seed_ids,
            "pitch_classes": take.pitch_classes,
            "made": self.made.hex(),
            "most_notes": self._limits.first_notes if busy and not made else self._limits.new_notes,
            "most_seconds": self._limits.slice_seconds if busy else self._limits.longest_slice_seconds,
            # What has read the seed alone is kept for other takes of it, unless many wait: it is as large as the take.
            "share": (self._is_shared or not busy) and self._memory.snapshots.nearest(reading(take), 0) is None,
            "keep": self._aloud,
        }
        return head, [take.seed.midi, snapshot]

    def _seed_notes(self) -> int:
        assert self._take.seed.read_notes is not None
        return max(1, min(self._take.settings["seed_notes"], self._take.seed.read_notes))

    def _hear(self, told: Event) -> None:
        """What a worker tells in a turn."""
        take = self._take
        if told["is"] == "begun":
            if take.state == "waiting":
                take.state = "making"
                take.boundary, take.new_part = told["boundary"], told["new_part"]
                take.seed_ids, take.pitch_classes = told["seed_ids"], told["pitch_classes"]
                self._sink(begun(take, told["read_notes"]))
        elif told["index"] == len(self.notes):
            if not self.notes:
                self._metrics.first_note(time.monotonic() - self._asked_at)
            self._metrics.notes()
            self.notes.append(told["note"])
            self.made += bytes.fromhex(told["ids"])
            self.seconds = told["note"][0] - take.boundary
            if self._aloud:
                take.made, take.seconds = self.made, round(self.seconds, 6)
                self._tell(told["index"], told["note"])

    def _tell(self, index: int, note: list[float]) -> None:
        self._take.notes.append(note)
        self._sink({"type": "note", "take": self._take.id, "index": index, "note": note})


def begun(take: Take, read_notes: int) -> Event:
    """The event that a take begins with."""
    names = ("number", "parent", "boundary", "new_part", "random_seed", "settings")
    told = {name: getattr(take, name) for name in names}
    found = key.of_scale(take.pitch_classes) if take.pitch_classes is not None else None
    return {
        "type": "begun",
        "take": take.id,
        "seed": take.seed.id,
        "read_notes": read_notes,
        "key": found.name if found else None,
        "remarks": take.seed.facts["remarks"],
    } | told
