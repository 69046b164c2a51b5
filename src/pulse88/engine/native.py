"""The compiled engine: the same function as reference.py, several times faster, on one core.

Weights stay as the file has them, int8 by output row or float32; activations and sums are float32. The result of a
token is the same to the last bit whatever the batch and wherever the cut into calls.

A state is a page and the attention's keys and values. A page is the memory of all GDN blocks at its first position,
a multiple of 16, and what the tokens since have added; only the last token of a page rewrites the memory. So a step
reads the memory instead of writing it anew, and the states of one page share it.

Shape legend: B batch, T tokens, M GDN blocks, A attention blocks, H heads, K key width, V value width, G key/value
heads, E width of an attention head, N positions, F floats of a page, R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.config import ModelConfig
from pulse88.engine.layout import mixers
from pulse88.engine.state import Claims, checked_count, checked_ids
from pulse88.engine.weights import SCALE, Weights

KERNELS = ("baseline", "avx2", "avx512")  # in the order of the library's numbers, slowest first
PAGE = 16  # tokens
KEYS = 64  # keys side by side in the cache
ROWS = 128  # tokens of all sequences that one call of the library takes; more come in pieces
ALIGNMENT = 64  # bytes

Floats = NDArray[np.float32]


class _Call(ctypes.Structure):
    """`Call` of native.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "position", "capacity", "logit_rows")),
        ("scratch_floats", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("ids", "old_memory", "old_rows", "memory", "rows")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "logits", "scratch")),
    )


@cache
def library() -> ctypes.CDLL:
    """The compiled library; ImportError if it was not built on installation, or from other sources."""
    found = importlib.util.find_spec("pulse88.engine._native")
    if found is None or found.origin is None:
        raise ImportError("the native engine was not built on installation, which takes GCC or Clang")
    opened = ctypes.CDLL(found.origin)
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("size_of", i64, [i64]),
        ("runs", ctypes.c_int, [ctypes.c_int]),
        ("packed_bytes", i64, [ctypes.c_int, i64, i64]),
        ("pack", ctypes.c_int, [ctypes.c_int, pointer, i64, i64, pointer, i64]),
        ("check", ctypes.c_int, [pointer, i64, i64]),
        ("page_floats", i64, [pointer]),
        ("scratch_floats", i64, [pointer, i64]),
        ("forward", ctypes.c_int, [ctypes.c_int, pointer, pointer, ctypes.POINTER(_Call)]),
    ):
        function = getattr(opened, f"p88_{name}")
        function.restype, function.argtypes = result, arguments
    if [opened.p88_size_of(i) for i in range(5)] != [ctypes.sizeof(_Call), *_PLAN_SIZES, PAGE, KEYS]:
        raise ImportError(f"{found.origin} was built from other sources: install pulse88 again")
    return opened


def kernels() -> list[str]:
    """The kernels that this machine runs, slowest first."""
    return [name for number, name in enumerate(KERNELS) if library().p88_runs(number)]


# ---------------------------------------------------------------- memory


