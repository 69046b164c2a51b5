"""The names and shapes of a model's tensors, and the configuration that a weights file describes.

The names are those of the published checkpoint. A layer's mixers are numbered by kind, gdn1, gdn2, ... and gqa
(numbered only if there are several); before each stands its LayerNorm, norm_gdn1 and so on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from pulse88.config import ModelConfig

FORMAT = "1"  # of our own files, in their metadata as `pulse88_format`
# Settings that the published metadata names as we do, and the rest of its keys.
_SAME = (
    *("vocab_size", "d_model", "gdn_inner_dim", "gdn_num_heads", "gqa_num_heads", "tie_embeddings"),
    *("embedding_init_std", "dropout", "attention_dropout"),
)
_OTHER = ("n_layers", "max_sequence_length", "output_logit_scale", "gqa_groups", "attention_every_n_layers")

Shape = tuple[int, ...]


def mixers(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """Kind, prefix of the mixer and prefix of its norm, for every mixer in the order of computation."""
    for layer, kinds in enumerate(config.layer_types):
        for index, kind in enumerate(kinds):
            number = kinds[: index + 1].count(kind)
            name = kind if kind == "gqa" and kinds.count(kind) == 1 else f"{kind}{number}"
            yield kind, f"layers.{layer}.{name}", f"layers.{layer}.norm_{name}"


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a model, in the order of computation; a tied head is not among them."""
    c = config
    shapes: dict[str, Shape] = {"token_embedding.weight": (c.vocab_size, c.d_model)}
    if c.learned_positions:
        shapes["position_embedding.weight"] = (c.max_positions, c.d_model)
    gdn: dict[str, Shape] = {
        "in_proj.weight": (c.gdn_inner_dim, c.d_model),
        "core.q_proj.weight": (c.gdn_key_width, c.gdn_inner_dim),
        "core.k_proj.weight": (c.gdn_key_width, c.gdn_inner_dim),
        "core.v_proj.weight": (c.gdn_value_width, c.gdn_inner_dim),
        "core.g_proj.weight": (c.gdn_value_width, c.gdn_inner_dim),
        "core.a_proj.weight": (c.gdn_num_heads, c.gdn_inner_dim),
        "core.b_proj.weight": (c.gdn_num_heads, c.gdn_inner_dim),
        "core.A_log": (c.gdn_num_heads,),
        "core.dt_bias": (c.gdn_num_heads,),
        "core.q_conv1d.weight": (c.gdn_key_width, 1, c.conv_size),
        "core.k_conv1d.weight": (c.gdn_key_width, 1, c.conv_size),
        "core.v_conv1d.weight": (c.gdn_value_width, 1, c.conv_size),
        "core.o_norm.weight": (c.gdn_value_dim,),
        "core.o_proj.weight": (c.gdn_inner_dim, c.gdn_value_width),
        "out_proj.weight": (c.d_model, c.gdn_inner_dim),
    }
    if not c.gdn_output_gate:
        del gdn["core.g_proj.weight"]
    kv_width = c.gqa_kv_heads * c.gqa_head_dim
    gqa: dict[str, Shape] = {
        "q_proj.weight": (c.d_model, c.d_model),
        "k_proj.weight": (kv_width, c.d_model),
        "v_proj.weight": (kv_width, c.d_model),
        "out_proj.weight": (c.d_model, c.d_model),
    }
    mlp: dict[str, Shape] = {
        "up_proj.weight": (c.mlp_ratio * c.d_model, c.d_model),
        "down_proj.weight": (c.d_model, c.mlp_ratio * c.d_model),
    }
    of_kind = {"gdn": gdn, "gqa": gqa, "mlp": mlp}
    for kind, mixer, norm in mixers(c):
        shapes |= {f"{norm}.weight": (c.d_model,), f"{norm}.bias": (c.d_model,)}
        shapes |= {f"{mixer}.{name}": shape for name, shape in of_kind[kind].items()}
    shapes |= {"final_norm.weight": (c.d_model,), "final_norm.bias": (c.d_model,)}
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.d_model)
    return shapes


