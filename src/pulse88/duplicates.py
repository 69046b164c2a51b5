"""Which pieces are the same music: transposed copies, near-duplicates, and versions of one composition.

A piece is known by its shingles, the hashes of every 12 consecutive notes' 11 intervals, so that transposition, tempo
and dynamics don't matter. They are taken twice: over the notes in the order they are struck, which micro-timing within
chords makes characteristic of one performance (near-duplicates), and with every chord sorted by pitch, which all
performances of a score share (versions). Scales, trills and repeated notes say nothing and are left out: a shingle
counts if it has LEAST_KINDS different intervals.

Of a long piece only the shingles with the smallest hashes are kept (arXiv 1909.03298 calls such a sample FracMinHash):
shares of common shingles are estimated from them, with a standard error of 0.02 around a tenth for long pieces.

Shape legend: N notes, R rows, S shingles of a sketch. A sketch is uint32, sorted, without repetitions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88 import sequential

TOGETHER = 0.03  # s; a note this close to the one before it belongs to the same chord
OPENING_NOTES = 200  # two pieces that begin with the same intervals of so many notes are copies
SHINGLE_NOTES = 12
LEAST_KINDS = 5  # different intervals of a shingle that counts
LEAST_SHARED = 8  # common shingles below which two pieces aren't compared
ANCHORS = 64  # the pieces that a shingle's other holders are compared with: the first ones of all its holders
_ENTRIES_AT_ONCE = 2**22  # shingles sorted at a time, for the sake of memory

Sketch = NDArray[np.uint32]
Ints = NDArray[np.int64]


class Fingerprint(NamedTuple):
    """What is remembered of a piece to know it again."""

    opening: str  # 16 hex digits: the intervals of the first OPENING_NOTES notes
    struck: Sketch  # [S] of the notes in the order they are struck
    chordal: Sketch  # [S] of the notes with every chord sorted by pitch


class Likeness(NamedTuple):
    """Two pieces by their places in the list, the earlier one first, and the shingles that both have."""

    first: int
    second: int
    share: float  # of the shingles of the piece that has fewer, 0-1


def fingerprint(onset: NDArray[np.float64], pitch: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of N notes sorted by onset (seconds) and pitch."""
    kept_bits = 32 - _level(len(pitch))
    if compiled := sequential.library():
        rows = [pitch, sequential.chords(compiled, onset, pitch, TOGETHER)]
        base, highest = int(_SHIFTS[1]), 2**kept_bits - 1
        found = [sequential.shingles(compiled, row, SHINGLE_NOTES - 1, base, highest, LEAST_KINDS) for row in rows]
        return Fingerprint(_opening(pitch), *map(_sketch, found))
    chord = np.concatenate(([0], np.cumsum(onset[1:] - onset[:-1] >= TOGETHER, dtype=np.int32)))[: len(onset)]
    by_pitch = pitch[np.argsort(chord * 128 + pitch, kind="stable")]
    return Fingerprint(_opening(pitch), *_sketches(np.stack((pitch, by_pitch)).astype(np.int16), kept_bits))


def _opening(pitch: NDArray[np.uint8]) -> str:
    intervals = np.diff(pitch[:OPENING_NOTES].astype(np.int8)).tobytes()
    return hashlib.blake2b(intervals, digest_size=8).hexdigest()


def _level(notes: int) -> int:
    """The share of shingles that is kept is 1 / 2**level: some 250 or more of a piece that has as many."""
    return 0 if notes < 512 else 1 if notes < 1024 else 2 if notes < 2048 else 3


