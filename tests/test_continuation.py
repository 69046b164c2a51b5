from __future__ import annotations

import json
import weakref
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse88 import generate, midi_file
from pulse88.config import TINY, SamplingConfig, SteeringConfig
from pulse88.continuation import Continuer, default_weights
from pulse88.engine import weights as weights_file
from pulse88.engine.weights import Weights, random_tensors
from pulse88.generate import play
from pulse88.join import alone, joined, next_part, split_time, writable
from pulse88.notes import Meter, Note, Performance, Tempo
from pulse88.playing import Continuation, Playing
from pulse88.provenance import ContinueConfig, Provenance
from pulse88.snapshot import dump, load
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, FINE, PUBLISHED, Slot

CONFIG = replace(TINY, max_positions=640)


@pytest.fixture(scope="module", params=["numpy", "native"])
def continuer(request: pytest.FixtureRequest) -> Continuer:
    try:
        return Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE), request.param)
    except ImportError as error:
        pytest.skip(str(error))


def a_seed(notes: int = 40, parts: int = 2) -> Performance:
    """Two hands with pedals of their own, a tempo map and meters; the last notes are held under a pedal still down."""
    rng = np.random.default_rng(3)
    onset = np.cumsum(rng.uniform(0.01, 0.6, notes))
    return Performance(
        onset=onset,
        duration=rng.uniform(0.05, 3.0, notes),
        pitch=rng.permutation(np.arange(21, 109))[:notes],
        velocity=rng.integers(1, 128, notes),
        part=np.arange(notes) % parts,
        pedal_time=np.r_[0.5, 1.5, onset[-1] - 0.2, 1.0],
        pedal_value=np.array([127, 0, 90, 64]),
        pedal_part=np.array([0, 0, 0, 1]) % parts,
        tempos=(Tempo(0.0, 100.0), Tempo(2.0, 60.0), Tempo(4.0, 133.0)),
        meters=(Meter(0.0, 3, 4), Meter(3.6, 4, 4)),
    )


def rows(performance: Performance) -> list[Note]:
    return sorted(performance)


def test_a_stream_gives_each_note_as_it_is_made_and_can_be_left_and_taken_up_at_any(continuer: Continuer) -> None:
    asked = {"notes": 130, "random_seed": 5}  # The context of 640 tokens is full after 120 of them.
    whole = list(continuer.stream(a_seed(), **asked))
    stream = continuer.stream(a_seed(), **asked)
    assert stream.take.events == 0
    for count, note in enumerate(stream, 1):
        assert note == whole[count - 1]
        assert (stream.take.events, stream.notes, len(stream.continuation().ids)) == (count, count, 4 * count)
        if count in (1, 115):
            data = dump(stream.take)
            mark = stream.mark()
            assert stream.take is mark.take
            ahead = [event for event, _ in islice(play(load(continuer.engine, data)), 9)]
            assert ahead == [event for event, _ in islice(play(stream.take), 9)]
            assert dump(stream.take) == data
    assert count == 130


def test_many_takes_are_each_what_it_is_alone_past_the_context_too() -> None:
    """Computed together in int8, some ending before others."""
    many = Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE).as_int8())
    asked = {"notes": 170, "random_seed": 3, "until_end": True}
    together = [made.to_bytes() for made in many.continue_(a_seed(), takes=18, **asked)]
    assert len({len(made) for made in together}) > 1
    config = ContinueConfig(takes=18, **asked)
    for number, playing in enumerate(many.begin(a_seed(), config)):
        if number in (0, 7, 15, 17):
            assert playing.finish().to_bytes() == together[number]
    assert many.continue_(a_seed(), takes=1, **asked)[0].to_bytes() == together[0]


def test_take_i_is_the_same_bytes_however_many_takes_are_made(continuer: Continuer) -> None:
    three = continuer.continue_(a_seed(), notes=12, takes=3, random_seed=5)
    one = continuer.continue_(a_seed(), notes=12, takes=1, random_seed=5)
    assert three[0].to_bytes() == one[0].to_bytes()
    assert [c.provenance.take for c in three] == [0, 1, 2]
    assert len({c.to_bytes() for c in three}) == 3
    again = continuer.continue_(a_seed(), notes=12, takes=2, random_seed=5)
    assert again[1].to_bytes() == three[1].to_bytes()


