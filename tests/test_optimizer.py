"""Optimizers: what Muon does to a matrix, who decays, the schedule's corners, and the state's way into a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from torch import nn  # noqa: E402

from pulse88.config import PUBLISHED_RECIPE, RELEASE_RECIPE, TINY, TINY_RECIPE, TrainConfig  # noqa: E402
from pulse88.model import Pulse88  # noqa: E402
from pulse88.optimizer import (  # noqa: E402
    Muon,
    load_named_state,
    make_optimizers,
    named_state,
    orthogonalise,
    set_learning_rate,
)

ADAMW = replace(TINY_RECIPE, optimizer="adamw")


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters_of(*gradients: torch.Tensor) -> list[nn.Parameter]:
    parameters = []
    for number, gradient in enumerate(gradients):
        parameter = nn.Parameter(matrices(*gradient.shape, seed=100 + number))
        parameter.grad = gradient.clone()
        parameters.append(parameter)
    return parameters


def small_model(seed: int = 0) -> Pulse88:
    torch.manual_seed(seed)
    return Pulse88(TINY)


def learn(model: Pulse88, optimizers: list[Any], steps: int, seed: int = 0) -> None:
    """Steps on random gradients."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        for optimizer in optimizers:
            optimizer.step()


# ---------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (4, 320)])
def test_muons_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    # Singular values over one and a half decades, as gradients have.
    u, _, vt = torch.linalg.svd(matrices(*shape), full_matrices=False)
    gradient = u @ torch.diag(torch.logspace(0, -1.5, min(shape))) @ vt
    (parameter,) = parameters_of(gradient)
    before = parameter.detach().clone()
    Muon([parameter], lr=0.5).step()
    update = (before - parameter.detach()) / (0.5 * 0.2 * max(shape) ** 0.5)
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.65
    assert singular.max() < 1.25
    # It turns nothing: the update has the gradient's own singular directions.
    torch.testing.assert_close(update, u @ torch.diag(torch.diag(u.T @ update @ vt.T)) @ vt, atol=1e-4, rtol=0)


def test_matrices_of_a_batch_are_orthogonalised_each_by_itself() -> None:
    batch = torch.stack([matrices(6, 10, seed=s) * 10.0**s for s in range(4)])  # of very different sizes
    together = orthogonalise(batch)
    for one, alone in zip(batch, together, strict=True):
        torch.testing.assert_close(orthogonalise(one[None])[0], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonalise(batch.mT), together.mT, atol=1e-5, rtol=0)


def test_muon_on_all_matrices_is_muon_on_each() -> None:
    gradients = [matrices(6, 10, seed=1), matrices(10, 6, seed=2), matrices(6, 10, seed=3)]
    together, apart = parameters_of(*gradients), parameters_of(*gradients)
    optimizers = [Muon(together, lr=0.1, weight_decay=0.3), *(Muon([p], lr=0.1, weight_decay=0.3) for p in apart)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_muon_is_nesterov_momentum_with_decoupled_decay() -> None:
    gradients = [matrices(4, 6, seed=s) for s in range(3)]
    (parameter,) = parameters_of(gradients[0])
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, mean = parameter.detach().clone(), torch.zeros(4, 6)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        update = orthogonalise((0.1 * gradient + 0.9 * mean)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6**0.5 * update
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=0)


def test_muon_leaves_what_has_no_gradient_and_refuses_vectors() -> None:
    still, moved = parameters_of(matrices(3, 4), matrices(3, 4))
    still.grad, before = None, still.detach().clone()
    Muon([still, moved], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, before)
    with pytest.raises(ValueError, match=r"matrices, not a parameter of shape \(7,\)"):
        Muon([nn.Parameter(torch.zeros(7))], lr=0.1)


# ---------------------------------------------------------------- groups


def groups_of(config: TrainConfig) -> dict[str, tuple[type, float, float]]:
    """Optimizer, peak learning rate and weight decay of every parameter."""
    model = small_model()
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (type(optimizer), group["peak_lr"], group["weight_decay"]))
        for optimizer in make_optimizers(model, config)
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(names) == len(dict(found))  # each parameter once
    return dict(found)


NEVER_DECAY = ("A_log", "dt_bias")


def test_the_published_recipe_decays_all_but_gates() -> None:
    for name, (kind, rate, decay) in groups_of(
        replace(PUBLISHED_RECIPE, model="tiny", window=256, context_tokens=0)
    ).items():
        assert kind is torch.optim.AdamW
        assert rate == 2e-4
        assert decay == (0.0 if name.endswith(NEVER_DECAY) else 0.01), name


