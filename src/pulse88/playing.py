"""One take of a continuation: under way, note by note (Playing), and made (Continuation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import generate, midi_file
from pulse88.engine import joining
from pulse88.join import alone, joined, split_time
from pulse88.notes import Note, Performance
from pulse88.provenance import Provenance
from pulse88.steering import Steering
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS

NEW_PART_NAME = "Pulse88"
TOGETHER = 16  # takes that are computed at once; more would gain little and take more memory


class Mark(NamedTuple):
    """A place in a playing that it may go back to."""

    notes: int
    take: generate.Take


@dataclass(frozen=True, eq=False)
class Continuation:
    """One take: the seed as it was given, the new notes, and what they were made of."""

    seed: Performance  # as read, but keys that were struck again while held are let go at the second strike
    boundary: float  # seconds of the seed at the join: its last note's onset
    new: Performance  # part 0; time 0 is the join; no key is struck again before it is let go
    ids: NDArray[np.uint8]  # [4 * notes] what the model wrote
    provenance: Provenance
    seed_names: tuple[str, ...] = ()  # of the seed's parts
    remarks: tuple[str, ...] = ()  # what was changed or left out in reading the seed

    @cached_property
    def whole(self) -> Performance:
        """The seed and the new notes, these as the last part; a pedal that stays down rises where the seed ends."""
        return joined(self.seed, self.new, self.boundary, self.provenance.new_part)

    @cached_property
    def alone(self) -> Performance:
        """The new notes alone, time 0 at the join, with the tempos and meters that are in force from there on."""
        return alone(self.new, self.seed, self.boundary)

    @property
    def performance(self) -> Performance:
        """What is written: `alone` if only the new notes were asked for, else `whole`."""
        return self.alone if self.provenance.only_new else self.whole

    @property
    def split(self) -> float | None:
        """Seconds at which a picture of `performance` changes its colour; None if only one side is in it."""
        return None if self.provenance.only_new else split_time(self.whole, self.provenance.new_part)

    @property
    def _texts(self) -> list[str]:
        return [self.provenance.to_text()]

    @property
    def _part_names(self) -> list[str]:
        return [NEW_PART_NAME] if self.provenance.only_new else [*self.seed_names, NEW_PART_NAME]

    def to_bytes(self) -> bytes:
        """The MIDI file, its provenance in a text event. Equal takes give equal bytes."""
        return midi_file.to_bytes(self.performance, texts=self._texts, part_names=self._part_names)

    def write(self, path: str | Path) -> None:
        """Writes `to_bytes`; a reader sees an old file or the whole new one."""
        midi_file.write(self.performance, path, texts=self._texts, part_names=self._part_names)


class Playing:
    """One take under way: iterate for its notes as they are made, each once; ask for the continuation at any time.

    Notes carry the seed's clock. They are as the model wrote them: a key may be struck again while it sounds, which
    the continuation cuts at the second strike.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        take: generate.Take,
        seed: Performance,
        boundary: float,
        provenance: Provenance,
        *,
        limit_notes: int | None,
        limit_seconds: float,
        seed_names: tuple[str, ...] = (),
        remarks: tuple[str, ...] = (),
        made: Sequence[int] = (),
    ) -> None:
        """`made` are ids of the new events that `take` has behind it, where playing goes on."""
        self._tokenizer = tokenizer
        self._take = take
        self._seed = seed
        self._boundary = boundary
        self._provenance = provenance
        self._limit_notes = limit_notes
        self._limit_seconds = limit_seconds
        self._seed_names = seed_names
        self.remarks = remarks  # what was changed or left out in reading the seed
        self._notes: list[Note] = list(tokenizer.decode(made))  # time 0 is the join
        self._ids: list[int] = list(made)
        self._steering = self._steering_so_far()
        self._finished = self._ended = False

    def _steering_so_far(self) -> Steering:
        ids = self._ids
        events = [generate.Event(*ids[at : at + EVENT_TOKENS]) for at in range(0, len(ids), EVENT_TOKENS)]
        return Steering.begin(self._provenance.steering, self._tokenizer.grid, events)

    @property
    def provenance(self) -> Provenance:
        """Of what has been made so far."""
        return replace(self._provenance, new_notes=len(self._notes))

    @property
    def notes(self) -> int:
        """Notes made so far."""
        return len(self._notes)

    @property
    def take(self) -> generate.Take:
        """Where it stands: immutable, so it may be kept."""
        return self._take

    @property
    def ended(self) -> bool:
        """Whether the model has ended the piece."""
        return self._ended

    @property
    def ids(self) -> tuple[int, ...]:
        """[4 * notes] what the model has written so far."""
        return tuple(self._ids)

    @property
    def seconds(self) -> float:
        """From the join to the onset of the latest note."""
        return self._notes[-1].onset if self._notes else 0.0

    @property
    def share(self) -> float:
        """How much of the asked length is made, 0 to 1."""
        by_notes = self.notes / self._limit_notes if self._limit_notes else 0.0
        return max(by_notes, self.seconds / self._limit_seconds)

    def __iter__(self) -> Iterator[Note]:
        return self

    def __next__(self) -> Note:
        if self.finished:
            raise StopIteration
        note = self._taken(generate.advance(*self._coming()))
        if note is None:
            raise StopIteration
        return note

    @property
    def finished(self) -> bool:
        """Whether no more notes will come."""
        return self._finished or len(self._notes) == self._limit_notes

    def _coming(self) -> tuple[generate.Take, Steering | None]:
        """The take that the next event is drawn by, and what steers it."""
        number = dict(self._provenance.branches).get(len(self._notes))
        take = self._take if number is None else self._take.numbered(number)
        return take, self._steering if self._steering.config.steers else None

    def _taken(self, step: tuple[generate.Event, generate.Take] | None) -> Note | None:
        """The note of what was drawn; None if it ends the piece or lies past its limit."""
        if step is None:
            self._finished = self._ended = True
            return None
        event, after = step
        (note,) = self._tokenizer.decode(event, origin=self.seconds)
        if note.onset > self._limit_seconds:
            self._finished = True
            return None
        self._take = after
        self._steering = self._steering.after(event)
        self._notes.append(note)
        self._ids += event
        return note._replace(onset=note.onset + self._boundary, part=self._provenance.new_part)

    def mark(self) -> Mark:
        """Where it stands, to go back to."""
        return Mark(len(self._notes), self._take)

    def go_back(self, mark: Mark, number: int) -> None:
        """Forgets the notes since a mark; those to come are drawn as the take `number` would draw them.

        The mark was made on the way to where it stands, not before it went back behind it.
        """
        assert mark.notes <= len(self._notes), "a mark lies ahead"
        latest = tuple(self._ids[: mark.notes * EVENT_TOKENS][-EVENT_TOKENS:])
        assert mark.take.window[len(mark.take.window) - len(latest) :] == latest, "a mark lies on a way that was left"
        self._take, self._finished, self._ended = mark.take, False, False
        del self._notes[mark.notes :], self._ids[mark.notes * EVENT_TOKENS :]
        self._steering = self._steering_so_far()
        kept = tuple(branch for branch in self._provenance.branches if branch[0] < mark.notes)
        self._provenance = replace(self._provenance, branches=(*kept, (mark.notes, number)))

    def continuation(self) -> Continuation:
        """What has been made so far, in order to be written or made again as it is."""
        new = Performance.from_notes(self._notes).without_overlaps()
        ids = np.array(self._ids, np.uint8)
        return Continuation(self._seed, self._boundary, new, ids, self.provenance, self._seed_names, self.remarks)

    def finish(self) -> Continuation:
        """Plays to the end, then the continuation."""
        for _ in self:
            pass
        return self.continuation()


def in_groups(playings: Sequence[Playing]) -> list[Sequence[Playing]]:
    """The playings of one engine as `play_together` is worth while: some at once, or each alone."""
    at_once = TOGETHER if playings and joining(playings[0].take.engine) else 1
    return [playings[start : start + at_once] for start in range(0, len(playings), at_once)]


def play_together(playings: Sequence[Playing]) -> Iterator[Playing]:
    """Plays all to their ends, a note of each in turn; yields each after each of its notes.

    Every playing is what it is alone. They must have one engine.
    """
    while going := [playing for playing in playings if not playing.finished]:
        takes, steers = zip(*(playing._coming() for playing in going), strict=True)
        for playing, step in zip(going, generate.advance_together(takes, steers), strict=True):
            if playing._taken(step) is not None:
                yield playing
