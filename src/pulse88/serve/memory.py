"""What the server remembers: seeds, takes and snapshots of states. All of it bounded; the oldest goes first.

Nothing here is needed twice: a seed and a take come back by an upload, and a snapshot by reading its notes again.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from pulse88.serve.limits import Limits
from pulse88.serve.metrics import Metrics
from pulse88.serve.problems import Problem
from pulse88.vocabulary import EVENT_TOKENS


def new_id() -> str:
    """32 hex digits that nobody guesses."""
    return secrets.token_hex(16)


@dataclass(eq=False)
class Seed:
    """Something to continue, as a worker has read it."""

    visitor: str
    midi: bytes
    told: bytes  # JSON of what POST /v1/seeds answers, but for the id; a tenth of what it takes as objects
    seed_ids: str | None = None  # hex of what the model reads, where that isn't simply the last notes
    read_notes: int | None = None  # at most so many are read
    cuts: dict[tuple[float, float], str] = field(default_factory=dict)  # ids of the seeds that are stretches of it
    id: str = field(default_factory=new_id)

    @property
    def facts(self) -> dict[str, Any]:
        """What POST /v1/seeds answers, but for the id."""
        facts: dict[str, Any] = json.loads(self.told)
        return facts

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.midi) + len(self.told)


@dataclass(eq=False)
class Take:
    """A continuation, under way or made."""

    visitor: str
    seed: Seed
    settings: dict[str, Any]
    random_seed: int
    number: int
    parent: dict[str, Any] | None = None
    siblings: int = 1  # takes that were asked for together
    made: bytes = b""
    notes: list[list[float]] = field(default_factory=list)
    seed_ids: str | None = None  # hex, once a worker has told what was read
    pitch_classes: list[int] | None = None
    boundary: float = 0.0
    new_part: int = 0
    seconds: float = 0.0
    state: str = "waiting"
    reason: str | None = None
    choice: dict[str, Any] | None = None
    originality: dict[str, Any] | None = None
    drawn: int = 0  # number of the stream of random numbers
    id: str = field(default_factory=new_id)

    @property
    def size(self) -> int:
        """Notes."""
        return len(self.notes)

    def to_json(self) -> dict[str, Any]:
        """What GET /v1/takes/{id} answers."""
        names = ("parent", "number", "boundary", "new_part", "random_seed", "settings", "notes", "seconds", "state")
        told = {name: getattr(self, name) for name in (*names, "reason", "choice", "originality")}
        return {"take": self.id, "seed": self.seed.id} | told


class _Kept(Protocol):
    visitor: str
    id: str

    @property
    def size(self) -> int: ...


Item = TypeVar("Item", bound=_Kept)


class Shelf(Generic[Item]):
    """Things by id, so many in all and so many a visitor, and of so much size together."""

    def __init__(self, noun: str, in_all: int, per_visitor: int, most: int, metrics: Metrics) -> None:
        self._noun, self._in_all, self._per_visitor, self._most = noun, in_all, per_visitor, most
        self._metrics = metrics
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._of: dict[str, OrderedDict[str, None]] = {}
        self._sizes: dict[str, int] = {}  # as they were last counted
        self._size = 0  # of all together

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> Item:
        """Remembers it; the visitor's oldest goes, or everybody's oldest, where there are too many."""
        self._items[item.id] = item
        self._count(item)
        mine = self._of.setdefault(item.visitor, OrderedDict())
        mine[item.id] = None
        if len(mine) > self._per_visitor:
            self.drop(next(iter(mine)))
        if len(self._items) > self._in_all:
            self.drop(next(iter(self._items)))
        self.settle()
        self._metrics.held(self._noun + "s", len(self._items))
        return item

    def settle(self) -> None:
        """Lets the oldest go where all have grown too large together; the latest stays."""
        while self._size > self._most and len(self._items) > 1:
            self.drop(next(iter(self._items)))

    def _count(self, item: Item) -> None:
        """Takes notice of a size that is new or has changed."""
        self._size += item.size - self._sizes.get(item.id, 0)
        self._sizes[item.id] = item.size

    def get(self, id_: str) -> Item:
        """The thing of that id, which counts as new again; Problem 404."""
        item = self._items.get(id_)
        if item is None:
            raise Problem(404, f"there is no {self._noun} {id_[:40]} (any more): send it again")
        self._items.move_to_end(id_)
        self._of[item.visitor].move_to_end(id_)
        return item

    def find(self, id_: str) -> Item | None:
        """The thing of that id; None if there is none."""
        return self.get(id_) if id_ in self._items else None

    def drop(self, id_: str) -> Item | None:
        """Forgets it; what it was."""
        item = self._items.pop(id_, None)
        if item is not None:
            self._size -= self._sizes.pop(id_)
            mine = self._of[item.visitor]
            del mine[id_]
            if not mine:
                del self._of[item.visitor]
            self._metrics.held(self._noun + "s", len(self._items))
        return item


class Takes(Shelf[Take]):
    """Takes. They keep the seeds that they were made of, forgotten ones too, so these are bounded here as well."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        super().__init__("take", limits.takes_in_all, limits.takes_per_visitor, limits.notes_in_all, metrics)
        self._most_bytes = limits.seed_bytes
        self._of_seed: Counter[Seed] = Counter()
        self._bytes = 0  # of all their seeds
        self._growing: dict[str, Take] = {}  # few: only so many are under way at once

    def add(self, item: Take) -> Take:
        self._growing[item.id] = item
        self._bytes += 0 if item.seed in self._of_seed else item.seed.size
        self._of_seed[item.seed] += 1
        return super().add(item)

    def settle(self) -> None:
        for take in list(self._growing.values()):
            self._count(take)
            if take.state == "done":
                del self._growing[take.id]
        super().settle()
        while self._bytes > self._most_bytes and len(self) > 1:
            self.drop(next(iter(self._items)))

    def drop(self, id_: str) -> Take | None:
        take = super().drop(id_)
        if take is not None:
            self._growing.pop(id_, None)
            self._of_seed[take.seed] -= 1
            if not self._of_seed[take.seed]:
                del self._of_seed[take.seed]
                self._bytes -= take.seed.size
        return take


