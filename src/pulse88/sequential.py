"""Loops in which every step needs the one before it, compiled where there was a compiler on installation.

Each has its twin in Python beside the code that uses it, which says what it does and runs where there was none; tests
compare them. With all of them, reading a MIDI file and writing it as ids takes half of the time.

Shape legend: N notes, E events, M messages, P pedal events, S hashes.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION = 4  # of the functions, so that a library of other sources isn't used

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
LANES = 1024  # that `pairs` has room for


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None if they weren't built, or from other sources."""
    found = importlib.util.find_spec("pulse88._sequential")
    if found is None or found.origin is None:
        return None
    try:
        opened = ctypes.CDLL(found.origin)
        version = opened.p88_sequential_version
    except (OSError, AttributeError):
        return None
    version.restype = ctypes.c_int64
    if version() != VERSION:
        return None
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    opened.p88_walk.restype, opened.p88_walk.argtypes = i64, [pointer, i64, i64, i64, pointer, pointer]
    opened.p88_track.restype, opened.p88_track.argtypes = i64, [pointer, i64, i64, *[pointer] * 4]
    opened.p88_decode.restype, opened.p88_decode.argtypes = i64, [*[pointer] * 3, i64, *[pointer] * 7]
    opened.p88_pairs.restype, opened.p88_pairs.argtypes = i64, [*[pointer] * 5, i64, i64, *[pointer] * 3]
    opened.p88_order.restype, opened.p88_order.argtypes = i64, [*[pointer] * 5, i64, pointer]
    opened.p88_sounding.restype = None
    opened.p88_sounding.argtypes = [*[pointer] * 4, i64, *[pointer] * 3, i64, i64, *[pointer] * 3]
    opened.p88_chords.restype, opened.p88_chords.argtypes = None, [pointer, pointer, i64, ctypes.c_double, pointer]
    opened.p88_shingles.restype = i64
    opened.p88_shingles.argtypes = [pointer, i64, i64, ctypes.c_uint64, ctypes.c_uint32, i64, pointer]
    opened.p88_carry.restype = None
    opened.p88_carry.argtypes = [pointer, i64, pointer, i64, *[ctypes.c_double] * 5, pointer]
    opened.p88_nearest.restype, opened.p88_nearest.argtypes = None, [pointer, pointer, i64, i64, pointer]
    opened.p88_seconds.restype = None
    opened.p88_seconds.argtypes = [pointer, i64, *[pointer] * 3, i64, ctypes.c_double, pointer]
    opened.p88_chord_order.restype, opened.p88_chord_order.argtypes = i64, [*[pointer] * 3, i64, pointer, pointer]
    opened.p88_pick.restype = i64
    opened.p88_pick.argtypes = [pointer, pointer, i64, i64, *[ctypes.c_double] * 3]
    return opened


def seconds(
    compiled: ctypes.CDLL, ticks: Ints, starts: Ints, microseconds: Ints, passed: Floats, unit: float
) -> Floats:
    """[N] as `midi_file._Clock` has them."""
    ticks, result = np.ascontiguousarray(ticks), np.empty(len(ticks))
    tempos = _addresses((starts, microseconds, passed))
    compiled.p88_seconds(ticks.ctypes.data, len(ticks), *tempos, len(starts), unit, result.ctypes.data)
    return result


def chord_order(
    compiled: ctypes.CDLL, bins: Ints, pitch: Bytes, duration: Floats
) -> tuple[NDArray[np.intp], NDArray[np.bool_]] | None:
    """As `tokenizer._chord_order`; None for what takes Python."""
    order, is_strike = np.empty(len(bins), np.int64), np.empty(len(bins), bool)
    arrays = [np.ascontiguousarray(array) for array in (bins, pitch, duration)]
    done = compiled.p88_chord_order(*_addresses(arrays), len(bins), *_addresses((order, is_strike)))
    return (order, is_strike) if done else None


def nearest(compiled: ctypes.CDLL, seconds: Floats, midpoints: Floats) -> Ints:
    """[N] how many of the ascending midpoints are not above each."""
    seconds, result = np.ascontiguousarray(seconds), np.empty(len(seconds), np.int64)
    compiled.p88_nearest(*_addresses((seconds, midpoints)), len(seconds), len(midpoints), result.ctypes.data)
    return result


def carry(compiled: ctypes.CDLL, delta: Floats, bins: Floats, limits: tuple[float, ...], nearest: Ints) -> Ints:
    """[N] as `tokenizer._carried` has it.

    `limits` are the drift that is tolerated, the long gap, its bend, the bend of others, and the short step.
    """
    chosen = nearest.astype(np.int64)  # a copy
    delta = np.ascontiguousarray(delta, np.float64)
    compiled.p88_carry(delta.ctypes.data, len(delta), bins.ctypes.data, len(bins), *limits, chosen.ctypes.data)
    return chosen


class Walker:
    """The events of one track from `start` on; `midi_events.Strides` is its twin."""

    def __init__(self, compiled: ctypes.CDLL, data: bytes, start: int, bound: int) -> None:
        self._compiled, self._data, self._start, self._bound = compiled, data, start, bound
        self._starts = np.empty(max(bound - start, 0) + 1, np.int64)
        self._next = ctypes.c_int64()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def run(self, at: int) -> int:
        """Takes all events of fixed size from byte `at` of the track on; where the next one begins."""
        self._count += self._compiled.p88_walk(
            self._data,
            len(self._data),
            self._start + at,
            self._bound,
            self._starts.ctypes.data + 8 * self._count,
            ctypes.addressof(self._next),
        )
        return self._next.value - self._start

    def add(self, at: int, step: int) -> None:
        """Takes one event, of `step` bytes."""
        self._starts[self._count] = self._start + at
        self._count += 1

    def drop_last(self, at: int) -> int:
        """Leaves the last event out; where it begins."""
        self._count -= 1
        return int(self._starts[self._count]) - self._start

    def cut(self, count: int) -> None:
        """Leaves all but the first `count` events out."""
        self._count = count

    def finish(self) -> tuple[Ints, Ints]:
        """The first byte of every event, and the event of each place that `len` told."""
        return self._starts[: self._count].copy(), np.arange(self._count)


