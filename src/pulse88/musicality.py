"""Music as numbers: what continuations are judged by. Pure functions of a Performance, numpy only.

Shape legend: N notes, G groups (notes struck together). Durations are those heard, with the sustain pedal folded in
(Performance.sustained), so that a seed with pedal and a continuation without one compare. All functions are defined
for a performance without notes: shares, counts and rates are 0 there, silence is total.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88.notes import Floats, Performance

Ints = NDArray[np.int64]

SLACK = 1e-6  # s; float64 times that are meant to be equal may differ by this
TOGETHER = 0.03  # s; a note this close to the one before it belongs to the same chord, as pianists spread chords.
GROUP_NOTES = 128  # The longest loop looked for, in notes.
GROUP_SECONDS = 1.0  # Shorter loops are trills and tremolos; they count as loops of as many rounds as last this long.


class Loop(NamedTuple):
    """A group of `notes` notes, `seconds` long, played `repeats` times in a row from `start` (seconds) on."""

    repeats: int
    notes: int
    seconds: float
    start: float

    @property
    def total(self) -> float:
        """Seconds that the whole loop lasts."""
        return self.repeats * self.seconds


def pitch_class_histogram(p: Performance) -> Floats:
    """Share of struck notes of each pitch class, C first, [12]; counts, not durations, which pedals distort."""
    counts = np.bincount(p.pitch % 12, minlength=12).astype(np.float64)
    return counts / max(len(p), 1)


def pitch_class_cosine(a: Performance, b: Performance) -> float:
    """Cosine, 0-1, of two pitch class histograms; 0 if either is without notes."""
    left, right = pitch_class_histogram(a), pitch_class_histogram(b)
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norms if norms else 0.0


def pitch_class_entropy(p: Performance) -> float:
    """Bits of the pitch class histogram: 0 for one pitch class, log2(12) = 3.585 for twelve equal ones."""
    share = pitch_class_histogram(p)
    share = share[share > 0]
    return float(np.abs(share @ np.log2(share)))


def density(p: Performance) -> float:
    """Notes a second from the first onset to the end of the last sound."""
    first, last = _span(p)
    return len(p) / (last - first) if len(p) else 0.0


def pitch_range(p: Performance) -> int:
    """Semitones from the lowest to the highest note."""
    return int(p.pitch.max()) - int(p.pitch.min()) if len(p) else 0


def commonest_pitch_share(p: Performance) -> float:
    """Share of struck notes that are of the most frequent pitch."""
    return float(np.bincount(p.pitch).max()) / len(p) if len(p) else 0.0


def inter_onset_intervals(p: Performance) -> Floats:
    """Seconds between successive chords or single notes, [G-1]; a chord starts where its first note does."""
    return np.diff(p.onset[_group_starts(p)])


def polyphony_shares(p: Performance) -> Floats:
    """Share of the time from the first onset to the last sound's end in which k notes sound, [most notes + 1]."""
    _, seconds, sounding = _sounding(p)
    if not len(seconds):
        return np.ones(1)
    share = np.bincount(sounding, weights=seconds)
    return share / share.sum()


def polyphony(p: Performance) -> float:
    """Mean number of notes sounding at once, over the time in which any does."""
    share = polyphony_shares(p)
    heard = float(share[1:].sum())
    return float(share @ np.arange(len(share))) / heard if heard else 0.0


def silence_share(p: Performance, span: tuple[float, float] | None = None) -> float:
    """Share of `span` (seconds; from the first onset to the last sound's end if None) in which nothing sounds."""
    first, last = _span(p) if span is None else span
    return float(_silences(p, first, last).sum()) / (last - first) if last > first else 1.0


def longest_silence(p: Performance, span: tuple[float, float] | None = None) -> float:
    """Seconds of the longest silence within `span`, as in silence_share."""
    first, last = _span(p) if span is None else span
    return float(_silences(p, first, last).max(initial=0.0))