_SHIFTS = {1: np.uint64(0x9E3779B97F4A7C15)}
for _width in (2, 4, 8):
    _SHIFTS[_width] = np.uint64(int(_SHIFTS[_width // 2]) ** 2 % 2**64)


def shingles(pitch_RN: NDArray[np.int16]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """Hashes of each row's runs of SHINGLE_NOTES notes by their intervals, and what `tells` knows them by; [R, S] each.

    S = N - SHINGLE_NOTES + 1, or 0 where there are fewer notes.
    """
    if pitch_RN.shape[1] < SHINGLE_NOTES:
        return np.zeros((len(pitch_RN), 0), np.uint32), np.zeros((len(pitch_RN), 0), np.uint64)
    interval = pitch_RN[:, 1:] - pitch_RN[:, :-1]
    one = (interval + 128).astype(np.uint64)
    # Polynomial hashes of 2, 4 and 8 intervals, and of 8 + 2 + 1 = 11.
    two = one[:, :-1] * _SHIFTS[1] + one[:, 1:]
    four = two[:, :-2] * _SHIFTS[2] + two[:, 2:]
    eight = four[:, :-4] * _SHIFTS[4] + four[:, 4:]
    eleven = (eight[:, :-3] * _SHIFTS[2] + two[:, 8:-1]) * _SHIFTS[1] + one[:, 10:]
    kinds = _ored(_ored(_ored(np.left_shift(np.uint64(1), (interval & 63).astype(np.uint64)), 1), 2), 4)
    kinds = _ored(kinds, 3)  # 8 intervals, and the 8 that begin 3 later: 11
    return (_mixed(eleven) >> np.uint64(32)).astype(np.uint32), kinds


def _sketches(pitch_RN: NDArray[np.int16], kept_bits: int) -> list[Sketch]:
    """The shingles of each row that tell something and hash below 2**kept_bits."""
    sketches = []
    for row, kind in zip(*shingles(pitch_RN), strict=True):
        at = np.flatnonzero(row <= np.uint32(2**kept_bits - 1))
        sketches.append(_sketch(row[at[tells(kind[at])]]))
    return sketches


def _sketch(hashes: NDArray[np.uint32]) -> Sketch:
    ascending = np.sort(hashes)
    return ascending[np.concatenate(([True], ascending[1:] != ascending[:-1]))[: len(ascending)]]


def _ored(bits: NDArray[np.uint64], later: int) -> NDArray[np.uint64]:
    return np.bitwise_or(bits[:, :-later], bits[:, later:])


def tells(bits: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether a shingle counts: LEAST_KINDS different intervals (modulo 64), a bit each, or more."""
    for _ in range(LEAST_KINDS - 1):
        bits = np.bitwise_and(bits, bits - np.uint64(1))  # takes the lowest bit away
    return np.not_equal(bits, 0)


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit depends on every other (the finalizer of SplitMix64, doi 10.1145/2660193.2660195)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def likenesses(sketches: Sequence[Sketch], notes: Sequence[int], least_share: float) -> list[Likeness]:
    """All pairs that share `least_share` of the smaller one's shingles and LEAST_SHARED of them, by second, first.

    `notes` are the pieces' numbers of notes. A shingle's holders are compared with the first ANCHORS of them only, so
    pieces that matter most come first in the lists.
    """
    slices = [_pairs(part) for part in _slices(sketches)]
    pairs, at = np.unique(np.concatenate([pairs for pairs, _ in slices]), return_inverse=True)
    shared = np.bincount(at, np.concatenate([counts for _, counts in slices]), len(pairs)).astype(np.int64)
    enough = shared >= LEAST_SHARED
    found = []
    for pair, n in zip(pairs[enough].tolist(), shared[enough].tolist(), strict=True):
        second, first = divmod(pair, 2**32)
        level = max(_level(notes[first]), _level(notes[second]))
        share = n / min(_size(sketches[first], level), _size(sketches[second], level))
        if share >= least_share:
            found.append(Likeness(first, second, share))
    return found


def _size(sketch: Sketch, level: int) -> int:
    """Shingles of a sketch that are left at a level, as if the piece were longer."""
    return len(sketch) if level == 0 else int(np.searchsorted(sketch, np.uint32(2 ** (32 - level))))


def _slices(sketches: Sequence[Sketch]) -> Iterable[list[Sketch]]:
    """The sketches' parts in consecutive ranges of hashes with about _ENTRIES_AT_ONCE shingles each."""
    # Most of the range holds but the additional shingles of short pieces.
    least = 2**29
    parts = 1 + sum(map(len, sketches)) // _ENTRIES_AT_ONCE
    edges = np.array([*(least * k // parts for k in range(1, parts + 1)), 2 * least, 4 * least], np.uint32)
    cuts = [[0, *np.searchsorted(sketch, edges).tolist(), len(sketch)] for sketch in sketches]
    for at in range(parts + 3):
        yield [sketch[cut[at] : cut[at + 1]] for sketch, cut in zip(sketches, cuts, strict=True)]


def _pairs(pieces: Sequence[Sketch]) -> tuple[Ints, Ints]:
    """Pairs (second << 32 | first) that share a shingle, ascending, and how many they share."""
    holder = np.repeat(np.arange(len(pieces), dtype=np.uint64), [len(s) for s in pieces])
    entry = np.concatenate([np.zeros(0, np.uint32), *pieces]).astype(np.uint64) << np.uint64(32) | holder
    entry.sort()
    shingle, holder = entry >> np.uint64(32), (entry & np.uint64(0xFFFFFFFF)).astype(np.int64)
    begins = np.r_[True, shingle[1:] != shingle[:-1]] if len(shingle) else np.zeros(0, bool)
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
    later = np.flatnonzero(~begins)
    found = []
    for anchor in range(ANCHORS):
        later = later[begin[later] + anchor < later]
        if not len(later):
            break
        found.append(holder[later] << 32 | holder[begin[later] + anchor])
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]), return_counts=True)


def groups(count: int, likenesses: Iterable[Likeness]) -> Ints:
    """[count] the first piece of the group that each of `count` pieces belongs to; likeness is handed on."""
    root = list(range(count))

    def root_of(piece: int) -> int:
        while root[piece] != piece:
            root[piece] = root[root[piece]]
            piece = root[piece]
        return piece

    for like in likenesses:
        first, second = sorted((root_of(like.first), root_of(like.second)))
        root[second] = first
    return np.array([root_of(piece) for piece in range(count)], np.int64)