def test_without_a_random_seed_a_fresh_one_is_drawn_and_recorded(continuer: Continuer) -> None:
    one, other = (continuer.continue_(a_seed(), notes=6)[0] for _ in range(2))
    assert one.ids.tolist() != other.ids.tolist()
    again = continuer.continue_(a_seed(), notes=6, random_seed=one.provenance.random_seed)[0]
    assert again.to_bytes() == one.to_bytes()


def test_the_stream_is_the_new_part_of_the_whole(continuer: Continuer) -> None:
    heard = list(continuer.stream(a_seed(), notes=30, random_seed=2))
    made = continuer.continue_(a_seed(), notes=30, random_seed=2)[0]
    whole = made.whole.take(made.whole.part == made.provenance.new_part)
    expected = Performance.from_notes(heard).without_overlaps()
    assert len(heard) == 30
    np.testing.assert_array_equal(whole.onset, expected.onset)
    np.testing.assert_array_equal(whole.pitch, expected.pitch)
    np.testing.assert_array_equal(whole.velocity, expected.velocity)
    np.testing.assert_allclose(whole.duration, expected.duration, rtol=0, atol=1e-12)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_stopping_and_going_on_gives_what_not_stopping_gives(continuer: Continuer, cuts: list[int]) -> None:
    config = ContinueConfig(notes=sum(cuts), random_seed=9)
    (playing,) = continuer.begin(a_seed(), config)
    for cut in cuts:
        for _ in islice(playing, cut):
            pass
        so_far = playing.continuation().to_bytes()
        assert continuer.replay(so_far).finish().to_bytes() == so_far
    assert playing.continuation().to_bytes() == continuer.begin(a_seed(), config)[0].finish().to_bytes()


def test_it_stops_as_soon_as_the_clock_passes(continuer: Continuer) -> None:
    longer = continuer.continue_(a_seed(), notes=40, random_seed=4)[0].new
    for seconds in (0.5, 3.0, 10.0, float(longer.onset[20])):
        new = continuer.continue_(a_seed(), seconds=seconds, random_seed=4)[0].new
        assert len(new) == int((longer.onset <= seconds).sum())
        np.testing.assert_array_equal(new.onset, longer.onset[: len(new)])


def test_whichever_limit_comes_first_stops(continuer: Continuer) -> None:
    assert len(continuer.continue_(a_seed(), seconds=1000, notes=3, random_seed=4)[0].new) == 3
    assert continuer.continue_(a_seed(), seconds=2, notes=1000, random_seed=4)[0].new.onset.max(initial=0) <= 2


def test_without_limits_a_minute_is_made() -> None:
    assert ContinueConfig().limit_seconds == 60
    assert ContinueConfig(until_end=True).limit_seconds == 600
    assert ContinueConfig(notes=5).limit_seconds == float("inf")
    assert ContinueConfig(notes=5, seconds=7).limit_seconds == 7


def test_the_model_reads_the_ids_of_the_last_notes(continuer: Continuer) -> None:
    seed = a_seed()
    ids = Tokenizer(FINE).encode(seed, begins=True, ends=False).ids.tolist()
    for seed_notes, expected in ((1, ids[-4:]), (39, ids[-39 * 4 :]), (40, ids), (128, ids)):
        made = continuer.continue_(seed, notes=1, seed_notes=seed_notes)[0]
        assert list(made.provenance.seed_ids) == expected
        assert (made.provenance.seed_ids[0] == BOS) == (seed_notes >= 40)


def test_a_seed_longer_than_the_context_is_refused(continuer: Continuer) -> None:
    with pytest.raises(ValueError, match="seed_notes must be at most 159"):
        continuer.continue_(a_seed(), notes=1, seed_notes=160)


