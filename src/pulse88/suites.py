"""Suites of configurations to compare: what is changed, by value, and the question that each row answers.

A suite is a base and rows that change it. All rows have as many parameters as the base, within TOLERANCE: `fitted`
makes up for a part that is left out by the GDN blocks' inner width. A JSON file holds a suite as well:

    {"name": "mine", "recipe": {"steps": 100}, "model": {"d_model": 320}, "rows": [
      {"name": "base", "asks": "the base itself"},
      {"name": "no-gate", "asks": "what the gate is worth", "model": {"gdn_output_gate": false}}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pulse88.config import RELEASE_RECIPE, TINY, TINY_RECIPE, ModelConfig, TrainConfig
from pulse88.engine.layout import parameter_count

TOLERANCE = 0.02  # share of the base's parameters that a row may have more or less
MAIN_SEEDS = 3  # random seeds of the rows that matter most; the others have one


@dataclass(frozen=True)
class RowConfig(TrainConfig):
    """A recipe with its model by value."""

    model: str = field(default="by value", metadata={"help": "Not a preset: the shape says it."})
    shape: ModelConfig = field(default_factory=ModelConfig, metadata={"help": "The model."})

    @property
    def model_config(self) -> ModelConfig:
        """The shape with this recipe's dropout and initial scale."""
        return replace(
            self.shape,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            embedding_init_std=self.embedding_init_std,
            position_init_std=self.position_init_std,
        )


@dataclass(frozen=True)
class Row:
    """One configuration of a suite."""

    name: str
    asks: str
    config: RowConfig
    seeds: int = 1
    grid: str = ""  # name of another time grid than the data's, whose data has to be given

    @property
    def parameters(self) -> int:
        return parameter_count(self.config.model_config)


@dataclass(frozen=True)
class Suite:
    """Rows to compare; the first is what the others are compared with."""

    name: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """ValueError for no rows, two of one name, names that are no folder's, and parameters that are not equal."""
        names = [row.name for row in self.rows]
        if not names:
            raise ValueError(f"the suite {self.name} has no rows")
        for name in names:
            if names.count(name) > 1 or not name.replace("-", "").replace(".", "").isalnum():
                raise ValueError(f"{self.name}: {name!r} must be one row's only, of letters, digits, '-' and '.'")
        base = self.rows[0].parameters
        for row in self.rows:
            if abs(row.parameters / base - 1) > TOLERANCE:
                raise ValueError(
                    f"{self.name}: {row.name} has {row.parameters:,} parameters, {row.parameters / base - 1:+.1%} "
                    f"against {base:,}; more than {TOLERANCE:.0%} is no comparison of designs"
                )

    def to_json(self) -> dict[str, Any]:
        """The suite by value, as `load` reads it."""
        rows = []
        for row in self.rows:
            recipe = asdict(row.config)
            model = recipe.pop("shape")
            del recipe["model"]
            rows.append(
                {"name": row.name, "asks": row.asks, "seeds": row.seeds, "grid": row.grid, "model": model}
                | {"recipe": recipe}
            )
        return {"name": self.name, "rows": rows}


def load(source: str | Path) -> Suite:
    """A suite by its name, or from a JSON file. ValueError that names what is wrong."""
    if str(source) in SUITES:
        return SUITES[str(source)]()
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{source}: neither a suite ({', '.join(SUITES)}) nor a JSON file with one")
    try:
        written = json.loads(path.read_text())
        base = changed(ModelConfig(), written.get("model", {}))
        recipe = written.get("recipe", {})
        rows = tuple(
            Row(
                row["name"],
                row["asks"],
                row_config(changed(base, row.get("model", {})), recipe | row.get("recipe", {})),
                int(row.get("seeds", 1)),
                row.get("grid", ""),
            )
            for row in written["rows"]
        )
        return Suite(written["name"], rows)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}; suites.py says how a suite is written") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def changed(model: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """A model's configuration with changes as JSON has them."""
    if unknown := sorted(set(changes) - {f.name for f in fields(ModelConfig)}):
        raise ValueError(f"unknown settings of a model: {', '.join(unknown)}")
    known = dict(changes)
    if "layer_types" in known:
        known["layer_types"] = tuple(tuple(kinds) for kinds in known["layer_types"])
    if "d_model" in known and "output_logit_scale" not in known:
        known["output_logit_scale"] = known["d_model"] ** -0.5
    return replace(model, **known)


