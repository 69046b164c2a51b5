"""Prefill and decode over any engine: ids in, events of four ids out, for as long as anybody asks. Knows no MIDI.

    take = begin(engine, seed_ids, sampling, random_seed=1)
    for event, take in play(take): ...            # a `take` kept from any turn goes on from there, the same way
    others = [take.numbered(i) for i in range(8)]  # eight takes of one prefill

A Take is immutable, like the engine's states: it says all that the next event depends on, so that stopping and going on
gives what not stopping gives. Every event draws four uniform numbers that are a pure function of the random seed, the
take's number and the event's number; takes are computed together only where the engine gives each the bits that it gets
alone. Both together make take i the same whether one take is made or eight.

Rolling on: when the context of `max_positions` tokens has no room for one more event, the state is rebuilt from zero
with `keep` events, by default as many as fill half the context (256 notes of 2048 tokens), and positions start again.
Half of them are the seed's first ones, the anchor, and half the latest: without the anchor the music drifts away from
the seed, gets ever denser and can die in a trill (docs/log.md). Memory is bounded by the context, and the cost of an
event by twice its cost without rolling on.

Shape legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88.config import SamplingConfig
from pulse88.engine import joining
from pulse88.sampling import pick
from pulse88.vocabulary import BLOCKS, BOS, EOS, EVENT_TOKENS, Grammar, Slot

if TYPE_CHECKING:
    from pulse88.engine import Engine, State

LARGEST_SEED = 2**64 - 1
DRAWN_AT_ONCE = 32  # events whose random numbers are drawn together

# Narrows the legal ids and shifts the logits of the next id, given the ids of its event so far:
# (made, grammar, legal_ids, logits_V) to (legal_ids, logits_V).
Steer = Callable[
    [Sequence[int], Grammar, NDArray[np.int64], NDArray[np.floating]],
    tuple[NDArray[np.int64], NDArray[np.floating]],
]


class Event(NamedTuple):
    """One note as its four ids."""

    delta: int
    pitch: int
    duration: int
    velocity: int


@dataclass(frozen=True, eq=False)
class Take:
    """A sequence under way, between two events: everything that the next event depends on."""

    engine: Engine
    sampling: SamplingConfig
    random_seed: int  # 0 to LARGEST_SEED
    number: int  # of the take, from 0
    may_end: bool  # whether EOS may be picked
    keep: int  # events that the state is rebuilt from
    anchor: tuple[
        int, ...
    ]  # ids of the seed's first events, at most half of `keep`, which every rebuilding begins with
    window: tuple[int, ...]  # ids since the state was rebuilt, at most max_positions + 1; its last is unread
    state: State  # has read all of the window but its last id
    grammar: Grammar
    events: int = 0  # made so far

    def numbered(self, number: int) -> Take:
        """The take of another number from here on; forks of one another don't disturb each other."""
        if number < 0:
            raise ValueError(f"a take's number must be 0 or more, not {number}")
        return replace(self, number=number)


def begin(
    engine: Engine,
    seed_ids: Sequence[int],
    sampling: SamplingConfig,
    *,
    random_seed: int,
    number: int = 0,
    may_end: bool = False,
    keep: int | None = None,
) -> Take:
    """Reads the seed's ids: an optional BOS and whole events, at least one id, at most `longest_seed(engine)`.

    ValueError for illegal ids, for a seed that is empty, too long or ends inside an event or with EOS, for a random
    seed outside 0 to 2**64 - 1, and for a `keep` that leaves no room for one more event.
    """
    ids = tuple(int(i) for i in seed_ids)
    positions = engine.config.max_positions
    if keep is None:
        keep = default_keep(engine)
    if keep < 1 or not _has_room(keep * EVENT_TOKENS, positions):
        raise ValueError(f"keep must be at least 1 event and leave room in {positions} tokens, not {keep}")
    if not 0 <= random_seed <= LARGEST_SEED:
        raise ValueError(f"random seed must be in 0 to 2**64 - 1, not {random_seed}")
    if not ids:
        raise ValueError("the seed has no ids: give a BOS or at least one event")
    if not _has_room(len(ids), positions):
        raise ValueError(f"a seed of {len(ids)} ids leaves no room for a note in a context of {positions} tokens")
    grammar = Grammar.of(ids)
    if grammar.slot is not Slot.DELTA:
        raise ValueError("the seed ends with EOS or inside an event: nothing can follow")
    state = engine.zero_state()
    if len(ids) > 1:
        _, state = engine.forward(_row(ids[:-1]), state, last_only=True)
    take = Take(engine, sampling, random_seed, 0, may_end, keep, _anchor(ids, keep), ids, state, grammar)
    return take.numbered(number)


