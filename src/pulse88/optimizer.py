"""Optimizers: AdamW, and Muon for matrices.

torch has a Muon of its own, which takes matrices one by one: with this model's 250 matrices its small launches cost a
quarter of a training step. Here matrices of one shape go through as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pulse88.config import TrainConfig

# Quintic whose iteration drives singular values towards 1 (Jordan et al. 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Nesterov momentum whose update is replaced by the nearest orthogonal matrix (Jordan et al. 2024).

    Scaled by 0.2 sqrt(max(rows, columns)), so that learning rate and weight decay are at AdamW's scale (arXiv
    2502.16982, eq. 4). Takes matrices only, else ValueError.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in params:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [cast(Tensor, p.grad) for p in parameters]
                moments = [self._momentum(p) for p in parameters]
                torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
                updates = orthogonalise(torch.stack(ahead))
                scale = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return cast(Tensor, state["momentum"])


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Each matrix of [N, R, C] with its singular values driven to about 1 (0.7 to 1.2), by Newton-Schulz iterations.

    In bfloat16 on CUDA, where it is enough and fast; in the input's type elsewhere.
    """
    x = x_NRC.bfloat16() if x_NRC.is_cuda else x_NRC
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(x_NRC.dtype)


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """The recipe's optimizers; each group knows its peak rate as `peak_lr`, for the schedule to scale.

    A_log and dt_bias never decay; without `decay_all` nothing but matrices does.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for_muon = [
        p
        for name, p in named
        if config.optimizer == "muon" and p.ndim == 2 and "embedding" not in name and "lm_head" not in name
    ]
    taken = {id(p) for p in for_muon}
    rest = [(name, p) for name, p in named if id(p) not in taken]

    def decays(name: str, p: nn.Parameter) -> bool:
        return not name.endswith(("A_log", "dt_bias")) and (config.decay_all or p.ndim >= 2)

    groups = [
        {"params": [p for name, p in rest if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in rest if not decays(name, p)], "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).is_cuda
    optimizers: list[Optimizer] = [
        AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
    ]
    if for_muon:
        optimizers.append(Muon(for_muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], share: float) -> None:
    """Every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


def named_state(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimizers' state under `parameter|key`, for a file without pickle."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}|{key}"] = value
    return tensors


def load_named_state(model: nn.Module, optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Puts back what `named_state` took out; ValueError where it isn't of these parameters, or lacks some of them.

    Before a first step there is no state, so no tensors at all are right too.
    """
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tensors and (differ := parameters.keys() ^ {entry.rpartition("|")[0] for entry in tensors}):
        raise ValueError(f"the optimizer's state is of other parameters than the model's: {', '.join(sorted(differ))}")
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("|")
        parameter = parameters[name]
        if value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{entry} is {list(value.shape)}, the parameter {list(parameter.shape)}")
        state: dict[str, Any] = owner[id(parameter)].state[parameter]
        # AdamW keeps its step count on the CPU unless it is fused; it moves it itself where needed.
        state[key] = value.to(parameter.device) if value.ndim or parameter.is_cuda else value
