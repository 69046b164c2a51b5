"""Baselines: exact on known distributions, proper probabilities, causal, and better the more they may know."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pulse88 import baselines
from pulse88.batches import TokenCorpus
from pulse88.vocabulary import BLOCKS, BOS, EOS, Slot


def corpus_of(pieces: list[list[int]]) -> TokenCorpus:
    tokens = [np.array([BOS, *events, EOS], np.uint8) for events in pieces]
    return TokenCorpus(
        np.concatenate(tokens), np.array(list(map(len, tokens))), tuple(f"a/{i}" for i in range(len(pieces)))
    )


def random_corpus(pieces: int, notes: int, seed: int, kinds: int = 4) -> TokenCorpus:
    random = np.random.default_rng(seed)
    events = [[random.integers(b.start, b.start + kinds, notes) for b in BLOCKS.values()] for _ in range(pieces)]
    return corpus_of([np.stack(slots, axis=1).ravel().tolist() for slots in events])


def test_uniform_is_the_logarithm_of_the_slots() -> None:
    corpus = random_corpus(3, 10, 0)
    expected = 10 * (math.log2(33) + math.log2(88) + math.log2(32) + math.log2(16)) + math.log2(33)
    assert baselines.uniform(corpus) == pytest.approx([expected] * 3)


def test_unigram_costs_the_entropy_of_a_known_distribution() -> None:
    """Four ids of each slot, equally likely: 2 bits a token, and EOS once in 500 events."""
    train, held_out = random_corpus(40, 500, 1), random_corpus(20, 500, 2)
    ends = -(math.log2(1 / 501)) - 500 * math.log2(500 / 501)
    expected = (500 * 8 + ends) / 500
    assert baselines.unigram(held_out, train).sum() / 10_000 == pytest.approx(expected, rel=0.01)


def test_a_context_model_learns_what_follows_what() -> None:
    """Every slot counts upwards: from the note before, everything is known."""

    def counting(start: int, notes: int) -> list[int]:
        return [BLOCKS[slot].start + (start + note) % 8 for note in range(notes) for slot in Slot]

    train = corpus_of([counting(start % 8, 50) for start in range(80)])
    held_out = corpus_of([counting(3, 50), counting(6, 20)])
    found = baselines.context_models(held_out, train, (1, 2))
    unigram = baselines.unigram(held_out, train)
    assert (found[1] < 0.2 * unigram).all()
    assert (unigram > 70 * 3 * 0.9 * np.array([50, 20]) / 70).all()


def test_probabilities_of_all_ids_sum_to_one() -> None:
    train = random_corpus(30, 12, 3, kinds=3)
    prefix = [int(t) for t in random_corpus(1, 4, 4, kinds=5).tokens[1:-1]]
    for slot in Slot:
        before = prefix[: 8 + slot]
        rest = [b.start for b in BLOCKS.values()][slot + 1 :]
        total = 0.0
        for token in BLOCKS[slot].ids.tolist():
            total += _probability_of_last(before, [token], train)
            assert len(rest) <= 3
        if slot is Slot.DELTA:
            total += _probability_of_last(before, [EOS], train)
        assert total == pytest.approx(1.0, abs=1e-9), slot


def _probability_of_last(before: list[int], token: list[int], train: TokenCorpus) -> float:
    """Of a token after others, as the difference of the bits of two pieces that end there."""
    bits = []
    for ids in (before, before + token):
        tokens = np.array([BOS, *ids], np.uint8)
        corpus = TokenCorpus(tokens, np.array([len(tokens)]), ("a/0",))
        bits.append(float(baselines.context_models(corpus, train, (3,))[3][0]))
    return 2.0 ** (bits[0] - bits[1])


def test_pieces_are_counted_each_for_itself() -> None:
    train = random_corpus(30, 20, 8)
    one, two = random_corpus(1, 15, 9), random_corpus(1, 9, 10)
    both = TokenCorpus(np.r_[one.tokens, two.tokens], np.r_[one.lengths, two.lengths], ("a/0", "a/1"))
    for order in (1, 3):
        alone = [baselines.context_models(c, train, (order,))[order][0] for c in (one, two)]
        assert baselines.context_models(both, train, (order,))[order] == pytest.approx(alone)


def test_compressors_find_repetition() -> None:
    once = random_corpus(1, 400, 11)
    events = once.tokens[1:-1].tolist()
    repeated = corpus_of([events * 10])
    for name, bits in baselines.compressed_bits(repeated).items():
        assert bits < 2 * baselines.compressed_bits(once)[name]
