"""What predictors without a neural net make of the same tokens: the other rows of a table of likelihoods.

All but the compressors give every token a probability from what came before it in its piece and from the training
split, and sum to one over the ids of its slot (and EOS, where an event begins); bits are counted as in likelihood.py.

    uniform      all ids of the slot are equally likely
    unigram      frequencies in the training split, half a count added to each
    order n      a context model of each slot, from the same slot of the n notes before, and pitch and duration also
                 from the note's own delta: n-grams of growing length, each interpolated with the next shorter one by
                 absolute discounting (Ney, Essen and Kneser, doi 10.1006/csla.1994.1001):
                 p_k(x) = max(c(context, x) - d, 0) / c(context) + d t / c(context) p_{k-1}(x),
                 with t the different ids seen in that context and d = n1 / (n1 + 2 n2) of the n-grams seen once, twice
    xz, gzip     bytes of the compressed tokens of all pieces behind each other, training split unseen

Shape legend: E events and ends, T tokens, P pieces, V vocabulary.
"""

from __future__ import annotations

import gzip
import lzma
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pulse88.batches import TokenCorpus
from pulse88.likelihood import Floats, slot_numbers
from pulse88.vocabulary import BLOCKS, BOS, EOS, EVENT_TOKENS, SIZE, Slot

ORDERS = (1, 2, 3, 4)
MOST_NOTES = 4_000_000  # of the training split that n-grams are counted in, for the sake of time and memory
_NOTHING = 255  # stands for what lies before a piece, and for the rest of a row of EOS
_MULTIPLIER, _MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)

Hashes = NDArray[np.uint64]


def uniform(corpus: TokenCorpus) -> Floats:
    """[P] bits of each piece, BOS not counted."""
    return _summed(-np.log2(_uniform_probabilities())[corpus.tokens], corpus)


def unigram(corpus: TokenCorpus, train: TokenCorpus) -> Floats:
    """[P] bits of each piece."""
    return _summed(-np.log2(_unigram_probabilities(train))[corpus.tokens], corpus)


def _uniform_probabilities() -> Floats:
    """[V] of an id where its slot comes; EOS may come where an event begins."""
    sizes = np.array([BLOCKS[slot].size + (slot is Slot.DELTA) for slot in Slot] + [1])
    table = 1.0 / sizes[slot_numbers()]
    table[EOS] = 1.0 / sizes[Slot.DELTA]
    return table


def _unigram_probabilities(train: TokenCorpus) -> Floats:
    """[V] as above, by counts with half a count added."""
    counts = np.bincount(train.tokens, minlength=SIZE) + 0.5
    table = np.ones(SIZE)
    for slot, block in BLOCKS.items():
        ids = np.append(block.ids, EOS) if slot is Slot.DELTA else block.ids
        table[ids] = counts[ids] / counts[ids].sum()
    return table


class _Rows(NamedTuple):
    """A corpus as rows of four ids, one for every event, and one for every EOS."""

    ids: NDArray[np.uint8]  # [E, 4]
    place: NDArray[np.int64]  # [E] within the piece
    piece: NDArray[np.int64]  # [E]

    def before(self, slot: Slot, notes: int) -> NDArray[np.uint8]:
        """[E] ids of a slot so many rows before."""
        shifted = np.full(len(self.ids), _NOTHING, np.uint8)
        shifted[notes:] = self.ids[: len(self.ids) - notes, slot]
        return np.where(self.place >= notes, shifted, np.uint8(_NOTHING))

    def context(self, slot: Slot, level: int) -> NDArray[np.uint8]:
        """[E] what the context of a slot gains by one level more; level 0 is what the note itself has before it."""
        if level:
            return self.before(slot, level)
        own_delta = slot in (Slot.PITCH, Slot.DURATION)
        return self.ids[:, Slot.DELTA] if own_delta else np.zeros(len(self.ids), np.uint8)


def _rows(corpus: TokenCorpus, pieces: int) -> _Rows:
    tokens = corpus.tokens[: int(corpus.lengths[:pieces].sum())]
    counts = (corpus.lengths[:pieces] - 1 + EVENT_TOKENS - 1) // EVENT_TOKENS  # a piece's end may have no EOS
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = np.full((len(place), EVENT_TOKENS), _NOTHING, np.uint8)
    piece = np.repeat(np.arange(pieces), counts)
    starts = corpus.starts[piece] + 1 + EVENT_TOKENS * place
    for slot in Slot:
        inside = EVENT_TOKENS * place + slot < corpus.lengths[piece] - 1
        ids[inside, slot] = tokens[starts[inside] + slot]
    return _Rows(ids, place, piece)