def test_the_first_new_note_comes_its_delta_after_the_seeds_last_onset(continuer: Continuer) -> None:
    seed = a_seed()
    made = continuer.continue_(seed, notes=5, random_seed=0)[0]
    deltas = FINE.seconds(Slot.DELTA, made.ids[::4])
    new = made.whole.take(made.whole.part == made.provenance.new_part)
    assert made.boundary == seed.onset[-1]
    np.testing.assert_allclose(new.onset, seed.onset[-1] + np.cumsum(deltas), rtol=0, atol=1e-9)


def test_the_seed_stays_as_it_was_and_new_notes_are_a_part_of_their_own(continuer: Continuer) -> None:
    seed = a_seed()
    made = continuer.continue_(seed, notes=60, random_seed=0)[0]
    assert made.provenance.new_part == 2
    assert rows(made.whole.take(made.whole.part != 2)) == rows(seed)
    assert made.whole.tempos == seed.tempos and made.whole.meters == seed.meters
    assert 2 not in made.whole.pedal_part
    assert made.whole.without_overlaps() == made.whole


def test_a_pedal_still_down_rises_where_its_notes_end() -> None:
    seed = a_seed()
    unused = min({*range(21, 109)} - {*seed.pitch.tolist()})
    whole = joined(seed, Performance.from_notes([Note(1.0, 1.0, unused, 60)]), float(seed.onset[-1]), 2)
    for part, value in ((0, 90), (1, 64)):
        mine = whole.pedal_part == part
        assert whole.pedal_value[mine][-2:].tolist() == [value, 0]
        assert whole.pedal_time[mine][-1] == seed.end
    before, after = seed.sustained(), whole.sustained()
    assert rows(after.take(after.part < 2)) == rows(before)


def test_a_pedal_that_rises_by_itself_is_left_alone() -> None:
    seed = replace(a_seed(), pedal_value=np.array([127, 0, 90, 10]), pedal_part=np.zeros(4, np.uint8))
    late = replace(seed, pedal_time=seed.pedal_time + np.array([0, 0, 0, 90]))
    whole = joined(late, Performance.from_notes([Note(1.0, 1.0, 60, 60)]), float(seed.onset[-1]), 2)
    np.testing.assert_array_equal(whole.pedal_time, late.pedal_time)
    np.testing.assert_array_equal(whole.pedal_value, late.pedal_value)


def test_trailing_pedal_events_and_tempos_move_nothing(continuer: Continuer) -> None:
    seed = replace(a_seed(), pedal_time=np.zeros(0), pedal_value=np.zeros(0), pedal_part=np.zeros(0))
    trailing = replace(
        seed,
        pedal_time=np.array([500.0, 501.0]),
        pedal_value=np.array([127, 0]),
        pedal_part=np.zeros(2),
        tempos=(*seed.tempos, Tempo(600.0, 90.0)),
    )
    one, other = (continuer.continue_(s, notes=8, random_seed=1)[0] for s in (seed, trailing))
    assert one.boundary == other.boundary
    assert rows(one.whole) == rows(other.whole)


@pytest.mark.parametrize(
    "seed",
    [
        Performance.from_notes([Note(0.0, 1.0, 60, 80)]),
        Performance.from_notes([Note(7.25, 300.0, 108, 1)]),
        Performance.from_notes([Note(0.0, 1.0, 60, 80), Note(1e4, 0.01, 12, 80), Note(1e4, 0.2, 60, 80)]),
    ],
)
def test_small_and_odd_seeds_go_on(continuer: Continuer, seed: Performance) -> None:
    made = continuer.continue_(seed, notes=20, random_seed=0)[0]
    assert len(made.new) == 20
    assert made.whole.onset[-1] >= made.boundary == seed.onset[-1]


def test_a_seed_without_notes_is_refused(continuer: Continuer) -> None:
    with pytest.raises(ValueError, match="the seed has no piano note"):
        continuer.continue_(Performance())
    with pytest.raises(ValueError, match="88 keys"):
        continuer.continue_(Performance.from_notes([Note(0.0, 1.0, 5, 80)]))