def row_config(shape: ModelConfig, changes: Mapping[str, Any]) -> RowConfig:
    """The release recipe with changes, for a model by value."""
    names = {f.name for f in fields(TrainConfig)} - {"model"}
    if unknown := sorted(set(changes) - names):
        raise ValueError(f"unknown settings of a recipe: {', '.join(unknown)}")
    values = {name: getattr(RELEASE_RECIPE, name) for name in names} | {"samples": 0} | dict(changes)
    return RowConfig(**values, shape=shape)


def fitted(model: ModelConfig, parameters: int) -> ModelConfig:
    """The model with the inner width of its GDN blocks, a multiple of 8, that brings it nearest to `parameters`."""
    widths = range(8, 8 * model.d_model, 8)
    return min(
        (replace(model, gdn_inner_dim=width) for width in widths), key=lambda m: abs(parameter_count(m) - parameters)
    )


def mix(layers: int, anchors: frozenset[int] | set[int]) -> tuple[tuple[str, ...], ...]:
    """Two GDN blocks a layer, and attention in the layers whose numbers, from 1 on, are anchors."""
    return tuple(("gdn", "gdn", "gqa") if n in anchors else ("gdn", "gdn") for n in range(1, layers + 1))


def design(width: int = 320) -> Suite:
    """What the published design's choices are worth: half as wide as the released model unless said otherwise.

    39 million tokens a row, in the same order for all of them.
    """
    base = ModelConfig()
    base = replace(
        base,
        d_model=width,
        gdn_inner_dim=width // 2,
        gdn_num_heads=4 * width // 640,
        gqa_num_heads=width // 80,
        gqa_kv_heads=max(1, width // 320),
        output_logit_scale=width**-0.5,
    )
    size, layers = parameter_count(base), base.n_layers
    recipe = {
        **{"batch_windows": 32, "micro_windows": 32, "steps": 600, "warmup_steps": 40, "muon_learning_rate": 4e-3},
        **{"validate_every": 600, "checkpoint_every": 600},
    }

    def row(name: str, asks: str, seeds: int = 1, grid: str = "", fit: bool = True, **changes: Any) -> Row:
        of_recipe = {key: changes.pop(key) for key in ("context_tokens", "label_smoothing") if key in changes}
        model = replace(base, **changes)
        return Row(name, asks, row_config(fitted(model, size) if fit else model, recipe | of_recipe), seeds, grid)

    def attention_with_mlps() -> ModelConfig:
        # 1 attention block and 1 mlp a layer, as transformers have them; the layers' number makes the size.
        shapes = (replace(base, layer_types=(("gqa", "mlp"),) * n, mlp_ratio=r) for n in range(4, 17) for r in (3, 4))
        return min(shapes, key=lambda m: abs(parameter_count(m) - size))

    def attention_alone() -> ModelConfig:
        def shape(blocks: int) -> ModelConfig:
            kinds = tuple(("gqa",) * (blocks // layers + (n < blocks % layers)) for n in range(layers))
            return replace(base, layer_types=kinds)

        return min(map(shape, range(layers, 8 * layers)), key=lambda m: abs(parameter_count(m) - size))

    every = {step: {n for n in range(step, layers + 1, step)} | {layers} for step in (3, 4)}
    transformer, attention = attention_with_mlps(), attention_alone()
    heads = base.gdn_num_heads
    rows = [
        row("published", "the published design", seeds=MAIN_SEEDS, fit=False),
        row("every-3rd", "attention in every 3rd layer and the last", layer_types=mix(layers, every[3])),
        row("every-4th", "attention in every 4th layer and the last", layer_types=mix(layers, every[4])),
        row("last-only", "attention in the last layer only", layer_types=mix(layers, {layers})),
        row("gdn-only", "no attention at all", seeds=MAIN_SEEDS, layer_types=mix(layers, set())),
        row("attention-only", "attention blocks alone", fit=False, layer_types=attention.layer_types),
        row(
            "transformer",
            "attention and an mlp in each layer, the usual transformer",
            seeds=MAIN_SEEDS,
            fit=False,
            layer_types=transformer.layer_types,
            mlp_ratio=transformer.mlp_ratio,
        ),
        row(
            "parallel",
            "GDN and attention side by side in each layer",
            layer_types=(("gdn", "gdn", "gqa"),) * layers,
            parallel_mixers=True,
        ),
        row("no-convolution", "GDN without its short convolution", conv_size=1),
        row("no-gate", "GDN without its output gate", gdn_output_gate=False),
        row("heads-64-128", "GDN heads of 64 and 128", gdn_key_dim=64, gdn_value_dim=128),
        row("heads-128-128", "GDN heads of 128 and 128", gdn_key_dim=128, gdn_value_dim=128),
        row(
            "one-wide-block",
            "one GDN block a layer, twice as wide",
            layer_types=tuple(kinds[1:] for kinds in base.layer_types),
            gdn_num_heads=2 * heads,
        ),
        row("rope-alone", "no learned positions", learned_positions=False),
        row("learned-alone", "no rotary positions", rope=False),
        row("no-positions", "neither learned nor rotary positions", learned_positions=False, rope=False),
        row("untied", "a head of its own", tie_embeddings=False),
        row("continuation-loss", "loss from token 512 on only", context_tokens=512),
        row("smoothing-0.1", "labels smoothed by 0.1", label_smoothing=0.1),
        row("published-grid", "the published time grid", grid="published"),
    ]
    return Suite("design" if width == 320 else f"design-{width}", tuple(rows))


def recipe() -> Suite:
    """What the choices of the `release` recipe are worth: the published design at half its width, as in `design`.

    39 million tokens a row. Rows with other batches see other windows of the same epoch.
    """
    base = design().rows[0].config

    def row(name: str, asks: str, seeds: int = 1, **changes: Any) -> Row:
        return Row(name, asks, replace(base, **changes), seeds)

    def batches_of(windows: int) -> dict[str, int]:
        steps = base.steps * base.batch_windows // windows
        often = {name: steps for name in ("steps", "validate_every", "checkpoint_every")}
        return often | {"batch_windows": windows, "micro_windows": min(windows, base.micro_windows)}

    rows = (
        row("release", "the release recipe", seeds=MAIN_SEEDS),
        row("loud-positions", "the position table begins as large as the token table", position_init_std=0.5),
        row("batch-16", "half as many windows a step, twice as many steps", **batches_of(16)),
        row("batch-64", "twice as many windows a step, half as many steps", **batches_of(64)),
        row("muon-2e-3", "half the rate of Muon", muon_learning_rate=2e-3),
        row("muon-8e-3", "twice the rate of Muon", muon_learning_rate=8e-3),
        row("adamw", "AdamW for all", optimizer="adamw"),
        row("cosine", "cosine to a tenth after the warm-up", schedule="cosine", floor=0.1),
        row("dropout-0.1", "dropout as published", dropout=0.1),
        row("no-transposition", "no transposition", transpose_down=0, transpose_up=0),
        row("tempo", "tempo changed by up to a tenth", tempo_stretch=0.1),
        row("loudness", "loudness changed by a bin", velocity_shift=1),
        row("average-0.99", "the weights averaged over about the last tenth of the steps", average_decay=0.99),
        row("average-alone", "that average in place of the decay", average_decay=0.99, constant_share=1.0),
        row("no-ends", "windows without the BOS and EOS of pieces", ends=False),
        row("decay-0.01", "a tenth of the weight decay", weight_decay=0.01),
    )
    return Suite("recipe", rows)


def design_40m() -> Suite:
    """The decisive rows of `design` at the released size."""
    whole = design(640)
    decisive = ("published", "gdn-only", "transformer")
    return Suite("design-40m", tuple(replace(row, seeds=1) for row in whole.rows if row.name in decisive))


def tiny() -> Suite:
    """For tests: seconds on a CPU."""
    names = {f.name for f in fields(TrainConfig)} - {"model", "samples"}
    recipe = {name: getattr(TINY_RECIPE, name) for name in names}
    recipe |= {"window": 32, "steps": 3, "validate_every": 3, "checkpoint_every": 3}
    rows = (
        Row("base", "the base itself", row_config(TINY, recipe), 2),
        Row("learned-alone", "no rotary positions", row_config(replace(TINY, rope=False), recipe), 2),
    )
    return Suite("tiny", rows)


SUITES = {"design": design, "design-40m": design_40m, "recipe": recipe, "tiny": tiny}
