"""Variants for research keep the law, say their shapes, train in all their parts; the CPU engines refuse them."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from pulse88 import engine  # noqa: E402
from pulse88.config import ModelConfig  # noqa: E402
from pulse88.engine import weights as weights_file  # noqa: E402
from pulse88.engine.layout import beyond_engines, expected_shapes  # noqa: E402
from pulse88.model import Pulse88  # noqa: E402
from pulse88.vocabulary import FINE  # noqa: E402
from test_model import SMALL, ids_of, model_law, model_of  # noqa: E402

VARIANTS = {
    "parallel mixers": replace(SMALL, parallel_mixers=True),
    "no output gate": replace(SMALL, gdn_output_gate=False),
    "no convolution": replace(SMALL, conv_size=1),
    "a convolution of three": replace(SMALL, conv_size=3),
    "rotary positions alone": replace(SMALL, learned_positions=False),
    "learned positions alone": replace(SMALL, rope=False),
    "no positions": replace(SMALL, rope=False, learned_positions=False),
    "attention with mlps": replace(SMALL, layer_types=(("gqa", "mlp"), ("gqa", "mlp")), mlp_ratio=2),
    "gdn alone": replace(SMALL, layer_types=(("gdn",), ("gdn", "gdn"))),
    "untied": replace(SMALL, tie_embeddings=False),
}
PLAIN = {"no convolution", "a convolution of three", "gdn alone", "untied"}
variants = pytest.mark.parametrize("name", VARIANTS)


@variants
def test_every_variant_keeps_the_law(name: str) -> None:
    model = model_of(VARIANTS[name], torch.float64)
    assert model_law(model, ids_of(2, 37), [1, 2, 3, 17, 30]) < 1e-10


@variants
def test_every_variant_says_its_shapes_and_trains_in_all_its_parts(name: str) -> None:
    model = Pulse88(VARIANTS[name])
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == expected_shapes(VARIANTS[name])
    logits, _ = model(ids_of(1, 20), model.zero_state())
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@variants
def test_every_switch_changes_the_function(name: str) -> None:
    """With the same values wherever a tensor of both has the same shape, the logits differ."""
    config = VARIANTS[name]
    plain, variant = model_of(replace(SMALL, layer_types=config.layer_types)), model_of(config)
    if name == "attention with mlps":
        plain = model_of(replace(config, mlp_ratio=3))
    if name == "gdn alone":
        plain = model_of(SMALL)
    ours, theirs = variant.state_dict(), plain.state_dict()
    variant.load_state_dict(
        {n: theirs[n] if n in theirs and theirs[n].shape == v.shape else v for n, v in ours.items()}
    )
    ids = ids_of(1, 12)
    with torch.no_grad():
        found, other = (m(ids, m.zero_state())[0] for m in (variant, plain))
    assert (found - other).abs().max() > 1e-4


def test_without_a_table_positions_go_on() -> None:
    config = replace(SMALL, learned_positions=False, max_positions=16)
    model = model_of(config, torch.float64)
    assert model_law(model, ids_of(1, 40), [15, 16, 17]) < 1e-10


@variants
def test_engines_compute_a_variant_or_refuse_it(name: str) -> None:
    config = VARIANTS[name]
    weights = weights_file.Weights(config, weights_file.random_tensors(config, 0), FINE)
    assert (beyond_engines(config) == []) == (name in PLAIN)
    if name in PLAIN:
        found = engine.load(weights, "numpy")
        ids = ids_of(1, 9)
        with torch.no_grad():
            model = model_of(config)
            expected, _ = model(ids, model.zero_state())
        logits, _ = found.forward(ids.numpy(), found.zero_state())
        assert abs(logits - expected.numpy()).max() < 1e-4
    else:
        with pytest.raises(ValueError, match="the CPU engines don't compute"):
            engine.load(weights, "numpy")


def test_the_plain_model_is_not_beyond_the_engines() -> None:
    assert beyond_engines(ModelConfig()) == []
