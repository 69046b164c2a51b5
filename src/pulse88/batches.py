"""batch(seed, step, rank, world): the order of the data as a pure function. No torch.

Shape legend: B windows, T tokens of a window.

Every epoch lays ceil(length / window) windows over every piece, shuffles them, and hands them out in that order. Which
window comes at which step depends on the seed and the step alone; ranks share it out. So a run goes on after any step,
with any number of processes, by knowing one number.

Transposition, tempo and loudness of a window are functions of the seed and its number too, each with a stream of chance
of its own, so that one can be turned on without changing the others.

How often a token is seen: a piece that fits into one window exactly once an epoch. In a longer one each token but the
BOS has an even chance or better in every epoch and comes three times at most; the mean over the piece is 1 to 2 times,
near 1 where the piece is many windows long or little less than a whole number of them.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pulse88.augmentation import moved, stretched, tempo_factor
from pulse88.config import TrainConfig
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, EOS, EVENT_TOKENS, PAD, Slot, TimeGrid

SPARE_TOKENS = 16 * EVENT_TOKENS  # read beyond a window, because other times may make notes of one key one


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """All pieces of one split behind each other, each with its BOS and EOS."""

    tokens: NDArray[np.uint8]  # [all tokens]
    lengths: NDArray[np.int64]  # [pieces] tokens of a piece
    names: tuple[str, ...]  # [pieces] source/file
    grid: TimeGrid | None = None  # what the times mean; needed to change the tempo only

    def __post_init__(self) -> None:
        if int(self.lengths.sum()) != len(self.tokens) or len(self.names) != len(self.lengths):
            raise ValueError(
                f"{len(self.tokens)} tokens, but lengths for {int(self.lengths.sum())} and {len(self.names)} names"
            )
        if not len(self.lengths):
            raise ValueError("the corpus has no pieces")

    @property
    def starts(self) -> NDArray[np.int64]:
        """[pieces] index of each piece's first token."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any token and with the order of the pieces."""
        digest = hashlib.blake2b(self.lengths.astype("<i8").tobytes(), digest_size=8)
        digest.update(np.ascontiguousarray(self.tokens).data)
        return digest.hexdigest()


class Batches:
    """Training batches of a corpus under a configuration. ValueError if tempo is to change and the grid isn't known."""

    def __init__(self, corpus: TokenCorpus, config: TrainConfig) -> None:
        self.corpus, self.config = corpus, config
        if config.tempo_stretch and corpus.grid is None:
            raise ValueError("the tempo can't be changed without the corpus's time grid: read it by shards.read_split")
        self._cut = 0 if config.ends else 1  # tokens left out at either end of a piece
        self._tokenizer = Tokenizer(corpus.grid) if corpus.grid else None
        self._windows_of_piece = -(-corpus.lengths // config.window)
        self._starts = corpus.starts
        self.windows_per_epoch = int(self._windows_of_piece.sum())
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """[B / world, T + 1] ids of this process at this step, short pieces padded with PAD at their end.

        ValueError if the processes can't share the batch evenly.
        """
        return np.stack([self.window(number) for number in self.numbers(step, rank, world)])

    def numbers(self, step: int, rank: int = 0, world: int = 1) -> range:
        """Numbers of the windows of this process at this step, counted over all epochs."""
        size = self.config.batch_windows
        if size % world:
            raise ValueError(f"a batch of {size} windows can't be shared by {world} processes")
        first = step * size + rank * (size // world)
        return range(first, first + size // world)

    def window(self, number: int) -> NDArray[np.int64]:
        """[T + 1] ids of the window with this number, counted over all epochs."""
        piece, offset = self.place(number)
        begin = int(self._starts[piece]) + offset
        end = int(self._starts[piece] + self.corpus.lengths[piece]) - self._cut
        config, size = self.config, self.config.window + 1
        ids = self.corpus.tokens[begin : min(begin + size, end)].astype(np.int64)
        if config.tempo_stretch and self._tokenizer:
            more = self.corpus.tokens[begin : min(begin + size + SPARE_TOKENS, end)].astype(np.int64)
            within = (len(more) - int(more[0] == BOS) - int(more[-1] == EOS)) % EVENT_TOKENS  # of an event
            random = self._random(3, number)
            factor = tempo_factor(random, config.tempo_stretch)
            ids = stretched(more[: len(more) - within], factor, self._tokenizer, random)[:size]
        ids = moved(ids, Slot.PITCH, self._random(1, number), config.transpose_down, config.transpose_up)
        ids = moved(ids, Slot.VELOCITY, self._random(4, number), config.velocity_shift, config.velocity_shift)
        return np.pad(ids, (0, size - len(ids)), constant_values=PAD)

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        """Purposes: 0 the order of an epoch, 1 transposition, 2 dropout (train.py), 3 tempo, 4 velocity."""
        return np.random.default_rng((self.config.seed, purpose, number))

    def place(self, number: int) -> tuple[int, int]:
        """Index of the window's piece, and the window's first token in it."""
        pieces, offsets = self._epoch(number // self.windows_per_epoch)
        index = number % self.windows_per_epoch
        return int(pieces[index]), int(offsets[index])

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Piece and token offset of every window of an epoch, shuffled.

        A piece of n windows gets one start, at random, in each of n equal stretches; at every second chance the
        first window begins at BOS and the last one ends with EOS, so that the model knows both. Where the recipe leaves
        them out, windows lie within the events between them, in the same order and all but at the same places.
        """
        random = self._random(0, epoch)
        piece = np.repeat(np.arange(len(self.corpus.lengths)), self._windows_of_piece)
        count = self._windows_of_piece[piece]
        rank_in_piece = np.arange(len(piece)) - np.repeat(
            np.cumsum(self._windows_of_piece) - self._windows_of_piece, self._windows_of_piece
        )
        latest = np.maximum(self.corpus.lengths[piece] - 2 * self._cut - (self.config.window + 1), 0)
        chance = random.random((2, len(piece)))
        offset = ((rank_in_piece + chance[0]) / count * latest).astype(np.int64)
        # Token 0 is BOS, if there is one, events follow: a start between them moves down to its event's first token.
        bos = 1 - self._cut
        offset = np.where(offset > 0, (offset - bos) // EVENT_TOKENS * EVENT_TOKENS + bos, 0)
        snap = chance[1] < 0.5
        offset = np.where(snap & (rank_in_piece == 0), 0, offset)
        to_end = -(-(latest - bos) // EVENT_TOKENS) * EVENT_TOKENS + bos
        offset = np.where(snap & (rank_in_piece == count - 1) & (count > 1), to_end, offset)
        order = random.permutation(len(piece))
        return piece[order], offset[order] + self._cut


class Ahead:
    """The batches of one process, each made in a thread while the step before it is computed.

    Nothing depends on which steps were begun: any step can be asked for.
    """

    def __init__(self, batches: Batches, rank: int = 0, world: int = 1) -> None:
        self._batches, self._share = batches, (rank, world)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._coming: tuple[int, Future[NDArray[np.int64]]] | None = None

    def begin(self, step: int) -> None:
        """Begins to make a step's batch. Python's lock is shared: best just before the process waits for its GPU."""
        self._coming = step, self._thread.submit(self._make, step)

    def batch(self, step: int) -> NDArray[np.int64]:
        """[B / world, T + 1] as `Batches.batch`, with its errors."""
        coming, self._coming = self._coming, None
        return coming[1].result() if coming and coming[0] == step else self._make(step)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> NDArray[np.int64]:
        return self._batches.batch(step, *self._share)
