"""The state of the native engine, and the room that it lies in.

Beside the convolutions' tails and the attention's keys and values, a state is a page: the memory of all GDN blocks at
the page's first position, a multiple of 16, and what the tokens since have added. Only the last token of a page
rewrites the memory, so a step reads it instead of writing it anew, and the states of one page share it.

Shape legend: B batch, T tokens, W channels, M GDN blocks, A attention blocks, H heads, K key width, V value width,
G key/value heads, E width of an attention head, N positions, F floats of a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pulse88.config import ModelConfig
from pulse88.engine.layout import mixers
from pulse88.engine.library import KEYS, PAGE
from pulse88.engine.plan import aligned_bytes
from pulse88.engine.state import Claims, checked_arrays

Floats = NDArray[np.float32]


class Pool:
    """Room that is used again, because asking the system for megabytes at every page costs more than filling them."""

    KEPT = 3  # unused blocks of one size

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def take(self, shape: tuple[int, ...]) -> Loan:
        """Floats of a shape, their values whatever was there."""
        size = 4 * math.prod(shape)
        try:
            block = self._free[size].pop()
        except (KeyError, IndexError):
            block = aligned_bytes(size)
        return Loan(self, block, block.view(np.float32).reshape(shape))

    def give(self, block: NDArray[np.uint8]) -> None:
        blocks = self._free.setdefault(block.size, [])
        if len(blocks) < self.KEPT:
            blocks.append(block)


class Loan:
    """An array whose room goes back to its pool when nobody holds the loan any more."""

    __slots__ = ("_block", "_pool", "address", "array")

    def __init__(self, pool: Pool, block: NDArray[np.uint8], array: Floats) -> None:
        self._pool, self._block, self.array = pool, block, array
        self.address: int = block.ctypes.data

    def __del__(self) -> None:
        self._pool.give(self._block)


@dataclass(frozen=True)
class Cache:
    """Keys and values of all attention blocks, shared by the states that grew from one another."""

    keys_ABGNE: Floats  # [A, B, G, N / KEYS, E, KEYS]
    values_ABGNE: Floats
    claims: Claims

    @classmethod
    def empty(cls, blocks: int, batch: int, config: ModelConfig, capacity: int, used: int) -> Cache:
        shape = (blocks, batch, config.gqa_kv_heads)
        keys = np.zeros((*shape, capacity // KEYS, config.gqa_head_dim, KEYS), np.float32)
        values = np.zeros((*shape, capacity, config.gqa_head_dim), np.float32)
        return cls(keys, values, Claims(used, capacity))

    @property
    def capacity(self) -> int:
        return self.values_ABGNE.shape[3]

    def fill(self, other: Cache, start: int, stop: int) -> None:
        """Copies the other's positions from start, a multiple of KEYS, to stop. Its batch may be 1."""
        blocks = slice(start // KEYS, -(-stop // KEYS))
        self.keys_ABGNE[:, :, :, : blocks.stop - blocks.start] = other.keys_ABGNE[:, :, :, blocks]
        self.values_ABGNE[:, :, :, : stop - start] = other.values_ABGNE[:, :, :, start:stop]

    def write(self, keys_AGNE: Floats, values_AGNE: Floats) -> None:
        """Writes the first positions of a cache of one sequence."""
        length = values_AGNE.shape[2]
        padded = np.pad(keys_AGNE, [(0, 0), (0, 0), (0, -length % KEYS), (0, 0)])
        blocks = padded.shape[2] // KEYS
        split = padded.reshape(*padded.shape[:2], blocks, KEYS, padded.shape[3])
        self.keys_ABGNE[:, 0, :, :blocks] = split.swapaxes(-1, -2)
        self.values_ABGNE[:, 0, :, :length] = values_AGNE

    def rows(self, index: int, length: int) -> tuple[Floats, Floats]:
        """Keys and values [B, G, length, E] of one attention block."""
        keys_BGNE = self.keys_ABGNE[index].swapaxes(-1, -2).reshape(self.values_ABGNE.shape[1:])
        return keys_BGNE[:, :, :length], self.values_ABGNE[index, :, :, :length]


@dataclass(frozen=True)
class NativeState:
    """What the native engine has seen. Arrays may be shared with other states; claims say who may write next."""

    config: ModelConfig
    position: int
    batch: int
    memory_MBHKV: Loan  # at the page's first position; B is 1 where forks share it
    rows_MBF: Loan  # what the page's tokens have added; see native.h
    tails_MBTW: Loan  # the last conv_size - 1 inputs of the convolution
    rows_claims: Claims
    cache: Cache
    prefix: Cache | None = None  # of one sequence: the first positions of forks
    prefix_length: int = 0  # a multiple of KEYS; the cache begins after it

    def snapshot(self) -> Mapping[str, Floats]:
        arrays: dict[str, Floats] = {}
        count = {"gdn": 0, "gqa": 0}
        for kind, name, _ in mixers(self.config):
            index = count[kind]
            count[kind] += 1
            if kind == "gdn":
                arrays[f"{name}.memory"] = self._memory(index)
                arrays[f"{name}.tail"] = self.tails_MBTW.array[index].copy()
            else:
                keys, values = self._keys_values(index)
                arrays |= {f"{name}.keys": keys.copy(), f"{name}.values": values.copy()}
        return arrays

    def frozen(self) -> dict[str, Floats]:
        """Of one sequence: arrays from which `fill` makes the state again, the page as it stands."""
        keys, errors, decays = page_parts(self.config, self.rows_MBF.array[:, 0])
        seen = self.position % PAGE
        arrays = {
            "memory": self.memory_MBHKV.array[:, 0],
            "page.keys": keys[:, :, :seen],
            "page.errors": errors[:, :, :seen],
            "page.decays": decays[:, :, :seen],
            "tail": self.tails_MBTW.array[:, 0],
        }
        attention = [self._keys_values(index) for index in range(len(self.cache.values_ABGNE))]
        for name, index in (("keys", 0), ("values", 1)):
            shape = (0, self.config.gqa_kv_heads, self.position, self.config.gqa_head_dim)
            arrays[name] = (
                np.stack([pair[index][0] for pair in attention]) if attention else np.zeros(shape, np.float32)
            )
        return arrays

    def fill(self, arrays: Mapping[str, Floats]) -> None:
        """Writes what was frozen into a state of the same position that nobody else has; ValueError if it won't fit."""
        own = self.frozen()
        checked_arrays(arrays, {name: array.shape for name, array in own.items()}, np.float32)
        for name in ("memory", "page.keys", "page.errors", "page.decays", "tail"):
            own[name][...] = arrays[name]
        self.cache.write(arrays["keys"], arrays["values"])

    def _keys_values(self, index: int) -> tuple[Floats, Floats]:
        """Of one attention block [B, G, position, E]."""
        keys, values = self.cache.rows(index, self.position - self.prefix_length)
        if self.prefix is not None:
            common = self.prefix.rows(index, self.prefix_length)
            common_keys, common_values = (np.repeat(array, self.batch, axis=0) for array in common)
            keys = np.concatenate([common_keys, keys], axis=2)
            values = np.concatenate([common_values, values], axis=2)
        return keys, values

    def _memory(self, index: int) -> Floats:
        """Of one GDN block after the page's latest token [B, H, K, V]."""
        shape_HKV = self.memory_MBHKV.array.shape[2:]
        memory_BHKV = np.broadcast_to(self.memory_MBHKV.array[index], (self.batch, *shape_HKV)).copy()
        seen = self.position % PAGE
        if seen:
            keys, errors, decays = page_parts(self.config, self.rows_MBF.array[index])
            # From each token on to the latest, and one more for what was there before the first.
            since = np.cumsum(np.pad(decays[:, :, seen - 1 :: -1], [(0, 0), (0, 0), (1, 0)]), axis=-1)[..., ::-1]
            share = np.exp(since[:, :, 1:])[..., None]
            memory_BHKV *= np.exp(since[:, :, :1])[..., None]
            memory_BHKV += (keys[:, :, :seen] * share).swapaxes(-1, -2) @ errors[:, :, :seen]
        return memory_BHKV


def page_parts(c: ModelConfig, rows_BF: Floats) -> tuple[Floats, Floats, Floats]:
    """One GDN block's page: keys [B, H, PAGE, K], errors [B, H, PAGE, V] and decays [B, H, PAGE]."""
    shape = (len(rows_BF), c.gdn_num_heads, PAGE)
    keys = c.gdn_key_width * PAGE
    errors = keys + c.gdn_value_width * PAGE
    parts = np.split(rows_BF, [keys, errors], axis=1)
    return parts[0].reshape(*shape, c.gdn_key_dim), parts[1].reshape(*shape, c.gdn_value_dim), parts[2].reshape(shape)