def initial_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of what a state holds before the first token: of every GDN block `<mixer>.memory` [H, K, V], and
    `<mixer>.tail` [conv_size - 1, q|k|v channels], the inputs of its convolution. Attention has no keys yet.
    """
    c = config
    memory = (c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim)
    tail = (c.conv_size - 1, 2 * c.gdn_key_width + c.gdn_value_width)
    names = [mixer for kind, mixer, _ in mixers(c) if kind == "gdn"]
    return {f"{name}.{part}": shape for name in names for part, shape in (("memory", memory), ("tail", tail))}


def beyond_engines(config: ModelConfig) -> list[str]:
    """What of a configuration the CPU engines don't compute; variants for research run on torch."""
    plain = ModelConfig()
    switches = ("parallel_mixers", "gdn_output_gate", "learned_positions", "rope")
    found = [f"{name}={getattr(config, name)}" for name in switches if getattr(config, name) != getattr(plain, name)]
    return found + (["mlp layers"] if any("mlp" in kinds for kinds in config.layer_types) else [])


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters, a tied head counted once."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def config_metadata(config: ModelConfig) -> dict[str, str]:
    """The metadata entries from which `config_of` makes an equal configuration."""
    return {"pulse88_format": FORMAT, "model_config": json.dumps(asdict(config))}


