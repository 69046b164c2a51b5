"""Ranking: what is plainly worse stands behind, every point has its reason, and equal takes keep their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_corpus import piece
from pulse88 import ranking
from pulse88.config import TINY
from pulse88.continuation import Continuer
from pulse88.engine.weights import Weights, random_tensors
from pulse88.notes import Performance
from pulse88.overlap_index import build
from pulse88.playing import Continuation
from pulse88.ranking import rank
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import FINE

CONFIG = replace(TINY, max_positions=640)


@pytest.fixture(scope="module")
def continuer() -> Continuer:
    return Continuer(Weights(CONFIG, random_tensors(CONFIG, 1), FINE), "auto")


@pytest.fixture(scope="module")
def made(continuer: Continuer) -> Continuation:
    return continuer.continue_(piece(1, 200), notes=60, seed_notes=100, random_seed=1)[0]


def with_new(made: Continuation, new: Performance) -> Continuation:
    """The same continuation with other new notes, as the model would have written them."""
    encoding = Tokenizer(FINE).encode(new, begins=False, ends=False)
    return replace(made, new=Tokenizer(FINE).decode(encoding.ids), ids=encoding.ids)


def test_more_of_the_seed_s_music_beats_other_music(continuer: Continuer, made: Continuation) -> None:
    on = with_new(made, piece(1, 260).take(slice(200, 260)).shifted(-piece(1, 260).onset[200]))
    faster = with_new(made, replace(on.new, onset=on.new.onset / 3))
    stuck = with_new(made, replace(on.new, pitch=np.full(len(on.new), 60), onset=np.arange(len(on.new)) * 0.3))
    ranked = rank(continuer.engine, [stuck, faster, on])
    by_take = {one.take: one for one in ranked}
    assert by_take[1].points["density"] > by_take[2].points["density"] + 2
    assert by_take[0].points["pitch classes"] > by_take[2].points["pitch classes"]
    assert by_take[0].points["dead ends"] > 0 and "one note" in by_take[0].line()
    assert (ranked[0].take, ranked[-1].take) == (2, 0)


def test_every_take_s_bits_are_its_own(continuer: Continuer, made: Continuation) -> None:
    takes = continuer.continue_(piece(1, 200), notes=60, seed_notes=100, takes=3, random_seed=1)
    together = {one.take: one for one in rank(continuer.engine, takes)}
    for place, take in enumerate(takes):
        (alone,) = rank(continuer.engine, [take])
        assert alone.bits_per_note == together[place].bits_per_note
        assert alone.total == pytest.approx(together[place].total)
        assert sum(together[place].points.values()) == together[place].total


def test_equal_takes_keep_their_order(continuer: Continuer, made: Continuation) -> None:
    assert [one.take for one in rank(continuer.engine, [made, made, made])] == [0, 1, 2]


def test_a_quote_is_held_against_a_take(continuer: Continuer, made: Continuation) -> None:
    index = build([("made/9", piece(9, 400).onset, piece(9, 400).pitch)], 4)
    quote = with_new(made, piece(9, 400).take(slice(100, 220)).shifted(-piece(9, 400).onset[100]))
    own = with_new(made, piece(10, 120))
    ranked = {one.take: one for one in rank(continuer.engine, [quote, own], index)}
    assert ranked[0].overlap is not None and ranked[0].overlap > 80
    assert ranked[0].points["quotes"] == (ranked[0].overlap - ranking.QUOTE_NOTES) / 20
    assert ranked[1].points["quotes"] == 0 and ranked[1].overlap == 0
    assert "longest overlap 0 notes" in ranked[1].line()


def test_a_short_seed_is_no_measure_of_surprise(continuer: Continuer) -> None:
    takes = continuer.continue_(piece(1, 10), notes=40, takes=3, random_seed=1)
    ranked = rank(continuer.engine, takes)
    assert {one.usual_bits for one in ranked} == {float(np.median([one.bits_per_note for one in ranked]))}


def test_nothing_cannot_be_ranked(continuer: Continuer, made: Continuation) -> None:
    with pytest.raises(ValueError, match="without notes"):
        rank(continuer.engine, [replace(made, new=Performance(), ids=np.zeros(0, np.uint8))])
