"""A model's weights as the compiled library takes them: one block, and the plan of where everything lies in it.

Shape legend: R rows (outputs), C columns (inputs), W channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88.engine.layout import mixers
from pulse88.engine.library import FLOATS, WORDS, library
from pulse88.engine.weights import SCALE, Tensors, Weights, matrix_of, quantise

ALIGNMENT = 64  # bytes

_NO_MATRIX = [-1, -1, 0, 0]


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Bytes at an address that vectors like, their values whatever was there."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def kept_type(weights: Weights) -> np.dtype[Any]:
    """Of the keys and values in the cache: half precision beside int8 weights, whose rounding is far coarser."""
    return np.dtype(np.float16 if weights.quantised else np.float32)


class _Block:
    """Gives every array its place in one block of weights; the arrays are made when the block is."""

    def __init__(self, weights: Weights, form: int) -> None:
        self._weights, self._form = weights, form
        self._writers: list[Callable[[NDArray[np.uint8]], None]] = []
        self._size = 0

    def _place(self, size: int, write: Callable[[NDArray[np.uint8]], None]) -> int:
        offset = self._size
        self._size += size + -size % ALIGNMENT
        self._writers.append(lambda block: write(block[offset : offset + size]))
        return offset

    def floats(self, array: NDArray[Any] | list[float]) -> int:
        """The offset of an array as float32."""
        values = np.ascontiguousarray(array, np.float32).reshape(-1)

        def write(target: NDArray[np.uint8]) -> None:
            target[:] = values.view(np.uint8)

        return self._place(values.nbytes, write)

    def tensor(self, name: str) -> int:
        return self.floats(self._weights.matrix(name))

    def matrix(self, *names: str) -> list[int]:
        """Several matrices as one, row under row: a `Matrix` of native.h. int8 only if all are and the library can."""
        return self._packed(self._weights.tensors, *names)

    def product(self, last: str, first: str) -> list[int]:
        """Two matrices of which `last` takes what `first` gives, as one, multiplied in float64.

        int8, rounded anew, only if both are. ValueError for a product that float32 can't hold.
        """
        tensors = self._weights.tensors
        with np.errstate(over="ignore", invalid="ignore"):
            whole_RC = matrix_of(tensors, last).astype(np.float64) @ matrix_of(tensors, first).astype(np.float64)
            product: Tensors = {last: whole_RC.astype(np.float32)}
        if not np.isfinite(product[last]).all():
            raise ValueError(f"{last} times {first} has numbers that are not finite: leave merge_outputs off")
        is_int8 = all(tensors[name].dtype == np.int8 for name in (last, first))
        return self._packed(quantise(product) if is_int8 else product, last)

    def _packed(self, source: Tensors, *names: str) -> list[int]:
        tensors = [source[name] for name in names]
        rows, cols = sum(len(tensor) for tensor in tensors), tensors[0].shape[1]
        is_int8 = all(tensor.dtype == np.int8 for tensor in tensors)
        form = self._form if is_int8 and library().p88_packed_bytes(self._form, rows, cols) >= 0 else FLOATS
        scale = -1
        if form != FLOATS:
            scale_R = np.concatenate([source[name + SCALE] for name in names])
            # A word takes an int8 for the value times 2^24.
            unit = np.float32(2**-24 if form == WORDS else 1)
            scale = self.floats(np.pad(scale_R * unit, (0, -rows % 16)))
        size: int = library().p88_packed_bytes(form, rows, cols)

        def write(target: NDArray[np.uint8]) -> None:
            parts = [matrix_of(source, name) for name in names] if form == FLOATS else tensors
            whole_RC = np.ascontiguousarray(np.concatenate(parts) if len(parts) > 1 else parts[0])
            done = library().p88_pack(form, whole_RC.ctypes.data, rows, cols, target.ctypes.data, target.size)
            assert done

        return [self._place(size, write), scale, rows, cols]

    def bytes(self) -> NDArray[np.uint8]:
        block = aligned_bytes(self._size)
        while self._writers:  # They hold the weights, and in a circle this block: none is kept past its turn.
            self._writers.pop()(block)
        return block


def plan_of(weights: Weights, form: int, merge_outputs: bool = False) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """`Model` of native.h as an array, and the block of weights that it points into, int8 in the kernel's form.

    With `merge_outputs`, o_proj and out_proj of a GDN block are one matrix.
    """
    c, block = weights.config, _Block(weights, form)
    rows: list[list[int]] = []
    for kind, mixer, norm in mixers(c):
        head = [block.tensor(f"{norm}.{name}") for name in ("weight", "bias")]
        if kind == "gqa":
            first = block.matrix(*(f"{mixer}.{name}_proj.weight" for name in "qkv"))
            out = block.matrix(f"{mixer}.out_proj.weight")
            rows.append([1, *head, *first, *_NO_MATRIX, *_NO_MATRIX, *out, -1, -1, -1, -1])
            continue
        o_proj, out_proj = f"{mixer}.core.o_proj.weight", f"{mixer}.out_proj.weight"
        conv_WX = np.concatenate([weights.matrix(f"{mixer}.core.{name}_conv1d.weight")[:, 0] for name in "qkv"])
        rows.append(
            [
                *(0, *head),
                *block.matrix(f"{mixer}.in_proj.weight"),
                *block.matrix(*(f"{mixer}.core.{name}_proj.weight" for name in "qkvgab")),
                *(_NO_MATRIX if merge_outputs else block.matrix(o_proj)),
                *(block.product(out_proj, o_proj) if merge_outputs else block.matrix(out_proj)),
                block.floats(conv_WX.T),
                block.floats(-np.exp(weights.matrix(f"{mixer}.core.A_log"))),
                block.tensor(f"{mixer}.core.dt_bias"),
                block.tensor(f"{mixer}.core.o_norm.weight"),
            ]
        )
    angles = np.outer(np.arange(c.max_positions), c.rope_base ** -np.arange(0, 1, 2 / c.gqa_head_dim))
    plan = [
        *(c.vocab_size, c.d_model, c.max_positions, c.gdn_inner_dim),
        *(c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim, c.conv_size),
        *(c.gqa_num_heads, c.gqa_kv_heads, c.gqa_head_dim, kept_type(weights).itemsize, len(rows)),
        block.floats([c.norm_eps, c.output_logit_scale]),
        block.tensor("token_embedding.weight"),
        block.tensor("position_embedding.weight"),
        block.floats(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)),
        block.tensor("final_norm.weight"),
        block.tensor("final_norm.bias"),
        *block.matrix("token_embedding.weight" if c.tie_embeddings else "lm_head.weight"),
        *(value for row in rows for value in row),
    ]
    return np.array(plan, np.int64), block.bytes()
