"""A performance as ids and back: one note is one event of four ids (vocabulary.py says what they mean).

Shape legend: N notes, T ids. The encoder works in four steps: fold the pedal into durations, leave out what isn't on
the 88 keys, put every onset on the grid, write chords in the vocabulary's one order.

Rounding every delta by itself makes the tempo drift, because the errors of successive deltas add up; taking each delta
from the decoded clock removes the drift but doubles the worst local error. A grid with `carries_error` does neither: it
rounds each delta by itself until the decoded clock is more than TOLERATED_DRIFT off, and then spends the correction on
a note where the ear forgives it (see `_carry`). docs/tokens.md has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.notes import Performance
from pulse88.vocabulary import (
    BLOCKS,
    BOS,
    EOS,
    EVENT_TOKENS,
    HIGHEST_PITCH,
    LOWEST_PITCH,
    Grammar,
    Slot,
    TimeGrid,
    bin_velocity,
    velocity_bin,
)

TOLERATED_DRIFT = 0.04  # s that the decoded clock may be off before a delta is bent
SHORT_STEP = 0.012  # s by which any delta may be bent: within the spread of a played chord
LONG_GAP = 0.6  # s from which on a gap counts as long
SMALL_BEND, LONG_BEND = 0.15, 0.25  # shares of a delta by which an ordinary one and a long one may be bent


@dataclass(frozen=True)
class EncodingReport:
    """What encoding left out or changed, in notes."""

    notes: int = 0
    out_of_range: int = 0
    doubled: int = 0
    clamped_gaps: int = 0
    clamped_durations: int = 0

    def lines(self) -> list[str]:
        """Sentences for people; none if nothing was changed."""
        said = (
            (self.out_of_range, f"left out, outside the 88 keys (MIDI {LOWEST_PITCH}-{HIGHEST_PITCH})"),
            (self.doubled, "left out, the same key struck twice at once"),
            (self.clamped_gaps, "came later than the longest gap of the grid and were moved closer"),
            (self.clamped_durations, "rang longer than the longest duration of the grid and were cut"),
        )
        return [f"{count} of {self.notes} notes {what}" for count, what in said if count]


@dataclass(frozen=True, eq=False)
class Encoding:
    """Ids of a performance, and for every event the index of its note in the performance (which is sorted)."""

    ids: NDArray[np.uint8]  # [T]
    notes: NDArray[np.intp]  # [events]
    report: EncodingReport


class Tokenizer:
    """Performance to ids and back on one time grid."""

    def __init__(self, grid: TimeGrid) -> None:
        self.grid = grid

    def encode(
        self, performance: Performance, *, begins: bool = True, ends: bool = True, origin: float | None = None
    ) -> Encoding:
        """Ids of the whole performance, its pedal folded into durations.

        `begins` and `ends` say whether the performance holds the piece's beginning and end: BOS and EOS are written
        only then. `origin` is the onset, in seconds, of the note before the first one; None takes the first note's
        own, so that it gets delta 0, as it always does after BOS (ValueError if both are given).
        """
        if begins and origin is not None:
            raise ValueError("a piece that begins has no note before its first one: give begins or origin, not both")
        played = performance.sustained()
        kept = np.flatnonzero((played.pitch >= LOWEST_PITCH) & (played.pitch <= HIGHEST_PITCH))
        onset, duration = played.onset[kept], played.duration[kept]
        pitch, velocity = played.pitch[kept].astype(np.int64), played.velocity[kept]
        if not len(kept):
            rim = [token for token, there in ((BOS, begins), (EOS, ends)) if there]
            report = EncodingReport(notes=len(performance), out_of_range=len(performance))
            return Encoding(np.array(rim, np.uint8), kept, report)

        delta = np.diff(onset, prepend=onset[0] if origin is None else origin)
        if delta[0] < 0:
            raise ValueError(f"origin {origin} s lies after the first note, at {onset[0]} s")
        delta_bin = self._delta_bins(delta)
        order, strikes_once = _chord_order(delta_bin, pitch, duration)
        # The order within a chord changes, its place in time does not: deltas stay where they are.
        delta_bin, order = _without_doubled(delta_bin, order, strikes_once)
        events = np.stack(
            (
                BLOCKS[Slot.DELTA].start + delta_bin,
                BLOCKS[Slot.PITCH].start + pitch[order] - LOWEST_PITCH,
                BLOCKS[Slot.DURATION].start + self.grid.nearest(Slot.DURATION, duration[order]),
                BLOCKS[Slot.VELOCITY].start + velocity_bin(velocity[order]),
            ),
            axis=1,
        )
        ids = np.concatenate(([BOS] * begins, events.ravel(), [EOS] * ends)).astype(np.uint8)
        report = EncodingReport(
            notes=len(performance),
            out_of_range=len(performance) - len(kept),
            doubled=int((~strikes_once).sum()),
            clamped_gaps=int((delta > self.grid.delta[-1]).sum()),
            clamped_durations=int((duration > self.grid.duration[-1]).sum()),
        )
        return Encoding(ids, kept[order], report)

    def decode(self, ids: ArrayLike, *, origin: float = 0.0, part: int = 0) -> Performance:
        """The performance that ids stand for; BOS and EOS may be there.

        `origin` is the onset, in seconds, of the note before the first event. Durations are as written, so a key may
        be struck again while it sounds (see Performance.without_overlaps). ValueError at the first illegal id.
        """
        tokens = np.asarray(ids, np.int64)
        begins = bool(len(tokens)) and tokens[0] == BOS
        body = tokens[int(begins) :]
        body = body[:-1] if len(body) and body[-1] == EOS else body
        if not _is_legal(body, begins):
            Grammar.of(tokens.tolist())  # names the first illegal id
            raise ValueError(f"{len(body)} ids are no whole number of events of {EVENT_TOKENS}")
        delta, pitch, duration, velocity = (body.reshape(-1, EVENT_TOKENS) - [b.start for b in BLOCKS.values()]).T
        return Performance(
            onset=origin + np.cumsum(self.grid.seconds(Slot.DELTA, delta)),
            duration=self.grid.seconds(Slot.DURATION, duration),
            pitch=(pitch + LOWEST_PITCH).astype(np.uint8),
            velocity=bin_velocity(velocity).astype(np.uint8),
            part=np.full(len(pitch), part, np.uint8),
        )

    def _delta_bins(self, delta: NDArray[np.float64]) -> NDArray[np.int64]:
        nearest = self.grid.nearest(Slot.DELTA, delta)
        return _carry(delta, nearest, self.grid.delta) if self.grid.carries_error else nearest


def _carry(delta: NDArray[np.float64], nearest: NDArray[np.int64], bins: tuple[float, ...]) -> NDArray[np.int64]:
    """[N] delta bins whose decoded clock stays near the true one.

    When the clock is more than TOLERATED_DRIFT off, the delta moves bin by bin against the error as long as that
    brings the clock nearer and the delta itself is bent by no more than SMALL_BEND of it (or SHORT_STEP, inaudible
    within a chord's spread), or LONG_BEND where it is a LONG_GAP. What a gap beyond the last bin loses is lost on
    purpose, not made up for.
    """
    longest = bins[-1]
    error_by_itself = np.where(delta > longest, 0.0, np.asarray(bins)[nearest] - delta)
    carried = nearest.copy()
    drift = 0.0
    for index, error in enumerate(error_by_itself.tolist()):
        drift += error
        if -TOLERATED_DRIFT < drift < TOLERATED_DRIFT:
            continue
        true = float(delta[index])
        if true > longest:
            continue
        allowed = LONG_BEND * true if true >= LONG_GAP else max(SMALL_BEND * true, SHORT_STEP)
        step = -1 if drift > 0 else 1
        before, chosen = drift - error, int(nearest[index])
        while 0 <= chosen + step < len(bins):
            bent = bins[chosen + step] - true
            if abs(bent) > allowed or abs(before + bent) >= abs(drift):
                break
            chosen += step
            drift = before + bent
        carried[index] = chosen
    return carried


def _chord_order(
    delta_bin: NDArray[np.int64], pitch: NDArray[np.int64], duration: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """[N] indices that sort every chord by pitch, and [N] whether the note at that place is its key's one strike.

    A chord is a note and the notes of delta bin 0 after it. Of a key struck twice in it, the longer note counts.
    """
    chord = np.cumsum(np.r_[True, delta_bin[1:] != 0])
    order = np.lexsort((-duration, pitch, chord))
    same = (np.diff(chord[order]) == 0) & (np.diff(pitch[order]) == 0)
    return order, np.r_[True, ~same]


def _without_doubled(
    delta_bin: NDArray[np.int64], order: NDArray[np.intp], strikes_once: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    # A chord's first place carries its delta and is never a doubled note, because the sort is by pitch first.
    return delta_bin[strikes_once], order[strikes_once]


def _is_legal(body: NDArray[np.int64], begins: bool) -> bool:
    """Whether events without BOS and EOS follow the vocabulary's grammar; the same law as Grammar, in one pass."""
    if len(body) % EVENT_TOKENS:
        return False
    events = body.reshape(-1, EVENT_TOKENS)
    blocks = BLOCKS.values()
    in_block = (events >= [b.start for b in blocks]) & (events < [b.stop for b in blocks])
    chord = events[1:, Slot.DELTA] == BLOCKS[Slot.DELTA].start
    ascends = np.diff(events[:, Slot.PITCH]) > 0
    starts_at_zero = not begins or not len(events) or events[0, Slot.DELTA] == BLOCKS[Slot.DELTA].start
    return bool(in_block.all() and (~chord | ascends).all() and starts_at_zero)