def begin_after(
    take: Take, sampling: SamplingConfig, *, random_seed: int, number: int = 0, may_end: bool = False
) -> Take:
    """A new take that begins where `take` stands, as if its window were the seed, without reading it again.

    ValueError for a random seed outside 0 to 2**64 - 1, and where the window leaves no room for one more event.
    """
    if not 0 <= random_seed <= LARGEST_SEED:
        raise ValueError(f"random seed must be in 0 to 2**64 - 1, not {random_seed}")
    if not _has_room(len(take.window), take.engine.config.max_positions):
        raise ValueError(f"a window of {len(take.window)} ids leaves no room for a note: begin from a shorter one")
    return replace(
        take,
        sampling=sampling,
        random_seed=random_seed,
        may_end=may_end,
        anchor=_anchor(take.window, take.keep),
        events=0,
    ).numbered(number)


def after_reading(take: Take, ids: Sequence[int]) -> Take:
    """The take that has read whole events beside its own, as if they had been in its seed; `events` stays.

    ValueError for illegal ids and where they leave no room for one more event.
    """
    window = len(take.window) + len(ids)
    if not _has_room(window, take.engine.config.max_positions):
        raise ValueError(f"{window} ids leave no room for a note: begin from fewer")
    return _having_read(take, ids)


def after_making(take: Take, ids: Sequence[int]) -> Take:
    """The take that has made these whole events itself: it rolls on where it did then. ValueError for illegal ids."""
    made = len(ids) // EVENT_TOKENS
    while len(ids):
        room = take.engine.config.max_positions - len(take.window) + 1
        if room < EVENT_TOKENS:
            window = _rebuilt(take)
            _, state = take.engine.forward(_row(window[:-1]), take.engine.zero_state(), last_only=True)
            take = replace(take, window=window, state=state)
            continue
        fit = room // EVENT_TOKENS * EVENT_TOKENS
        take, ids = _having_read(take, ids[:fit]), ids[fit:]
    return replace(take, events=take.events + made)


def _having_read(take: Take, ids: Sequence[int]) -> Take:
    if not len(ids):
        return take
    window = take.window + tuple(int(i) for i in ids)
    grammar = take.grammar
    for token in ids:
        grammar = grammar.after(int(token))
    if grammar.slot is not Slot.DELTA:
        raise ValueError("the ids end with EOS or inside an event: nothing can follow")
    _, state = take.engine.forward(_row(window[len(take.window) - 1 : -1]), take.state, last_only=True)
    return replace(take, window=window, state=state, grammar=grammar)


