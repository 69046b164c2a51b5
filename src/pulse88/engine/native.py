"""The compiled engine: the same function as reference.py, several times faster, on one core.

Weights stay as the file has them, int8 by output row or float32. Beside float32 everything is float32; beside int8 keys
and values are kept in half precision, and a kernel that sums bytes takes activations in 16 bits. The result of a token
is the same to the last bit whatever the batch and wherever the cut into calls. docs/engine.md says how it works.

Shape legend: B batch, T tokens, V vocabulary; see native_state.py for the rest.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import weakref
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.engine.layout import mixers
from pulse88.engine.library import KERNELS, KEYS, PAGE, THREADS, Call, Sequence, kernels, library
from pulse88.engine.native_state import Cache, Floats, Kept, Loan, NativeState, Pool, Strand
from pulse88.engine.plan import kept_type, plan_of
from pulse88.engine.state import Claims, checked_count, checked_ids, checked_position, checked_single
from pulse88.engine.weights import Weights

__all__ = ["NativeEngine", "library"]

SEQUENCE = struct.Struct("@4q10P")  # `Sequence`, field by field
assert SEQUENCE.size == ctypes.sizeof(Sequence)
ROWS = 128  # tokens of all sequences that one call of the library takes; more come in pieces


class NativeEngine:
    """The compiled engine over weights as they are, int8 or float32. ValueError for a kernel that doesn't run here.

    `threads` share prompts and batches, never a single token, and give the same bits whatever their number; they sleep
    in between. Where the system has none to give (and on Windows) one thread computes.

    With `merge_outputs` the two matrices that end a GDN block are multiplied out when the engine is made: the same
    function in float32, but for its rounding; int8 is rounded anew. ValueError where the product isn't finite.
    """

    name = "native"

    def __init__(
        self, weights: Weights, kernel: str | None = None, threads: int = 1, *, merge_outputs: bool = False
    ) -> None:
        self.config = weights.config
        self.kernel = kernels()[-1] if kernel is None else kernel
        if self.kernel not in kernels():
            raise ValueError(f"this machine doesn't run the kernel {kernel!r}, it runs {', '.join(kernels())}")
        # Not the weights themselves: what is packed need not lie in memory twice.
        self.weights_sha256, self._initial, self._kept = weights.sha256, weights.initial, kept_type(weights)
        if merge_outputs:  # Other numbers, with which a snapshot of these weights would not go on bit for bit.
            self.weights_sha256 = hashlib.sha256(f"{weights.sha256} with merged outputs".encode()).hexdigest()
        self._number = KERNELS.index(self.kernel)
        self._plan, self._weights = plan_of(weights, library().p88_form(self._number), merge_outputs)
        self._addresses = self._plan.ctypes.data, self._weights.ctypes.data
        if not library().p88_check(self._addresses[0], self._plan.size, self._weights.size):
            raise ValueError("the native engine can't compute a model of this shape: use numpy")
        self._threads, self._crew = threads, None
        if not 1 <= threads <= THREADS:
            raise ValueError(f"an engine has 1 to {THREADS} threads, not {threads}")
        if threads > 1 and (crew := library().p88_crew_open(threads)):
            self._crew = crew
            weakref.finalize(self, library().p88_crew_close, crew)
        kinds = [kind for kind, _, _ in mixers(self.config)]
        self._gdn_count, self._gqa_count = kinds.count("gdn"), kinds.count("gqa")
        self._page_floats: int = library().p88_page_floats(self._addresses[0])
        self._pool = Pool()
        self._desks: dict[tuple[int, int, int], list[Desk]] = {}  # free ones, by batch, tokens and logit rows

    def zero_state(self, batch: int = 1) -> NativeState:
        if batch < 1:
            raise ValueError(f"a batch has 1 or more sequences, not {batch}")
        loans = self._memory(), self._rows(), self._tails()
        for loan, part in zip(loans, ("memory", "", "tail"), strict=True):
            loan.clear()
            if part and self._initial:
                names = (f"{name}.{part}" for kind, name, _ in mixers(self.config) if kind == "gdn")
                loan.array[...] = [self._initial[name] for name in names]
        if self._initial:
            loans[0].round_halves()
        strand = Strand(0, *loans, Claims(0, PAGE), Cache(self.config, self._kept, self._gqa_count, 0, 0))
        return NativeState(self.config, (strand,) * batch)

    def _memory(self) -> Loan:
        c = self.config
        shape = self._gdn_count, c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim
        return self._pool.take(shape, halves=self._kept.itemsize == 2)

    def _rows(self) -> Loan:
        return self._pool.take((self._gdn_count, self._page_floats))

    def _tails(self) -> Loan:
        channels = 2 * self.config.gdn_key_width + self.config.gdn_value_width
        return self._pool.take((self._gdn_count, self.config.conv_size - 1, channels))

    def forward(
        self, ids: ArrayLike, state: NativeState, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], NativeState]:
        self._own(state)
        ids_BT = checked_ids(ids, state, self.config)
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
        after = tuple(self._room_after(strand, tokens) for strand in state.strands)
        shape = batch, tokens, logit_rows
        try:
            desk = self._desks[shape].pop()
        except (KeyError, IndexError):
            desk = self._new_desk(shape)
        desk.ids_BT[...] = ids_BT
        for number, (before, behind) in enumerate(zip(state.strands, after, strict=True)):
            desk.lay(number, before, behind)
        done = library().p88_forward(self._number, *self._addresses, desk.call)
        assert done
        logits_BTV = desk.logits_BTV
        if tokens == 1:
            logits_BTV = logits_BTV.copy()
            self._desks.setdefault(shape, []).append(desk)
        return logits_BTV, NativeState(self.config, after)

    def _new_desk(self, shape: tuple[int, int, int]) -> Desk:
        batch, tokens, logit_rows = shape
        rows = batch if tokens == 1 else ROWS  # One size of scratch for all lengths, so that it is used again.
        floats: int = library().p88_scratch_floats(self._addresses[0], rows, self._threads)
        logits_BTV = np.empty((batch, (0, 1, tokens)[logit_rows], self.config.vocab_size), np.float32)
        return Desk(shape, logits_BTV, self._pool.take((floats,)), floats, self._threads, self._crew)

    def _room_after(self, strand: Strand, tokens: int) -> Strand:
        """The sequence after some tokens, all that it will have to write claimed for it."""
        stop = strand.position + tokens
        memory, rows, claims = strand.memory_MHKV, strand.rows_MF, strand.rows_claims
        if stop // PAGE != strand.position // PAGE:
            memory, rows, claims = self._memory(), self._rows(), Claims(stop % PAGE, PAGE)
        elif not claims.claim(strand.position % PAGE, stop % PAGE):
            rows, claims = self._rows(), Claims(stop % PAGE, PAGE)
            rows.array[...] = strand.rows_MF.array
        return Strand(stop, memory, rows, self._tails(), claims, *self._cache_for(strand, stop))

    def _cache_for(self, strand: Strand, stop: int) -> tuple[Cache, Cache | None, int]:
        """A cache with the positions up to stop claimed, and the prefix that comes before it.

        A branch shares its origin's keys and values instead of copying them.
        """
        cache, prefix, begin = strand.cache, strand.prefix, strand.prefix_length
        length, needed = strand.position - begin, stop - begin
        if cache.claims.claim(length, needed):
            return cache, prefix, begin
        common, capacity = 0, 2 * needed
        if prefix is None and needed <= cache.capacity and length >= KEYS:
            common, capacity = length // KEYS * KEYS, needed - length // KEYS * KEYS + KEYS
            prefix, begin = cache, common
        capacity = -(-min(self.config.max_positions - begin, capacity) // KEYS) * KEYS
        grown = Cache(self.config, self._kept, self._gqa_count, capacity, needed - common)
        grown.fill(cache, common, length)
        return grown, prefix, begin

    def fork(self, state: NativeState, count: int) -> NativeState:
        """Forks share the memory until the page ends, and the keys and values of the past for good."""
        self._own(state)
        return NativeState(self.config, state.strands * checked_count(state, count))

    def join(self, states: Iterable[NativeState]) -> NativeState:
        """The sequences of several states side by side; they may stand at different positions."""
        strands = tuple(strand for state in states for strand in self._own(state).strands)
        if not strands:
            raise ValueError("there are no states to join")
        return NativeState(self.config, strands)

    def split(self, state: NativeState) -> list[NativeState]:
        """A batch's sequences, each as a state."""
        return [NativeState(self.config, (strand,)) for strand in self._own(state).strands]

    def freeze(self, state: NativeState) -> Mapping[str, Kept]:
        self._own(state)
        checked_single(state)
        return state.strands[0].frozen(self.config)

    def thaw(self, arrays: Mapping[str, Kept], position: int) -> NativeState:
        checked_position(position, self.config)
        # Room for the tokens to come, as if the state had grown here.
        capacity = -(-min(self.config.max_positions, position + KEYS) // KEYS) * KEYS
        cache = Cache(self.config, self._kept, self._gqa_count, capacity, position)
        loans = self._memory(), self._rows(), self._tails()
        strand = Strand(position, *loans, Claims(position % PAGE, PAGE), cache)
        strand.fill(self.config, arrays)
        return NativeState(self.config, (strand,))

    def _own(self, state: NativeState) -> NativeState:
        """The state, whose arrays have the shapes that the library takes them to have."""
        if not isinstance(state, NativeState):
            raise TypeError(f"a state of the native engine is needed, not {type(state).__name__}")
        same = state.config is self.config or state.config == self.config
        if not same or any(strand.cache.kept != self._kept for strand in state.strands):
            raise ValueError("the state is of a model of another shape or precision")
        return state


class Desk:
    """What a call takes beside the states of its sequences, at addresses that stay: single tokens use it again."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        logits_BTV: Floats,
        scratch: Loan,
        floats: int,
        threads: int,
        crew: int | None,
    ) -> None:
        batch, tokens, _ = shape
        self.ids_BT, self.logits_BTV, self._scratch = np.empty((batch, tokens), np.int64), logits_BTV, scratch
        self._sequences = (Sequence * batch)()
        self._call = Call(
            *(*shape, floats),
            *(self.ids_BT.ctypes.data, self._sequences, logits_BTV.ctypes.data, scratch.address),
            *(threads, crew),
        )
        self.call = ctypes.byref(self._call)

    def lay(self, number: int, before: Strand, after: Strand) -> None:
        """One sequence: its state before the call, and where the one after it goes."""
        prefix = after.prefix or after.cache
        SEQUENCE.pack_into(
            self._sequences,
            number * SEQUENCE.size,
            *(before.position, after.cache.capacity, after.prefix_length, prefix.capacity),
            *(before.memory_MHKV.address, before.rows_MF.address, before.tails_MTW.address),
            *(after.memory_MHKV.address, after.rows_MF.address, after.tails_MTW.address),
            *(*prefix.addresses, *after.cache.addresses),
        )
