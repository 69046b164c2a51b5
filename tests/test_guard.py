"""A guard: dead ends are left, what stays is legal and replayable, quotes are cut short, and sound music is let be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from made_corpus import piece
from pulse88 import guard, musicality
from pulse88.config import TINY
from pulse88.continuation import Continuer
from pulse88.engine.weights import Weights, random_tensors
from pulse88.guard import CHECK_NOTES, MOST_RETURNS, Fault, Return
from pulse88.notes import Note, Performance
from pulse88.overlap_index import build
from pulse88.playing import Mark
from pulse88.provenance import ContinueConfig
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=256)


@pytest.fixture(scope="module")
def continuer() -> Continuer:
    return Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE), "auto")


def begun(continuer: Continuer, notes: int = 100):  # type: ignore[no-untyped-def]
    return continuer.begin(piece(3, 30), ContinueConfig(notes=notes, seed_notes=16, random_seed=3))[0]


def test_without_faults_nothing_changes(continuer: Continuer) -> None:
    playing = begun(continuer)
    assert guard.play(playing, [lambda notes: None]) == ((), False)
    assert playing.continuation().to_bytes() == begun(continuer).finish().to_bytes()


def test_a_fault_is_left_and_the_take_is_replayed_to_the_byte(continuer: Continuer) -> None:
    straight = begun(continuer).finish()
    bad = straight.new.pitch[40]
    told: list[int] = []

    def no_such_note(notes: Sequence[Note]) -> Fault | None:
        found = [at for at, note in enumerate(notes) if at >= 40 and note.pitch == bad]
        return Fault(f"pitch {bad}", found[0]) if found else None

    playing = begun(continuer)
    report = guard.play(playing, [no_such_note], lambda playing: told.append(playing.notes))
    made = playing.continuation()
    assert report.returns and not report.gave_up
    assert report.returns[0] == Return(f"pitch {bad}", 48, 32)
    assert report.lines()[0] == f"pitch {bad} at note 48: went back to note 32"
    assert bad not in [note.pitch for note in playing._notes[40:]]
    assert len(made.ids) == 400
    kept = 4 * min(back.back_to for back in report.returns)
    assert made.ids[:kept].tolist() == straight.ids[:kept].tolist()
    assert made.provenance.branches[0][0] * 4 == kept
    assert len(told) > 100 and told[-1] == 100
    assert continuer.replay(made.to_bytes()).finish().to_bytes() == made.to_bytes()


def test_a_fault_that_does_not_go_away_is_given_up(continuer: Continuer) -> None:
    playing = begun(continuer, 64)
    report = guard.play(playing, [lambda notes: Fault("all of it", 20) if len(notes) > 30 else None])
    assert report.gave_up and len(report.returns) == MOST_RETURNS
    assert report.lines()[-1].startswith("gave up")
    assert playing.notes == 64
    made = playing.continuation()
    assert continuer.replay(made.to_bytes()).finish().to_bytes() == made.to_bytes()


def test_every_return_to_a_place_goes_twice_as_far_back(continuer: Continuer) -> None:
    take = begun(continuer).take
    marks = [Mark(CHECK_NOTES * at, take) for at in range(10)]
    found: list[int] = []
    returns: list[Return] = []
    for _ in range(6):
        back = guard._mark_before(130, marks, returns).notes
        found.append(back)
        returns.append(Return("x", 144, back))
    assert found == [128, 112, 80, 16, 0, 0]
    assert guard._mark_before(60, marks, [Return("x", 40, 16)]).notes == 48  # that was elsewhere


def looping(rounds: int) -> Performance:
    random = np.random.default_rng(0)
    music = piece(8, 150)
    phrase = np.tile(random.integers(50, 80, 8), rounds)
    onset = music.end + 0.25 * np.arange(len(phrase))
    return Performance(
        onset=np.r_[music.onset, onset],
        duration=np.full(150 + len(phrase), 0.2),
        pitch=np.r_[music.pitch, phrase],
        velocity=np.full(150 + len(phrase), 64),
        part=np.zeros(150 + len(phrase)),
    )


def test_the_watch_sees_loops_silence_and_one_note_where_they_begin() -> None:
    watch = guard.watch_degeneration()
    assert watch(list(piece(8, 150))) is None
    assert watch(list(looping(3))) is None
    fault = watch(list(looping(12)))
    assert fault is not None and fault.reason == "loop"
    assert 150 <= fault.note <= 150 + 96 - 7 * 8
    music = piece(8, 150)
    late = replace(music, onset=np.where(np.arange(150) >= 140, music.onset + 25, music.onset))
    assert watch(list(late)) == Fault("silence", 139)
    one = replace(music, pitch=np.where(np.arange(150) >= 80, 60, music.pitch))
    fault = watch(list(one))
    assert fault is not None and fault.reason == "one note"
    assert "one note" in musicality.degenerate(one.take(slice(86, None)))


def test_too_long_a_quote_is_seen_where_it_begins() -> None:
    corpus = {f"made/{seed}": piece(seed, 500) for seed in range(4)}
    index = build(((name, p.onset, p.pitch) for name, p in corpus.items()), 8)
    own, quote = piece(50, 200), corpus["made/2"].take(slice(100, 180))
    later = quote.onset - quote.onset[0] + own.end + 0.5
    notes = [*own, *(note._replace(onset=float(at)) for note, at in zip(quote, later, strict=True))]
    assert guard.watch_overlaps(index, 80)(notes) is None
    fault = guard.watch_overlaps(index, 40)(notes)
    assert fault is not None
    assert 199 <= fault.note <= 208 and fault.reason.endswith("notes of made/2")
    assert guard.watch_overlaps(index, 40)(notes[:220]) is None


def test_a_model_that_quotes_is_kept_from_it(continuer: Continuer) -> None:
    """The corpus is what the model would play: without the guard it quotes 100 notes."""
    straight = begun(continuer).finish().new
    index = build([("made/own", straight.onset, straight.pitch)], 2)
    most = 40
    assert index.overlaps(straight.onset, straight.pitch)[0].notes > most
    playing = begun(continuer)
    report = guard.play(playing, [guard.watch_overlaps(index, most)])
    new = playing.continuation().new
    assert report.returns and not report.gave_up and len(new) > 60
    assert max((o.notes for o in index.overlaps(new.onset, new.pitch)), default=0) <= most