def test_only_new_begins_at_the_join_with_the_tempo_of_that_place(continuer: Continuer) -> None:
    seed = replace(a_seed(), tempos=(Tempo(0.0, 100.0), Tempo(2.0, 60.0), Tempo(1000.0, 90.0)))
    config = {"notes": 10, "random_seed": 3}
    whole = continuer.continue_(seed, **config)[0]
    bare = continuer.continue_(seed, only_new=True, **config)[0]
    heard = midi_file.read(bare.to_bytes()).performance
    assert len(heard) == 10
    np.testing.assert_allclose(heard.onset, whole.new.onset, rtol=0, atol=1e-3)
    assert [round(t.bpm) for t in bare.performance.tempos] == [60, 90]
    assert bare.performance.tempos[0].time == 0
    assert bare.performance.tempos[1].time == pytest.approx(1000 - seed.onset[-1])
    assert bare.performance.meters == (Meter(0.0, 4, 4),)


def test_new_notes_alone_take_no_tempo_from_after_the_boundary_if_there_is_none_before() -> None:
    seed = replace(a_seed(), tempos=(Tempo(50.0, 60.0),), meters=())
    new = Performance.from_notes([Note(0.5, 1.0, 60, 60)])
    assert alone(new, seed, 20.0).tempos == (Tempo(30.0, 60.0),)
    assert alone(new, replace(seed, tempos=()), 20.0).tempos == ()


def test_the_picture_is_split_between_the_last_old_and_the_first_new_onset() -> None:
    seed = Performance.from_notes([Note(0.0, 1.0, 60, 80), Note(2.0, 1.0, 60, 80)])
    for first, expected in ((1.0, 2.5), (0.0, np.nextafter(2.0, 3.0))):
        whole = joined(seed, Performance.from_notes([Note(first, 1.0, 62, 60)]), 2.0, 1)
        assert split_time(whole, 1) == expected
    assert split_time(seed, 1) is None
    assert split_time(seed, 0) is None


def test_a_seed_with_every_part_taken_is_refused() -> None:
    assert next_part(Performance()) == 0
    with pytest.raises(ValueError, match="256 parts"):
        next_part(Performance.from_notes([Note(0, 1, 60, 60, part) for part in range(256)]))


def test_a_seed_is_made_writable() -> None:
    seed = replace(
        Performance.from_notes([Note(0, 5, 60, 60, 7), Note(1, 1, 60, 60, 7), Note(0, 5, 60, 60, 2)]),
        pedal_time=np.array([0.0, 1.0, 2.0]),
        pedal_value=np.array([127, 127, 0]),
        pedal_part=np.array([7, 3, 7]),
    )
    made = writable(seed)
    assert sorted(made) == [Note(0, 1, 60, 60, 1), Note(0, 5, 60, 60, 0), Note(1, 1, 60, 60, 1)]
    assert made.pedal_part.tolist() == [1, 1] and made.pedal_time.tolist() == [0.0, 2.0]
    assert writable(made) == made


def test_an_odd_seed_of_the_api_is_replayed_too(continuer: Continuer) -> None:
    seed = replace(a_seed(), part=np.array([3, 200] * 20), pedal_part=np.array([3, 3, 4, 200]))
    overlapping = replace(seed, pitch=np.full(40, 60))
    for odd in (seed, overlapping):
        made = continuer.continue_(odd, notes=10, random_seed=0)[0].to_bytes()
        assert continuer.replay(made).finish().to_bytes() == made


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([100, 120, 125, 500]), st.sampled_from([220, 384, 480, 960]))
def test_no_rounding_lets_a_key_be_struck_while_it_is_held(tick: int, bpm: int, division: int) -> None:
    rng = np.random.default_rng(tick)
    new = Performance(
        onset=np.cumsum(np.array(FINE.delta)[rng.integers(0, 5, 60)]),
        duration=np.array(FINE.duration)[rng.integers(0, 32, 60)],
        pitch=rng.integers(60, 63, 60),
        velocity=np.full(60, 64),
        part=np.zeros(60),
    ).without_overlaps()
    boundary = tick * 60 / bpm / division
    seed = Performance.from_notes([Note(boundary, 1.0, 40, 60)], tempos=(Tempo(0.0, bpm),))
    whole = joined(seed, new, boundary, 1)
    assert len(midi_file.read(midi_file.to_bytes(whole)).performance) == len(whole) == 1 + len(new)


