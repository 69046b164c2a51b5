"""What every engine's state has in common: the protocol, keys and values that grow without copying, and input checks.

Shape legend: B batch, T tokens of a call, A arrays of one buffer, N rows (positions), H heads, D width of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.config import ModelConfig


class State(Protocol):
    """What a model has seen, immutable: a call makes a new one, and the old one may be used again."""

    @property
    def position(self) -> int:
        """Tokens seen."""

    @property
    def batch(self) -> int:
        """Sequences side by side."""

    def snapshot(self) -> Mapping[str, NDArray[Any]]:
        """The state as plain arrays, the same for every engine.

        Of GDN `<mixer>.memory` [B, heads, key, value] and `<mixer>.tail` [B, conv_size - 1, q|k|v channels], inputs of
        the convolution, oldest first; of attention `<mixer>.keys`, rotated, and `<mixer>.values` [B, heads, position,
        width].
        """


class Claims:
    """Who may write the rows of a buffer that states share: `used` rows have an owner, of `capacity` in all."""

    def __init__(self, used: int, capacity: int) -> None:
        self._used, self._capacity = used, capacity
        self._lock = threading.Lock()

    def claim(self, start: int, stop: int) -> bool:
        """Whether the rows from start to stop exist and were free; if so they are taken from now on."""
        with self._lock:
            free = self._used == start and stop <= self._capacity
            if free:
                self._used = stop
            return free


@dataclass(frozen=True)
class Rows:
    """The first `length` rows of a buffer. Rows once written never change, so states share buffers."""

    buffer_ABHND: NDArray[Any]
    claims: Claims
    length: int

    @classmethod
    def empty(cls, arrays: int, batch: int, heads: int, width: int, dtype: type[np.floating] = np.float32) -> Rows:
        return cls(np.empty((arrays, batch, heads, 0, width), dtype), Claims(0, 0), 0)

    def grown(self, count: int, limit: int) -> Rows:
        """These rows and `count` new ones for the caller to write, never more than `limit` in all.

        The buffer is copied if it is full, or if another state has taken the rows that come next.
        """
        stop = self.length + count
        assert stop <= limit
        if self.claims.claim(self.length, stop):
            return Rows(self.buffer_ABHND, self.claims, stop)
        capacity = min(limit, max(2 * stop, 64))
        shape = self.buffer_ABHND.shape
        grown_ABHND = np.empty((*shape[:3], capacity, shape[4]), self.buffer_ABHND.dtype)
        grown_ABHND[..., : self.length, :] = self.view()
        return Rows(grown_ABHND, Claims(stop, capacity), stop)

    def view(self) -> NDArray[Any]:
        """[A, B, H, length, D], not to be written by anybody but who made these rows grow."""
        return self.buffer_ABHND[..., : self.length, :]

    def repeated(self, count: int) -> Rows:
        """These rows of batch 1 as batch `count`."""
        return Rows(np.repeat(self.view(), count, axis=1), Claims(self.length, self.length), self.length)


def checked_ids(ids: ArrayLike, state: State, config: ModelConfig) -> NDArray[np.int64]:
    """Ids [B, T] as indices; ValueError if they don't fit the vocabulary, the state or the positions that are left."""
    ids_BT = np.asarray(ids)
    if ids_BT.ndim != 2 or ids_BT.dtype.kind not in "iu":
        raise ValueError(f"ids must be whole numbers [batch, tokens], not {ids_BT.dtype} of shape {list(ids_BT.shape)}")
    batch, tokens = ids_BT.shape
    if batch != state.batch:
        raise ValueError(f"ids are a batch of {batch}, the state is one of {state.batch}")
    if tokens == 0:
        raise ValueError("no tokens")
    if state.position + tokens > config.max_positions:
        raise ValueError(
            f"{state.position} tokens seen and {tokens} more pass the model's {config.max_positions} positions"
        )
    checked_BT = ids_BT.astype(np.int64, copy=False)
    if checked_BT.view(np.uint64).max() >= config.vocab_size:  # Negative ones are the largest there.
        raise ValueError(f"ids from {ids_BT.min()} to {ids_BT.max()} pass the vocabulary of {config.vocab_size}")
    return checked_BT


def checked_count(state: State, count: int) -> int:
    """The number of forks; ValueError unless a single sequence becomes one or more."""
    if state.batch != 1:
        raise ValueError(f"only a single sequence can be forked, not a batch of {state.batch}")
    if count < 1:
        raise ValueError(f"a state forks into 1 or more, not {count}")
    return count


def checked_single(state: State) -> None:
    """ValueError for a batch of more than one sequence."""
    if state.batch != 1:
        raise ValueError(f"a single sequence's state is needed, not a batch of {state.batch}")


def checked_position(position: int, config: ModelConfig) -> None:
    """ValueError unless a model can have seen so many tokens."""
    if not 0 <= position <= config.max_positions:
        raise ValueError(f"a state has seen 0 to {config.max_positions} tokens, not {position}")


def checked_arrays(arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    """ValueError unless the arrays are those that are expected, by name, shape and dtype, with finite values."""
    if odd := sorted(arrays.keys() ^ expected.keys()):
        raise ValueError(f"the state's arrays are not this model's: {', '.join(odd)}")
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"the state's {name} is {found}, expected {np.dtype(dtype)} {list(shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"the state's {name} has values that are not finite")
