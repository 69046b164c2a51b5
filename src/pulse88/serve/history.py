"""All that was played in a duet, as the model reads it: a row of ids that only grows, and the phrase under way.

A phrase is encoded when it is over, an answer as it was made, so that what has been read once stays read. Times are the
player's own.
"""

from __future__ import annotations

import itertools
import math

from pulse88.notes import Note, Performance
from pulse88.serve.phrase import Phrase
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS

LATEST = 0.08  # seconds that an answer may wait for the pulse
PULSE_NOTES = 16  # that tell the pulse
TOGETHER = 0.05  # seconds; what is struck within belongs together
LONGEST_PHRASE = 200  # notes that are encoded anew with every key
MOST_REMEMBERED = 20_000  # notes that can be saved
FROM_SEED = 128  # notes of a seed that are read


class History:
    """What was played before the phrase under way, and the phrase. At most `longest` notes are read of it."""

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self.ids: tuple[int, ...] = ()  # of all before the phrase, as far as it is read
        self.anchor: float | None = None  # onset of the last note before the phrase; None if its clock is another
        self.notes: list[Note] = []  # all before the phrase, with parts
        self.phrase = Phrase()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was played."""
        return not (self.ids or self.phrase.notes)

    @property
    def everything(self) -> list[Note]:
        """All notes, those of the phrase as far as they have come."""
        return [*self.notes, *self.phrase.notes]

    def begin_with(self, seed: list[Note]) -> None:
        """Takes a seed for what was played before; its clock is another, so the first phrase comes right after it."""
        self.notes = seed[-FROM_SEED:]
        encoding = self._tokenizer.encode(Performance.from_notes(self.notes), begins=len(seed) <= FROM_SEED, ends=False)
        self.ids, self.anchor, self.phrase = tuple(encoding.ids.tolist()), None, Phrase()

    def over(self) -> tuple[int, ...]:
        """What can be read by now: all but the notes that still sound, and those that may belong to a chord."""
        if len(self.phrase.notes) > LONGEST_PHRASE:
            self._commit(self.phrase.take_over())
        return self._recent(self.ids + self._encoded(self.phrase.over()))

    def end_phrase(self, now: float) -> None:
        """The phrase is over; keys that are held count as held until now."""
        self.phrase.finish(now)
        self._commit(self.phrase.all())
        self.phrase = Phrase(pedal_down=self.phrase.pedal_down)

    def with_answer(self, made: bytes) -> tuple[int, ...]:
        """What shall have been read when an answer has come so far."""
        return self._recent(self.ids + tuple(made))

    def add_answer(self, made: bytes, notes: list[Note]) -> None:
        """An answer, as far as it was heard."""
        self.ids = self._recent(self.ids + tuple(made))
        self.notes += notes
        if notes:
            self.anchor = notes[-1].onset

    def begins_at(self, soonest: float) -> float:
        """When an answer begins: at `soonest` or up to LATEST seconds later, on the pulse of what was played.

        The pulse is the median gap between the latest onsets, counted from the last one, and halved until it is short.
        """
        onsets = [note.onset for note in self.notes[-PULSE_NOTES:]]
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(onsets) if later - earlier > TOGETHER)
        if not gaps or self.anchor is None:
            return soonest
        pulse = gaps[len(gaps) // 2]
        while pulse > LATEST:
            pulse /= 2
        return self.anchor + math.ceil((soonest - self.anchor) / pulse) * pulse

    def _commit(self, played: Performance) -> None:
        """Notes that won't change any more."""
        self.ids = self._recent(self.ids + self._encoded(played))
        self.notes += list(played)
        del self.notes[:-MOST_REMEMBERED]
        if len(played):
            self.anchor = float(played.onset[-1])

    def _encoded(self, played: Performance) -> tuple[int, ...]:
        """The ids of notes after all that came before them, to whose last chord they never belong.

        They would have to lie above it.
        """
        if not len(played):
            return ()
        begins = not self.ids
        latest = float(played.onset[0]) - self._tokenizer.grid.delta[1]
        origin = None if begins else latest if self.anchor is None else min(self.anchor, latest)
        ids = self._tokenizer.encode(played, begins=begins, ends=False, origin=origin).ids.tolist()
        return tuple(ids) if len(ids) > begins else ()  # where no note is one of a piano's, nothing has begun

    def _recent(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The latest of them, at most `longest` notes, cut so that the beginning stays for as long as it can."""
        events = len(ids) // EVENT_TOKENS
        if events <= self._longest:
            return ids
        kept = self._longest * 5 // 8
        step = self._longest - kept
        left_out = (events - kept) // step * step
        return ids[len(ids) % EVENT_TOKENS :][left_out * EVENT_TOKENS :]
