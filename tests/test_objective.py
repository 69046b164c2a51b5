"""The objective: sums of nats that come out exactly for distributions that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from pulse88.objective import nats, nats_of_each, slot_table, split_targets  # noqa: E402
from pulse88.vocabulary import BOS, EOS, PAD, SIZE, slot_of  # noqa: E402


def logits_of(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(seed))


def targets_of(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, SIZE, shape))


def test_targets_are_the_next_ids_and_padding_does_not_count() -> None:
    ids = torch.tensor([[BOS, 0, 60, 130, 155, EOS, PAD], [3, 61, 131, 156, 4, 62, 132]])
    inputs, targets, counts = split_targets(ids)
    assert inputs.tolist() == ids[:, :-1].tolist()
    assert targets.tolist() == ids[:, 1:].tolist()
    assert counts.tolist() == [[True] * 5 + [False], [True] * 6]


@pytest.mark.parametrize("context", [0, 1, 2, 5, 6, 7])
def test_the_first_tokens_are_context(context: int) -> None:
    """The target at position i of the window counts from i = context_tokens on."""
    ids = torch.arange(7)[None]
    _, targets, counts = split_targets(ids, context)
    assert targets[counts].tolist() == [i for i in range(1, 7) if i >= context]


def test_known_distributions_come_out() -> None:
    targets = targets_of((2, 5))
    counts = torch.ones(2, 5, dtype=torch.bool)
    even = nats(torch.zeros(2, 5, SIZE), targets, counts)
    assert even.item() == pytest.approx(10 * math.log(SIZE), rel=1e-6)
    half = torch.full((2, 5, SIZE), -math.inf)
    half.scatter_(2, targets[..., None], 0.0)
    half.scatter_(2, (targets[..., None] + 1) % SIZE, 0.0)
    assert nats(half, targets, counts).item() == pytest.approx(10 * math.log(2), rel=1e-6)
    sure = torch.full((2, 5, SIZE), -200.0).scatter_(2, targets[..., None], 200.0)
    assert nats(sure, targets, counts).item() == 0.0


def test_masked_targets_do_not_count() -> None:
    logits, targets = logits_of((3, 8)), targets_of((3, 8))
    counts = torch.tensor(np.random.default_rng(1).random((3, 8)) < 0.5)
    one_by_one = sum(
        -torch.log_softmax(logits[b, t].double(), 0)[targets[b, t]].item() for b, t in np.argwhere(counts.numpy())
    )
    assert nats(logits, targets, counts).item() == pytest.approx(one_by_one, rel=1e-6)
    other = torch.where(counts[..., None], logits, 100 * logits_of((3, 8), seed=2))
    assert nats(other, targets, counts).item() == nats(logits, targets, counts).item()
    assert nats(logits, targets, torch.zeros_like(counts)).item() == 0.0
    leaf = logits.clone().requires_grad_()
    nats(leaf, targets, counts).backward()
    assert leaf.grad is not None
    assert (leaf.grad.abs().sum(-1) > 0).equal(counts)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothing_spreads_its_share_over_the_vocabulary(smoothing: float) -> None:
    """(1 - s) * -log p(target) + s / V * sum of -log p over all V ids."""
    logits, targets = logits_of((2, 4)), targets_of((2, 4))
    surprise = -torch.log_softmax(logits.double(), -1)
    formula = (1 - smoothing) * surprise.gather(2, targets[..., None])[..., 0] + smoothing * surprise.mean(-1)
    found = nats(logits, targets, torch.ones(2, 4, dtype=torch.bool), smoothing)
    assert found.item() == pytest.approx(formula.sum().item(), rel=1e-6)


def test_nats_of_each_sum_to_nats() -> None:
    logits, targets = logits_of((3, 6)), targets_of((3, 6))
    each = nats_of_each(logits, targets)
    assert each.shape == (3, 6)
    assert each[1, 2].item() == pytest.approx(-torch.log_softmax(logits[1, 2].double(), 0)[targets[1, 2]].item())
    everywhere = torch.ones(3, 6, dtype=torch.bool)
    assert each.sum().item() == pytest.approx(nats(logits, targets, everywhere).item(), rel=1e-6)
    low = nats_of_each(logits.bfloat16(), targets)  # widened first
    assert low.dtype is torch.float32


def test_the_slot_table_is_the_vocabularys() -> None:
    table = slot_table(torch.device("cpu")).tolist()
    assert len(table) == SIZE
    for token, number in enumerate(table):
        slot = slot_of(token)
        assert number == (4 if slot is None else int(slot))
