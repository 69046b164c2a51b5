"""Configurations: frozen, a sentence with its unit on every field, presets by name, refusal instead of clamping."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

LAYER_KINDS = ("gdn", "gqa", "mlp")


def setting(default: Any, sentence: str) -> Any:
    """A field whose sentence is also the help of the command line."""
    return field(default=default, metadata={"help": sentence})


def help_of(config: type, name: str) -> str:
    """The sentence of a configuration's field."""
    return next(str(f.metadata["help"]) for f in fields(config) if f.name == name)


def _require(ok: bool, problem: str) -> None:
    if not ok:
        raise ValueError(problem)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. The defaults are Pulse88-40M Variant E: 40,784,528 parameters."""

    vocab_size: int = setting(171, "Number of token ids.")
    d_model: int = setting(640, "Width of the residual stream.")
    layer_types: tuple[tuple[str, ...], ...] = setting(
        tuple(("gdn", "gdn", "gqa") if n in (2, 4, 6, 8, 10, 12, 13) else ("gdn", "gdn") for n in range(1, 14)),
        "The mixers of each layer in their order: gdn (Gated DeltaNet), gqa (grouped-query attention) or mlp.",
    )
    max_positions: int = setting(2048, "Tokens of context: rows of the learned position table.")
    gdn_inner_dim: int = setting(320, "Width inside a GDN block, between its in and out projections.")
    gdn_num_heads: int = setting(4, "Heads of a GDN block.")
    gdn_key_dim: int = setting(80, "Query and key width of one GDN head.")
    gdn_value_dim: int = setting(160, "Value width of one GDN head.")
    conv_size: int = setting(4, "Tokens that a GDN block's short convolution sees, the current one included.")
    gqa_num_heads: int = setting(8, "Query heads of an attention block.")
    gqa_kv_heads: int = setting(2, "Key and value heads of an attention block, each shared by several query heads.")
    rope_base: float = setting(10000.0, "Base of the rotary position angles in attention.")
    norm_eps: float = setting(1e-5, "Added to variances in LayerNorm and RMSNorm.")
    mlp_ratio: int = setting(4, "Inner width of an mlp, in widths of the residual stream.")
    parallel_mixers: bool = setting(False, "All mixers of a layer read its input, instead of one after the other.")
    gdn_output_gate: bool = setting(True, "Gate what a GDN block puts out by a projection of its input.")
    learned_positions: bool = setting(True, "Add a learned table of positions to the embeddings.")
    rope: bool = setting(True, "Turn queries and keys of attention by their positions.")
    tie_embeddings: bool = setting(True, "Use the token table as the output head.")
    output_logit_scale: float = setting(640**-0.5, "Factor on the logits.")
    embedding_init_std: float = setting(0.02, "Standard deviation of the token table at initialisation.")
    position_init_std: float = setting(0.02, "Standard deviation of the position table at initialisation.")
    dropout: float = setting(0.1, "Share dropped after the embedding, every GDN block and attention's projection.")
    attention_dropout: float = setting(0.1, "Share of attention weights dropped.")

    def __post_init__(self) -> None:
        _require(bool(self.layer_types), "layer_types is empty")
        for number, kinds in enumerate(self.layer_types, 1):
            _require(bool(kinds), f"layer {number} has no mixer")
            unknown = set(kinds) - set(LAYER_KINDS)
            _require(not unknown, f"layer {number}: unknown mixer {sorted(unknown)}, known are {LAYER_KINDS}")
        for name in ("vocab_size", "d_model", "max_positions", "gdn_inner_dim", "gdn_num_heads", "gdn_key_dim"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("gdn_value_dim", "gqa_num_heads", "gqa_kv_heads", "rope_base", "norm_eps", "mlp_ratio"):
            _require(0 < getattr(self, name) < math.inf, f"{name} must be positive, not {getattr(self, name)}")
        _require(math.isfinite(self.output_logit_scale), f"output_logit_scale is {self.output_logit_scale}")
        _require(self.conv_size >= 1, f"conv_size must be at least 1, not {self.conv_size}")
        _require(self.d_model % self.gqa_num_heads == 0, "d_model must be a multiple of gqa_num_heads")
        _require(self.gqa_head_dim % 2 == 0, "an attention head's width, d_model / gqa_num_heads, must be even")
        _require(self.gqa_num_heads % self.gqa_kv_heads == 0, "gqa_num_heads must be a multiple of gqa_kv_heads")
        for name in ("dropout", "attention_dropout"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")

    @property
    def n_layers(self) -> int:
        return len(self.layer_types)

    @property
    def gqa_head_dim(self) -> int:
        return self.d_model // self.gqa_num_heads

    @property
    def gdn_key_width(self) -> int:
        """Query or key values of one GDN block and token, all heads."""
        return self.gdn_num_heads * self.gdn_key_dim

    @property
    def gdn_value_width(self) -> int:
        """Values of one GDN block and token, all heads."""
        return self.gdn_num_heads * self.gdn_value_dim


@dataclass(frozen=True)
class SamplingConfig:
    """How the next id is picked among the legal ones. ValueError for values that mean nothing."""

    temperature: float = setting(1.0, "Divides the logits: below 1 is safer, above 1 wilder, 0 takes the likeliest.")
    top_p: float = setting(0.97, "Keep the likeliest ids that together hold this share of the probability.")
    top_k: int = setting(0, "Keep at most this many ids; 0 keeps all.")
    min_p: float = setting(0.0, "Drop ids less likely than this share of the likeliest one.")

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= 100, f"temperature must be in [0, 100], not {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}")
        # A file may say 0.5.
        _require(hasattr(self.top_k, "__index__"), f"top_k must be a whole number, not {self.top_k!r}")
        _require(self.top_k >= 0, f"top_k must be 0 or more, not {self.top_k}")
        _require(0 <= self.min_p < 1, f"min_p must be in [0, 1), not {self.min_p}")


@dataclass(frozen=True)
class SteeringConfig:
    """Where a continuation shall stay (see steering.py). ValueError for values that mean nothing."""

    density: tuple[float, float] | None = setting(
        None, "Pull the density into this band, in notes a second; 0 and 1000 are no limits."
    )
    register: tuple[int, int] | None = setting(None, "Play no key outside this band of MIDI pitches, 21 to 108.")
    in_key: bool = setting(False, "Play only notes of the key that the seed's last notes are in.")
    pitch_classes: tuple[int, ...] | None = setting(None, "Play only these pitch classes, 0 (C) to 11.")
    end_within: float | None = setting(None, "End the piece within this many seconds after the join.")

    def __post_init__(self) -> None:
        if self.density is not None:
            low, high = self.density
            problem = f"density must be a band in 0 to 1000 notes a second, lower first, not {low} {high}"
            _require(0 <= low <= high <= 1000 and high > 0, problem)
        if self.register is not None:
            low, high = self.register
            problem = f"register must be a band of MIDI pitches, 0 to 127, lower first, not {low} {high}"
            _require(0 <= low <= high <= 127, problem)
        if self.end_within is not None:
            _require(
                0.5 <= self.end_within < math.inf, f"end_within must be 0.5 seconds or more, not {self.end_within}"
            )
        if self.pitch_classes is not None:
            known = all(0 <= pitch < 12 for pitch in self.pitch_classes)
            _require(known, f"pitch classes are 0 to 11, not {self.pitch_classes}")

    @property
    def steers(self) -> bool:
        """Whether it asks for anything."""
        return self != UNSTEERED


UNSTEERED = SteeringConfig()


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the published recipe; presets are below."""

    model: str = setting("pulse88-40m", "Preset of the model.")
    dropout: float = setting(0.1, "Share dropped, in the model and in its attention weights.")
    embedding_init_std: float = setting(0.02, "Standard deviation of the token table at initialisation.")
    position_init_std: float = setting(0.02, "Standard deviation of the position table at initialisation.")
    seed: int = setting(0, "Random seed of the weights, of the order of the data and of its augmentation.")
    window: int = setting(2048, "Tokens of a training window.")
    batch_windows: int = setting(32, "Windows of one optimizer step, over all processes and micro-batches.")
    micro_windows: int = setting(2, "Windows that one process computes at once.")
    steps: int = setting(54_000, "Optimizer steps of the whole run.")
    context_tokens: int = setting(512, "Tokens at a window's beginning that are context only: no loss on them.")
    ends: bool = setting(
        True,
        "Train on the BOS and EOS of pieces too. Weights that haven't are validated on events alone and know no BOS: "
        "what gives them one, as `pulse88 evaluate` does, is unfair to them.",
    )
    label_smoothing: float = setting(0.1, "Share of the target spread over the whole vocabulary.")
    optimizer: str = setting("adamw", "adamw, or muon for matrices with adamw for everything else.")
    learning_rate: float = setting(2e-4, "Peak learning rate of AdamW.")
    muon_learning_rate: float = setting(0.0, "Peak learning rate of Muon, at AdamW's scale (arXiv 2502.16982).")
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient.")
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient.")
    weight_decay: float = setting(0.01, "Decoupled weight decay.")
    decay_all: bool = setting(True, "Decay every parameter but A_log and dt_bias, not only matrices.")
    gradient_clip: float = setting(1.0, "Largest norm of the gradient.")
    average_decay: float = setting(
        0.0, "Decay a step of a moving average of the weights, which is what is validated and exported; 0 for none."
    )
    schedule: str = setting("cosine", "After the warm-up: cosine to the floor, or linear after a constant stretch.")
    warmup_steps: int = setting(-1, "Steps of linear warm-up; -1 takes 10 % of all steps.")
    constant_share: float = setting(0.0, "Share of the run, warm-up included, before the linear decay begins.")
    floor: float = setting(0.1, "Learning rate at the end, as a share of the peak.")
    transpose_down: int = setting(0, "Largest random transposition downwards, in semitones.")
    transpose_up: int = setting(0, "Largest random transposition upwards, in semitones.")
    tempo_stretch: float = setting(0.0, "Largest random change of tempo, as a share: 0.1 is up to 10 % either way.")
    velocity_shift: int = setting(0, "Largest random change of loudness either way, in velocity bins of about 8.5.")
    precision: str = setting("fp16", "fp32, bf16 or fp16 (with loss scaling) for matrix products on a GPU.")
    validate_every: int = setting(2700, "Steps between validations.")
    samples: int = setting(3, "Held-out beginnings that are played on from at each validation; 0 for none.")
    checkpoint_every: int = setting(500, "Steps between checkpoints.")
    checkpoint_minutes: float = setting(15.0, "Minutes between checkpoints, beside those by steps; 0 for none.")
    gradient_checkpointing: bool = setting(
        False, "Compute each layer again in the backward pass instead of keeping its results: less memory, more time."
    )

    def __post_init__(self) -> None:
        of_a_preset = type(self) is TrainConfig  # A recipe with its model by value is a subclass.
        _require(
            not of_a_preset or self.model in MODEL_PRESETS,
            f"model must be one of {sorted(MODEL_PRESETS)}, not {self.model!r}",
        )
        _require(self.optimizer in ("adamw", "muon"), f"optimizer must be adamw or muon, not {self.optimizer!r}")
        _require(self.schedule in ("cosine", "linear"), f"schedule must be cosine or linear, not {self.schedule!r}")
        _require(self.precision in ("fp32", "bf16", "fp16"), f"precision {self.precision!r} is not fp32, bf16 or fp16")
        for name in ("window", "batch_windows", "micro_windows", "steps", "validate_every", "checkpoint_every"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip", "embedding_init_std", "position_init_std"):
            _require(0 < getattr(self, name) < math.inf, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("seed", "muon_learning_rate", "weight_decay", "checkpoint_minutes", "samples"):
            _require(0 <= getattr(self, name) < math.inf, f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("label_smoothing", "beta1", "beta2", "average_decay"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("constant_share", "floor"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], not {getattr(self, name)}")
        _require(0 <= self.context_tokens < self.window, "context_tokens must be shorter than the window")
        _require(self.optimizer != "muon" or self.muon_learning_rate > 0, "muon needs a muon_learning_rate above 0")
        _require(self.warmup_steps >= -1, f"warmup_steps must be 0 or more, or -1, not {self.warmup_steps}")
        _require(0 <= self.tempo_stretch <= 1, f"tempo_stretch must be in [0, 1], not {self.tempo_stretch}")
        _require(self.velocity_shift >= 0, f"velocity_shift must be 0 or more bins, not {self.velocity_shift}")
        _require(self.transpose_down >= 0 and self.transpose_up >= 0, "transpositions are given as 0 or more semitones")
        _require(self.window <= self.model_config.max_positions, "the window is longer than the model's positions")

    @property
    def model_config(self) -> ModelConfig:
        """The model's configuration with this recipe's dropout and initial scale."""
        return replace(
            MODEL_PRESETS[self.model],
            dropout=self.dropout,
            attention_dropout=self.dropout,
            embedding_init_std=self.embedding_init_std,
            position_init_std=self.position_init_std,
        )

    def learning_rate_at(self, step: int) -> float:
        """Share of the peak learning rate at a step, counted from 0."""
        warmup = round(0.1 * self.steps) if self.warmup_steps < 0 else self.warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        begin = max(warmup, round(self.constant_share * self.steps)) if self.schedule == "linear" else warmup
        done = min(max((step - begin) / max(self.steps - begin, 1), 0.0), 1.0)
        falling = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * falling


# Kinds of adapters, and the peak learning rate that suits each.
ADAPTER_RATES = {"low-rank": 1e-4, "full": 1e-5, "initial-state": 1e-2}
ADAPTER_KINDS = tuple(ADAPTER_RATES)


@dataclass(frozen=True)
class FinetuneConfig:
    """How weights are adapted to a few pieces. The defaults take some minutes on two cores."""

    kind: str = setting("low-rank", "What is trained: low-rank changes, everything, or the initial state only.")
    rank: int = setting(8, "Rank of the changes.")
    steps: int = setting(60, "Optimizer steps at most.")
    minutes: float = setting(10.0, "Minutes of training at most.")
    window: int = setting(512, "Tokens of a window, four a note.")
    batch_windows: int = setting(2, "Windows of a step.")
    learning_rate: float = setting(0.0, "Peak learning rate of AdamW; 0 for what suits the kind.")
    tempo_stretch: float = setting(0.1, "Largest random change of tempo, as a share; transposition is the release's.")
    look_every: int = setting(10, "Steps between looks at held-out music.")
    patience: int = setting(3, "Looks without a gain after which it stops.")
    seed: int = setting(0, "Random seed of what is added and of the order of the data.")

    def __post_init__(self) -> None:
        _require(self.kind in ADAPTER_KINDS, f"kind must be one of {', '.join(ADAPTER_KINDS)}, not {self.kind!r}")
        for name in ("rank", "steps", "minutes", "batch_windows", "look_every", "patience"):
            _require(0 < getattr(self, name) < math.inf, f"{name} must be above 0, not {getattr(self, name)}")
        _require(0 <= self.learning_rate < math.inf, f"learning_rate must be 0 or more, not {self.learning_rate}")
        _require(32 <= self.window <= 2048, f"window must be 32 to 2048 tokens, not {self.window}")
        _require(0 <= self.tempo_stretch <= 1, f"tempo_stretch must be in [0, 1], not {self.tempo_stretch}")
        _require(self.seed >= 0, f"seed must be 0 or more, not {self.seed}")

    @property
    def peak_rate(self) -> float:
        """The peak learning rate: as asked for, or the kind's."""
        return self.learning_rate or ADAPTER_RATES[self.kind]


PULSE88_40M = ModelConfig()

# Small enough for tests on a CPU, with every kind of part in it.
TINY = ModelConfig(
    d_model=32,
    layer_types=(("gdn", "gdn"), ("gdn", "gdn", "gqa"), ("gdn", "gdn", "gqa")),
    max_positions=256,
    gdn_inner_dim=16,
    gdn_num_heads=2,
    gdn_key_dim=8,
    gdn_value_dim=16,
    gqa_num_heads=4,
    gqa_kv_heads=2,
    output_logit_scale=32**-0.5,
    dropout=0.0,
    attention_dropout=0.0,
)

MODEL_PRESETS = {"pulse88-40m": PULSE88_40M, "tiny": TINY}

PUBLISHED_RECIPE = TrainConfig()

# Ours: docs/log.md has the runs that chose it.
RELEASE_RECIPE = TrainConfig(
    dropout=0.0,
    embedding_init_std=0.5,
    batch_windows=64,
    micro_windows=32,
    steps=5_000,
    context_tokens=0,
    label_smoothing=0.0,
    optimizer="muon",
    learning_rate=1e-3,
    muon_learning_rate=3e-3,
    beta2=0.95,
    weight_decay=0.1,
    decay_all=False,
    schedule="linear",
    warmup_steps=100,
    constant_share=0.4,
    floor=0.0,
    transpose_down=5,
    transpose_up=6,
    precision="bf16",
    validate_every=1000,
)

TINY_RECIPE = replace(
    RELEASE_RECIPE,
    model="tiny",
    window=256,
    batch_windows=4,
    micro_windows=2,
    steps=20,
    warmup_steps=2,
    validate_every=10,
    checkpoint_every=10,
    precision="fp32",
)

TRAIN_PRESETS = {"published": PUBLISHED_RECIPE, "release": RELEASE_RECIPE, "tiny": TINY_RECIPE}
