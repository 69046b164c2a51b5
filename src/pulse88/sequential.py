"""Loops in which every step needs the one before it, compiled where there was a compiler on installation.

Each has its twin in Python beside the code that uses it, which says what it does and runs where there was none; tests
compare them. With both, reading a MIDI file and writing it as ids takes two thirds of the time.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of the functions, so that a library of other sources isn't used

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    opened.p88_decode.restype, opened.p88_decode.argtypes = i64, [pointer, pointer, i64, *[pointer] * 5]
    opened.p88_carry.restype = None
    opened.p88_carry.argtypes = [pointer, pointer, pointer, i64, pointer, i64, ctypes.c_double, pointer]
    return opened


def carry(
    compiled: ctypes.CDLL, delta: Floats, error: Floats, bend: Floats, bins: Floats, tolerated: float, nearest: Ints
) -> Ints:
    """[N] as `tokenizer._carried` has it; all float64, contiguous."""
    chosen = nearest.astype(np.int64)  # a copy
    arrays = [np.ascontiguousarray(array, np.float64) for array in (delta, error, bend, bins)]
    compiled.p88_carry(
        *(array.ctypes.data for array in arrays[:3]),
        len(delta),
        arrays[3].ctypes.data,
        len(bins),
        tolerated,
        chosen.ctypes.data,
    )
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


def decode(compiled: ctypes.CDLL, data: bytes, starts: Ints) -> tuple[Ints, Ints, NDArray, NDArray, NDArray]:
    """Summed delta times [events]; of each message its event, status and two data bytes. `data` is 8 bytes longer."""
    count = len(starts)
    clock, event = np.empty(count, np.int64), np.empty(count, np.int64)
    columns = [np.empty(count, np.uint8) for _ in range(3)]
    messages = compiled.p88_decode(
        data,
        np.ascontiguousarray(starts).ctypes.data,
        count,
        clock.ctypes.data,
        event.ctypes.data,
        *(column.ctypes.data for column in columns),
    )
    status, data1, data2 = (column[:messages] for column in columns)
    return clock, event[:messages], status, data1, data2
