from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse88.config import SamplingConfig
from pulse88.generate import (
    Event,
    Steer,
    Take,
    advance,
    advance_together,
    after_making,
    begin,
    longest_seed,
    play,
    uniforms,
)
from pulse88.sampling import pick
from pulse88.vocabulary import BLOCKS, BOS, EOS, Grammar, Slot
from toy_engine import JoiningToy, ToyEngine, V, hashed_logits

SAMPLING = SamplingConfig()
SEED = (BOS, 0, 60, 130, 160, 5, 64, 131, 161)


def start(engine: ToyEngine | None = None, seed: tuple[int, ...] = SEED, **options: int | bool | None) -> Take:
    return begin(engine or ToyEngine(), seed, SAMPLING, **{"random_seed": 7, **options})  # type: ignore[arg-type]


def events(take: Take, count: int) -> list[Event]:
    return [event for event, _ in islice(play(take), count)]


def ids(made: list[Event]) -> list[int]:
    return [token for event in made for token in event]


def test_events_are_what_the_naive_loop_over_the_whole_prefix_gives() -> None:
    expected = list(SEED)
    for event in range(10):
        for uniform in uniforms(7, 2, event):
            legal = Grammar.of(expected).legal(may_end=False)
            expected.append(pick(hashed_logits(tuple(expected)), legal, SAMPLING, uniform))
    assert ids(events(start(number=2), 10)) == expected[len(SEED) :]


