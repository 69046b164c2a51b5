"""The state of the native engine, and the room that it lies in.

Beside the convolutions' tails and the attention's keys and values, the state of a sequence is a page: the memory of all
GDN blocks at the page's first position, a multiple of 16, and what the tokens since have added. Only the last token of
a page rewrites the memory, so a step reads it instead of writing it anew, and the states of one page share it.

Shape legend: B batch, T tokens, W channels, M GDN blocks, A attention blocks, H heads, K key width, V value width,
G key/value heads, E width of an attention head, N positions, F floats of a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88.config import ModelConfig
from pulse88.engine.layout import mixers
from pulse88.engine.library import KEYS, MEMORY_BYTES, PAGE
from pulse88.engine.plan import aligned_bytes
from pulse88.engine.state import Claims, checked_arrays

Floats = NDArray[np.float32]
Kept = NDArray[np.floating]  # float32 or float16


class Pool:
    """Room that is used again, because asking the system for megabytes at every page costs more than filling them."""

    KEPT, KEPT_BYTES = 16, 1 << 26  # unused blocks of one size: so many, or more if they are small

    def __init__(self) -> None:
        self._free: dict[int, list[tuple[NDArray[np.uint8], int]]] = {}  # blocks and their addresses, by size

    def take(self, shape: tuple[int, ...], *, halves: bool = False) -> Loan:
        """Floats of a shape, their values whatever was there; `halves` leaves room for as many in half precision."""
        size = (MEMORY_BYTES if halves else 4) * math.prod(shape)
        try:
            block, address = self._free[size].pop()
        except (KeyError, IndexError):
            block = aligned_bytes(size)
            address = block.ctypes.data
        return Loan(self, block, address, shape)

    def give(self, block: NDArray[np.uint8], address: int) -> None:
        blocks = self._free.setdefault(block.size, [])
        if len(blocks) < self.KEPT or len(blocks) * block.size < self.KEPT_BYTES:
            blocks.append((block, address))


class Loan:
    """An array whose room goes back to its pool when nobody holds the loan any more."""

    __slots__ = ("_block", "_pool", "_shape", "address")

    def __init__(self, pool: Pool, block: NDArray[np.uint8], address: int, shape: tuple[int, ...]) -> None:
        self._pool, self._block, self._shape = pool, block, shape
        self.address = address

    @property
    def array(self) -> Floats:
        # Made when somebody asks: a token only hands addresses on.
        return self._block[: 4 * math.prod(self._shape)].view(np.float32).reshape(self._shape)

    def clear(self) -> None:
        """Makes everything zero."""
        self._block[...] = 0

    def halves(self) -> NDArray[np.float16]:
        """What lies behind the array: as many numbers in half precision, or none."""
        return self._block[self.array.nbytes :].view(np.float16)

    def round_halves(self) -> None:
        """Writes the array in half precision behind it, if there is room for that."""
        if self.halves().size:
            self.halves()[...] = self.array.reshape(-1)

    def __del__(self) -> None:
        self._pool.give(self._block, self.address)


class Cache:
    """Keys and values of all attention blocks, shared by the states that grew from one another."""

    def __init__(self, config: ModelConfig, kept: np.dtype[Any], blocks: int, capacity: int, used: int) -> None:
        shape = (blocks, config.gqa_kv_heads)
        self.kept, self.capacity = kept, capacity  # a multiple of KEYS
        self.keys_AGNE: Kept = np.zeros((*shape, capacity // KEYS, config.gqa_head_dim, KEYS), kept)
        self.values_AGNE: Kept = np.zeros((*shape, capacity, config.gqa_head_dim), kept)
        self.addresses: tuple[int, int] = self.keys_AGNE.ctypes.data, self.values_AGNE.ctypes.data
        self.claims = Claims(used, capacity)

    def fill(self, other: Cache, start: int, stop: int) -> None:
        """Copies the other's positions from start, a multiple of KEYS, to stop."""
        blocks = slice(start // KEYS, -(-stop // KEYS))
        self.keys_AGNE[:, :, : blocks.stop - blocks.start] = other.keys_AGNE[:, :, blocks]
        self.values_AGNE[:, :, : stop - start] = other.values_AGNE[:, :, start:stop]

    def write(self, keys_AGNE: Kept, values_AGNE: Kept) -> None:
        """Writes the first positions."""
        length = values_AGNE.shape[2]
        padded = np.pad(keys_AGNE, [(0, 0), (0, 0), (0, -length % KEYS), (0, 0)])
        blocks = padded.shape[2] // KEYS
        split = padded.reshape(*padded.shape[:2], blocks, KEYS, padded.shape[3])
        self.keys_AGNE[:, :, :blocks] = split.swapaxes(-1, -2)
        self.values_AGNE[:, :, :length] = values_AGNE

    def rows(self, length: int) -> tuple[Kept, Kept]:
        """The first keys and values, each [A, G, length, E]."""
        keys_AGNE = self.keys_AGNE.swapaxes(-1, -2).reshape(self.values_AGNE.shape)
        return keys_AGNE[:, :, :length], self.values_AGNE[:, :, :length]


@dataclass(frozen=True)
class Strand:
    """The state of one sequence. Arrays may be shared with other states; claims say who may write next."""

    position: int
    memory_MHKV: Loan  # at the page's first position; beside int8 weights it is read in half precision
    rows_MF: Loan  # what the page's tokens have added; see native.h
    tails_MTW: Loan  # the last conv_size - 1 inputs of the convolution
    rows_claims: Claims
    cache: Cache
    prefix: Cache | None = None  # the first keys and values, where they are another's
    prefix_length: int = 0  # a multiple of KEYS; the cache begins after it

    def keys_values(self) -> tuple[Kept, Kept]:
        """Of all attention blocks, each [A, G, position, E]."""
        keys, values = self.cache.rows(self.position - self.prefix_length)
        if self.prefix is not None:
            common_keys, common_values = self.prefix.rows(self.prefix_length)
            keys = np.concatenate([common_keys, keys], axis=2)
            values = np.concatenate([common_values, values], axis=2)
        return keys, values

    def page(self, c: ModelConfig) -> tuple[Floats, Floats, Floats]:
        """What the page's tokens have added: keys [M, H, t, K], errors [M, H, t, V] and decays [M, H, t]."""
        seen, shape = self.position % PAGE, (len(self.rows_MF.array), c.gdn_num_heads, PAGE)
        keys = c.gdn_key_width * PAGE
        parts = np.split(self.rows_MF.array, [keys, keys + c.gdn_value_width * PAGE], axis=1)
        widths = ((c.gdn_key_dim,), (c.gdn_value_dim,), ())
        k, u, g = (part.reshape(*shape, *width)[:, :, :seen] for part, width in zip(parts, widths, strict=True))
        return k, u, g

    def memory(self, c: ModelConfig) -> Floats:
        """Of all GDN blocks after the page's latest token [M, H, K, V]."""
        memory_MHKV = self.memory_MHKV.array.copy()
        if self.position % PAGE:
            keys, errors, decays = self.page(c)
            # From each token on to the latest, and one more for what was there before the first.
            since = np.cumsum(np.pad(decays[:, :, ::-1], [(0, 0), (0, 0), (1, 0)]), axis=-1)[..., ::-1]
            memory_MHKV *= np.exp(since[:, :, :1])[..., None]
            memory_MHKV += (keys * np.exp(since[:, :, 1:])[..., None]).swapaxes(-1, -2) @ errors
        return memory_MHKV

    def frozen(self, c: ModelConfig) -> dict[str, Kept]:
        """Arrays from which `fill` makes the state again; all but keys and values are views."""
        arrays: dict[str, Kept] = {"memory": self.memory_MHKV.array, "tail": self.tails_MTW.array}
        arrays |= zip(("page.keys", "page.errors", "page.decays"), self.page(c), strict=True)
        arrays |= zip(("keys", "values"), self.keys_values(), strict=True)
        return arrays

    def fill(self, c: ModelConfig, arrays: Mapping[str, Kept]) -> None:
        """Writes what was frozen into a state of the same position that nobody else has; ValueError if it won't fit."""
        own = self.frozen(c)
        checked_arrays(arrays, {name: (array.shape, array.dtype) for name, array in own.items()})
        self.cache.write(arrays["keys"], arrays["values"])
        for name in own.keys() - {"keys", "values"}:
            own[name][...] = arrays[name]
        self.memory_MHKV.round_halves()


@dataclass(frozen=True)
class NativeState:
    """What the native engine has seen: the states of its sequences, each of which may go its own way."""

    config: ModelConfig
    strands: tuple[Strand, ...]

    @property
    def batch(self) -> int:
        return len(self.strands)

    @property
    def position(self) -> int:
        return max(strand.position for strand in self.strands)

    def snapshot(self) -> Mapping[str, Floats]:
        memory, tails = (
            np.stack(arrays, axis=1)
            for arrays in zip(*((s.memory(self.config), s.tails_MTW.array) for s in self.strands), strict=True)
        )
        keys, values = (
            np.stack(arrays, axis=1).astype(np.float32)
            for arrays in zip(*(s.keys_values() for s in self.strands), strict=True)
        )
        arrays: dict[str, Floats] = {}
        count = {"gdn": 0, "gqa": 0}
        for kind, name, _ in mixers(self.config):
            index = count[kind]
            count[kind] += 1
            if kind == "gdn":
                arrays |= {f"{name}.memory": memory[index], f"{name}.tail": tails[index]}
            else:
                arrays |= {f"{name}.keys": keys[index], f"{name}.values": values[index]}
        return arrays