@pytest.mark.parametrize("only_new", [False, True])
@pytest.mark.parametrize("until_end", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_replay_makes_the_same_bytes(continuer: Continuer, only_new: bool, until_end: bool, parts: int) -> None:
    sampling = SamplingConfig(temperature=0.9, top_p=0.8, top_k=20, min_p=0.01)
    seed = midi_file.read(midi_file.to_bytes(a_seed(parts=parts))).performance
    for made in continuer.continue_(
        seed, notes=25, sampling=sampling, takes=2, only_new=only_new, until_end=until_end, seed_notes=30
    ):
        again = continuer.replay(made.to_bytes()).finish()
        assert again.ids.tolist() == made.ids.tolist()
        assert again.to_bytes() == made.to_bytes()


def test_replay_past_the_context(continuer: Continuer) -> None:
    made = continuer.continue_(a_seed(), notes=200, random_seed=0)[0]
    assert len(made.ids) > CONFIG.max_positions
    assert continuer.replay(made.to_bytes()).finish().to_bytes() == made.to_bytes()


@pytest.mark.parametrize("only_new", [False, True])
def test_replay_makes_no_more_notes_than_a_file_may_have_lost(continuer: Continuer, only_new: bool) -> None:
    (made,) = continuer.continue_(a_seed(), notes=12, random_seed=3, only_new=only_new)

    def saying(notes: int) -> bytes:
        return replace(made, provenance=replace(made.provenance, new_notes=notes)).to_bytes()

    held = 12 if only_new else 12 + len(made.seed)
    assert continuer.replay(saying(held + 10_000)) is not None  # which would make them
    for notes in (held + 10_001, 2**60):
        with pytest.raises(ValueError, match=f"says that {notes:,} .* holds {held} in all.*at most 10,000"):
            continuer.replay(saying(notes))


def test_what_was_written_reads_back_to_the_same_notes(continuer: Continuer, tmp_path: Path) -> None:
    source = tmp_path / "seed.mid"
    midi_file.write(a_seed(), source)
    seed = midi_file.read(source).performance
    made = continuer.continue_(source, notes=80, random_seed=0)[0]
    made.write(tmp_path / "out.mid")
    assert (tmp_path / "out.mid").read_bytes() == made.to_bytes()
    heard = midi_file.read(tmp_path / "out.mid").performance
    is_new = heard.part == made.provenance.new_part
    for side, expected in ((heard.take(~is_new), seed), (heard.take(is_new), made.whole.take(made.whole.part == 2))):
        assert len(side) == len(expected)
        np.testing.assert_array_equal(side.pitch, expected.pitch)
        np.testing.assert_array_equal(side.velocity, expected.velocity)
        np.testing.assert_allclose(side.onset, expected.onset, rtol=0, atol=5e-4)
        np.testing.assert_allclose(side.duration, expected.duration, rtol=0, atol=1e-3)


def test_the_model_may_end_a_piece(continuer: Continuer) -> None:
    wilful = continuer.continue_(a_seed(), notes=150, takes=8, random_seed=0, until_end=True)
    assert min(len(made.new) for made in wilful) < 150
    assert all(len(made.new) == 20 for made in continuer.continue_(a_seed(), notes=20, takes=4, random_seed=0))


def test_replay_refuses_other_weights_and_files_without_settings(continuer: Continuer) -> None:
    made = continuer.continue_(a_seed(), notes=3)[0].to_bytes()
    other = Continuer(Weights(CONFIG, random_tensors(CONFIG, 2), FINE), continuer.engine.name)
    with pytest.raises(ValueError, match=r"other weights.*--weights"):
        other.replay(made)
    with pytest.raises(ValueError, match="no pulse88 settings"):
        continuer.replay(midi_file.to_bytes(a_seed()))
    damaged = midi_file.to_bytes(a_seed(), texts=['pulse88 {"version":"0"}'])
    with pytest.raises(ValueError, match="the seed: damaged pulse88 settings"):
        continuer.replay(damaged)


def test_the_grid_comes_with_the_weights() -> None:
    published = Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), PUBLISHED), "numpy")
    made = published.continue_(a_seed(), notes=10, random_seed=0)[0]
    allowed = PUBLISHED.seconds(Slot.DELTA, np.arange(32))
    steps = np.diff(made.new.onset, prepend=0.0)
    assert np.abs(steps[:, None] - allowed).min(axis=1).max() < 1e-9