def track(
    compiled: ctypes.CDLL, data: bytes, start: int, bound: int, kept: bytes
) -> tuple[Ints, list[list[int]]] | None:
    """A track's events and, of its meta events of the kinds that 256 bytes `kept` name, event, kind, begin and end.

    As `midi_events._walk` has them; None for a track that is odd in any way.
    """
    size = max(bound - start, 0)
    starts, metas, meta_count = np.empty(size, np.int64), np.empty((size // 4, 4), np.int64), ctypes.c_int64()
    count = compiled.p88_track(
        data, start, bound, kept, starts.ctypes.data, metas.ctypes.data, ctypes.addressof(meta_count)
    )
    return None if count < 0 else (starts[:count].copy(), metas[: meta_count.value].tolist())


class Messages(NamedTuple):
    """Channel messages of all tracks, and the ticks of all events."""

    clock: Ints  # [E] ticks since the start of the track
    track: Ints  # [M]
    tick: Ints  # [M]
    status: Bytes  # [M] running status resolved
    data1: Bytes  # [M]
    data2: Bytes  # [M]
    last: Ints  # [tracks] tick of the last event


def decode(compiled: ctypes.CDLL, data: bytes, starts: Ints, counts: Ints) -> Messages:
    """What begins at [E] bytes, `counts` of them in each track. `data` is 8 bytes longer."""
    starts = np.ascontiguousarray(starts)
    clock, last = np.empty(len(starts), np.int64), np.empty(len(counts), np.int64)
    track, tick = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    status, data1, data2 = (np.empty(len(starts), np.uint8) for _ in range(3))
    messages = compiled.p88_decode(
        data,
        starts.ctypes.data,
        counts.ctypes.data,
        len(counts),
        *_addresses((clock, track, tick, status, data1, data2, last)),
    )
    own = slice(messages)
    return Messages(clock, track[own], tick[own], status[own], data1[own], data2[own], last)


def pairs(
    compiled: ctypes.CDLL, status: Bytes, data1: Bytes, data2: Bytes, lane: Ints, tick: Ints, lanes: int
) -> tuple[Ints, Ints] | None:
    """[N] messages that strike and ticks at which the key is let go; None where keys don't do both in turn."""
    if lanes > LANES or len(status) > 2**31 - 1:
        return None
    half = len(status) // 2
    strike, release, room = np.empty(half, np.int64), np.empty(half, np.int64), np.empty(128 * lanes, np.int32)
    columns = _addresses((status, data1, data2, lane, tick))
    count = compiled.p88_pairs(*columns, len(status), lanes, *_addresses((room, strike, release)))
    return None if count < 0 else (strike[:count], release[:count])


def put_in_order(
    compiled: ctypes.CDLL, order: NDArray[np.intp], onset: Floats, duration: Floats, columns: tuple[Bytes, ...]
) -> bool:
    """Sorts an order by onset further, by pitch, duration, velocity and part; False if that takes Python.

    `columns` are pitch, velocity and part.
    """
    arrays = [np.ascontiguousarray(array) for array in (onset, duration, *columns)]
    if order.dtype != np.int64:
        return False
    return bool(compiled.p88_order(*_addresses(arrays), len(order), order.ctypes.data))


def sounding(compiled: ctypes.CDLL, notes: tuple[NDArray, ...], pedal: tuple[NDArray, ...], down_from: int) -> Floats:
    """[N] seconds, as `Performance._sounding` has them, of onset, duration, pitch, part and pedal time, value, part."""
    count, changes = len(notes[0]), len(pedal[0])
    starts, stops, result = np.empty(changes + 1), np.empty(changes + 1), np.empty(count)
    compiled.p88_sounding(
        *_addresses(notes), count, *_addresses(pedal), changes, down_from, *_addresses((starts, stops, result))
    )
    return result


def chords(compiled: ctypes.CDLL, onset: Floats, pitch: Bytes, together: float) -> Bytes:
    """[N] pitches with every chord sorted."""
    result = np.empty(len(pitch), np.uint8)
    notes = np.ascontiguousarray(onset), np.ascontiguousarray(pitch)
    compiled.p88_chords(*_addresses(notes), len(pitch), together, result.ctypes.data)
    return result


def shingles(
    compiled: ctypes.CDLL, pitch: Bytes, length: int, base: int, highest: int, least_kinds: int
) -> NDArray[np.uint32]:
    """[S] hashes of the runs of `length` intervals that tell something and are `highest` at most, in their order."""
    if len(pitch) <= length:
        return np.zeros(0, np.uint32)
    pitch, hashes = np.ascontiguousarray(pitch), np.empty(len(pitch) - length, np.uint32)
    count = compiled.p88_shingles(pitch.ctypes.data, len(pitch), length, base, highest, least_kinds, hashes.ctypes.data)
    return hashes[:count]


def pick(
    compiled: ctypes.CDLL, logits: Floats, weights: Floats, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """The index that `sampling.pick` picks by weights beside the logits in their order; -1 for too many."""
    return int(compiled.p88_pick(*_addresses((logits, weights)), len(logits), top_k, top_p, min_p, uniform))


def _addresses(arrays: Iterable[NDArray]) -> list[int]:
    """Of contiguous arrays, which the caller holds on to."""
    return [array.ctypes.data for array in arrays]
