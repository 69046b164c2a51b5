"""Initial states as parameters: what GDN blocks remember before the first token, learned instead of zero.

State tuning, as it is done with RWKV (for symbolic music in MIDI-RWKV, arXiv 2506.13001): no weight changes. A block's
state is its memory and the tail of its convolution; attention begins with no keys in any case.

Shape legend: H heads, K key width, V value width, W kept inputs of the convolution, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pulse88.engine.layout import initial_shapes
from pulse88.model import GatedDeltaNet, Pulse88

_PARTS = {"memory": "initial_memory", "tail": "initial_tail"}


def put_initial(model: Pulse88, values: Mapping[str, NDArray[Any]]) -> dict[str, nn.Parameter]:
    """Makes `zero_state` begin from arrays [H, K, V] and [W, C] by the names of `initial_shapes`; their parameters."""
    like, added = model.token_embedding.weight, {}
    for name, module in model.named_modules():
        if isinstance(module, GatedDeltaNet):
            for part, attribute in _PARTS.items():
                own = f"{name.removesuffix('core')}{part}"
                added[own] = nn.Parameter(torch.tensor(values[own], dtype=torch.float32, device=like.device))
                setattr(module, attribute, added[own])
    return added


def add_initial(model: Pulse88, values: Mapping[str, NDArray[Any]] | None = None) -> dict[str, nn.Parameter]:
    """Freezes the model and adds its initial state as parameters, zeros without `values`; by name.

    ValueError for a model without GDN blocks.
    """
    if not (shapes := initial_shapes(model.config)):
        raise ValueError("these weights have no GDN blocks and so no initial state: choose another kind")
    model.requires_grad_(False)
    zeros = {name: torch.zeros(shape).numpy() for name, shape in shapes.items()}
    return put_initial(model, zeros | dict(values or {}))


def initial_tensors(added: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What an adapter file holds: every array in float16."""
    return {name: parameter.detach().half().cpu() for name, parameter in added.items()}