def default_keep(engine: Engine) -> int:
    """Events that the state is rebuilt from when the context is full: half of it."""
    return max(1, engine.config.max_positions // 2 // EVENT_TOKENS)


def longest_seed(engine: Engine) -> int:
    """Events that a seed may have, beside its BOS, so that one more fits into the context."""
    return (engine.config.max_positions - EVENT_TOKENS) // EVENT_TOKENS


def advance(take: Take, steer: Steer | None = None) -> tuple[Event, Take] | None:
    """The next event and the take after it; None where the piece ends. ValueError if the logits are not finite.

    `steer` must leave at least one legal id, EOS among them only if it may come, and depend on nothing but its
    arguments and the events so far, so that a take that is made again is the same.
    """
    event = _Beginning.of(take, steer)
    for slot in range(EVENT_TOKENS):
        logits_BTV, state = take.engine.forward(_row(event.unread), event.state, last_only=True)
        if not event.continues(slot, logits_BTV[0, -1], state):
            return None
    return event.done()


def advance_together(
    takes: Sequence[Take], steers: Sequence[Steer | None] | None = None
) -> list[tuple[Event, Take] | None]:
    """What `advance` gives for each of some takes of one engine, to the last bit.

    An engine that can join states computes them together, several times faster.
    """
    steers = steers or [None] * len(takes)
    together = joining(takes[0].engine) if len(takes) > 1 else None
    if together is None:
        return [advance(take, steer) for take, steer in zip(takes, steers, strict=True)]
    assert all(take.engine is takes[0].engine for take in takes)
    events = [_Beginning.of(take, steer) for take, steer in zip(takes, steers, strict=True)]
    for event in events:
        if len(event.unread) > 1:
            _, event.state = together.forward(_row(event.unread[:-1]), event.state, last_only=True)
            event.unread = event.unread[-1:]
    going, state = events, together.join(event.state for event in events)
    for slot in range(EVENT_TOKENS):
        ids_B1 = np.array([event.unread for event in going], np.int64)
        logits_BTV, state = together.forward(ids_B1, state, last_only=True)
        states = together.split(state)
        still = [
            event
            for event, logits_V, own in zip(going, logits_BTV[:, -1], states, strict=True)
            if event.continues(slot, logits_V, own)
        ]
        if len(still) < len(going):
            going = still
            if not going:
                break
            state = together.join(event.state for event in going)
    return [event.done() for event in events]


@dataclass(eq=False)
class _Beginning:
    """An event under way."""

    take: Take
    steer: Steer | None
    window: tuple[int, ...]
    state: State
    unread: tuple[int, ...]  # ids that the state has not read yet
    grammar: Grammar
    uniforms: tuple[float, ...]
    made: list[int]
    ended: bool = False

    @classmethod
    def of(cls, take: Take, steer: Steer | None) -> _Beginning:
        window, state, unread = take.window, take.state, take.window[-1:]
        if not _has_room(len(window), take.engine.config.max_positions):
            window, state = _rebuilt(take), take.engine.zero_state()
            unread = window
        numbers = uniforms(take.random_seed, take.number, take.events)
        return cls(take, steer, window, state, unread, take.grammar, numbers, [])

    def continues(self, slot: int, logits_V: NDArray[np.float32], state: State) -> bool:
        """Picks the next id; False if it ends the piece."""
        legal_ids = self.grammar.legal(self.take.may_end)
        if self.steer is not None:
            legal_ids, logits_V = self.steer(self.made, self.grammar, legal_ids, logits_V)
        token = pick(logits_V, legal_ids, self.take.sampling, self.uniforms[slot])
        self.state, self.ended = state, token == EOS
        if not self.ended:
            self.grammar = self.grammar.after(token)
            self.made.append(token)
            self.unread = (token,)
        return not self.ended

    def done(self) -> tuple[Event, Take] | None:
        if self.ended:
            return None
        window, events = self.window + tuple(self.made), self.take.events + 1
        after = replace(self.take, window=window, state=self.state, grammar=self.grammar, events=events)
        return Event(*self.made), after


def play(take: Take) -> Iterator[tuple[Event, Take]]:
    """Event after event, each with the take after it; without end unless `may_end`."""
    while (step := advance(take)) is not None:
        yield step
        take = step[1]


def uniforms(random_seed: int, number: int, event: int) -> tuple[float, ...]:
    """Four numbers in [0, 1) for an event: block `event` of the Philox stream keyed by (random_seed, number).

    53 bits each, from the raw stream, which numpy keeps the same in all its versions.
    """
    return _uniforms(random_seed, number, event // DRAWN_AT_ONCE)[event % DRAWN_AT_ONCE]


@lru_cache(maxsize=64)  # A take asks for its events one after the other.
def _uniforms(random_seed: int, number: int, part: int) -> list[tuple[float, ...]]:
    """Of as many events as are drawn at once."""
    key = np.array((random_seed, number), np.uint64)
    raw = np.random.Philox(key=key, counter=part * DRAWN_AT_ONCE).random_raw(DRAWN_AT_ONCE * EVENT_TOKENS)
    return [tuple(row) for row in ((raw >> 11) * 2.0**-53).reshape(-1, EVENT_TOKENS).tolist()]


def _has_room(window_length: int, positions: int) -> bool:
    # The state reads the whole window and all of the next event but its last id.
    return window_length + EVENT_TOKENS - 1 <= positions


def _rebuilt(take: Take) -> tuple[int, ...]:
    """The anchor and the latest events; these from the beginning of a chord on, so that the whole is legal."""
    latest = take.window[len(take.anchor) - take.keep * EVENT_TOKENS :]
    while take.anchor and latest and latest[0] == BLOCKS[Slot.DELTA].start:
        latest = latest[EVENT_TOKENS:]
    return take.anchor + latest


def _anchor(ids: tuple[int, ...], keep: int) -> tuple[int, ...]:
    return ids[ids[0] == BOS :][: keep // 2 * EVENT_TOKENS]


def _row(ids: Sequence[int]) -> NDArray[np.int64]:
    return np.array([ids], np.int64)