def test_the_release_recipe_gives_matrices_to_muon() -> None:
    model = small_model()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, (kind, rate, decay) in groups_of(replace(RELEASE_RECIPE, model="tiny", window=256)).items():
        table = name in ("token_embedding.weight", "position_embedding.weight")
        matrix = len(shapes[name]) == 2 and not table
        assert kind is (Muon if matrix else torch.optim.AdamW), name
        assert rate == (RELEASE_RECIPE.muon_learning_rate if matrix else 1e-3), name
        assert decay == (0.1 if len(shapes[name]) >= 2 else 0.0), name


def test_gates_never_decay() -> None:
    for config in (ADAMW, TINY_RECIPE, replace(ADAMW, decay_all=True), replace(TINY_RECIPE, decay_all=True)):
        assert {decay for name, (_, _, decay) in groups_of(config).items() if name.endswith(NEVER_DECAY)} == {0.0}


# ---------------------------------------------------------------- learning rate


def test_the_published_schedule() -> None:
    """Linear over 10 % of all steps, then a cosine to 10 %."""
    config = replace(PUBLISHED_RECIPE, steps=1000)
    table = {0: 0.01, 49: 0.5, 99: 1.0, 100: 1.0, 325: 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 550: 0.55, 1000: 0.1, 2000: 0.1}
    assert {step: config.learning_rate_at(step) for step in table} == pytest.approx(table, abs=1e-12)
    rates = [config.learning_rate_at(step) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert PUBLISHED_RECIPE.learning_rate_at(5_399) == 1.0  # of 54,000


def test_the_linear_schedule() -> None:
    """Constant until 40 % of the run, warm-up included, then straight to 0."""
    config = replace(RELEASE_RECIPE, steps=1000, warmup_steps=50, constant_share=0.4)
    table = {0: 0.02, 49: 1.0, 50: 1.0, 399: 1.0, 400: 1.0, 700: 0.5, 940: 0.1, 1000: 0.0}
    assert {step: config.learning_rate_at(step) for step in table} == pytest.approx(table, abs=1e-12)
    assert replace(config, floor=0.2).learning_rate_at(1000) == pytest.approx(0.2)
    assert replace(config, constant_share=0.0).learning_rate_at(525) == pytest.approx(0.5)  # from the warm-up on


def test_no_warm_up_and_a_number_of_its_own() -> None:
    assert replace(PUBLISHED_RECIPE, warmup_steps=0).learning_rate_at(0) == 1.0
    assert replace(PUBLISHED_RECIPE, warmup_steps=4).learning_rate_at(0) == 0.25


def test_every_group_follows_the_schedule() -> None:
    optimizers = make_optimizers(small_model(), TINY_RECIPE)
    for share in (0.25, 1.0, 0.0):
        set_learning_rate(optimizers, share)
        peaks = {TINY_RECIPE.learning_rate, TINY_RECIPE.muon_learning_rate}
        assert {group["lr"] for o in optimizers for group in o.param_groups} == {peak * share for peak in peaks}


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("config", [ADAMW, TINY_RECIPE])
def test_the_state_goes_on_where_it_was(config: TrainConfig) -> None:
    model = small_model()
    optimizers = make_optimizers(model, config)
    learn(model, optimizers, 3)
    tensors = {name: tensor.clone() for name, tensor in named_state(model, optimizers).items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learn(model, optimizers, 2, seed=1)

    other = small_model(seed=1)
    other.load_state_dict(weights)
    others = make_optimizers(other, config)
    load_named_state(other, others, tensors)
    learn(other, others, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    forgetful = small_model(seed=1)
    forgetful.load_state_dict(weights)
    learn(forgetful, make_optimizers(forgetful, config), 2, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), forgetful.parameters(), strict=True))


def test_a_state_of_other_parameters_is_refused() -> None:
    model = small_model()
    optimizers = make_optimizers(model, ADAMW)
    assert named_state(model, optimizers) == {}
    load_named_state(model, optimizers, {})  # before a first step there is none
    learn(model, optimizers, 1)
    tensors = named_state(model, optimizers)
    for wrong in (
        {name: tensor for name, tensor in tensors.items() if "final_norm.bias" not in name},
        {name.replace("final_norm.bias", "last_norm.bias"): tensor for name, tensor in tensors.items()},
    ):
        with pytest.raises(ValueError, match=r"other parameters than the model's: final_norm\.bias"):
            load_named_state(small_model(), make_optimizers(small_model(), ADAMW), wrong)