def config_of(metadata: Mapping[str, str], shapes: Mapping[str, Shape]) -> ModelConfig:
    """The configuration of a file, from its metadata, and from its shapes where the metadata is silent.

    Three kinds of file: ours (`pulse88_format`), the published layout (`model_config` with the published keys) and
    bare tensors with the published names. ValueError says what can't be known, or what contradicts the tensors.
    """
    written = metadata.get("pulse88_format")
    if written not in (None, FORMAT):
        raise ValueError(f"pulse88_format is {written!r}, and this version reads {FORMAT!r}: update pulse88")
    if "model_config" not in metadata:
        if written is not None:
            raise ValueError("the metadata has no model_config")
        return _from_shapes(shapes)
    try:
        values = json.loads(metadata["model_config"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata's model_config is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("the metadata's model_config is no JSON object")
    return _from_published(values, shapes) if written is None else _from_own(values)


def _typed(name: str, value: Any, like: type) -> Any:
    allowed = (int, float) if like is float else (like,)
    if not isinstance(value, allowed) or (like is not bool and isinstance(value, bool)):
        raise ValueError(f"model_config: {name} is {value!r}, not of type {like.__name__}")
    try:
        return like(value)
    except OverflowError as error:
        raise ValueError(f"model_config: {name} is too large for a {like.__name__}") from error


def _from_own(values: Mapping[str, Any]) -> ModelConfig:
    known = {f.name: type(f.default) for f in fields(ModelConfig)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"model_config has unknown keys: {', '.join(unknown)}")
    settings = {name: value for name, value in values.items() if name != "layer_types"}
    settings = {name: _typed(name, value, known[name]) for name, value in settings.items()}
    if "layer_types" in values:
        rows = values["layer_types"]
        if not (
            isinstance(rows, list) and all(isinstance(r, list) and all(isinstance(k, str) for k in r) for r in rows)
        ):
            raise ValueError("model_config: layer_types is no list of lists of names")
        settings["layer_types"] = tuple(tuple(row) for row in rows)
    return ModelConfig(**settings)


def _from_published(values: Mapping[str, Any], shapes: Mapping[str, Shape]) -> ModelConfig:
    if missing := [key for key in _SAME + _OTHER if key not in values]:
        raise ValueError(f"model_config lacks {', '.join(missing)}")
    settings = {name: _typed(name, values[name], type(getattr(ModelConfig, name))) for name in _SAME}
    width, heads = settings["d_model"], settings["gqa_num_heads"]
    _logit_scale(width)  # A width that is none would be divided by.
    scale = values["output_logit_scale"]
    settings["output_logit_scale"] = (
        _logit_scale(width) if scale is None else _typed("output_logit_scale", scale, float)
    )
    settings["max_positions"] = _typed("max_sequence_length", values["max_sequence_length"], int)

    n_layers = _typed("n_layers", values["n_layers"], int)
    every = _typed("attention_every_n_layers", values["attention_every_n_layers"], int)
    if not 0 < n_layers <= max(len(shapes), 1) or every < 1:
        raise ValueError(f"model_config: n_layers {n_layers} and attention_every_n_layers {every} fit no such file")
    settings["layer_types"] = tuple(
        ("gdn", "gdn", "gqa") if n % every == 0 or n == n_layers else ("gdn", "gdn") for n in range(1, n_layers + 1)
    )
    settings |= _head_widths(shapes, settings["gdn_num_heads"])

    groups = _typed("gqa_groups", values["gqa_groups"], int)  # A number of key/value heads, or of queries to each.
    readings = {groups, heads // groups} if groups > 0 and heads % groups == 0 else {groups}
    settings["gqa_kv_heads"] = groups
    k_rows = _shape(shapes, r"layers\.\d+\.gqa\d*\.k_proj\.weight")
    if k_rows and heads > 0 and width % heads == 0:
        kv_heads, rest = divmod(k_rows[0], width // heads)
        if rest or kv_heads not in readings:
            raise ValueError(f"model_config: gqa_groups {groups} doesn't fit k_proj's shape {list(k_rows)}")
        settings["gqa_kv_heads"] = kv_heads
    return ModelConfig(**settings)


def _from_shapes(shapes: Mapping[str, Shape]) -> ModelConfig:
    def need(pattern: str, rank: int) -> Shape:
        shape = _shape(shapes, pattern)
        if shape is None or len(shape) != rank:
            raise ValueError(f"no model_config in the metadata, and no tensor of rank {rank} named like {pattern}")
        return shape

    vocab_size, width = need(r"token_embedding\.weight", 2)
    max_positions, _ = need(r"position_embedding\.weight", 2)
    names = [match for name in shapes if (match := re.match(r"layers\.(\d+)\.(gdn|gqa)(\d*)\.", name))]
    layers: dict[int, set[tuple[str, str]]] = {}
    for match in names:
        layers.setdefault(int(match[1]), set()).add((match[2], match[3]))
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise ValueError("no model_config in the metadata, and the layers' numbers are not 0, 1, 2, ...")
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": width,
        "max_positions": max_positions,
        "output_logit_scale": _logit_scale(width),
        "tie_embeddings": "lm_head.weight" not in shapes,
        "layer_types": tuple(tuple(kind for kind, _ in sorted(layers[n])) for n in range(len(layers))),
    }
    kinds = {kind for row in settings["layer_types"] for kind in row}
    if "gdn" in kinds:
        settings["gdn_inner_dim"] = need(r"layers\.\d+\.gdn\d+\.in_proj\.weight", 2)[0]
        settings["gdn_num_heads"] = need(r"layers\.\d+\.gdn\d+\.core\.A_log", 1)[0]
        settings["conv_size"] = need(r"layers\.\d+\.gdn\d+\.core\.q_conv1d\.weight", 3)[2]
        settings |= _head_widths(shapes, settings["gdn_num_heads"])
    if "gqa" in kinds:
        head_dim = ModelConfig().gqa_head_dim  # Shapes don't tell a head's width; the published one is taken.
        kv_width = need(r"layers\.\d+\.gqa\d*\.k_proj\.weight", 2)[0]
        if width != ModelConfig.d_model or kv_width % head_dim:
            raise ValueError("no model_config in the metadata, and shapes alone don't tell the number of heads")
        settings["gqa_kv_heads"] = kv_width // head_dim
    return ModelConfig(**settings)


def _logit_scale(width: int) -> float:
    """The published one; ValueError for a width that is none."""
    if not 1 <= width < 2**31:
        raise ValueError(f"d_model must be positive, and below 2**31, not {width}")
    return float(width**-0.5)


def _head_widths(shapes: Mapping[str, Shape], heads: int) -> dict[str, int]:
    """Key and value width of a GDN head, which the published metadata doesn't carry."""
    widths = {}
    q_rows = _shape(shapes, r"layers\.\d+\.gdn\d+\.core\.q_proj\.weight")
    norm = _shape(shapes, r"layers\.\d+\.gdn\d+\.core\.o_norm\.weight")
    if q_rows and heads > 0:
        widths["gdn_key_dim"] = q_rows[0] // heads
    if norm:
        widths["gdn_value_dim"] = norm[0]
    return widths


def _shape(shapes: Mapping[str, Shape], pattern: str) -> Shape | None:
    return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)
