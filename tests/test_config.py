"""Configurations: the published numbers, refusals that name the field, and learning rates by hand."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from itertools import pairwise
from typing import Any

import pytest

from pulse88.config import (
    MODEL_PRESETS,
    PUBLISHED_RECIPE,
    PULSE88_40M,
    RELEASE_RECIPE,
    TINY,
    TRAIN_PRESETS,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
    help_of,
)
from pulse88.vocabulary import SIZE

CONFIGS = [ModelConfig, SamplingConfig, TrainConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_sentence_of_its_own(config: type) -> None:
    sentences = [help_of(config, field.name) for field in fields(config)]
    assert all(s[0].isupper() or s.startswith(("muon", "adamw", "fp32")) for s in sentences), sentences
    assert all(s.endswith(".") and len(s) > 10 for s in sentences), sentences
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_are_frozen(config: type) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(config(), fields(config)[0].name, 1)


@pytest.mark.parametrize("preset", [*MODEL_PRESETS.values(), *TRAIN_PRESETS.values()])
def test_presets_go_through_json(preset: ModelConfig | TrainConfig) -> None:
    data: dict[str, Any] = json.loads(json.dumps(asdict(preset)))
    if "layer_types" in data:
        data["layer_types"] = tuple(map(tuple, data["layer_types"]))
    assert type(preset)(**data) == preset
    assert hash(preset) == hash(type(preset)(**data))


# ---------------------------------------------------------------- the model


def parameters(config: ModelConfig) -> int:
    """Weights of a model, added up from the widths."""
    d, key, value = config.d_model, config.gdn_key_width, config.gdn_value_width
    inner, heads = config.gdn_inner_dim, config.gdn_num_heads
    core = inner * (2 * key + 2 * value + 2 * heads) + value * inner  # q k v gate a b, out
    core += 2 * heads + config.conv_size * (2 * key + value) + config.gdn_value_dim  # A_log dt_bias, conv, norm
    gdn = core + 2 * d * inner
    gqa = 2 * d * d + 2 * d * config.gqa_kv_heads * config.gqa_head_dim
    mixers = [kind for kinds in config.layer_types for kind in kinds]
    norms = 2 * d * (len(mixers) + 1)
    tables = d * (config.vocab_size * (1 if config.tie_embeddings else 2) + config.max_positions)
    return mixers.count("gdn") * gdn + mixers.count("gqa") * gqa + norms + tables


def test_the_default_is_the_published_model() -> None:
    assert parameters(PULSE88_40M) == 40_784_528
    assert list(MODEL_PRESETS.items()) == [("pulse88-40m", ModelConfig()), ("tiny", TINY)]
    assert PULSE88_40M.vocab_size == TINY.vocab_size == SIZE == 171
    kinds = PULSE88_40M.layer_types
    assert PULSE88_40M.n_layers == len(kinds) == 13
    assert [number for number, mixers in enumerate(kinds, 1) if "gqa" in mixers] == [2, 4, 6, 8, 10, 12, 13]
    assert sum(mixers.count("gdn") for mixers in kinds) == 26
    assert all(mixers[:2] == ("gdn", "gdn") and mixers[2:] in ((), ("gqa",)) for mixers in kinds)
    assert (PULSE88_40M.gqa_head_dim, PULSE88_40M.gdn_key_width, PULSE88_40M.gdn_value_width) == (80, 320, 640)
    assert PULSE88_40M.output_logit_scale == 1 / math.sqrt(640)


def test_the_tiny_model_has_every_kind_of_part() -> None:
    assert parameters(TINY) < 100_000
    assert {kind for kinds in TINY.layer_types for kind in kinds} == {"gdn", "gqa"}
    assert TINY.gqa_num_heads > TINY.gqa_kv_heads > 1
    assert TINY.gdn_num_heads > 1
    assert TINY.gdn_key_dim != TINY.gdn_value_dim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ()}, "layer_types is empty"),
        ({"layer_types": (("gdn",), ())}, "layer 2 has no mixer"),
        ({"layer_types": (("gdn", "rnn"),)}, r"layer 1: unknown mixer \['rnn'\], known are \('gdn', 'gqa', 'mlp'\)"),
        ({"vocab_size": 0}, "vocab_size must be positive, not 0"),
        ({"d_model": -640}, "d_model must be positive, not -640"),
        ({"max_positions": 0}, "max_positions must be positive"),
        ({"gdn_inner_dim": 0}, "gdn_inner_dim must be positive"),
        ({"gdn_num_heads": 0}, "gdn_num_heads must be positive"),
        ({"gdn_key_dim": 0}, "gdn_key_dim must be positive"),
        ({"gdn_value_dim": 0}, "gdn_value_dim must be positive"),
        ({"gqa_num_heads": 0}, "gqa_num_heads must be positive"),
        ({"gqa_kv_heads": 0}, "gqa_kv_heads must be positive"),
        ({"rope_base": math.nan}, "rope_base must be positive, not nan"),
        ({"rope_base": math.inf}, "rope_base must be positive, not inf"),
        ({"norm_eps": 0.0}, r"norm_eps must be positive, not 0\.0"),
        ({"output_logit_scale": math.nan}, "output_logit_scale is nan"),
        ({"conv_size": 0}, "conv_size must be at least 1, not 0"),
        ({"gqa_num_heads": 7}, "d_model must be a multiple of gqa_num_heads"),
        ({"gqa_num_heads": 128}, "must be even"),
        ({"gqa_kv_heads": 3}, "gqa_num_heads must be a multiple of gqa_kv_heads"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1\.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be in \[0, 1\), not -0\.1"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**changes)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0),
        SamplingConfig(temperature=100),
        SamplingConfig(top_p=1, min_p=0.999, top_k=1),
        SamplingConfig(top_p=1e-9),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(config: SamplingConfig) -> None:
    assert replace(config) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.1}, r"temperature must be in \[0, 100\], not -0\.1"),
        ({"temperature": math.nan}, r"temperature must be in \[0, 100\], not nan"),
        ({"temperature": 100.5}, "temperature must be"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0\.0"),
        ({"top_p": 1.01}, "top_p must be"),
        ({"top_p": math.nan}, "top_p must be"),
        ({"top_k": -1}, "top_k must be 0 or more, not -1"),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\), not 1\.0"),
        ({"min_p": -0.1}, "min_p must be"),
    ],
)
def test_sampling_that_means_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingConfig(**changes)


# ---------------------------------------------------------------- training


def test_the_default_is_the_published_recipe() -> None:
    recipe = TRAIN_PRESETS["published"]
    assert recipe == TrainConfig() == PUBLISHED_RECIPE
    assert (recipe.window, recipe.context_tokens, recipe.label_smoothing) == (2048, 512, 0.1)
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adamw", 2e-4, 0.01)
    assert (recipe.beta1, recipe.beta2, recipe.gradient_clip) == (0.9, 0.999, 1.0)
    assert (recipe.batch_windows, recipe.micro_windows, recipe.precision) == (32, 2, "fp16")
    assert recipe.steps * recipe.batch_windows * recipe.window == pytest.approx(3.5e9, rel=0.02)
    assert recipe.model_config == PULSE88_40M


def test_presets_are_named() -> None:
    assert set(TRAIN_PRESETS) == {"published", "release", "tiny"}
    assert TRAIN_PRESETS["release"] == RELEASE_RECIPE
    assert TRAIN_PRESETS["tiny"].model_config.d_model == TINY.d_model


def test_a_recipe_sets_its_models_dropout_and_scale() -> None:
    model = replace(PUBLISHED_RECIPE, dropout=0.25, embedding_init_std=0.5, position_init_std=0.1).model_config
    changes = {"dropout": 0.25, "attention_dropout": 0.25, "embedding_init_std": 0.5, "position_init_std": 0.1}
    assert model == replace(PULSE88_40M, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "pulse88-41m"}, r"model must be one of \['pulse88-40m', 'tiny'\], not 'pulse88-41m'"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, not 'sgd'"),
        ({"schedule": "step"}, "schedule must be cosine or linear, not 'step'"),
        ({"precision": "int8"}, "precision 'int8' is not fp32, bf16 or fp16"),
        ({"window": 0}, "window must be positive, not 0"),
        ({"window": 4096}, "the window is longer than the model's positions"),
        ({"batch_windows": 0}, "batch_windows must be positive"),
        ({"micro_windows": -2}, "micro_windows must be positive, not -2"),
        ({"steps": 0}, "steps must be positive"),
        ({"validate_every": 0}, "validate_every must be positive"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive"),
        ({"context_tokens": 2048}, "context_tokens must be shorter than the window"),
        ({"context_tokens": -1}, "context_tokens must be shorter than the window"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), not 1\.0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, not nan"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"beta2": 1.0}, "beta2 must be in"),
        ({"average_decay": 1.0}, "average_decay must be in"),
        ({"optimizer": "muon"}, "muon needs a muon_learning_rate above 0"),
        ({"constant_share": 1.5}, r"constant_share must be in \[0, 1\], not 1\.5"),
        ({"floor": -0.1}, "floor must be in"),
        ({"warmup_steps": -2}, "warmup_steps must be 0 or more, or -1, not -2"),
        ({"transpose_down": -5}, "transpositions are given as 0 or more semitones"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PUBLISHED_RECIPE, **changes)


def test_cosine_by_hand() -> None:
    recipe = replace(PUBLISHED_RECIPE, steps=100, floor=0.1)
    assert [recipe.learning_rate_at(step) for step in (0, 1, 4, 9)] == pytest.approx([0.1, 0.2, 0.5, 1.0])
    assert recipe.learning_rate_at(10) == pytest.approx(1.0)
    assert recipe.learning_rate_at(55) == pytest.approx(0.55), "half-way from the warm-up to the end"
    assert recipe.learning_rate_at(40) == pytest.approx(0.1 + 0.9 * 0.75), "cos(60 degrees) = 1/2"
    assert recipe.learning_rate_at(100) == recipe.learning_rate_at(500) == pytest.approx(0.1)


def test_linear_by_hand() -> None:
    recipe = replace(PUBLISHED_RECIPE, schedule="linear", steps=100, warmup_steps=5, constant_share=0.4, floor=0.0)
    assert [recipe.learning_rate_at(step) for step in (0, 4, 5, 40)] == pytest.approx([0.2, 1.0, 1.0, 1.0])
    assert [recipe.learning_rate_at(step) for step in (55, 70, 100, 200)] == pytest.approx([0.75, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("recipe", TRAIN_PRESETS.values(), ids=list(TRAIN_PRESETS))
@pytest.mark.parametrize("warmup", [-1, 0, 1, 7])
def test_learning_rates_rise_once_and_fall_to_the_floor(recipe: TrainConfig, warmup: int) -> None:
    short = replace(recipe, steps=60, warmup_steps=warmup)
    rates = [short.learning_rate_at(step) for step in range(61)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert all(a <= b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert all(rate > 0 for rate in rates[:60])
    assert rates[60] == pytest.approx(short.floor)


def test_a_run_of_one_step_learns() -> None:
    assert replace(PUBLISHED_RECIPE, steps=1).learning_rate_at(0) == 1.0
