"""A moving average of a model's weights, kept beside them while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """After every step: average = d * average + (1 - d) * weights, with d = min(decay, n / (n + 9)) after n steps.

    So the first step's weights are its beginning, whatever the model began with, and it never reaches back over more
    than about a ninth of the steps. It needs no state but its tensors, and the same weights give every process the same
    average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = dict(model.named_parameters())
        self.tensors = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def update(self, step: int) -> None:
        """Takes in the weights that the step, counted from 0, has made."""
        decay = min(self._decay, step / (step + 9))
        of_steps = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        weights = [weight.detach() for weight in self._weights.values()]
        of_steps(list(self.tensors.values()), weights, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the average meanwhile; its own weights come back to the bit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(tensors[name])
