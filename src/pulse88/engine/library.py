"""The compiled library of the native engine, opened with ctypes: what it exports, and how it is told what to do."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache

KERNELS = ("baseline", "avx2", "avx512", "avx512vnni")  # in the order of the library's numbers, slowest first
PAGE = 16  # tokens between two rewritings of a GDN memory
KEYS = 64  # keys side by side in the cache
THREADS = 64  # at most
MEMORY_BYTES = 6  # of a number of the GDN memory beside int8 weights: in single and in half precision
FLOATS, WORDS, BYTES = range(3)  # forms of packed weights
PLAN_SIZES = (23, 23)  # values of a plan's head and of one of its mixers


class Sequence(ctypes.Structure):
    """`Sequence` of native.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("position", "capacity", "prefix", "prefix_capacity")),
        *((name, ctypes.c_void_p) for name in ("old_memory", "old_rows", "old_tails", "memory", "rows", "tails")),
        *((name, ctypes.c_void_p) for name in ("prefix_keys", "prefix_values", "keys", "values")),
    )


class Call(ctypes.Structure):
    """`Call` of native.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "logit_rows", "scratch_floats")),
        ("ids", ctypes.c_void_p),
        ("sequences", ctypes.POINTER(Sequence)),
        *((name, ctypes.c_void_p) for name in ("logits", "scratch")),
        ("threads", ctypes.c_int64),
        ("crew", ctypes.c_void_p),
    )


@cache
def library() -> ctypes.CDLL:
    """The compiled library; ImportError if it was not built on installation, or from other sources."""
    found = importlib.util.find_spec("pulse88.engine._native")
    if found is None or found.origin is None:
        raise ImportError("the native engine was not built on installation, which takes GCC or Clang")
    try:
        opened = ctypes.CDLL(found.origin)
    except OSError as error:
        raise ImportError(f"the native engine does not open: {error}") from error
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("size_of", i64, [i64]),
        ("runs", ctypes.c_int, [ctypes.c_int]),
        ("form", ctypes.c_int, [ctypes.c_int]),
        ("packed_bytes", i64, [ctypes.c_int, i64, i64]),
        ("pack", ctypes.c_int, [ctypes.c_int, pointer, i64, i64, pointer, i64]),
        ("check", ctypes.c_int, [pointer, i64, i64]),
        ("page_floats", i64, [pointer]),
        ("scratch_floats", i64, [pointer, i64, i64]),
        ("crew_open", pointer, [i64]),
        ("crew_close", None, [pointer]),
        ("forward", ctypes.c_int, [ctypes.c_int, pointer, pointer, ctypes.POINTER(Call)]),
    ):
        function = getattr(opened, f"p88_{name}", None)
        if function is None:
            raise ImportError(f"{found.origin} was built from other sources: install pulse88 again")
        function.restype, function.argtypes = result, arguments
    sizes = [ctypes.sizeof(Call), *PLAN_SIZES, PAGE, KEYS, ctypes.sizeof(Sequence), MEMORY_BYTES]
    if [opened.p88_size_of(i) for i in range(len(sizes))] != sizes:
        raise ImportError(f"{found.origin} was built from other sources: install pulse88 again")
    return opened


def kernels() -> list[str]:
    """The kernels that this machine runs, slowest first."""
    return [name for number, name in enumerate(KERNELS) if library().p88_runs(number)]
