"""What an engine makes of music: nats of every token, for likelihood.py. No torch.

Shape legend: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pulse88.engine import Engine
from pulse88.likelihood import Floats, Score, spans
from pulse88.vocabulary import BOS, EVENT_TOKENS


def engine_score(engine: Engine) -> Score:
    """Scores by an engine; computed in float32, summed in float64."""

    def score(ids: NDArray[np.int64]) -> Floats:
        logits_BTV, _ = engine.forward(ids[:, :-1], engine.zero_state(len(ids)))
        return nats_of(logits_BTV, ids[:, 1:])

    return score


def nats_of(logits_BTV: NDArray[np.float32], targets_BT: NDArray[np.int64]) -> Floats:
    """[B, T] nats of every target."""
    logits = logits_BTV.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, targets_BT[..., None], axis=-1)[..., 0]
    return np.asarray(np.log(np.exp(logits).sum(axis=-1)) - chosen)


def bits_of_events(engine: Engine, before: Sequence[int], events: Sequence[int]) -> Floats:
    """[E] bits of each of E events that follow the ids `before`, of which there is at least one.

    Windows of the engine's context, every half of it, as in likelihood.py.
    """
    ids = np.array([*before, *events], np.int64)
    score, positions = engine_score(engine), engine.config.max_positions
    nats = np.zeros(len(ids) - 1)
    unseen = int(ids[0] != BOS)  # spans() counts a BOS, after which the events begin
    for begin, end, counted in spans(len(ids) + unseen, positions, positions // 2):
        begin, end, counted = max(begin - unseen, 0), end - unseen, max(counted - unseen, 1)
        nats[counted - 1 : end - 1] = score(ids[None, begin:end])[0, counted - begin - 1 :]
    return np.asarray(nats[len(before) - 1 :].reshape(-1, EVENT_TOKENS).sum(axis=1) / math.log(2))
