"""Playing under watch: when the music dies, loops or quotes, go back to an earlier take and play on otherwise.

    report = play(playing, [watch_degeneration(), watch_overlaps(index, 100)])

A watch looks at the new notes every CHECK_NOTES notes. Where one finds a fault, playing goes back to a mark before the
fault and goes on as a take of another number; a fault that comes again is gone back from twice as far, up to the join.
What was gone back in is part of the provenance, so that replay gives the same music. After MOST_RETURNS the guard gives
up and says so: the music is then as the model makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pulse88 import musicality
from pulse88.notes import Note, Performance
from pulse88.overlap_index import OverlapIndex
from pulse88.playing import Mark, Playing

CHECK_NOTES = 16  # between looks; marks are as far apart
MOST_MARKS = 24  # the latest ones that are kept, beside the join: a state takes some 5 MB
MOST_RETURNS = 24  # in one take
WINDOW_NOTES = (64, 192)  # the latest notes that are judged; the shorter window sees a loop sooner
NUMBERS_APART = 2**32  # the numbers of a take's later goes lie so far behind it, where no other take is


class Fault(NamedTuple):
    """What is wrong, and the first of the new notes that it is in."""

    reason: str
    note: int


class Return(NamedTuple):
    """What a guard did once."""

    reason: str
    seen: int  # new notes when the fault was seen
    back_to: int  # new notes that were kept


class Report(NamedTuple):
    """What a guard did in a take."""

    returns: tuple[Return, ...]
    gave_up: bool  # whether faults were left because there were too many

    def lines(self) -> list[str]:
        """Sentences for people; none if nothing was done."""
        said = [f"{r.reason} at note {r.seen}: went back to note {r.back_to}" for r in self.returns]
        return said + [f"gave up after {MOST_RETURNS} returns: the rest is as it came"] * self.gave_up


Watch = Callable[[Sequence[Note]], Fault | None]  # of the new notes so far
Tell = Callable[[Playing], None]


def watch_degeneration() -> Watch:
    """Finds silence, one note and loops (`musicality.degenerate`) in the latest notes."""

    def watch(notes: Sequence[Note]) -> Fault | None:
        for window in WINDOW_NOTES:
            first = max(0, len(notes) - window)
            latest = Performance.from_notes(notes[first:])
            if len(notes) >= min(WINDOW_NOTES) and (reasons := musicality.degenerate(latest)):
                return Fault(reasons[0], first + _place(reasons[0], latest))
        return None

    return watch


def _place(reason: str, latest: Performance) -> int:
    """The note from which on playing should be other: before the longest silence, or in a loop's second round."""
    if reason == "silence":
        ends = np.maximum.accumulate(latest.onset + latest.duration)
        return int(np.argmax(latest.onset[1:] - ends[:-1]))
    if reason == "loop":
        loop = musicality.longest_loop(latest)
        return int(np.searchsorted(latest.onset, loop.start + loop.seconds))
    return 0


def watch_overlaps(index: OverlapIndex, most: int) -> Watch:
    """Finds overlaps of more than `most` notes with an index's corpus, as far as the index sees them."""
    reach = 2 * (most + index.resolution)

    def watch(notes: Sequence[Note]) -> Fault | None:
        first = max(0, len(notes) - reach)
        latest = Performance.from_notes(notes[first:])
        found = [o for o in index.overlaps(latest.onset, latest.pitch) if o.notes > most]
        if not found:
            return None
        longest = found[0]
        return Fault(f"{longest.notes} notes of {index.names[longest.piece]}", first + longest.first)

    return watch


def play(playing: Playing, watches: Sequence[Watch], tell: Tell = lambda playing: None) -> Report:
    """Plays to the end under watch; `tell` hears of every note."""
    join = playing.mark()
    marks: list[Mark] = []
    returns: list[Return] = []
    notes: list[Note] = []
    while True:
        fresh = []
        for note in itertools.islice(playing, CHECK_NOTES):
            fresh.append(note)
            tell(playing)
        notes += fresh
        fault = next(filter(None, (watch(notes) for watch in watches)), None) if fresh else None
        if fault is not None and len(returns) == MOST_RETURNS:
            for _ in playing:
                tell(playing)
            return Report(tuple(returns), gave_up=True)
        if fault is not None:
            mark = _mark_before(join.notes + fault.note, [join, *marks], returns)
            returns.append(Return(fault.reason, playing.notes, mark.notes))
            playing.go_back(mark, playing.provenance.take + NUMBERS_APART * len(returns))
            marks = [kept for kept in marks if kept.notes <= mark.notes]
            del notes[mark.notes - join.notes :]
        elif len(fresh) < CHECK_NOTES:
            return Report(tuple(returns), gave_up=False)
        else:
            marks = [*marks, playing.mark()][-MOST_MARKS:]


def _mark_before(note: int, marks: Sequence[Mark], returns: Sequence[Return]) -> Mark:
    """The latest mark at or before a note; for every return to there before, twice as far back."""
    before = [mark for mark in marks if mark.notes <= note] or [marks[0]]
    again = sum(earlier.back_to <= before[-1].notes < earlier.seen for earlier in returns)
    return before[max(0, len(before) - 2**again)]
