"""A performance as ids and back: one note is one event of four ids (vocabulary.py says what they mean).

Shape legend: N notes, E events, T ids. The encoder works in four steps: fold the pedal into durations, leave out what
isn't on the 88 keys, put every onset on the grid, write chords in the vocabulary's one order.

Rounding every delta by itself makes the tempo drift, because the errors of successive deltas add up; taking each delta
from the decoded clock removes the drift but doubles the worst local error. A grid with `carries_error` does neither: it
rounds each delta by itself until the decoded clock is more than TOLERATED_DRIFT off, and then spends the correction on
a note where the ear forgives it (see `_carried`). docs/tokens.md has the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88 import sequential
from pulse88.notes import Performance, beside
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
_VELOCITY_IDS = (BLOCKS[Slot.VELOCITY].start + velocity_bin(np.arange(128))).astype(np.uint8)
ROUNDING = 1e-6  # s that sums of decoded times may be off; a gap this much too long isn't reported


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
    notes: NDArray[np.intp]  # [E]
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
        only then, and EOS never right after BOS. `origin` is the onset, in seconds, of the note before the first one;
        None takes the first note's own, so that it gets delta 0, as it always does after BOS. ValueError if `origin`
        is given to a piece that begins, lies after the first note, or is not finite.
        """
        if begins and origin is not None:
            raise ValueError("a piece that begins has no note before its first one: give begins or origin, not both")
        sounding = performance.sounding_durations()
        kept = _sounding_order(performance, sounding)
        kept = kept[(performance.pitch[kept] >= LOWEST_PITCH) & (performance.pitch[kept] <= HIGHEST_PITCH)]
        onset, duration = performance.onset[kept], sounding[kept]
        pitch, velocity = performance.pitch[kept], performance.velocity[kept]
        if origin is not None and not (math.isfinite(origin) and (not len(kept) or origin <= onset[0])):
            first = f", at {onset[0]} s" if len(kept) else ""
            raise ValueError(f"origin {origin} s is not a time before the first note{first}")

        delta = np.empty(len(onset))
        delta[1:] = onset[1:] - onset[:-1]
        delta[:1] = 0.0 if origin is None else onset[:1] - origin
        delta_bin = self.delta_bins(delta)
        order, is_strike = _chord_order(delta_bin, pitch, duration)
        # A delta belongs to its place in time, whichever note of the chord comes there. A chord's first place is
        # always a strike, and the deltas of all others are 0.
        if not is_strike.all():
            delta_bin, order = delta_bin[is_strike], order[is_strike]
        writes_eos = ends and (len(order) > 0 or not begins)
        ids = np.full(begins + EVENT_TOKENS * len(order) + writes_eos, EOS, np.uint8)
        ids[:begins] = BOS
        events = ids[begins : len(ids) - writes_eos].reshape(-1, EVENT_TOKENS)  # a view
        events[:, Slot.DELTA] = BLOCKS[Slot.DELTA].start + delta_bin
        events[:, Slot.PITCH] = BLOCKS[Slot.PITCH].start - LOWEST_PITCH + pitch[order]
        events[:, Slot.DURATION] = BLOCKS[Slot.DURATION].start + self.grid.nearest(Slot.DURATION, duration[order])
        events[:, Slot.VELOCITY] = _VELOCITY_IDS[velocity[order]]
        report = EncodingReport(
            notes=len(performance),
            out_of_range=len(performance) - len(kept),
            doubled=len(kept) - len(order),
            clamped_gaps=int((delta > self.grid.delta[-1] + ROUNDING).sum()),
            clamped_durations=int((duration[order] > self.grid.duration[-1] + ROUNDING).sum()),
        )
        return Encoding(ids, kept[order], report)

    def decode(self, ids: ArrayLike, *, origin: float = 0.0, part: int = 0) -> Performance:
        """The performance that ids stand for; BOS and EOS may be there.

        `origin` is the onset, in seconds, of the note before the first event. Durations are as written, so a key may
        be struck again while it sounds (see Performance.without_overlaps). ValueError at the first illegal id, or if
        the last event isn't whole.
        """
        delta, pitch, duration, velocity = (_events(ids) - [block.start for block in BLOCKS.values()]).T
        return Performance(
            onset=origin + np.cumsum(self.grid.seconds(Slot.DELTA, delta)),
            duration=self.grid.seconds(Slot.DURATION, duration),
            pitch=(pitch + LOWEST_PITCH).astype(np.uint8),
            velocity=bin_velocity(velocity).astype(np.uint8),
            part=np.full(len(pitch), part, np.uint8),
        )

    def delta_bins(self, delta: NDArray[np.float64]) -> NDArray[np.int64]:
        """[N] bins (not ids) of the successive deltas of a piece, in seconds, by the grid's rule."""
        nearest = self.grid.nearest(Slot.DELTA, delta)
        return _carried(delta, nearest, self.grid.delta) if self.grid.carries_error else nearest


