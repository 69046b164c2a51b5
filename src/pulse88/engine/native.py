"""The compiled engine: the same function as reference.py, several times faster, on one core.

Weights stay as the file has them, int8 by output row or float32; activations and sums are float32. The result of a
token is the same to the last bit whatever the batch and wherever the cut into calls.

Shape legend: B batch, T tokens, V vocabulary; see native_state.py for the rest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.config import ModelConfig
from pulse88.engine.layout import mixers
from pulse88.engine.library import KERNELS, KEYS, PAGE, Call, kernels, library
from pulse88.engine.native_state import Cache, Floats, Loan, NativeState, Pool
from pulse88.engine.plan import plan_of
from pulse88.engine.state import Claims, checked_count, checked_ids, checked_position, checked_single
from pulse88.engine.weights import Weights

__all__ = ["NativeEngine", "library"]

ROWS = 128  # tokens of all sequences that one call of the library takes; more come in pieces


class NativeEngine:
    """The compiled engine over weights as they are, int8 or float32. ValueError for a kernel that doesn't run here."""

    name = "native"

    def __init__(self, weights: Weights, kernel: str | None = None) -> None:
        self.config = weights.config
        self.kernel = kernels()[-1] if kernel is None else kernel
        if self.kernel not in kernels():
            raise ValueError(f"this machine doesn't run the kernel {kernel!r}, it runs {', '.join(kernels())}")
        self._source = weights
        self._plan, self._weights = plan_of(weights)
        if not library().p88_check(self._plan.ctypes.data, self._plan.size, self._weights.size):
            raise ValueError("the native engine can't compute a model of this shape: use numpy")
        kinds = [kind for kind, _, _ in mixers(self.config)]
        self._gdn_count, self._gqa_count = kinds.count("gdn"), kinds.count("gqa")
        self._page_floats: int = library().p88_page_floats(self._plan.ctypes.data)
        self._pool = Pool()

    @property
    def weights_sha256(self) -> str:
        return self._source.sha256

    def zero_state(self, batch: int = 1) -> NativeState:
        if batch < 1:
            raise ValueError(f"a batch has 1 or more sequences, not {batch}")
        loans = self._memory(batch), self._rows(batch), self._tails(batch)
        for loan in loans:
            loan.array[...] = 0
        cache = Cache.empty(self._gqa_count, batch, self.config, 0, 0)
        return NativeState(self.config, 0, batch, *loans, Claims(0, PAGE), cache)

    def _memory(self, batch: int) -> Loan:
        c = self.config
        return self._pool.take((self._gdn_count, batch, c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim))

    def _rows(self, batch: int) -> Loan:
        return self._pool.take((self._gdn_count, batch, self._page_floats))

    def _tails(self, batch: int) -> Loan:
        channels = 2 * self.config.gdn_key_width + self.config.gdn_value_width
        return self._pool.take((self._gdn_count, batch, self.config.conv_size - 1, channels))

    def forward(
        self, ids: ArrayLike, state: NativeState, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], NativeState]:
        _require_own(state, self.config)
        ids_BT = np.ascontiguousarray(checked_ids(ids, state, self.config), np.int64)
        tokens, step = ids_BT.shape[1], max(1, ROWS // state.batch)
        logits: list[Floats] = []
        for start in range(0, tokens, step):
            piece_BT = np.ascontiguousarray(ids_BT[:, start : start + step])
            wanted = 2 if not last_only else int(start + step >= tokens)
            part_BTV, state = self._piece(piece_BT, state, wanted)
            logits.append(part_BTV)
        return (logits[-1] if last_only else np.concatenate(logits, axis=1)), state

    def _piece(self, ids_BT: NDArray[np.int64], state: NativeState, logit_rows: int) -> tuple[Floats, NativeState]:
        """One call of the library. Logits of no token, the last (`logit_rows` 1) or all (2)."""
        batch, tokens = ids_BT.shape
        stop = state.position + tokens
        memory, rows, rows_claims = state.memory_MBHKV, state.rows_MBF, state.rows_claims
        if stop // PAGE != state.position // PAGE:
            memory, rows, rows_claims = self._memory(batch), self._rows(batch), Claims(stop % PAGE, PAGE)
        elif not rows_claims.claim(state.position % PAGE, stop % PAGE):
            rows, rows_claims = self._rows(batch), Claims(stop % PAGE, PAGE)
            rows.array[...] = state.rows_MBF.array
        cache, prefix = self._cache_for(state, stop), state.prefix or state.cache
        tails = self._tails(batch)
        logits_BTV = np.empty((batch, (0, 1, tokens)[logit_rows], self.config.vocab_size), np.float32)
        floats: int = library().p88_scratch_floats(self._plan.ctypes.data, batch * tokens)
        scratch = self._pool.take((floats,))
        call = Call(
            *(batch, tokens, state.position, state.memory_MBHKV.array.shape[1], cache.capacity),
            *(state.prefix_length, prefix.capacity, logit_rows, floats),
            ids_BT.ctypes.data,
            *(loan.address for loan in (state.memory_MBHKV, state.rows_MBF, state.tails_MBTW, memory, rows, tails)),
            *(prefix.keys_ABGNE.ctypes.data, prefix.values_ABGNE.ctypes.data),
            *(cache.keys_ABGNE.ctypes.data, cache.values_ABGNE.ctypes.data),
            *(logits_BTV.ctypes.data, scratch.address),
        )
        done = library().p88_forward(
            KERNELS.index(self.kernel), self._plan.ctypes.data, self._weights.ctypes.data, ctypes.byref(call)
        )
        assert done
        shared = state.prefix, state.prefix_length
        return logits_BTV, NativeState(self.config, stop, batch, memory, rows, tails, rows_claims, cache, *shared)

    def _cache_for(self, state: NativeState, stop: int) -> Cache:
        """The state's cache with the positions up to stop claimed: the same, or a larger copy."""
        length, needed = state.position - state.prefix_length, stop - state.prefix_length
        if state.cache.claims.claim(length, needed):
            return state.cache
        limit = self.config.max_positions - state.prefix_length
        capacity = -(-min(limit, 2 * needed) // KEYS) * KEYS
        grown = Cache.empty(self._gqa_count, state.batch, self.config, capacity, needed)
        grown.fill(state.cache, 0, length)
        return grown

    def fork(self, state: NativeState, count: int) -> NativeState:
        """Forks share the memory until the page ends and the keys and values of the past for good."""
        _require_own(state, self.config)
        if checked_count(state, count) == 1:
            return state
        rows, tails = self._rows(count), self._tails(count)
        rows.array[...] = state.rows_MBF.array
        tails.array[...] = state.tails_MBTW.array
        claims = Claims(state.position % PAGE, PAGE)
        common = state.position // KEYS * KEYS
        cache = Cache.empty(self._gqa_count, count, self.config, 2 * KEYS, state.position - common)
        cache.fill(state.cache, common, state.position)
        own = (state.memory_MBHKV, rows, tails, claims, cache)
        return NativeState(self.config, state.position, count, *own, state.cache, common)

    def freeze(self, state: NativeState) -> Mapping[str, Floats]:
        _require_own(state, self.config)
        checked_single(state)
        return state.frozen()

    def thaw(self, arrays: Mapping[str, Floats], position: int) -> NativeState:
        checked_position(position, self.config)
        state, seen = self.zero_state(), position % PAGE
        # Room for the tokens to come, as if the state had grown here.
        capacity = -(-min(self.config.max_positions, position + KEYS) // KEYS) * KEYS
        cache = Cache.empty(self._gqa_count, 1, self.config, capacity, position)
        thawed = replace(state, position=position, rows_claims=Claims(seen, PAGE), cache=cache)
        thawed.fill(arrays)
        return thawed


def _require_own(state: NativeState, config: ModelConfig) -> None:
    """A state's arrays have the shapes of its engine's model, or the library would read past their ends."""
    if not isinstance(state, NativeState):
        raise TypeError(f"a state of the native engine is needed, not {type(state).__name__}")
    if state.config != config:
        raise ValueError("the state is of a model of another shape")
