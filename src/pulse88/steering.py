"""Bands and endings: which ids a take may pick, and which ones it is pulled to, slot by slot.

    steering = Steering.begin(SteeringConfig(register=(48, 84)), tokenizer.grid)
    event, take = advance(take, steering)
    steering = steering.after(event)

Walls (register, key, the end) take ids out of the legal ones; the density is a pull on the delta's logits. Nothing else
changes: without a setting the ids are those of an unsteered take.

Shape legend: V vocabulary, L legal ids, D legal delta ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pulse88.config import SteeringConfig
from pulse88.generate import Event
from pulse88.vocabulary import BLOCKS, EOS, HIGHEST_PITCH, LOWEST_PITCH, Grammar, Slot, TimeGrid

RECENT = 16  # events whose mean gap is kept in the band
FASTEST_TURN = 2.0  # a gap is pulled to no more than so many times what the band asks for on average
NEAR = 0.03  # s; gaps this short hardly differ
STRONGEST = 30.0  # exponent of the pull
TAIL = 0.25  # share of the time to the end, 2 s at most, in which no note begins but the last ones ring
LONGEST_TAIL = 2.0
ENDING_PULL = 16.0  # logit that EOS has gained when the time is over
EARLIEST_END = 0.3  # share of the time before which it doesn't end, even where the seed was over already

Ids = NDArray[np.int64]
Logits = NDArray[np.floating]


@dataclass(frozen=True)
class Steering:
    """A config at a place of a take: call it where an id is picked (see `generate.Steer`). Immutable."""

    config: SteeringConfig
    grid: TimeGrid
    elapsed: float = 0.0  # seconds from the join to the latest onset
    recent: tuple[float, ...] = ()  # the latest gaps in seconds, at most RECENT
    next_gap: float | None = None  # seconds that the next gap shall last, as near as the grid has it

    @classmethod
    def begin(
        cls, config: SteeringConfig, grid: TimeGrid, events: Sequence[Event] = (), *, next_gap: float | None = None
    ) -> Steering:
        """At the join, or after so many new events. ValueError if the config leaves no key to play."""
        if not playable(config).any():
            raise ValueError("no key is left to play: widen the register")
        steering = cls(config, grid, next_gap=next_gap)
        for event in events:
            steering = steering.after(event)
        return steering

    @cached_property
    def pitches(self) -> NDArray[np.bool_]:
        return playable(self.config)

    def after(self, event: Event) -> Steering:
        """After one more event."""
        gap = self._gap(event.delta)
        recent = (*self.recent, gap)[-RECENT:]
        return replace(self, elapsed=self.elapsed + gap, recent=recent, next_gap=None)

    def __call__(self, made: Sequence[int], grammar: Grammar, legal_ids: Ids, logits_V: Logits) -> tuple[Ids, Logits]:
        match grammar.slot:
            case Slot.DELTA:
                return self._delta(grammar, legal_ids, logits_V)
            case Slot.PITCH:
                return legal_ids[self.pitches[legal_ids - BLOCKS[Slot.PITCH].start]], logits_V
            case Slot.DURATION if self.config.end_within is not None:
                left = self.config.end_within - self.elapsed - self._gap(made[Slot.DELTA])
                rings = self.grid.seconds(Slot.DURATION, legal_ids - BLOCKS[Slot.DURATION].start)
                return legal_ids[: max(int((rings <= left).sum()), 1)], logits_V
        return legal_ids, logits_V

    def _delta(self, grammar: Grammar, legal_ids: Ids, logits_V: Logits) -> tuple[Ids, Logits]:
        ending = legal_ids[legal_ids == EOS]
        delta_D = legal_ids[legal_ids != EOS]
        if len(delta_D) > 1 and delta_D[0] == BLOCKS[Slot.DELTA].start and not self._goes_on(grammar):
            delta_D = delta_D[1:]
        seconds_D = self.grid.seconds(Slot.DELTA, delta_D - BLOCKS[Slot.DELTA].start)
        if self.next_gap is not None:
            nearest = int(np.abs(seconds_D - self.next_gap).argmin())
            return delta_D[nearest : nearest + 1], logits_V
        logits_V = logits_V.astype(np.float64)
        if self.config.end_within is not None:
            tail = min(TAIL * self.config.end_within, LONGEST_TAIL)
            left = self.config.end_within - tail - self.elapsed
            in_time = seconds_D <= left
            if len(ending):
                if not in_time.any():
                    return ending, logits_V
                share = self.elapsed / (self.config.end_within - tail)
                logits_V[EOS] += ENDING_PULL * share**3
                if share < EARLIEST_END:
                    ending = ending[:0]
            elif not in_time.any():
                in_time[0] = True
            delta_D, seconds_D = delta_D[in_time], seconds_D[in_time]
        if self.config.density is not None and len(delta_D) > 1:
            logits_V[delta_D] = tilted(logits_V[delta_D], seconds_D, *self._wanted_gap())
        return np.concatenate((delta_D, ending)), logits_V

    def _goes_on(self, grammar: Grammar) -> bool:
        """Whether a key that may be played lies above the latest one, so that a chord can go on."""
        return bool(self.pitches[max(grammar.pitch + 1 - BLOCKS[Slot.PITCH].start, 0) :].any())

    def _wanted_gap(self) -> tuple[float, float]:
        """Seconds that the next gap shall last on average, so that the recent ones come into the band."""
        assert self.config.density is not None
        low, high = self.config.density
        gaps, passed = len(self.recent) + 1, sum(self.recent)
        least = min(max(gaps / high - passed, 0.0), FASTEST_TURN / high)
        most = max(gaps / low - passed, 1 / (FASTEST_TURN * low)) if low else math.inf
        return least, max(least, most)

    def _gap(self, delta_id: int) -> float:
        return float(self.grid.seconds(Slot.DELTA, delta_id - BLOCKS[Slot.DELTA].start))


def playable(config: SteeringConfig) -> NDArray[np.bool_]:
    """[88] the keys that may be played, from the lowest."""
    pitch = np.arange(LOWEST_PITCH, HIGHEST_PITCH + 1)
    low, high = config.register or (LOWEST_PITCH, HIGHEST_PITCH)
    inside = (pitch >= low) & (pitch <= high)
    return inside if config.pitch_classes is None else inside & np.isin(pitch % 12, config.pitch_classes)


def tilted(logits_D: NDArray[np.float64], seconds_D: NDArray[np.float64], least: float, most: float) -> Logits:
    """[D] the logits changed so that the mean gap lies in `least` to `most` seconds, or as near as can be.

    They gain theta * log(seconds + NEAR): long gaps become likelier or less likely by a power, all keep their chance,
    and theta is 0 where the mean is in the band already.
    """
    feature_D = np.log(seconds_D + NEAR)

    def mean(theta: float) -> float:
        weights = logits_D + theta * feature_D
        weights = np.exp(weights - weights.max())
        return float(weights @ seconds_D / weights.sum())

    now = mean(0.0)
    if least <= now <= most:
        return logits_D
    goal = least if now < least else most
    low, high = (0.0, STRONGEST) if now < goal else (-STRONGEST, 0.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < goal else (low, middle)
    return logits_D + (low + high) / 2 * feature_D
