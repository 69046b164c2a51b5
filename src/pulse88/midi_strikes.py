"""Which note-off ends which note-on, and which program plays it. No loop over notes: all keys of a file at once.

Shape legend: E channel messages, N notes. A lane is one (track, channel) pair: track * 16 + channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pulse88 import sequential
from pulse88.midi_events import Events

Ints = NDArray[np.int64]


def paired(events: Events, lane: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """For each note its note-on event, the tick at which it ends, and whether no note-off said so; in any order."""
    if compiled := sequential.library():
        lanes = 16 * len(events.track_end)
        found = sequential.pairs(compiled, events.status, events.data1, events.data2, lane, events.tick, lanes)
        if found:
            return *found, np.zeros(len(found[0]), bool)
    event = np.flatnonzero((events.status & 0xE0) == 0x80)
    used = np.flatnonzero(np.bincount(lane[event], minlength=1))
    key = events.data1[event].astype(np.int64)
    if len(used) > 1:
        number = np.zeros(used[-1] + 1, np.int64)  # of each lane among the used ones
        number[used] = np.arange(len(used))
        key += number[lane[event]] * 128
    if len(used) <= 512:
        key = key.astype(np.uint16)  # numpy sorts 16 bits by radix.
    order = np.argsort(key, kind="stable")
    key, event = key[order], event[order]
    is_on = ((events.status[event] & 0xF0) == 0x90) & (events.data2[event] > 0)
    begins = np.ones(len(key), bool)
    begins[1:] = key[1:] != key[:-1]
    if len(key) and _alternate(is_on, begins):
        on, off = event[is_on], event[~is_on]
        return on, events.tick[off], np.zeros(len(on), bool)
    key = np.cumsum(begins) - 1  # 0, 1, 2 without gaps

    # How many strikes of its key sound after each event; a note-off with none sounding before it is idle.
    change = np.where(is_on, 1, -1)
    total = np.cumsum(change)
    first = np.flatnonzero(begins)
    floor = -key * (len(key) + 1)  # below all balances of the key before, so that a running minimum starts anew
    balance = total - (total - change)[first][key] + floor
    lowest = np.minimum.accumulate(np.minimum(balance, floor))
    kept = is_on | (balance >= np.concatenate(([0], lowest[:-1])))
    depth = (balance - lowest)[kept] + ~is_on[kept]  # 1 for a strike of a silent key and for the note-off that ends it
    event, key, is_on = event[kept], key[kept], is_on[kept]

    on, on_key = event[is_on], key[is_on]
    off, off_key = event[~is_on], key[~is_on]
    lacks_off = np.bincount(on_key, minlength=len(first)) > np.bincount(off_key, minlength=len(first))
    if not lacks_off.any():
        return on, events.tick[off], np.zeros(len(on), bool)
    # The k-th strike of a key goes with its k-th note-off. Where a note-off is missing, that would prolong all later
    # notes of the key, so there the k-th strike of a depth goes with the k-th note-off of that depth.
    cell = key * (len(key) + 1) + np.where(lacks_off[key], depth, 0)
    on_cell, off_cell = cell[is_on], cell[~is_on]
    same_key = on_key[1:] == on_key[:-1]
    end = events.track_end[events.track[on]]
    end[:-1] = np.where(same_key, events.tick[on[1:]], end[:-1])
    by_cell = np.argsort(on_cell, kind="stable")
    on, on_cell, end = on[by_cell], on_cell[by_cell], end[by_cell]
    by_cell = np.argsort(off_cell, kind="stable")
    off, off_cell = off[by_cell], off_cell[by_cell]
    nth = np.arange(len(on)) - np.searchsorted(on_cell, on_cell)
    match = np.searchsorted(off_cell, on_cell) + nth
    ended = match < np.searchsorted(off_cell, on_cell, side="right")
    end[ended] = events.tick[off[match[ended]]]
    return on, end, ~ended


def _alternate(is_on: NDArray[np.bool_], begins: NDArray[np.bool_]) -> bool:
    """Whether every key is struck and let go in turn, as in most files: then there is nothing to puzzle out."""
    ends = np.append(begins[1:], True)
    return bool(is_on[begins].all() and not is_on[ends].any() and ((is_on[1:] != is_on[:-1]) | begins[1:]).all())


def programs(events: Events, lane: Ints, strike: Ints) -> Ints:
    """The General MIDI program, 0-127, with which each note is struck; 0 before any program change."""
    change = np.flatnonzero((events.status & 0xF0) == 0xC0)
    if not events.data1[change].any():
        return np.zeros(len(strike), np.int64)
    lanes = 16 * len(events.track_end)
    plays = np.bincount(lane[strike], minlength=lanes) > 0
    has_own = np.bincount(lane[change], minlength=lanes) > 0
    # A lane hears its own changes or, if it has none, those that silent tracks make for its channel.
    hears = np.r_[
        np.where(plays[lane[change]], lane[change], lanes + lane[change] % 16),
        np.where(has_own[lane[strike]], lane[strike], lanes + lane[strike] % 16),
    ]
    is_note = np.arange(len(hears)) >= len(change)
    order = np.lexsort((is_note, events.tick[np.r_[change, strike]], hears))
    latest = np.maximum.accumulate(np.where(is_note[order], -1, np.arange(len(order))))
    change_of = order[latest]  # of each note and change in order, the change in force
    heard = (latest >= 0) & (hears[change_of] == hears[order])
    program = np.zeros(len(order), np.int64)
    program[order[heard]] = events.data1[change[change_of[heard]]]
    return program[len(change) :]
