"""What a model makes of held-out music, on torch. Also the trainer's validation.

likelihood.py says what is measured; engine_score.py scores without torch.

Shape legend: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pulse88.batches import TokenCorpus
from pulse88.likelihood import Floats, Likelihood, Score, measure
from pulse88.model import Pulse88
from pulse88.objective import nats_of_each


def torch_score(model: Pulse88, precision: torch.dtype | None = None) -> Score:
    """Scores by a model where it lies; `precision` autocasts matrix products on a GPU."""
    device = model.token_embedding.weight.device

    @torch.no_grad()
    def score(ids: NDArray[np.int64]) -> Floats:
        ids_BT = torch.from_numpy(ids).to(device)
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            logits_BTV, _ = model(ids_BT[:, :-1], model.zero_state(len(ids)))
        nats_BT: Floats = nats_of_each(logits_BTV, ids_BT[:, 1:]).double().cpu().numpy()
        return nats_BT

    return score


def likelihood(
    model: Pulse88,
    corpus: TokenCorpus,
    *,
    window: int = 2048,
    stride: int | None = None,
    batch: int = 16,
    rank: int = 0,
    world: int = 1,
    precision: torch.dtype | None = None,
    ends: bool = True,
) -> Likelihood:
    """`likelihood.measure` by a torch model, which is put into evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        return measure(
            torch_score(model, precision),
            corpus,
            window=window,
            stride=stride,
            batch=batch,
            rank=rank,
            world=world,
            one_shape=True,
            ends=ends,
        )
    finally:
        model.train(was_training)
