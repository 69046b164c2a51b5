"""Low-rank adaptation of a model's projections (LoRA, arXiv 2106.09685): W + s B A, with W as it was.

peft replaces linear layers by its own and needs them called; here mixers multiply by the concatenated weights of
several projections at once. So the sum is a parametrization of the weight itself, wherever that is used.

Shape legend: R rows (outputs), C columns (inputs), K rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pulse88.engine.adapter import DOWN, UP
from pulse88.model import Pulse88


class LowRank(nn.Module):
    """A change of a matrix [R, C] by rank K at most, which is none at first."""

    def __init__(self, weight_RC: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight_RC.shape
        self.scale = scale
        self.A_KC = nn.Parameter(weight_RC.new_empty(rank, columns).uniform_(-1, 1) / math.sqrt(columns))
        self.B_RK = nn.Parameter(weight_RC.new_zeros(rows, rank))

    def forward(self, weight_RC: Tensor) -> Tensor:
        return torch.addmm(weight_RC, self.B_RK, self.A_KC, alpha=self.scale)


def add_low_rank(model: Pulse88, rank: int, scale: float = 2.0) -> dict[str, LowRank]:
    """Freezes the model and adds a change to every projection that is larger than the rank; by its module's name.

    The change of B A counts `scale` times.
    """
    model.requires_grad_(False)
    added = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head" and min(module.weight.shape) > rank:
            added[name] = LowRank(module.weight.detach(), rank, scale)
            parametrize.register_parametrization(module, "weight", added[name])
    return added


def put_low_rank(added: Mapping[str, LowRank], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Gives changes of the same rank the values of an adapter file; what the file doesn't name stays as it is."""
    with torch.no_grad():
        for name, change in added.items():
            if name + DOWN in tensors:
                change.A_KC.copy_(torch.tensor(tensors[name + DOWN]))
                change.B_RK.copy_(torch.tensor(tensors[name + UP]) / change.scale)


def low_rank_tensors(added: dict[str, LowRank]) -> dict[str, Tensor]:
    """What an adapter file holds: A, and B with the scale in it, in float16."""
    tensors = {}
    for name, change in added.items():
        tensors[name + DOWN] = change.A_KC.detach().half().cpu()
        tensors[name + UP] = (change.scale * change.B_RK.detach()).half().cpu()
    return tensors
