"""Which passages of a piece are in a corpus, at any transposition and tempo: an index small enough to ship.

A passage is known by its shingles (duplicates.py): 11 successive intervals, the notes of a chord sorted by pitch, so
that neither key nor the order within a chord matters. Winnowing (doi 10.1145/872757.872770) keeps the smallest of every
`every` successive shingles: of any common passage of SHINGLE_NOTES + every - 1 telling notes at least one shingle, a
seed, is in the index. A seed has SEED_BITS bits and is no evidence alone; two seeds of one piece, so many notes apart
in both and at one tempo, are. An overlap is a chain of such seeds, from the first note of the first to the last note of
the last, so the true one is that long or up to `every` - 1 notes longer at both ends. Between seeds only the number of
notes is known; `exact` compares note by note where the corpus is at hand.

The file is an NPZ without pickle: SEED_BITS and about 9 bits a seed, 2 seeds for `every` + 1 notes.

Shape legend: N notes, S shingles or seeds, P pieces.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88.duplicates import SHINGLE_NOTES, TOGETHER, shingles, tells
from pulse88.shards import read_npz, write_npz

FORMAT = 1
EVERY = 44  # successive shingles of which the smallest is kept, unless asked otherwise
LONGEST_EVERY = 255 - SHINGLE_NOTES
SEED_BITS = 20
LARGEST_HEADER = 2**27  # bytes of JSON; a name is about 60
TEMPO_STEPS = 2  # half octaves that the tempos of two successive links may differ by: rubato, and rounding
FARTHEST_TEMPO = 4  # half octaves from the corpus's tempo
# Chords are groups of notes less than TOGETHER apart. At another tempo it is another gap that this means, so a query
# is read once for each of these.
TEMPOS = tuple(float(f) for f in np.geomspace(0.7, 1.45, 13))

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class OverlapIndexError(ValueError):
    """An index can't be read or can't answer what was asked; the message names the file and the remedy."""


class Line(NamedTuple):
    """Notes one after the other, each chord from below and each key of it once."""

    pitch: NDArray[np.int16]  # [N]
    onset: Floats  # [N] seconds, of the chord
    note: Ints  # [N] place in what the line was made of


class Overlap(NamedTuple):
    """A passage that a piece of the corpus has too, at another pitch or tempo perhaps."""

    notes: int  # so many successive notes at least
    first: int  # the earliest of them, by its place in the query
    last: int  # the latest
    piece: int


class Match(NamedTuple):
    """The longest passage that two pieces share note by note."""

    notes: int  # 0 if none has SHINGLE_NOTES
    first: int  # the earliest of them, by its place in the query
    last: int
    seconds: float  # at which it begins in the piece
    semitones: int  # the query lies higher by so many
    tempo: float  # how many times as fast the query plays it; nan if all is one chord


def line_of(onset: Floats, pitch: NDArray, together: float = TOGETHER) -> Line:
    """The line of notes sorted by onset (seconds); chords are notes less than `together` seconds apart.

    A key struck twice in a chord counts once, as in tokens.
    """
    begins = np.diff(onset, prepend=-np.inf) >= together
    chord = np.cumsum(begins)
    key, order = np.unique(chord * 128 + pitch, return_index=True)
    return Line(pitch[order].astype(np.int16), onset[begins][(key >> 7) - 1], order)


def _seconds_code(seconds: Floats) -> NDArray[np.uint8]:
    """Seconds in steps of half an octave from 10 ms, from 1; 0 for less."""
    steps = np.rint(2 * np.log2(np.maximum(seconds, 0.005) / 0.01)) + 1
    return np.clip(steps, 0, 63).astype(np.uint8)


def _winnowed(hashes: NDArray[np.uint32], telling: NDArray[np.bool_], every: int) -> Ints:
    """Places, ascending, of the smallest of every `every` successive telling shingles, the last one of equals."""
    if not telling.any():
        return np.zeros(0, np.int64)
    place = np.arange(len(hashes), dtype=np.uint64)
    key = np.where(telling, hashes.astype(np.uint64) << np.uint64(32) | (np.uint64(2**31) - place), ~np.uint64(0))
    least, width = key, 1
    while width < min(every, len(key)):
        step = min(width, every - width, len(least) - 1)
        least, width = np.minimum(least[:-step], least[step:]), width + step
    least = np.unique(least[least != ~np.uint64(0)])
    return np.sort(2**31 - (least & np.uint64(0xFFFFFFFF)).astype(np.int64))


def _bits(values: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.packbits((values[:, None] >> np.arange(SEED_BITS, dtype=np.uint32)) & np.uint32(1))


def _from_bits(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint32]:
    bits = np.unpackbits(packed, count=count * SEED_BITS).reshape(count, SEED_BITS)
    values = np.zeros(count, np.uint32)
    for at in range(SEED_BITS):
        values |= bits[:, at].astype(np.uint32) << np.uint32(at)
    return values


@dataclass(frozen=True, eq=False)
class OverlapIndex:
    """Seeds of the pieces of a corpus, piece by piece in the order of their notes."""

    names: tuple[str, ...]  # [P] source/file
    counts: Ints  # [P] seeds of each piece
    seeds: NDArray[np.uint32]  # [S]
    gaps: NDArray[np.uint8]  # [S] notes since the seed before; 0 for a piece's first, and if they are too many
    seconds: NDArray[np.uint8]  # [S] since the seed before, as _seconds_code has it
    every: int
    about: Mapping[str, Any]  # what else was found when it was made, as JSON has it

    @property
    def resolution(self) -> int:
        """Notes from which on an overlap always holds two seeds, however they fall."""
        return SHINGLE_NOTES + 2 * self.every - 1

    @cached_property
    def _ordered(self) -> tuple[NDArray[np.uint32], Ints]:
        order = np.argsort(self.seeds, kind="stable")
        return self.seeds[order], order

    @cached_property
    def _piece(self) -> Ints:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def overlaps(self, onset: Floats, pitch: NDArray) -> list[Overlap]:
        """Passages of N notes sorted by onset (seconds) that the corpus has too, longest first.

        Each piece that has a passage is named, the first one first.
        """
        found: set[Overlap] = set()
        former: list[float] = []
        for tempo in TEMPOS:
            line = line_of(onset, pitch, TOGETHER * tempo)
            if line.onset.tolist() != former:
                found.update(self._chains(line))
            former = line.onset.tolist()
        return sorted(found, key=lambda overlap: (-overlap.notes, overlap.piece, overlap.first))

    def _chains(self, line: Line) -> Iterator[Overlap]:
        """Chains of two seeds or more that a line shares with a piece."""
        hashes, kinds = shingles(line.pitch[None])
        seed = np.where(tells(kinds[0]), hashes[0] & np.uint32(2**SEED_BITS - 1), np.uint32(2**SEED_BITS))
        ordered, place = self._ordered
        low, high = np.searchsorted(ordered, seed, "left"), np.searchsorted(ordered, seed, "right")
        begin = np.cumsum(high - low) - (high - low)
        at = np.repeat(np.arange(len(seed)), high - low)  # of the line's shingle
        entry = place[np.arange(len(at)) - begin[at] + low[at]]  # of the index's seed
        # A link leads from a shared seed to the next one, if that is shared as well and as many notes away.
        at, entry = at[entry + 1 < len(self.seeds)], entry[entry + 1 < len(self.seeds)]
        gap = self.gaps[entry + 1].astype(np.int64)
        inside = (gap > 0) & (at + gap < len(seed))
        at, entry, gap = at[inside], entry[inside], gap[inside]
        same = seed[at + gap] == self.seeds[entry + 1]
        at, entry, gap = at[same], entry[same], gap[same]
        here = _seconds_code(line.onset[at + gap] - line.onset[at]).astype(np.int64)
        there = self.seconds[entry + 1].astype(np.int64)
        tempo = np.where((here > 0) & (there > 0), here - there, 0)
        likely = np.abs(tempo) <= FARTHEST_TEMPO
        at, entry, gap, tempo = at[likely], entry[likely], gap[likely], tempo[likely]
        links = sorted(zip(entry.tolist(), at.tolist(), gap.tolist(), tempo.tolist(), strict=True))
        reached: dict[tuple[int, int], tuple[int, int]] = {}  # the end of a chain: its beginning in the line, its tempo
        for link_entry, link_at, link_gap, link_tempo in links:
            begins, before = reached.pop((link_entry, link_at), (link_at, link_tempo))
            if abs(link_tempo - before) > TEMPO_STEPS:
                yield self._overlap(line, begins, link_at, link_entry)
                begins = link_at
            reached[link_entry + 1, link_at + link_gap] = begins, link_tempo
        for (end_entry, end_at), (begins, _) in reached.items():
            yield self._overlap(line, begins, end_at, end_entry)

    def _overlap(self, line: Line, begins: int, ends: int, entry: int) -> Overlap:
        notes = line.note[begins : ends + SHINGLE_NOTES]
        return Overlap(len(notes), int(notes.min()), int(notes.max()), int(self._piece[entry]))

    def write(self, path: Path) -> None:
        """Writes the index, whole or not at all."""
        header = {"format": FORMAT, "every": self.every, "names": self.names, "counts": self.counts.tolist()}
        arrays = {
            "header": _squeezed(json.dumps(header | {"about": self.about}, separators=(",", ":")).encode()),
            "seeds": _bits(self.seeds),
            "gaps": _squeezed(self.gaps.tobytes()),
            "seconds": _squeezed(self.seconds.tobytes()),
        }
        write_npz(path, arrays)

    @classmethod
    def read(cls, path: Path) -> OverlapIndex:
        """Reads `write` back; OverlapIndexError if the file is something else, FileNotFoundError if there is none."""
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such index: make one with `pulse88 index DATA`")
        try:
            arrays = read_npz(path, ("header", "seeds", "gaps", "seconds"))
            header = json.loads(_stretched(arrays["header"], LARGEST_HEADER))
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']}, this version reads {FORMAT}")
            if problem := _problem(header):
                raise ValueError(problem)
            packed = arrays["seeds"]
            most = 8 * packed.size // SEED_BITS + 1
            gaps, seconds = (np.frombuffer(_stretched(arrays[name], most), np.uint8) for name in ("gaps", "seconds"))
            counts = np.array(header["counts"], np.int64)
            if packed.dtype != np.uint8 or 8 * packed.size < len(gaps) * SEED_BITS:
                raise ValueError("it has too few seeds")
            if sum(header["counts"]) != len(gaps) or len(gaps) != len(seconds):
                raise ValueError("its parts don't fit together")
            seeds = _from_bits(packed.ravel(), len(gaps))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, lzma.LZMAError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise OverlapIndexError(f"{path}: no index ({problem}); make one with `pulse88 index DATA`") from error
        return cls(tuple(header["names"]), counts, seeds, gaps, seconds, header["every"], header["about"])


def build(pieces: Iterable[tuple[str, Floats, NDArray]], every: int = EVERY) -> OverlapIndex:
    """The index of pieces, each a name, sorted onsets (seconds) and pitches [N]; ValueError for a bad `every`."""
    if not 1 <= every <= LONGEST_EVERY:
        raise ValueError(f"every must be 1 to {LONGEST_EVERY} shingles, not {every}")
    names, seeds, gaps, seconds = [], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint8)], [np.zeros(0, np.uint8)]
    for name, onset, pitch in pieces:
        line = line_of(onset, pitch)
        hashes, kinds = shingles(line.pitch[None])
        places = _winnowed(hashes[0], tells(kinds[0]), every)
        gap = np.diff(places, prepend=places[:1])
        names.append(name)
        seeds.append(hashes[0, places] & np.uint32(2**SEED_BITS - 1))
        gaps.append(np.where(gap > 255, 0, gap).astype(np.uint8))
        seconds.append(_seconds_code(np.diff(line.onset[places], prepend=line.onset[places[:1]])))
    counts = np.array([len(piece) for piece in seeds[1:]], np.int64)
    return OverlapIndex(
        tuple(names), counts, np.concatenate(seeds), np.concatenate(gaps), np.concatenate(seconds), every, {}
    )


def exact(onset: Floats, pitch: NDArray, piece_onset: Floats, piece_pitch: NDArray) -> Match:
    """The longest run of notes that a query has in common with a piece, each sorted by onset (seconds).

    Runs are of the same intervals, chords from below; one counts if a shingle of it tells something.
    """
    piece = line_of(piece_onset, piece_pitch)
    theirs = shingles(piece.pitch[None])[0][0]
    order = np.argsort(theirs, kind="stable")
    best = Match(0, 0, 0, 0.0, 0, float("nan"))
    for tempo in TEMPOS:
        line = line_of(onset, pitch, TOGETHER * tempo)
        hashes, kinds = shingles(line.pitch[None])
        low = np.searchsorted(theirs[order], hashes[0], "left")
        count = np.searchsorted(theirs[order], hashes[0], "right") - low
        begin = np.cumsum(count) - count
        at = np.repeat(np.arange(len(count)), count)
        other = order[np.arange(len(at)) - begin[at] + low[at]]
        by_diagonal = np.lexsort((at, other - at))
        at, other = at[by_diagonal], other[by_diagonal]
        breaks = np.flatnonzero((np.diff(at, prepend=-2) != 1) | (np.diff(other, prepend=-2) != 1))
        lengths = np.diff(np.r_[breaks, len(at)])
        if not len(breaks):
            continue
        lengths[~np.logical_or.reduceat(tells(kinds[0])[at], breaks)] = 0
        run = int(lengths.argmax())
        notes = int(lengths[run]) + SHINGLE_NOTES - 1
        if lengths[run] and notes > best.notes:
            here, there = slice(at[breaks[run]], at[breaks[run]] + notes), int(other[breaks[run]])
            gaps = np.stack((np.diff(line.onset[here]), np.diff(piece.onset[there : there + notes])))
            gaps = gaps[:, (gaps > 0).all(axis=0)]
            best = Match(
                notes,
                int(line.note[here].min()),
                int(line.note[here].max()),
                float(piece.onset[there]),
                int(line.pitch[here][0]) - int(piece.pitch[there]),
                float(np.median(gaps[1] / gaps[0])) if gaps.size else float("nan"),
            )
    return best


def _squeezed(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(lzma.compress(data, preset=9), np.uint8)


def _stretched(packed: NDArray, most: int) -> bytes:
    """What `_squeezed` packed; ValueError if that is more than `most` bytes, LZMAError if it is damaged."""
    unpacker = lzma.LZMADecompressor()
    data = unpacker.decompress(packed.tobytes(), most + 1)
    if not unpacker.eof:
        raise ValueError(f"a part of it has more than {most:,} bytes, or is cut off")
    return data


def _problem(header: Mapping[str, Any]) -> str:
    """What is wrong with the header of an index file; empty if nothing is."""
    names, counts = header["names"], header["counts"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "its names are no list of words"
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count < 2**40 for count in counts):
        return "its counts are no list of numbers"
    if len(names) != len(counts) or not isinstance(header["about"], dict):
        return "its parts don't fit together"
    if type(header["every"]) is not int or not 1 <= header["every"] <= LONGEST_EVERY:
        return f"every is {header['every']!r}"
    return ""
