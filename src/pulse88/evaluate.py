"""How well weights predict held-out music: bits a note, whole, by slot and by source.

Every token is counted once, with at most half a window without context: windows of 2048 tokens begin every 1024
tokens, and all but a piece's first count only their second half. No smoothing. Also the trainer's validation.

Bits a note depend on the time grid: a finer one asks more of the same music. The grid-free figure adds the width of
each bin, so that weights with different grids can be compared (docs/tokens.md has the derivation).

Shape legend: B windows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pulse88.batches import TokenCorpus
from pulse88.model import Pulse88
from pulse88.objective import nats_of_each, slot_table
from pulse88.vocabulary import BLOCKS, EVENT_TOKENS, PAD, Slot, TimeGrid

SLOTS = (*(slot.name.lower() for slot in Slot), "ends")  # the last are EOS tokens
GRID_FREE_SHIFT = 0.02  # s; the measure is log(t + 20 ms), finite at 0 and like log t where notes are told apart


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Nats and notes of every piece of a corpus."""

    nats: NDArray[np.float64]  # [pieces, 5] by slot, the last for EOS
    notes: NDArray[np.int64]  # [pieces]
    names: tuple[str, ...]

    @property
    def bits_per_note(self) -> float:
        """Bits a note over all pieces, their EOS included."""
        return float(self.nats.sum() / self.notes.sum() / math.log(2))

    def by_slot(self) -> dict[str, float]:
        """Bits a note spent on each slot."""
        bits = self.nats.sum(0) / self.notes.sum() / math.log(2)
        return dict(zip(SLOTS, bits.tolist(), strict=True))

    def by_source(self) -> dict[str, float]:
        """Bits a note of the pieces of each source (the part of a name before the slash)."""
        sources = np.array([name.split("/")[0] for name in self.names])
        return {
            str(source): float(self.nats[sources == source].sum() / self.notes[sources == source].sum() / math.log(2))
            for source in np.unique(sources)
        }


def log_widths(grid: TimeGrid, slot: Slot) -> NDArray[np.float64]:
    """[32] base-2 logarithms of the bins' widths in log(t + GRID_FREE_SHIFT).

    A bin reaches to the midpoints between it and its neighbours, the lowest one down to 0 s, for all shorter times land
    in it; the highest edge is mirrored.
    """
    times = grid.seconds(slot, np.arange(BLOCKS[slot].size))
    between = (times[1:] + times[:-1]) / 2
    lower = np.append(0.0, between)
    upper = np.append(between, 2 * times[-1] - between[-1])
    return np.asarray(np.log2(np.log((upper + GRID_FREE_SHIFT) / (lower + GRID_FREE_SHIFT))))


def grid_bits_per_note(corpus: TokenCorpus, grid: TimeGrid) -> float:
    """What to add to bits a note for the grid-free figure: the mean over notes of both times' `log_widths`.

    Usually negative: a density may exceed 1.
    """
    bits = 0.0
    for slot in (Slot.DELTA, Slot.DURATION):
        block = BLOCKS[slot]
        found = corpus.tokens[(corpus.tokens >= block.start) & (corpus.tokens < block.stop)]
        bits += float(np.bincount(found - block.start, minlength=block.size) @ log_widths(grid, slot))
    return bits / int((corpus.lengths // EVENT_TOKENS).sum())


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


@torch.no_grad()
def likelihood(
    model: Pulse88,
    corpus: TokenCorpus,
    *,
    window: int = 2048,
    stride: int | None = None,
    batch: int = 16,
    rank: int = 0,
    world: int = 1,
    precision: torch.dtype | None = None,
) -> Likelihood:
    """The likelihood of every piece; of every `world`-th window from `rank` on, so that processes can add theirs up.

    `stride` is half a window unless given. `precision` autocasts matrix products on a GPU. The result doesn't depend
    on `batch`, up to rounding.
    """
    device = model.token_embedding.weight.device
    slots = slot_table(device)
    stride = window // 2 if stride is None else stride
    jobs = [
        (piece, *span) for piece, length in enumerate(corpus.lengths.tolist()) for span in spans(length, window, stride)
    ][rank::world]
    totals = torch.zeros(len(corpus.lengths), len(SLOTS), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for first in range(0, len(jobs), batch):
        chosen = jobs[first : first + batch]
        # Always one shape, so that a compiled model is compiled once.
        ids, counts = _padded(corpus, chosen, batch, window)
        ids, counts = ids.to(device), counts.to(device)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            logits, _ = model(ids[:, :-1], model.zero_state(batch))
        each = nats_of_each(logits, ids[:, 1:]).double() * counts
        by_slot = torch.zeros(batch, len(SLOTS), dtype=torch.float64, device=device)
        by_slot.scatter_add_(1, slots[ids[:, 1:]], each)
        totals.index_add_(0, torch.tensor([job[0] for job in chosen], device=device), by_slot[: len(chosen)])
    model.train(was_training)
    return Likelihood(totals.cpu().numpy(), (corpus.lengths - 1) // EVENT_TOKENS, corpus.names)


def _padded(
    corpus: TokenCorpus, jobs: list[tuple[int, int, int, int]], batch: int, window: int
) -> tuple[Tensor, Tensor]:
    """Ids [batch, window + 1] and which targets [batch, window] count; rows without a job are padding."""
    ids = np.full((batch, window + 1), PAD, np.int64)
    counts = np.zeros((batch, window), np.bool_)
    for row, (piece, begin, end, counted) in enumerate(jobs):
        start = int(corpus.starts[piece])
        ids[row, : end - begin] = corpus.tokens[start + begin : start + end]
        counts[row, counted - begin - 1 : end - begin - 1] = True
    return torch.from_numpy(ids), torch.from_numpy(counts)