def test_weights_come_from_a_file_and_carry_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    weights_file.save(path, random_tensors(CONFIG, 1), weights_file.metadata_of(CONFIG, FINE))
    made = Continuer(path, "numpy").continue_(a_seed(), notes=2)[0]
    assert made.provenance.weights_sha256 == weights_file.read(path).sha256
    with pytest.raises(FileNotFoundError):
        Continuer(tmp_path / "none.safetensors")


def test_missing_weights_name_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pulse88.continuation.WEIGHTS_NAME", "no-such.safetensors")
    with pytest.raises(FileNotFoundError, match="--weights"):
        default_weights()


def test_progress_is_told(continuer: Continuer) -> None:
    (playing,) = continuer.begin(a_seed(), ContinueConfig(notes=10, seconds=1e6, random_seed=0))
    assert isinstance(playing, Playing)
    shares = [playing.share]
    for note in playing:
        shares.append(playing.share)
        assert note.onset == playing.seconds + a_seed().onset[-1]
    assert playing.notes == 10
    np.testing.assert_allclose(shares, np.arange(11) / 10)


PROVENANCE = Provenance(
    version="0.1.0",
    weights_sha256="00ff",
    engine="numpy",
    sampling=SamplingConfig(temperature=0.7, top_k=3),
    random_seed=2**64 - 1,
    take=3,
    until_end=True,
    only_new=False,
    keep=256,
    boundary=0.1 + 0.2,
    new_part=2,
    new_notes=77,
    seed_ids=(169, 0, 60, 130, 160),
)


def test_the_text_event_reads_back_to_the_same_settings() -> None:
    text = PROVENANCE.to_text()
    assert text.isascii() and text.startswith("pulse88 {")
    assert Provenance.from_text(text) == PROVENANCE
    assert Provenance.found_in(["something else", text]) == PROVENANCE
    assert Provenance.found_in(["something else"]) is None


@pytest.mark.parametrize("name", [*json.loads(PROVENANCE.to_text()[8:])])
@pytest.mark.parametrize("value", [None, -1, [], float("nan"), {"temperature": -1}, {"a": 1}])
def test_damaged_settings_are_refused_as_such(name: str, value: object) -> None:
    values = json.loads(PROVENANCE.to_text()[8:])
    with pytest.raises(ValueError, match="damaged pulse88 settings"):
        Provenance.from_text("pulse88 " + json.dumps(values | {name: value}))


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_crashes_the_reader(text: str) -> None:
    with pytest.raises(ValueError):
        Provenance.from_text("pulse88 " + text)


def test_settings_nested_too_deep_are_refused() -> None:
    with pytest.raises(ValueError, match="damaged pulse88 settings"):
        Provenance.from_text("pulse88 " + "[" * 100_000)


@pytest.mark.parametrize(
    "bad",
    [
        {"seconds": 0},
        {"seconds": float("nan")},
        {"notes": 0},
        {"seed_notes": 0},
        {"takes": 0},
        {"random_seed": -1},
        {"random_seed": 2**64},
    ],
)
def test_settings_that_mean_nothing_are_refused(continuer: Continuer, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad)).replace("_", "[ _]")):
        continuer.continue_(a_seed(), **bad)  # type: ignore[arg-type]


def test_the_same_continuation_again(continuer: Continuer) -> None:
    made: list[Continuation] = [continuer.continue_(a_seed(), notes=9, random_seed=1)[0] for _ in range(2)]
    assert made[0].to_bytes() == made[1].to_bytes()


