"""The law of every engine, as one check: forward(x) equals forward of x's pieces with the state carried over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse88.config import PULSE88_40M, TINY, ModelConfig
from pulse88.engine import Engine
from pulse88.engine.weights import Weights, random_tensors

TOLERANCE = 1e-4  # of logits that spread over several units, and of states


@cache
def random_weights(preset: str, seed: int = 0) -> Weights:
    config = {"tiny": TINY, "40m": PULSE88_40M}[preset]
    return Weights(config, random_tensors(config, seed))


def weights_of(config: ModelConfig, seed: int = 0) -> Weights:
    return Weights(config, random_tensors(config, seed))


def random_ids(config: ModelConfig, batch: int, tokens: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, tokens))


def in_pieces(
    engine: Engine,
    ids_BT: NDArray[np.int64],
    pieces: Sequence[int],
    between: Callable[[Any], Any] = lambda state: state,
) -> tuple[NDArray[np.float32], Any]:
    """Logits of all tokens and the last state, from one forward a piece; `between` may tamper with carried states."""
    assert sum(pieces) == ids_BT.shape[1]
    state, start, logits = engine.zero_state(len(ids_BT)), 0, []
    for piece in pieces:
        if start:
            state = between(state)
        part, state = engine.forward(ids_BT[:, start : start + piece], state)
        logits.append(part)
        start += piece
    return np.concatenate(logits, axis=1), state


def distance(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference between two snapshots, each array measured in units of its own largest value."""
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    sizes = {name: max(1.0, float(np.abs(b[name]).max(initial=0))) for name in b}
    return max(float(np.abs(a[name] - b[name]).max(initial=0)) / sizes[name] for name in a)


def law_error(
    engine: Engine,
    ids_BT: NDArray[np.int64],
    pieces: Sequence[int],
    between: Callable[[Any], Any] = lambda state: state,
) -> float:
    """How far the pieces are from the whole, in logits or states, whichever is worse."""
    whole_BTV, whole_state = engine.forward(ids_BT, engine.zero_state(len(ids_BT)))
    logits_BTV, state = in_pieces(engine, ids_BT, pieces, between)
    assert state.position == whole_state.position == ids_BT.shape[1]
    worst = float(np.abs(logits_BTV - whole_BTV).max())
    return max(worst, distance(state.snapshot(), whole_state.snapshot()))
