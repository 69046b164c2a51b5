"""How well a predictor knows music: bits a note, whole, by slot, by source and by context. Knows no model and no torch.

Every token is counted once, with at most half a window without context: windows of 2048 tokens begin every 1024
tokens, and all but a piece's first count only their second half. No smoothing.

Bits a note depend on the time grid: a finer one asks more of the same music. The grid-free figure adds the width of
each bin, so that weights with different grids can be compared (docs/tokens.md has the derivation).

Shape legend: B windows, T tokens, P pieces, C contexts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pulse88.batches import TokenCorpus
from pulse88.vocabulary import BLOCKS, EVENT_TOKENS, PAD, SIZE, Slot, TimeGrid

SLOTS = (*(slot.name.lower() for slot in Slot), "ends")  # the last are EOS tokens
CONTEXTS = (0, 64, 128, 256, 512, 1024, 1536)  # tokens read before, at which the figure by context begins anew
GRID_FREE_SHIFT = 0.02  # s; the measure is log(t + 20 ms), finite at 0 and like log t where notes are told apart

Floats = NDArray[np.float64]
Score = Callable[[NDArray[np.int64]], Floats]  # nats [B, T] of ids[:, 1:], of ids [B, T + 1]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Nats and notes of every piece of a corpus."""

    nats: Floats  # [P, 5] by slot, the last for EOS
    notes: NDArray[np.int64]  # [P]
    names: tuple[str, ...]
    context_nats: Floats | None = None  # [P, C] of whole windows' tokens, by how many tokens were read before
    context_tokens: Floats | None = None  # [P, C] of which there are so many

    @property
    def bits_per_note(self) -> float:
        """Bits a note over all pieces, their EOS included."""
        return float(self.nats.sum() / self.notes.sum() / math.log(2))

    @property
    def piece_bits(self) -> Floats:
        """[P] bits of each piece."""
        return np.asarray(self.nats.sum(axis=1) / math.log(2))

    def by_slot(self) -> dict[str, float]:
        """Bits a note spent on each slot."""
        bits = self.nats.sum(0) / self.notes.sum() / math.log(2)
        return dict(zip(SLOTS, bits.tolist(), strict=True))

    def by_source(self) -> dict[str, float]:
        """Bits a note of the pieces of each source (the part of a name before the slash)."""
        return {
            source: float(self.nats[mine].sum() / self.notes[mine].sum() / math.log(2))
            for source, mine in sources(self.names).items()
        }


def sources(names: tuple[str, ...]) -> dict[str, NDArray[np.bool_]]:
    """[P] which pieces are of each source, by the source's name."""
    of = np.array([name.split("/")[0] for name in names])
    return {str(source): of == source for source in np.unique(of)}


def slot_numbers() -> NDArray[np.int64]:
    """[V] number of the slot of each id, 4 for PAD, BOS and EOS."""
    table = np.full(SIZE, len(BLOCKS))
    for slot, block in BLOCKS.items():
        table[block.start : block.stop] = int(slot)
    return table


def log_widths(grid: TimeGrid, slot: Slot) -> Floats:
    """[32] base-2 logarithms of the bins' widths in log(t + GRID_FREE_SHIFT).

    A bin reaches to the midpoints between it and its neighbours, the lowest one down to 0 s, for all shorter times land
    in it; the highest edge is mirrored.
    """
    times = grid.seconds(slot, np.arange(BLOCKS[slot].size))
    between = (times[1:] + times[:-1]) / 2
    lower = np.append(0.0, between)
    upper = np.append(between, 2 * times[-1] - between[-1])
    return np.asarray(np.log2(np.log((upper + GRID_FREE_SHIFT) / (lower + GRID_FREE_SHIFT))))


def grid_bits(corpus: TokenCorpus, grid: TimeGrid) -> Floats:
    """[P] what to add to the bits of each piece for the grid-free figure: the sum of both times' `log_widths`.

    Usually negative: a density may exceed 1.
    """
    table = np.zeros(SIZE)
    for slot in (Slot.DELTA, Slot.DURATION):
        table[BLOCKS[slot].start : BLOCKS[slot].stop] = log_widths(grid, slot)
    return np.add.reduceat(table[corpus.tokens], corpus.starts)