class Snapshots:
    """States by their owner (a take, or a seed that was read) and the number of new notes in them.

    Bounded in number for each visitor and in bytes for all. The one used longest ago goes first, but the latest ones of
    takes under way only when there are no others: they are used in turns, so the oldest is the one needed next.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._per_visitor, self._most, self._metrics = limits.snapshots_per_visitor, limits.snapshot_bytes, metrics
        self._data: OrderedDict[tuple[str, int], tuple[str, bytes]] = OrderedDict()
        self._of: dict[str, OrderedDict[tuple[str, int], None]] = {}
        self._events: dict[str, set[int]] = {}  # of each owner: a visitor's few at most
        self._needed: OrderedDict[str, int] = OrderedDict()  # owners under way, and which of theirs is the latest
        self.size = 0  # bytes

    def put(self, visitor: str, owner: str, events: int, data: bytes, *, under_way: bool = False) -> None:
        """Keeps a snapshot; `under_way` until `finish`."""
        key = (owner, events)
        self._drop(key)
        if under_way:
            self._needed[owner] = events
            self._needed.move_to_end(owner)
        self._data[key] = (visitor, data)
        self._events.setdefault(owner, set()).add(events)
        mine = self._of.setdefault(visitor, OrderedDict())
        mine[key] = None
        self.size += len(data)
        if len(mine) > self._per_visitor:
            self._drop(self._least(mine))
        while self.size > self._most and self._data:
            self._drop(self._least(self._data))
        self._metrics.held("snapshot_bytes", self.size)

    def nearest(self, owner: str, events: int) -> tuple[int, bytes] | None:
        """The latest snapshot of an owner with at most so many new notes."""
        found = max((at for at in self._events.get(owner, ()) if at <= events), default=None)
        if found is None:
            return None
        key = (owner, found)
        visitor, data = self._data[key]
        self._data.move_to_end(key)
        self._of[visitor].move_to_end(key)
        return found, data

    def finish(self, owner: str) -> None:
        """The owner is under way no more."""
        self._needed.pop(owner, None)

    def _least(self, keys: Iterable[tuple[str, int]]) -> tuple[str, int]:
        """The one that can best be spared."""
        oldest = None
        for key in keys:
            if self._needed.get(key[0]) != key[1]:
                return key
            oldest = oldest or key
        assert oldest is not None
        return oldest

    def forget(self, owner: str) -> None:
        """Drops all of an owner."""
        for events in list(self._events.get(owner, ())):
            self._drop((owner, events))

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._data:
            visitor, data = self._data.pop(key)
            self.size -= len(data)
            mine = self._of[visitor]
            del mine[key]
            if not mine:
                del self._of[visitor]
            owner, events = key
            self._events[owner].remove(events)
            if not self._events[owner]:
                del self._events[owner]


class Memory:
    """All of it."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.seeds: Shelf[Seed] = Shelf("seed", limits.seeds, limits.seeds_per_visitor, limits.seed_bytes, metrics)
        self.takes = Takes(limits, metrics)
        self.snapshots = Snapshots(limits, metrics)

    def state_before(self, take: Take, events: int) -> bytes:
        """A snapshot to reach a take's place after `events` notes from; empty if there is none."""
        found = self.snapshots.nearest(take.id, events) or self.snapshots.nearest(reading(take), 0)
        return found[1] if found else b""


def reading(take: Take) -> str:
    """The owner of the state that has read a take's seed and nothing else."""
    return take.seed.id if take.seed.seed_ids else f"{take.seed.id} {take.settings['seed_notes']}"


def events_of(made: bytes) -> int:
    """Notes in ids."""
    return len(made) // EVENT_TOKENS