def context_models(
    corpus: TokenCorpus, train: TokenCorpus, orders: tuple[int, ...] = ORDERS, most_notes: int = MOST_NOTES
) -> dict[int, Floats]:
    """[P] bits of each piece by order; n-grams are counted in pieces of `train` with some `most_notes` notes.

    These are spread evenly over the split.
    """
    train = _spread(train, most_notes)
    rows, known = _rows(corpus, len(corpus.names)), _rows(train, len(train.names))
    first = _unigram_probabilities(train)
    bits = {order: np.zeros(len(corpus.names)) for order in orders}
    for slot in Slot:
        here, there = rows.ids[:, slot] != _NOTHING, known.ids[:, slot] != _NOTHING
        target, seen = rows.ids[here, slot], known.ids[there, slot]
        probability = first[target]
        context, known_context = np.zeros(len(target), np.uint64), np.zeros(len(seen), np.uint64)
        for level in range(max(orders) + 1):
            context = _longer(context, rows.context(slot, level)[here])
            known_context = _longer(known_context, known.context(slot, level)[there])
            probability = _interpolated(probability, context, target, known_context, seen)
            if level in orders:
                bits[level] += np.bincount(rows.piece[here], -np.log2(probability), len(corpus.names))
    return bits


def _spread(train: TokenCorpus, most_notes: int) -> TokenCorpus:
    """Every k-th piece, with about so many notes."""
    every = max(1, round(int(train.lengths.sum()) / EVENT_TOKENS / most_notes))
    chosen = range(0, len(train.names), every)
    tokens = [train.tokens[s : s + n] for s, n in zip(train.starts[::every], train.lengths[::every], strict=True)]
    return TokenCorpus(np.concatenate(tokens), train.lengths[::every], tuple(train.names[i] for i in chosen))


def _longer(context: Hashes, added: NDArray[np.uint8]) -> Hashes:
    hashes = context * _MULTIPLIER + (added.astype(np.uint64) + np.uint64(1)) * _MIXER
    hashes = (hashes ^ (hashes >> np.uint64(31))) * _MULTIPLIER
    return hashes ^ (hashes >> np.uint64(29))


def _interpolated(
    shorter: Floats, context: Hashes, target: NDArray[np.uint8], known_context: Hashes, seen: NDArray[np.uint8]
) -> Floats:
    """[E] probabilities of targets in contexts, interpolated with those in the shorter ones."""
    # A pair's low byte is its id; what is above stands for the context.
    pairs, pair_counts = np.unique(_pairs(known_context, seen), return_counts=True)
    once, twice = int((pair_counts == 1).sum()), int((pair_counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    begins = np.flatnonzero(np.diff(pairs >> np.uint64(8), prepend=~np.uint64(0)))
    contexts = pairs[begins] >> np.uint64(8)
    kinds, counts = np.diff(np.append(begins, len(pairs))), np.add.reduceat(pair_counts, begins)
    pair = _looked_up(_pairs(context, target), pairs, pair_counts)
    of = context >> np.uint64(8)
    count, kind = _looked_up(of, contexts, counts), _looked_up(of, contexts, kinds)
    longer = (np.maximum(pair - discount, 0) + discount * kind * shorter) / np.maximum(count, 1)
    return np.where(count > 0, longer, shorter)


def _pairs(context: Hashes, ids: NDArray[np.uint8]) -> Hashes:
    return (context >> np.uint64(8)) << np.uint64(8) | ids.astype(np.uint64)


def _looked_up(keys: Hashes, known: Hashes, values: NDArray[np.int64]) -> Floats:
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], 0).astype(np.float64)


def compressed_bits(corpus: TokenCorpus) -> dict[str, int]:
    """Bits of all pieces behind each other, by compressor; EOS and BOS are left out of what is compressed.

    xz is told that rows are of four bytes.
    """
    events = corpus.tokens[(corpus.tokens != BOS) & (corpus.tokens != EOS)].tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 2, "pb": 2}]
    return {
        "xz": 8 * len(lzma.compress(events, lzma.FORMAT_XZ, filters=filters)),
        "gzip": 8 * len(gzip.compress(events, 9, mtime=0)),
    }


def _summed(bits_T: Floats, corpus: TokenCorpus) -> Floats:
    """[P] sums over each piece's tokens but its BOS."""
    counted = np.where(corpus.tokens == BOS, 0.0, bits_T)
    return np.add.reduceat(counted, corpus.starts)