def test_uniforms_stay_what_they_are() -> None:
    # A change of these numbers would change every piece that somebody wants to make again.
    assert uniforms(0, 0, 0) == (0.011546754286331562, 0.24154919656271812, 0.11142585551493822, 0.5644146216071337)
    assert uniforms(2**64 - 1, 5, 10**9) != uniforms(2**64 - 1, 5, 10**9 + 1)
    for event in (1, 31, 32, 33, 10**9, 2**63 + 5):  # Each has a block of the stream to itself.
        block = np.random.Philox(key=np.array((3, 2), np.uint64), counter=event).random_raw(4)
        assert uniforms(3, 2, event) == tuple(int(bits) / 2**53 for bits in block >> 11)
    drawn = np.array([uniforms(1, 1, event) for event in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.02
    assert len(np.unique(drawn)) == drawn.size


@settings(max_examples=20)
@given(number=st.integers(0, 7), count=st.integers(1, 30))
def test_a_take_is_the_same_however_many_are_made(number: int, count: int) -> None:
    alone = events(start(number=number), count)
    shared = start()
    takes = [shared.numbered(i) for i in range(8)]
    made: list[list[Event]] = [[] for _ in takes]
    for _ in range(count):  # all eight in turn, so that forks could disturb each other
        for i, take in enumerate(takes):
            step = advance(take)
            assert step is not None
            made[i].append(step[0])
            takes[i] = step[1]
    assert made[number] == alone
    assert len({tuple(m) for m in made}) == 8 or count < 3


@settings(max_examples=40)
@given(before=st.integers(0, 40), count=st.integers(0, 60))
def test_a_take_that_is_given_what_it_made_goes_on_as_it_would_have(before: int, count: int) -> None:
    """However often it has rolled on in between, as after a lost worker whose latest snapshot is old."""
    takes = [start(), *(take for _, take in islice(play(start()), 110))]
    made = ids(events(takes[before], count))
    again = after_making(takes[before], made)
    assert again.events == before + count and again.window == takes[before + count].window
    assert events(again, 8) == events(takes[before + count], 8)
    with pytest.raises(ValueError, match="inside an event"):
        after_making(takes[before], [*made, 1])  # delta 0 may not follow the highest key


def test_seeds_and_numbers_make_different_takes() -> None:
    made = {tuple(ids(events(start(random_seed=s, number=n), 5))) for s in range(5) for n in range(5)}
    assert len(made) == 25


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_stopping_and_going_on_gives_what_not_stopping_gives(cuts: list[int]) -> None:
    take, pieces = start(), []
    for cut in cuts:
        for event, after in islice(play(take), cut):
            pieces.append(event)
            take = after
        events(take, 3)  # what somebody else makes from here leaves no trace
    assert pieces == events(start(), sum(cuts))


def test_the_context_is_never_passed_and_the_cost_of_an_event_is_bounded() -> None:
    engine = ToyEngine(max_positions=64)
    take = start(engine)
    del engine.read[:]
    for made, (_, after) in enumerate(islice(play(take), 500), 1):
        assert after.state.position == len(after.window) - 1 <= 64
        assert sum(engine.read) <= 4 * made + 8 * 4 * (made // 7 + 1)
    assert after.events == 500


@pytest.mark.parametrize("keep", [1, 3, 8, 15])
def test_past_the_context_the_state_is_rebuilt_from_the_seeds_first_and_the_latest_events(keep: int) -> None:
    seen: list[tuple[int, ...]] = []

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        seen.append(prefix)
        return hashed_logits(prefix)

    made = ids(events(start(ToyEngine(64, logits), keep=keep), 60))
    whole = list(SEED) + made
    rebuilt = [prefix for prefix, before in zip(seen[1:], seen, strict=False) if len(prefix) < len(before)]
    assert rebuilt
    anchor = SEED[1:][: keep // 2 * 4]
    for prefix in rebuilt:
        latest = prefix[len(anchor) :]
        assert prefix[: len(anchor)] == anchor
        assert len(prefix) <= keep * 4
        assert any(tuple(whole[i : i + len(latest)]) == latest for i in range(1, len(whole), 4)), "cut between events"
        Grammar.of(prefix)
        if anchor and latest:
            assert latest[0] != 0, "the latest events begin with a chord's first note"
    assert any(len(prefix) == keep * 4 for prefix in rebuilt)
    for before, prefix in pairwise(seen):
        if len(prefix) > len(before):
            assert prefix[: len(before)] == before, "between rebuildings the context only grows"


def test_by_default_half_the_context_is_kept() -> None:
    assert start(ToyEngine(2048)).keep == 256
    assert start(ToyEngine(64)).keep == 8


@given(st.sampled_from(["flat", "spiky", "masked", "illegal"]), st.integers(0, 2**64 - 1), st.booleans())
@settings(max_examples=40)
def test_every_sequence_is_legal_whatever_the_logits(kind: str, random_seed: int, may_end: bool) -> None:
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        row = hashed_logits(prefix)
        if kind == "flat":
            return np.zeros(V, np.float32)
        if kind == "spiky":
            return row * 1e30
        if kind == "masked":  # at least one id of every block stays
            for block in BLOCKS.values():
                row[block.start : block.stop - 1] = -np.inf
            return row
        row[list(Grammar.of(prefix).legal())] -= 1e6  # all that is legal is unlikely
        return row

    take = start(ToyEngine(64, logits), random_seed=random_seed, may_end=may_end)
    if kind == "masked":  # only the highest key is left, and it can't be struck twice in a chord
        with_delta = events(take, 20)
        assert all(event.pitch == 119 and event.delta == 31 for event in with_delta)
    made = list(SEED) + ids(events(take, 30))
    assert Grammar.of(made).slot is Slot.DELTA
    assert EOS not in made and BOS not in made[1:]


def test_the_end_comes_only_where_it_may() -> None:
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        row = hashed_logits(prefix)
        row[EOS] = 50.0 if len(prefix) >= len(SEED) + 12 else -50.0
        return row

    ending = start(ToyEngine(64, logits), may_end=True)
    made = events(ending, 100)
    assert len(made) == 3
    assert len(events(start(ToyEngine(64, logits)), 100)) == 100
    *_, (_, last) = play(ending)
    assert advance(last) is None
    assert advance(last) is None


def test_takes_share_one_prefill() -> None:
    engine = ToyEngine()
    shared = start(engine)
    for number in range(4):
        events(shared.numbered(number), 3)
    assert engine.read == [len(SEED) - 1] + [1] * (4 * 3 * 4)


@pytest.mark.parametrize("seed", [(BOS,), (3, 60, 130, 160), SEED[1:]])
def test_small_seeds_go_on(seed: tuple[int, ...]) -> None:
    made = events(start(seed=seed), 20)
    assert len(made) == 20
    Grammar.of([*seed, *ids(made)])


def test_after_bos_the_first_note_has_no_delta() -> None:
    assert events(start(seed=(BOS,)), 1)[0].delta == 0


@pytest.mark.parametrize("begins", [True, False])
def test_the_longest_seed_fits_and_one_more_event_does_not(begins: bool) -> None:
    engine = ToyEngine(64)
    event = (5, 60, 130, 160)
    bos = (BOS,) if begins else ()
    first = (0, 60, 130, 160) if begins else event
    longest = bos + first + event * (longest_seed(engine) - 1)
    assert len(events(start(engine, seed=longest), 40)) == 40
    with pytest.raises(ValueError, match="no room"):
        start(engine, seed=longest + event)


@pytest.mark.parametrize(
    ("seed", "options", "problem"),
    [
        ((), {}, "no ids"),
        ((BOS, 0, 60), {}, "inside an event"),
        ((*SEED, EOS), {}, "EOS"),
        ((60, 60, 60, 60), {}, "token 0"),
        (SEED, {"random_seed": -1}, "random seed"),
        (SEED, {"random_seed": 2**64}, "random seed"),
        (SEED, {"number": -1}, "number"),
        (SEED, {"keep": 0}, "keep"),
        (SEED, {"keep": 16}, "keep"),
    ],
)
def test_what_can_not_go_on_is_refused(seed: tuple[int, ...], options: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        start(seed=seed, **options)


def test_a_model_that_gives_nan_is_refused() -> None:
    broken = ToyEngine(64, lambda prefix: np.full(V, np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        advance(start(broken))


# ---------------------------------------------------------------- takes together


def together(takes: list[Take], rounds: int) -> list[list[Event]]:
    """What each take makes in so many rounds, until it ends."""
    made: list[list[Event]] = [[] for _ in takes]
    going = dict(enumerate(takes))
    for _ in range(rounds):
        if not going:
            break
        for (index, _), step in zip(list(going.items()), advance_together(list(going.values())), strict=True):
            if step is None:
                del going[index]
            else:
                made[index].append(step[0])
                going[index] = step[1]
    return made


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=5), st.booleans(), st.integers(1, 9)
)
def test_takes_that_are_computed_together_are_what_each_is_alone(
    starts: list[tuple[int, int]], may_end: bool, keep: int
) -> None:
    """Whatever their positions: some roll on while others don't, and some end."""
    engine = JoiningToy(64)
    takes = []
    for number, ahead in starts:
        take = start(engine, number=number, may_end=may_end, keep=keep)
        takes.append([take, *(after for _, after in islice(play(take), ahead))][-1])
    del engine.read[:]
    made = together(takes, 25)
    assert made == [events(take, 25) for take in takes]
    assert made == together([replace(take, engine=ToyEngine(64)) for take in takes], 25)


def test_takes_together_take_one_pass_a_token() -> None:
    engine = JoiningToy()
    first = start(engine)
    del engine.read[:]
    together([first.numbered(number) for number in range(8)], 10)
    assert engine.read == [1] * 40


def test_takes_together_are_steered_each_by_its_own() -> None:
    def only(pitch: int) -> Steer:
        def steer(made: Sequence[int], grammar: Grammar, ids: np.ndarray, logits: np.ndarray) -> tuple:
            return (np.array([pitch]) if grammar.slot is Slot.PITCH else ids[1:] if not made else ids), logits

        return steer

    takes = [start(JoiningToy()).numbered(0)] * 3
    steers = [only(50), None, only(70)]
    steps = advance_together(takes, steers)
    assert steps[0][0].pitch == 50 and steps[2][0].pitch == 70  # type: ignore[index]
    assert [step[0] for step in steps] == [advance(t, s)[0] for t, s in zip(takes, steers, strict=True)]  # type: ignore[index]