def grid_bits_per_note(corpus: TokenCorpus, grid: TimeGrid) -> float:
    """`grid_bits` a note."""
    return float(grid_bits(corpus, grid).sum()) / int((corpus.lengths // EVENT_TOKENS).sum())


def seconds_of_pieces(corpus: TokenCorpus, grid: TimeGrid) -> Floats:
    """[P] seconds from the first note of each piece to its last, as the grid has them."""
    table = np.zeros(SIZE)
    table[BLOCKS[Slot.DELTA].start : BLOCKS[Slot.DELTA].stop] = grid.delta
    return np.add.reduceat(table[corpus.tokens], corpus.starts)


def spans(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, counted from) of the windows over a piece of `length` tokens; each token but the first counted once.

    A window reads tokens begin .. end - 2, predicts begin + 1 .. end - 1, and counts those from `counted from` on.
    Later windows begin on an event. ValueError for a stride that leaves tokens between windows.
    """
    stride = stride // EVENT_TOKENS * EVENT_TOKENS
    if not 0 < stride <= window - EVENT_TOKENS:
        raise ValueError(f"stride must be {EVENT_TOKENS} to {window - EVENT_TOKENS} tokens, not {stride}")
    begin, counted = 0, 1
    while counted < length:
        end = min(begin + window + 1, length)
        yield begin, end, counted
        counted = end
        begin += stride + (1 if begin == 0 else 0)


def spans_of_events(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """`spans` without BOS and EOS, neither read nor counted; the first event's delta, always 0, is read only.

    Every other token is counted in the same window, so with the same context but for BOS.
    """
    for begin, end, counted in spans(length, window, stride):
        end, counted = min(end, length - 1), max(counted, 2)
        if counted < end:
            yield max(begin, 1), end, counted


def measure(
    score: Score,
    corpus: TokenCorpus,
    *,
    window: int = 2048,
    stride: int | None = None,
    batch: int = 16,
    rank: int = 0,
    world: int = 1,
    one_shape: bool = False,
    ends: bool = True,
    tell: Callable[[float, str], None] = lambda share, remark: None,
) -> Likelihood:
    """The likelihood of every piece; of every `world`-th window from `rank` on, so that processes can add theirs up.

    `stride` is half a window unless given. The result doesn't depend on `batch`, up to rounding. `one_shape` pads all
    that is scored to [batch, window + 1], so that a compiled model is compiled once; otherwise as far as needed. `ends`
    False leaves BOS and EOS out, for a predictor that doesn't know them.
    """
    slots, edges = slot_numbers(), np.array(CONTEXTS)
    stride = window // 2 if stride is None else stride
    cut = spans if ends else spans_of_events
    jobs = [
        (piece, *span) for piece, length in enumerate(corpus.lengths.tolist()) for span in cut(length, window, stride)
    ][rank::world]
    nats = np.zeros((len(corpus.lengths), len(SLOTS)))
    context_nats, context_tokens = np.zeros((2, len(corpus.lengths), len(CONTEXTS)))
    for first in range(0, len(jobs), batch):
        chosen = jobs[first : first + batch]
        rows = batch if one_shape else len(chosen)
        width = window if one_shape else max(end - begin for _, begin, end, _ in chosen) - 1
        ids = np.full((rows, width + 1), PAD, np.int64)
        for row, (piece, begin, end, _) in enumerate(chosen):
            start = int(corpus.starts[piece])
            ids[row, : end - begin] = corpus.tokens[start + begin : start + end]
        each = score(ids)
        for row, (piece, begin, end, counted) in enumerate(chosen):
            own = each[row, : end - begin - 1]
            after = counted - begin - 1
            of = slots[ids[row, 1 : end - begin]]
            nats[piece] += np.bincount(of[after:], own[after:], minlength=len(SLOTS))
            if end - begin == window + 1:
                context = np.searchsorted(edges, np.arange(1, window + 1), "right") - 1
                context_nats[piece] += np.bincount(context, own, minlength=len(CONTEXTS))
                context_tokens[piece] += np.bincount(context, minlength=len(CONTEXTS))
        tell((first + len(chosen)) / len(jobs), f"{first + len(chosen):,} of {len(jobs):,} windows")
    return Likelihood(nats, (corpus.lengths - 1) // EVENT_TOKENS, corpus.names, context_nats, context_tokens)