def _carried(delta: NDArray[np.float64], nearest: NDArray[np.int64], bins: tuple[float, ...]) -> NDArray[np.int64]:
    """[N] delta bins whose decoded clock stays near the true one, where the music allows it.

    When the clock is TOLERATED_DRIFT off or more, the delta moves bin by bin against the error as long as that brings
    the clock nearer and the delta itself is bent by no more than SMALL_BEND of it (or SHORT_STEP, inaudible within a
    chord's spread), or LONG_BEND where it is a LONG_GAP. What a gap beyond the last bin loses is lost on purpose, not
    made up for. Every step needs the drift that the one before it left: where sequential.py isn't compiled, the loop is
    plain Python, and what a note may be bent by to either side is found for all at once before it.
    """
    if not len(delta):
        return nearest
    seconds = np.array(bins)
    if compiled := sequential.library():
        limits = (TOLERATED_DRIFT, LONG_GAP, LONG_BEND, SMALL_BEND, SHORT_STEP)
        return sequential.carry(compiled, delta, seconds, limits, nearest)
    clamped = delta > bins[-1]
    bend = np.where(delta >= LONG_GAP, LONG_BEND * delta, np.maximum(SMALL_BEND * delta, SHORT_STEP))
    bend[clamped] = 0.0
    error = seconds[nearest] - delta
    error[clamped] = 0.0
    # By how much the next bin on either side is off; no number where that is too much, or there is none.
    shorter = np.concatenate(([np.nan], seconds[:-1]))[nearest] - delta
    longer = np.concatenate((seconds[1:], [np.nan]))[nearest] - delta
    shorter[-shorter > bend] = np.nan
    longer[longer > bend] = np.nan
    lowest, highest = -TOLERATED_DRIFT, TOLERATED_DRIFT
    chosen, drift = nearest.copy(), 0.0
    for index, own_error in enumerate(error.tolist()):
        before = drift
        drift += own_error
        if lowest < drift < highest:
            continue
        step, bent = (-1, shorter.item(index)) if drift > 0 else (1, longer.item(index))
        while abs(before + bent) < abs(drift):
            drift = before + bent
            chosen[index] += step
            if not 0 <= chosen[index] + step < len(bins):
                break
            bent = bins[chosen[index] + step] - float(delta[index])
            if abs(bent) > bend[index]:
                break
    return chosen


def _sounding_order(performance: Performance, sounding: NDArray[np.float64]) -> NDArray[np.intp]:
    """[N] indices of the notes sorted by onset, pitch, sounding duration and velocity.

    That is the performance's order but for unisons, of which the pedal may lengthen one more than the other.
    """
    onset, pitch = performance.onset, performance.pitch
    order = np.arange(len(performance))
    unison = (onset[1:] == onset[:-1]) & (pitch[1:] == pitch[:-1])
    if not unison.any():
        return order
    at = beside(unison)
    order[at] = at[np.lexsort((performance.velocity[at], sounding[at], pitch[at], onset[at]))]
    return order


def _chord_order(
    delta_bin: NDArray[np.int64], pitch: NDArray[np.uint8], duration: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """[N] indices that sort every chord by pitch, and [N] whether the note at that place is its key's one strike.

    A chord is a note and the notes of delta bin 0 after it. Of a key struck twice in it the longer note counts, of
    two equally long ones the first.
    """
    compiled = sequential.library()
    if compiled and (found := sequential.chord_order(compiled, delta_bin, pitch, duration)):
        return found
    key = np.cumsum(delta_bin != 0) * 128 + pitch
    order = np.argsort(key, kind="stable")
    key_in_order = key[order]
    again = key_in_order[1:] == key_in_order[:-1]
    at = beside(again)
    order[at] = order[at][np.lexsort((-duration[order[at]], key[order[at]]))]
    return order, np.concatenate(([True], ~again))[: len(key)]


def _events(ids: ArrayLike) -> NDArray[np.int64]:
    """[E, 4] ids of a legal sequence without its BOS and EOS, by the same law as Grammar, in one pass.

    ValueError at the first illegal id.
    """
    given = np.asarray(ids)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise ValueError(f"ids are one row of whole numbers, not {given.dtype} of shape {given.shape}")
    tokens = given.astype(np.int64)
    begins = int(len(tokens) > 0 and tokens[0] == BOS)
    ends = int(len(tokens) > begins and tokens[-1] == EOS)
    body = tokens[begins : len(tokens) - ends]
    if len(body) % EVENT_TOKENS == 0:
        events = body.reshape(-1, EVENT_TOKENS)
        blocks = BLOCKS.values()
        in_block = (events >= [b.start for b in blocks]) & (events < [b.stop for b in blocks])
        is_zero = events[:, Slot.DELTA] == BLOCKS[Slot.DELTA].start
        ascends = np.diff(events[:, Slot.PITCH]) > 0
        begins_well = not begins or (bool(is_zero[0]) if len(events) else not ends)
        if begins_well and in_block.all() and (~is_zero[1:] | ascends).all():
            return events
    Grammar.of(tokens.tolist())  # names the first illegal id
    raise ValueError(f"the last event has only {len(body) % EVENT_TOKENS} of its {EVENT_TOKENS} ids")
