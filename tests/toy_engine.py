"""An engine that obeys the contract and is no model: its logits are a hash of the whole prefix.

Whoever drops, doubles or reorders one id of the prefix gets other logits from there on, so that mistakes show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pulse88.config import ModelConfig

V = 171


@dataclass(frozen=True)
class ToyState:
    prefixes: tuple[tuple[int, ...], ...]

    @property
    def position(self) -> int:
        return max(map(len, self.prefixes))


def hashed_logits(prefix: tuple[int, ...]) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(bytes(prefix)).digest()[:8], "little")
    return np.random.default_rng(seed).normal(0, 1.5, V).astype(np.float32)


@dataclass
class ToyEngine:
    max_positions: int = 64
    logits_of: Callable[[tuple[int, ...]], NDArray[np.float32]] = hashed_logits
    read: list[int] = field(default_factory=list)  # ids of every forward pass: what each one cost

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(max_positions=self.max_positions)

    def zero_state(self, batch: int = 1) -> ToyState:
        return ToyState(((),) * batch)

    def fork(self, state: ToyState, count: int) -> ToyState:
        return ToyState(state.prefixes * count)

    def forward(
        self, ids_BT: NDArray[np.int64], state: ToyState, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], ToyState]:
        length = ids_BT.shape[1]
        assert length > 0
        if state.position + length > self.max_positions:
            raise ValueError(f"{state.position} + {length} tokens are beyond {self.max_positions} positions")
        self.read.append(length)
        rows, prefixes = [], []
        for prefix, ids in zip(state.prefixes, ids_BT.tolist(), strict=True):
            whole = prefix + tuple(ids)
            first = len(whole) if last_only else len(prefix) + 1
            rows.append([self.logits_of(whole[:stop]) for stop in range(first, len(whole) + 1)])
            prefixes.append(whole)
        return np.array(rows, np.float32), ToyState(tuple(prefixes))


class JoiningToy(ToyEngine):
    """One that computes sequences together."""

    def join(self, states: Iterable[ToyState]) -> ToyState:
        return ToyState(tuple(prefix for state in states for prefix in state.prefixes))

    def split(self, state: ToyState) -> list[ToyState]:
        return [ToyState((prefix,)) for prefix in state.prefixes]