def _aligned(size: int) -> NDArray[np.uint8]:
    """Bytes at an address that vectors like."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


class Pool:
    """Room that is used again, because asking the system for megabytes at every page costs more than filling them."""

    KEPT = 3  # unused blocks of one size

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def take(self, shape: tuple[int, ...]) -> Loan:
        """Floats of a shape, their values whatever was there."""
        size = 4 * int(np.prod(shape))
        try:
            block = self._free[size].pop()
        except (KeyError, IndexError):
            block = _aligned(size)
        return Loan(self, block, block.view(np.float32).reshape(shape))

    def give(self, block: NDArray[np.uint8]) -> None:
        blocks = self._free.setdefault(block.size, [])
        if len(blocks) < self.KEPT:
            blocks.append(block)


class Loan:
    """An array whose room goes back to its pool when nobody holds the loan any more."""

    __slots__ = ("_block", "_pool", "array")

    def __init__(self, pool: Pool, block: NDArray[np.uint8], array: Floats) -> None:
        self._pool, self._block, self.array = pool, block, array

    def __del__(self) -> None:
        self._pool.give(self._block)


# ---------------------------------------------------------------- weights


class _Packer:
    """Lays arrays side by side into one block of weights and says where they begin."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, NDArray[Any], bool]] = []  # offset, array, whether it is to be packed as a matrix
        self.size = 0

    def _place(self, array: NDArray[Any], size: int, packed: bool) -> int:
        offset = self.size
        self.parts.append((offset, array, packed))
        self.size += size + -size % ALIGNMENT
        return offset

    def floats(self, array: ArrayLike) -> int:
        values = np.ascontiguousarray(array, np.float32)
        return self._place(values, values.nbytes, False)

    def matrix(self, weights: Weights, *names: str) -> list[int]:
        """Several matrices as one, row under row: a `Matrix` of native.h. int8 only if all are and the library can."""
        tensors = [weights.tensors[name] for name in names]
        is_int8 = all(tensor.dtype == np.int8 and tensor.shape[1] % 4 == 0 for tensor in tensors)
        scale = -1
        if is_int8:
            scales = np.concatenate([weights.tensors[name + SCALE] for name in names])
            # The library takes an int8 for the value times 2^24.
            scale = self.floats(np.pad(scales * np.float32(2**-24), (0, -len(scales) % 16)))
        else:
            tensors = [weights.matrix(name) for name in names]
        whole_RC = np.ascontiguousarray(np.concatenate(tensors))
        size = library().p88_packed_bytes(is_int8, *whole_RC.shape)
        return [self._place(whole_RC, size, True), scale, *whole_RC.shape]

    def block(self) -> NDArray[np.uint8]:
        block = _aligned(self.size)
        for offset, array, packed in self.parts:
            if packed:
                rows, cols = array.shape
                is_int8 = array.dtype == np.int8
                size = library().p88_packed_bytes(is_int8, rows, cols)
                target = block[offset : offset + size]
                assert target.nbytes == size
                done = library().p88_pack(is_int8, array.ctypes.data, rows, cols, target.ctypes.data, size)
                assert done
            else:
                block[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        return block


_NO_MATRIX = [-1, -1, 0, 0]
_PLAN_SIZES = (22, 23)  # values of the plan's head and of one mixer


def _plan(weights: Weights) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`Model` of native.h as an array, and the block of weights that it points into."""
    c, packer = weights.config, _Packer()
    rows: list[list[int]] = []
    for kind, mixer, norm in mixers(c):

        def own(name: str, mixer: str = mixer) -> Floats:
            return weights.matrix(f"{mixer}.{name}")

        head = [packer.floats(weights.matrix(f"{norm}.{name}")) for name in ("weight", "bias")]
        if kind == "gqa":
            first = packer.matrix(weights, *(f"{mixer}.{name}_proj.weight" for name in "qkv"))
            out = packer.matrix(weights, f"{mixer}.out_proj.weight")
            rows.append([1, *head, *first, *_NO_MATRIX, *_NO_MATRIX, *out, -1, -1, -1, -1])
            continue
        conv_WC = np.concatenate([own(f"core.{name}_conv1d.weight")[:, 0] for name in "qkv"]).T
        rows.append(
            [
                *(0, *head),
                *packer.matrix(weights, f"{mixer}.in_proj.weight"),
                *packer.matrix(weights, *(f"{mixer}.core.{name}_proj.weight" for name in "qkvgab")),
                *packer.matrix(weights, f"{mixer}.core.o_proj.weight"),
                *packer.matrix(weights, f"{mixer}.out_proj.weight"),
                packer.floats(conv_WC),
                packer.floats(-np.exp(own("core.A_log"))),
                packer.floats(own("core.dt_bias")),
                packer.floats(own("core.o_norm.weight")),
            ]
        )
    angles = np.outer(np.arange(c.max_positions), c.rope_base ** -np.arange(0, 1, 2 / c.gqa_head_dim))
    head_name = "token_embedding.weight" if c.tie_embeddings else "lm_head.weight"
    plan = [
        *(c.vocab_size, c.d_model, c.max_positions, c.gdn_inner_dim),
        *(c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim, c.conv_size),
        *(c.gqa_num_heads, c.gqa_kv_heads, c.gqa_head_dim, len(rows)),
        packer.floats([c.norm_eps, c.output_logit_scale]),
        packer.floats(weights.matrix("token_embedding.weight")),
        packer.floats(weights.matrix("position_embedding.weight")),
        packer.floats(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)),
        packer.floats(weights.matrix("final_norm.weight")),
        packer.floats(weights.matrix("final_norm.bias")),
        *packer.matrix(weights, head_name),
        *(value for row in rows for value in row),
    ]
    return np.array(plan, np.int64), packer.block()


# ---------------------------------------------------------------- state


@dataclass(frozen=True)
class NativeState:
    """What the native engine has seen. Arrays may be shared with other states; claims say who may write next."""

    config: ModelConfig
    position: int
    batch: int
    memory_MBHKV: Loan  # at the page's first position
    rows_MBF: Loan  # what the page's tokens have added; see native.h
    rows_claims: Claims
    keys_ABGNE: Floats  # [A, B, G, N / KEYS, E, KEYS]
    values_ABGNE: Floats
    cache_claims: Claims

    def snapshot(self) -> Mapping[str, Floats]:
        c, seen = self.config, self.position % PAGE
        arrays: dict[str, Floats] = {}
        count = {"gdn": 0, "gqa": 0}
        for kind, name, _ in mixers(c):
            index = count[kind]
            count[kind] += 1
            if kind == "gdn":
                inputs, keys, errors, decays = _page_parts(c, self.rows_MBF.array[index])
                memory_BHKV = self.memory_MBHKV.array[index]
                if seen:
                    decays = decays[:, :, :seen]
                    share = np.exp(decays[:, :, -1:] - decays)[..., None]
                    gained = (keys[:, :, :seen] * share).swapaxes(-1, -2) @ errors[:, :, :seen]
                    memory_BHKV = np.exp(decays[:, :, -1:])[..., None] * memory_BHKV + gained
                arrays[f"{name}.memory"] = memory_BHKV.copy()
                arrays[f"{name}.tail"] = inputs[:, seen : seen + c.conv_size - 1].copy()
            else:
                keys_BGNE = self.keys_ABGNE[index].swapaxes(-1, -2).reshape(self.values_ABGNE.shape[1:])
                arrays[f"{name}.keys"] = keys_BGNE[:, :, : self.position].copy()
                arrays[f"{name}.values"] = self.values_ABGNE[index, :, :, : self.position].copy()
        return arrays


def _channels(c: ModelConfig) -> int:
    return 2 * c.gdn_key_width + c.gdn_value_width


def _page_parts(c: ModelConfig, rows_BF: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """One GDN block's page: inputs [B, conv_size - 1 + PAGE, channels], keys, errors and decays."""
    batch, heads = len(rows_BF), c.gdn_num_heads
    shapes = [
        (batch, c.conv_size - 1 + PAGE, _channels(c)),
        (batch, heads, PAGE, c.gdn_key_dim),
        (batch, heads, PAGE, c.gdn_value_dim),
        (batch, heads, PAGE),
    ]
    ends = np.cumsum([int(np.prod(shape[1:])) for shape in shapes])
    assert ends[-1] == rows_BF.shape[1]
    parts = np.split(rows_BF, ends[:-1], axis=1)
    inputs, keys, errors, decays = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return inputs, keys, errors, decays


# ---------------------------------------------------------------- engine


class NativeEngine:
    """The compiled engine over weights as they are, int8 or float32. ValueError for a kernel that doesn't run here."""

    name = "native"

    def __init__(self, weights: Weights, kernel: str | None = None) -> None:
        self.config = weights.config
        self.kernel = kernels()[-1] if kernel is None else kernel
        if self.kernel not in kernels():
            raise ValueError(f"this machine doesn't run the kernel {kernel!r}, it runs {', '.join(kernels())}")
        self._plan, self._weights = _plan(weights)
        if not library().p88_check(self._plan.ctypes.data, self._plan.size, self._weights.size):
            raise ValueError("the native engine can't compute a model of this shape: use numpy")
        kinds = [kind for kind, _, _ in mixers(self.config)]
        self._gdn_count, self._gqa_count = kinds.count("gdn"), kinds.count("gqa")
        self._page_floats: int = library().p88_page_floats(self._plan.ctypes.data)
        self._pool = Pool()

    def zero_state(self, batch: int = 1) -> NativeState:
        if batch < 1:
            raise ValueError(f"a batch has 1 or more sequences, not {batch}")
        c = self.config
        memory, rows = self._room(batch)
        memory.array[...] = 0
        rows.array[...] = 0
        keys = (self._gqa_count, batch, c.gqa_kv_heads, 0, c.gqa_head_dim, KEYS)
        values = (self._gqa_count, batch, c.gqa_kv_heads, 0, c.gqa_head_dim)
        return NativeState(
            c,
            0,
            batch,
            memory,
            rows,
            Claims(0, PAGE),
            np.zeros(keys, np.float32),
            np.zeros(values, np.float32),
            Claims(0, 0),
        )

    def _room(self, batch: int) -> tuple[Loan, Loan]:
        """For a memory and a page's rows."""
        c = self.config
        memory = (self._gdn_count, batch, c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim)
        return self._pool.take(memory), self._pool.take((self._gdn_count, batch, self._page_floats))

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
        c = self.config
        batch, tokens = ids_BT.shape
        stop = state.position + tokens
        memory, rows, rows_claims = state.memory_MBHKV, state.rows_MBF, state.rows_claims
        if stop // PAGE != state.position // PAGE:
            memory, rows = self._room(batch)
            rows_claims = Claims(stop % PAGE, PAGE)
        elif not rows_claims.claim(state.position % PAGE, stop % PAGE):
            _, rows = self._room(batch)
            rows.array[...] = state.rows_MBF.array
            rows_claims = Claims(stop % PAGE, PAGE)
        keys, values, cache_claims = state.keys_ABGNE, state.values_ABGNE, state.cache_claims
        if not cache_claims.claim(state.position, stop):
            keys, values = self._grown(state, stop)
            cache_claims = Claims(stop, values.shape[3])
        logits_BTV = np.empty((batch, (0, 1, tokens)[logit_rows], c.vocab_size), np.float32)
        floats: int = library().p88_scratch_floats(self._plan.ctypes.data, batch * tokens)
        scratch = self._pool.take((floats,))
        call = _Call(
            *(batch, tokens, state.position, values.shape[3], logit_rows, floats),
            ids_BT.ctypes.data,
            *(loan.array.ctypes.data for loan in (state.memory_MBHKV, state.rows_MBF, memory, rows)),
            *(array.ctypes.data for array in (keys, values, logits_BTV, scratch.array)),
        )
        done = library().p88_forward(
            KERNELS.index(self.kernel), self._plan.ctypes.data, self._weights.ctypes.data, ctypes.byref(call)
        )
        assert done
        after = NativeState(c, stop, batch, memory, rows, rows_claims, keys, values, cache_claims)
        return logits_BTV, after

    def _grown(self, state: NativeState, stop: int) -> tuple[Floats, Floats]:
        """Copies of the state's keys and values with room for more positions, `stop` at least."""
        limit = -(-self.config.max_positions // KEYS) * KEYS
        capacity = min(limit, -(-max(2 * stop, 64) // KEYS) * KEYS)
        old_keys, old_values = state.keys_ABGNE, state.values_ABGNE
        keys = np.zeros((*old_keys.shape[:3], capacity // KEYS, *old_keys.shape[4:]), np.float32)
        values = np.zeros((*old_values.shape[:3], capacity, old_values.shape[4]), np.float32)
        blocks = -(-state.position // KEYS)
        keys[:, :, :, :blocks] = old_keys[:, :, :, :blocks]
        values[:, :, :, : state.position] = old_values[:, :, :, : state.position]
        return keys, values

    def fork(self, state: NativeState, count: int) -> NativeState:
        _require_own(state, self.config)
        checked_count(state, count)
        memory, rows = self._room(count)
        memory.array[...] = state.memory_MBHKV.array
        rows.array[...] = state.rows_MBF.array
        keys, values = (np.repeat(array, count, axis=1) for array in (state.keys_ABGNE, state.values_ABGNE))
        rows_claims = Claims(state.position % PAGE, PAGE)
        cache_claims = Claims(state.position, values.shape[3])
        return NativeState(state.config, state.position, count, memory, rows, rows_claims, keys, values, cache_claims)


def _require_own(state: NativeState, config: ModelConfig) -> None:
    """A state's arrays have the shapes of its engine's model, or the library would read past their ends."""
    if not isinstance(state, NativeState):
        raise TypeError(f"a state of the native engine is needed, not {type(state).__name__}")
    if state.config != config:
        raise ValueError("the state is of a model of another shape")
