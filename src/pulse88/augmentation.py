"""The same music otherwise: in another key, at another tempo, louder or softer. Pure functions of ids and of chance.

Shape legend: T ids of a window: whole events, with the BOS before the first and the EOS behind the last one if they
are there; `moved` takes windows that end within an event, and padding, too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BLOCKS, BOS, EOS, EVENT_TOKENS, Slot, TimeGrid

Ids = NDArray[np.int64]


def moved(ids: Ids, slot: Slot, random: np.random.Generator, down: int, up: int) -> Ids:
    """[T] all ids of a slot moved by one random whole number from -down to +up, by less where one would leave it."""
    block = BLOCKS[slot]
    is_in_slot = (ids >= block.start) & (ids < block.stop)
    if not (down or up) or not is_in_slot.any():
        return ids
    low = max(-down, block.start - int(ids[is_in_slot].min()))
    high = min(up, block.stop - 1 - int(ids[is_in_slot].max()))
    return np.where(is_in_slot, ids + random.integers(low, high + 1), ids)


def tempo_factor(random: np.random.Generator, most: float) -> float:
    """A factor for times between 1 / (1 + most) and 1 + most, log-uniform: slower as often as faster."""
    return math.exp(random.uniform(-1.0, 1.0) * math.log1p(most))


def stretched(ids: Ids, factor: float, tokenizer: Tokenizer, random: np.random.Generator) -> Ids:
    """The ids of the same notes with all times multiplied by `factor`, written by the tokenizer's own rules.

    Bins are wider than most factors: from its middle no time would reach the next one. So a duration is put somewhere
    in its bin first, as it was before it was rounded, and durations follow the factor on average. So do the deltas of
    a grid that doesn't carry errors; one that does keeps the clock exact by itself. What grows past the longest time
    of the grid stays there. Where two notes of one key come to fall on one chord, one of them goes, so there may be
    fewer ids, never more.
    """
    begins, ends = bool(ids[0] == BOS), bool(ids[-1] == EOS)
    if len(ids) - begins - ends < EVENT_TOKENS:
        return ids
    performance, grid = tokenizer.decode(ids), tokenizer.grid
    onset, duration = performance.onset, _somewhere(performance.duration, Slot.DURATION, grid, random)
    if not grid.carries_error:
        delta = np.diff(onset, prepend=0.0)
        onset = np.cumsum(np.where(delta > 0, _somewhere(delta, Slot.DELTA, grid, random), 0.0))
    slower = replace(performance, onset=onset * factor, duration=duration * factor)
    origin = None if begins else 0.0
    return tokenizer.encode(slower, begins=begins, ends=ends, origin=origin).ids.astype(np.int64)


def _somewhere(
    seconds: NDArray[np.float64], slot: Slot, grid: TimeGrid, random: np.random.Generator
) -> NDArray[np.float64]:
    """A random time in the bin of each time; the outermost bins reach as far outwards as inwards."""
    times = grid.seconds(slot, np.arange(BLOCKS[slot].size))
    between = (times[1:] + times[:-1]) / 2
    edges = np.concatenate(([2 * times[0] - between[0]], between, [2 * times[-1] - between[-1]]))
    at = grid.nearest(slot, seconds)
    return edges[at] + random.random(len(at)) * (edges[at + 1] - edges[at])