def longest_loop(p: Performance, *, group_notes: int = GROUP_NOTES, group_seconds: float = GROUP_SECONDS) -> Loop:
    """The group of notes that is repeated at once most often; of equals the one that lasts longest.

    Repeats agree in every pitch, and in every inter-onset interval within 25 % or 10 ms, whichever is more; velocities
    and durations may differ. A group has 1 to `group_notes` notes and lasts `group_seconds` or more: a trill of 5
    rounds a second counts as a loop of one-second groups. Without repeats the result is one round of nothing.
    """
    pitch, onset = _spread_removed(p)
    interval = np.diff(onset, prepend=onset[:1])
    best = Loop(min(len(p), 1), 0, 0.0, 0.0)
    for size in range(1, min(group_notes, len(p) // 2) + 1):
        same_pitch = pitch[size:] == pitch[:-size]
        now, before = interval[size:], interval[:-size]
        same_gap = np.abs(now - before) <= np.maximum(0.25 * np.maximum(now, before), 0.01) + SLACK
        # The gap into a run's first note is that into its first round, where the loop isn't yet: it may differ.
        linked = same_pitch[1:] & same_pitch[:-1] & same_gap[1:]
        starts, stops = _runs(linked)
        if size == 1:
            starts, stops = np.r_[starts, np.flatnonzero(same_pitch)], np.r_[stops, np.flatnonzero(same_pitch)]
        if not len(starts):
            continue
        repeats = (stops - starts + 1) // size + 1
        seconds = (onset[starts + size] - onset[starts]).astype(np.float64)
        repeats[seconds < group_seconds - SLACK] = 0
        if (most := int(repeats.max())) >= max(best.repeats, 2):
            at = int(np.flatnonzero(repeats == most)[np.argmax(seconds[repeats == most])])
            found = Loop(most, size, float(seconds[at]), float(onset[starts[at]]))
            best = max(best, found, key=lambda loop: (loop.repeats, loop.total))
    return best


def longest_bar_repetition(p: Performance, *, bar_seconds: float | None = None, first_bar: float = 0.0) -> int:
    """How often the most repeated bar is played in a row; 1 if no bar is.

    With `bar_seconds` bars are cut from `first_bar` on, and are the same if they strike the same keys at the same
    sixteenths of the bar; empty bars end a row. Without, bar lines are unknown and longest_loop answers.
    """
    if bar_seconds is None:
        return longest_loop(p).repeats
    if not len(p):
        return 0
    step = np.floor((p.onset - first_bar + SLACK) / bar_seconds * 16 + 0.5).astype(np.int64)
    bar, cell = step // 16, (step % 16) * 128 + p.pitch
    bar, cell = np.unique(np.stack((bar, cell)), axis=1)
    number, first = np.unique(bar, return_index=True)
    bars = {n: cells.tobytes() for n, cells in zip(number.tolist(), np.split(cell, first[1:]), strict=True)}
    longest = run = 0
    for number, content in bars.items():
        run = run + 1 if bars.get(number - 1) == content else 1
        longest = max(longest, run)
    return longest


def bar_self_similarity(p: Performance, *, bar_seconds: float = 2.0) -> float:
    """Mean over all pairs of bars of shared keys / keys of both (Jaccard), 0-1; silent bars are left out.

    Bars are cut from the first onset on. Two seconds stand for a bar where its length is unknown.
    """
    if not len(p):
        return 0.0
    bar = ((p.onset - p.onset[0] + SLACK) / bar_seconds).astype(np.int64)
    _, row = np.unique(bar, return_inverse=True)
    struck = np.zeros((int(row.max()) + 1, 128))
    struck[row, p.pitch] = 1
    if len(struck) < 2:
        return 0.0
    shared = struck @ struck.T
    keys = struck.sum(axis=1)
    similarity = shared / (keys[:, None] + keys[None, :] - shared)
    return float((similarity.sum() - len(struck)) / (len(struck) * (len(struck) - 1)))


def ngram_repetition(p: Performance, n: int = 8) -> float:
    """Share of the runs of n notes, by melodic intervals and rhythm, that occurred before in the piece, 0-1.

    Rhythm is each inter-onset interval's octave relative to the piece's median one; chords are their own class. So
    neither transposition nor a steady tempo changes the result.
    """
    if len(p) < n:
        return 0.0
    pitch, onset = _spread_removed(p)
    gap = np.diff(onset)
    moving = gap > 0
    octave = np.zeros(len(gap), np.int64)  # 0 for chords
    if moving.any():
        octave[moving] = np.clip(np.rint(np.log2(gap[moving] / np.median(gap[moving]))), -7, 7).astype(np.int64) + 8
    code = np.diff(pitch) * 16 + octave
    grams = np.lib.stride_tricks.sliding_window_view(code, n - 1)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)


# Bounds of degenerate(), beyond what real music does: see its docstring.
SILENT_SECONDS = 20.0
SILENT_SHARE = 0.5  # of the span, in silences of PAUSE_SECONDS or more: staccato isn't silence
PAUSE_SECONDS = 2.0
ONE_NOTE_SHARE = 0.6
ONE_NOTE_LEAST = 16  # notes; fewer may well be one repeated key
LOOP_REPEATS = 8  # of a group of GROUP_SECONDS or more
PHRASE_SECONDS = 4.0
PHRASE_REPEATS = 5  # of a group of PHRASE_SECONDS or more


def degenerate(p: Performance, span: tuple[float, float] | None = None) -> tuple[str, ...]:
    """Why this is no music: any of "silence", "one note", "loop"; empty if none applies.

    Silence, within `span` as in silence_share: no notes, 20 s without a sound, or half of the span in silences of 2 s
    or more. One note: 16 notes or more, 60 % of them one key. Loop: 8 rounds of a group of a second or more, or 5 of
    one of four seconds or more. Of 342 real performances 3 are accused, two with half a minute between movements and
    one of an ostinato; of their 2,438 excerpts of 128 notes 2 are, for such pauses.
    """
    first, last = _span(p) if span is None else span
    silences = _silences(p, first, last)
    pauses = float(silences[silences >= PAUSE_SECONDS].sum())
    reasons = []
    if not len(p) or silences.max() >= SILENT_SECONDS or pauses >= SILENT_SHARE * (last - first):
        reasons.append("silence")
    if len(p) >= ONE_NOTE_LEAST and commonest_pitch_share(p) >= ONE_NOTE_SHARE:
        reasons.append("one note")
    rounds = longest_loop(p).repeats
    phrases = longest_loop(p, group_seconds=PHRASE_SECONDS).repeats
    if rounds >= LOOP_REPEATS or phrases >= PHRASE_REPEATS:
        reasons.append("loop")
    return tuple(reasons)


def summary(p: Performance) -> dict[str, float]:
    """Every number of this file by its function's name, for tables and JSON."""
    gaps = inter_onset_intervals(p)
    first, last = _span(p)
    return {
        "notes": float(len(p)),
        "seconds": last - first,
        "density": density(p),
        "pitch_range": float(pitch_range(p)),
        "pitch_class_entropy": pitch_class_entropy(p),
        "commonest_pitch_share": commonest_pitch_share(p),
        "polyphony": polyphony(p),
        "median_inter_onset_interval": float(np.median(gaps)) if len(gaps) else 0.0,
        "silence_share": silence_share(p),
        "longest_silence": longest_silence(p),
        "longest_bar_repetition": float(longest_bar_repetition(p)),
        "bar_self_similarity": bar_self_similarity(p),
        "ngram_repetition": ngram_repetition(p),
    }


def _group_starts(p: Performance) -> NDArray[np.intp]:
    """Indices of the notes that begin a group, TOGETHER or more after the note before them."""
    return np.flatnonzero(np.diff(p.onset, prepend=-np.inf) >= TOGETHER - SLACK)


def _spread_removed(p: Performance) -> tuple[Ints, Floats]:
    """Pitches and onsets, [N] each, with the notes of a group at its first onset, from low to high."""
    starts = _group_starts(p)
    onset = np.repeat(p.onset[starts], np.diff(np.r_[starts, len(p)]))
    order = np.lexsort((p.pitch, onset))
    return p.pitch[order].astype(np.int64), onset


def _span(p: Performance) -> tuple[float, float]:
    heard = p.sustained()
    return (float(heard.onset[0]), heard.end) if len(p) else (0.0, 0.0)


def _sounding(p: Performance) -> tuple[Floats, Floats, Ints]:
    """Times at which the number of sounding notes may change, the seconds to the next, and that number."""
    heard = p.sustained()
    times = np.r_[heard.onset, heard.onset + heard.duration]
    change = np.r_[np.ones(len(p), np.int64), -np.ones(len(p), np.int64)]
    order = np.lexsort((change, times))
    return times[order][:-1], np.diff(times[order]), np.cumsum(change[order])[:-1]


def _silences(p: Performance, first: float, last: float) -> Floats:
    """Seconds of each stretch of silence from `first` to `last`."""
    heard = p.sustained()
    ends = np.maximum.accumulate(heard.onset + heard.duration)
    starts, stops = np.r_[first, ends], np.r_[heard.onset, last]
    return np.maximum(np.minimum(stops, last) - np.maximum(starts, first), 0.0)


def _runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Starts and stops (one past the end) of the runs of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, flags, False].astype(np.int8)))
    return edges[0::2], edges[1::2]
