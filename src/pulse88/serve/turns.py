"""Whose turn it is: visitors take turns, whatever each of them has waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Turns(Generic[Work]):
    """Works by visitor. The visitor who has waited longest comes next, with the oldest of their works."""

    def __init__(self) -> None:
        self._visitors: OrderedDict[str, deque[Work]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._visitors.values()))

    def of(self, visitor: str) -> int:
        """How many works of a visitor wait."""
        return len(self._visitors.get(visitor, ()))

    def add(self, visitor: str, work: Work, *, first: bool = False) -> None:
        """Queues a work behind the visitor's own, or before them; a new visitor comes after all others."""
        mine = self._visitors.setdefault(visitor, deque())
        if first:
            mine.appendleft(work)
        else:
            mine.append(work)

    def give_back(self, visitor: str, work: Work) -> None:
        """Queues a work that has had its turn and lost it: before all others."""
        self.add(visitor, work, first=True)
        self._visitors.move_to_end(visitor, last=False)

    def next(self) -> Work | None:
        """The next work; None if there is none. Its visitor goes to the end."""
        if not self._visitors:
            return None
        visitor, works = self._visitors.popitem(last=False)
        work = works.popleft()
        if works:
            self._visitors[visitor] = works
        return work

    def drop(self, visitor: str, work: Work) -> bool:
        """Takes a work out again; whether it was there."""
        works = self._visitors.get(visitor)
        if works is None or work not in works:
            return False
        works.remove(work)
        if not works:
            del self._visitors[visitor]
        return True

    def before(self, visitor: str) -> int:
        """How many works come at most before the next one that the visitor adds."""
        return sum(min(len(works), self.of(visitor) + 1) for works in self._visitors.values())