@pytest.mark.parametrize(
    "steering",
    [
        SteeringConfig(density=(0.0, 3.5), register=(40, 90)),
        SteeringConfig(in_key=True, end_within=6.5),
    ],
)
def test_a_steered_take_is_made_again_from_its_file(continuer: Continuer, steering: SteeringConfig) -> None:
    (made,) = continuer.continue_(a_seed(), notes=24, random_seed=3, steering=steering)
    written = made.provenance.steering
    assert (written.pitch_classes is not None) == steering.in_key
    assert written == replace(steering, pitch_classes=written.pitch_classes)
    again = continuer.replay(made.to_bytes())
    assert again.provenance.steering == written
    assert again.finish().to_bytes() == made.to_bytes()


def test_what_is_not_steered_says_nothing_of_it_and_damaged_steering_is_refused(continuer: Continuer) -> None:
    (made,) = continuer.continue_(a_seed(), notes=4, random_seed=3)
    assert "steering" not in made.provenance.to_text()
    text = replace(made.provenance, steering=SteeringConfig(register=(40, 90))).to_text()
    assert Provenance.from_text(text).steering.register == (40, 90)
    for bad in ("[90,40]", "[40]", '"all"', "[40,90.5]", "null"):
        with pytest.raises(ValueError, match="damaged pulse88 settings"):
            Provenance.from_text(text.replace("[40,90]", bad))


def test_playing_goes_on_from_any_place_as_if_it_had_never_stopped(continuer: Continuer) -> None:
    config, steering = ContinueConfig(notes=20, random_seed=2), SteeringConfig(density=(0.0, 3.0))
    (playing,) = continuer.begin(a_seed(), config, steering=steering)
    whole = continuer.begin(a_seed(), config, steering=steering)[0].finish()
    list(islice(playing, 7))
    on = continuer.resume(
        a_seed(),
        replace(config, takes=1),
        SamplingConfig(),
        steering,
        seed_ids=whole.provenance.seed_ids,
        take=playing.take,
        made=playing.ids,
    )
    assert on.notes == 7
    assert on.finish().to_bytes() == whole.to_bytes()


def test_a_branch_begins_where_a_take_stands_as_if_it_had_read_it_all(continuer: Continuer) -> None:
    (playing,) = continuer.begin(a_seed(), ContinueConfig(random_seed=2))
    list(islice(playing, 9))
    heard = playing.continuation().whole
    config = ContinueConfig(notes=10, random_seed=7)
    (branch,) = continuer.begin(heard, config, seed_ids=playing.take.window, read=playing.take)
    (afresh,) = continuer.begin(heard, config, seed_ids=playing.take.window)
    assert branch.finish().to_bytes() == afresh.finish().to_bytes()
    assert continuer.replay(branch.continuation().to_bytes()).finish().to_bytes() == branch.continuation().to_bytes()


def test_a_take_that_reads_on_is_the_one_that_read_it_all(continuer: Continuer) -> None:
    (playing,) = continuer.begin(a_seed(), ContinueConfig(random_seed=2))
    list(islice(playing, 9))
    ids = playing.take.window
    at_four = generate.begin(continuer.engine, ids[:-20], SamplingConfig(), random_seed=1)
    (event, _), (other, _) = (
        generate.advance(take)
        for take in (
            generate.after_reading(at_four, ids[-20:]),
            generate.begin(continuer.engine, ids, SamplingConfig(), random_seed=1),
        )
    )
    assert event == other
    with pytest.raises(ValueError, match="inside an event"):
        generate.after_reading(at_four, ids[-20:-1])


def test_the_native_engine_lets_go_of_the_file_that_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, random_tensors(CONFIG, 1), weights_file.metadata_of(CONFIG, FINE))
    weights = weights_file.read(path)
    assert weights.file is not None
    sha256, held = weights.sha256, weakref.ref(weights.file)
    try:
        continuer = Continuer(weights, "native")
    except ImportError as error:
        pytest.skip(str(error))
    assert held() is not None
    del weights
    assert held() is None  # At once: nobody knows when Python looks for circles.
    assert continuer.weights.sha256 == continuer.engine.weights_sha256 == sha256
    assert continuer.continue_(a_seed(), notes=2)[0].provenance.weights_sha256 == sha256
