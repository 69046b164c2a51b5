"""Picking one id among the legal ones: a pure function of logits, settings and one uniform number.

The order is fixed: legal ids only, temperature, softmax, top-k, top-p, min-p, renormalise, pick. There is no repetition
penalty: on tokens it would punish velocities and short deltas, which music repeats.

Shape legend: V vocabulary, L legal ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88 import sequential
from pulse88.config import SamplingConfig


def probabilities(logits_V: ArrayLike, legal_ids: ArrayLike, config: SamplingConfig) -> NDArray[np.float64]:
    """[L] the probability of each legal id, in the order of `legal_ids`; 0 for what the settings drop.

    Top-k keeps the k likeliest. Top-p then keeps the smallest set of the likeliest that together reach p, so the id
    that crosses p stays. Min-p then drops what is less likely than its share of the likeliest. Of equally likely ids
    the one that comes first in `legal_ids` counts as likelier. Temperature 0 puts everything on the likeliest.
    A logit of -inf means probability 0. ValueError for NaN or +inf anywhere, for no legal id, and where every legal
    logit is -inf.
    """
    logits_L, weights_L = _weighed(logits_V, legal_ids, config.temperature)
    return _probabilities(logits_L, weights_L, config)


def _weighed(
    logits_V: ArrayLike, legal_ids: ArrayLike, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[L] the logits of the legal ids, and what their probabilities are in proportion to before anything is dropped."""
    logits = np.asarray(logits_V, np.float64)
    if not logits.max() < np.inf:  # nor is NaN
        raise ValueError("the model's logits are not finite: its weights are damaged or belong to another shape")
    legal = np.asarray(legal_ids, np.int64)
    if not legal.size:
        raise ValueError("no id is legal here: the sequence has ended")
    logits_L = logits[legal]
    highest = logits_L.max()
    if highest == -np.inf:
        raise ValueError("every legal id has probability 0")
    if temperature == 0:
        return logits_L, (np.arange(legal.size) == int(logits_L.argmax())).astype(np.float64)
    if temperature == 1:
        return logits_L, np.exp(logits_L - highest)
    with np.errstate(over="ignore"):  # A tiny temperature sends all but the likeliest to -inf, as it should.
        return logits_L, np.exp((logits_L - highest) / temperature)


def _probabilities(
    logits_L: NDArray[np.float64], weights_L: NDArray[np.float64], config: SamplingConfig
) -> NDArray[np.float64]:
    if config.temperature == 0:
        return weights_L
    likeliest_first = (-logits_L).argsort(kind="stable")
    kept = weights_L[likeliest_first]
    if 0 < config.top_k < kept.size:
        kept[config.top_k :] = 0.0
    if config.top_p < 1:
        share_before = (kept.cumsum() - kept) / kept.sum()
        kept[share_before >= config.top_p] = 0.0
    if config.min_p > 0:
        kept[kept < config.min_p * kept[0]] = 0.0
    result = np.empty_like(kept)
    result[likeliest_first] = kept / kept.sum()
    return result


def pick(logits_V: ArrayLike, legal_ids: ArrayLike, config: SamplingConfig, uniform: float) -> int:
    """The id at `uniform` in [0, 1) on the cumulated probabilities of the legal ids.

    With ascending `legal_ids` the picked id never falls as `uniform` rises, and an id is picked for a stretch of
    `uniform` as long as its probability. Errors as in `probabilities`.
    """
    if not 0 <= uniform < 1:
        raise ValueError(f"uniform must be in [0, 1), not {uniform}")
    logits_L, weights_L = _weighed(logits_V, legal_ids, config.temperature)
    if compiled := sequential.library():
        index = sequential.pick(compiled, logits_L, weights_L, config.top_k, config.top_p, config.min_p, uniform)
        if index >= 0:
            return int(np.asarray(legal_ids)[index])
    cumulated = _probabilities(logits_L, weights_L, config).cumsum()
    # Scaled by the last sum, which rounding may leave beside 1, so that an id of probability 0 is never picked.
    index = cumulated.searchsorted(uniform * cumulated[-1], side="right")
    return int(np.asarray(legal_ids)[index])
