"""The model in numpy: the truth of the engines, and what runs where nothing was compiled.

Gated DeltaNet: arXiv 2412.06464. The number of tokens in a call chooses the algorithm of the recurrence, step or
chunked, never what is computed; `delta_rule_loop` is the truth of both.

Shape legend: B batch, T tokens, D width of the residual stream, W channels, H heads, K key width, V value width,
C tokens of a chunk, N chunks, G query heads of one key/value head, P positions, L width of an attention head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.config import ModelConfig
from pulse88.engine.layout import mixers
from pulse88.engine.state import (
    Claims,
    Rows,
    checked_arrays,
    checked_count,
    checked_ids,
    checked_position,
    checked_single,
)
from pulse88.engine.weights import Weights

Array = NDArray[np.floating[Any]]

CHUNK = 32  # tokens
QUERIES = 256  # queries whose attention weights are held at once
L2_EPS = 1e-6  # under the square root of the norm of q and k


@dataclass(frozen=True)
class GdnState:
    memory_BHKV: Array
    tail_BTW: Array  # the last conv_size - 1 inputs of the short convolution, q|k|v


@dataclass(frozen=True)
class NumpyState:
    """State of the numpy engine: one entry a mixer, in the order of computation."""

    position: int
    batch: int
    mixers: Mapping[str, GdnState | Rows]

    def snapshot(self) -> Mapping[str, Array]:
        arrays: dict[str, Array] = {}
        for name, state in self.mixers.items():
            if isinstance(state, GdnState):
                arrays |= {f"{name}.memory": state.memory_BHKV.copy(), f"{name}.tail": state.tail_BTW.copy()}
            else:
                keys, values = state.view()
                arrays |= {f"{name}.keys": keys.copy(), f"{name}.values": values.copy()}
        return arrays


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps) * weight


def linear(x: Array, w_RC: Array) -> Array:
    """x [..., C] times the matrix's rows: [..., R]. One matrix product whatever the leading axes."""
    return (x.reshape(-1, x.shape[-1]) @ w_RC.T).reshape(*x.shape[:-1], len(w_RC))


def delta_rule_loop(
    q_BHTK: Array, k_BHTK: Array, v_BHTV: Array, g_BHT: Array, beta_BHT: Array, memory_BHKV: Array
) -> tuple[Array, Array]:
    """The gated delta rule token by token: outputs [B, H, T, V] and the memory after the last token.

    q is scaled already; g is the log decay, <= 0; beta the step, in (0, 1). arXiv 2412.06464, equation 10.
    """
    memory_BHKV = memory_BHKV.copy()
    o_BHTV = np.empty_like(v_BHTV)
    for t in range(v_BHTV.shape[2]):
        k_BHK1 = k_BHTK[:, :, t, :, None]
        memory_BHKV *= np.exp(g_BHT[:, :, t, None, None])
        error_BHV = v_BHTV[:, :, t] - (memory_BHKV * k_BHK1).sum(axis=2)
        memory_BHKV += k_BHK1 * (beta_BHT[:, :, t, None] * error_BHV)[:, :, None]
        o_BHTV[:, :, t] = (memory_BHKV * q_BHTK[:, :, t, :, None]).sum(axis=2)
    return o_BHTV, memory_BHKV


def delta_rule_chunked(
    q_BHTK: Array, k_BHTK: Array, v_BHTV: Array, g_BHT: Array, beta_BHT: Array, memory_BHKV: Array, chunk: int = CHUNK
) -> tuple[Array, Array]:
    """The same function as `delta_rule_loop`, one matrix product a chunk instead of one a token.

    Within a chunk the errors u of all tokens solve (I + A) u = rhs with A strictly lower triangular. It is solved by
    forward substitution: repeated squaring of A loses up to whole units of a logit on real music.
    """
    tokens = v_BHTV.shape[2]
    padding = -tokens % chunk  # Tokens with k = 0, beta = 0 and g = 0 leave the memory as it is.

    def chunks(x: Array) -> Array:
        padded = np.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        return padded.reshape(*x.shape[:2], -1, chunk, *x.shape[3:])

    q_BHNCK, k_BHNCK, v_BHNCV, g_BHNC, beta_BHNC = map(chunks, (q_BHTK, k_BHTK, v_BHTV, g_BHT, beta_BHT))
    # Log decay since the chunk's beginning, in float64: it may sum to thousands, and small differences of it count.
    decay_BHNC = np.cumsum(g_BHNC, axis=-1, dtype=np.float64)
    earlier_CC = np.tri(chunk, dtype=bool)
    # Masked before exp: above the diagonal the differences are positive and may overflow.
    gaps_BHNCC = np.where(earlier_CC, decay_BHNC[..., :, None] - decay_BHNC[..., None, :], 0)
    dtype = g_BHT.dtype
    share_BHNCC = np.where(earlier_CC, np.exp(gaps_BHNCC), 0).astype(dtype)
    lower_BHNCC = beta_BHNC[..., None] * share_BHNCC * (k_BHNCK @ k_BHNCK.swapaxes(-1, -2))
    inverse_BHNCC = np.zeros_like(lower_BHNCC)
    for row in range(chunk):
        inverse_BHNCC[..., row, row] = 1
        if row:
            known = lower_BHNCC[..., row, None, :row] @ inverse_BHNCC[..., :row, :row]
            inverse_BHNCC[..., row, :row] = -known[..., 0, :]
    read_BHNCC = share_BHNCC * (q_BHNCK @ k_BHNCK.swapaxes(-1, -2))
    shrink_BHNC1 = np.exp(decay_BHNC)[..., None].astype(dtype)
    rest_BHNC1 = np.exp(decay_BHNC[..., -1:] - decay_BHNC)[..., None].astype(
        dtype
    )  # decay from a token to the chunk's end

    o_BHNCV = np.empty_like(v_BHNCV)
    for n in range(v_BHNCV.shape[2]):
        recalled_BHCV = shrink_BHNC1[:, :, n] * (k_BHNCK[:, :, n] @ memory_BHKV)
        u_BHCV = inverse_BHNCC[:, :, n] @ (beta_BHNC[:, :, n, :, None] * (v_BHNCV[:, :, n] - recalled_BHCV))
        o_BHNCV[:, :, n] = shrink_BHNC1[:, :, n] * (q_BHNCK[:, :, n] @ memory_BHKV) + read_BHNCC[:, :, n] @ u_BHCV
        gained_BHKV = (k_BHNCK[:, :, n] * rest_BHNC1[:, :, n]).swapaxes(-1, -2) @ u_BHCV
        memory_BHKV = shrink_BHNC1[:, :, n, -1:] * memory_BHKV + gained_BHKV
    return o_BHNCV.reshape(*v_BHTV.shape[:2], -1, v_BHTV.shape[3])[:, :, :tokens], memory_BHKV


def delta_rule(
    q_BHTK: Array, k_BHTK: Array, v_BHTV: Array, g_BHT: Array, beta_BHT: Array, memory_BHKV: Array
) -> tuple[Array, Array]:
    """`delta_rule_loop` by the algorithm that suits the number of tokens."""
    rule = delta_rule_loop if v_BHTV.shape[2] == 1 else delta_rule_chunked
    return rule(q_BHTK, k_BHTK, v_BHTV, g_BHT, beta_BHT, memory_BHKV)


class Gdn:
    """Linear, Gated DeltaNet core, Linear: width D in and out."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Array]) -> None:
        self.config = config
        self.in_proj = tensors["in_proj.weight"]
        # One product for everything that the core makes of its input.
        self.core_in = np.concatenate([tensors[f"core.{name}_proj.weight"] for name in "qkvgab"])
        self.conv_WC = np.concatenate([tensors[f"core.{name}_conv1d.weight"][:, 0] for name in "qkv"])
        self.decay_H = -np.exp(tensors["core.A_log"])
        self.dt_bias_H = tensors["core.dt_bias"]
        self.o_norm_V = tensors["core.o_norm.weight"]
        self.o_proj = tensors["core.o_proj.weight"]
        self.out_proj = tensors["out_proj.weight"]
        c, dtype = config, self.in_proj.dtype
        self._memory_HKV = tensors.get("memory", np.zeros((c.gdn_num_heads, c.gdn_key_dim, c.gdn_value_dim), dtype))
        self._tail_TW = tensors.get("tail", np.zeros((c.conv_size - 1, len(self.conv_WC)), dtype))

    def zero_state(self, batch: int) -> GdnState:
        return GdnState(*(np.repeat(of[None], batch, axis=0) for of in (self._memory_HKV, self._tail_TW)))

    def __call__(self, x_BTD: Array, state: GdnState, position: int) -> tuple[Array, GdnState]:
        c = self.config
        batch, tokens = x_BTD.shape[:2]
        widths = np.cumsum([len(self.conv_WC), c.gdn_value_width, c.gdn_num_heads])
        qkv_BTW, gate_BTW, a_BTH, b_BTH = np.split(linear(linear(x_BTD, self.in_proj), self.core_in), widths, axis=-1)

        seen_BTW = np.concatenate([state.tail_BTW, qkv_BTW], axis=1)
        mixed_BTW = sum(seen_BTW[:, j : j + tokens] * self.conv_WC[:, j] for j in range(c.conv_size))
        q_BTW, k_BTW, v_BTW = np.split(silu(mixed_BTW), [c.gdn_key_width, 2 * c.gdn_key_width], axis=-1)

        def heads(x_BTW: Array) -> Array:
            return x_BTW.reshape(batch, tokens, c.gdn_num_heads, -1).swapaxes(1, 2)

        q_BHTK, k_BHTK = (x / np.sqrt(np.square(x).sum(-1, keepdims=True) + L2_EPS) for x in map(heads, (q_BTW, k_BTW)))
        g_BTH = self.decay_H * np.logaddexp(a_BTH + self.dt_bias_H, 0)
        o_BHTV, memory_BHKV = delta_rule(
            q_BHTK * c.gdn_key_dim**-0.5,
            k_BHTK,
            heads(v_BTW),
            g_BTH.swapaxes(1, 2),
            sigmoid(b_BTH).swapaxes(1, 2),
            state.memory_BHKV,
        )
        o_BTHV = rms_norm(o_BHTV, self.o_norm_V, c.norm_eps).swapaxes(1, 2)
        y_BTD = linear(linear(o_BTHV.reshape(gate_BTW.shape) * silu(gate_BTW), self.o_proj), self.out_proj)
        return y_BTD, GdnState(memory_BHKV, seen_BTW[:, tokens:].copy())


class Gqa:
    """Causal attention in which several query heads share a key/value head; rotary positions on q and k."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Array]) -> None:
        self.config = config
        self.qkv = np.concatenate([tensors[f"{name}_proj.weight"] for name in "qkv"])
        self.out_proj = tensors["out_proj.weight"]

    def zero_state(self, batch: int) -> Rows:
        return Rows.empty(2, batch, self.config.gqa_kv_heads, self.config.gqa_head_dim, self.qkv.dtype.type)

    def __call__(self, x_BTD: Array, rows: Rows, position: int) -> tuple[Array, Rows]:
        c = self.config
        batch, tokens, width = x_BTD.shape
        kv_width = c.gqa_kv_heads * c.gqa_head_dim
        heads = [
            part.reshape(batch, tokens, -1, c.gqa_head_dim).swapaxes(1, 2)
            for part in np.split(linear(x_BTD, self.qkv), [width, width + kv_width], axis=-1)
        ]
        angles_TL = np.outer(
            np.arange(position, position + tokens), c.rope_base ** -np.arange(0, 1, 2 / c.gqa_head_dim)
        )
        q_BHTL, k_BHTL = (rotated(x, np.cos(angles_TL), np.sin(angles_TL)) for x in heads[:2])
        rows = rows.grown(tokens, c.max_positions)
        keys_BHPL, values_BHPL = rows.view()
        keys_BHPL[:, :, position:] = k_BHTL
        values_BHPL[:, :, position:] = heads[2]

        q_BHGTL = q_BHTL.reshape(batch, c.gqa_kv_heads, -1, tokens, c.gqa_head_dim) * c.gqa_head_dim**-0.5
        y_BHGTL = np.empty_like(q_BHGTL)
        for start in range(0, tokens, QUERIES):
            seen = position + min(start + QUERIES, tokens)
            score_BHGTP = q_BHGTL[..., start : start + QUERIES, :] @ keys_BHPL[:, :, None, :seen].swapaxes(-1, -2)
            later = np.arange(seen) > np.arange(position + start, seen)[:, None]
            score_BHGTP[..., later] = -np.inf
            score_BHGTP = np.exp(score_BHGTP - score_BHGTP.max(axis=-1, keepdims=True))
            score_BHGTP /= score_BHGTP.sum(axis=-1, keepdims=True)
            y_BHGTL[..., start : start + QUERIES, :] = score_BHGTP @ values_BHPL[:, :, None, :seen]
        y_BTD = y_BHGTL.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, width)
        return linear(y_BTD, self.out_proj), rows


def rotated(x_BHTL: Array, cos_TL: Array, sin_TL: Array) -> Array:
    """Rotary positions: entry i and entry i + L/2 of a head are one pair, turned by the token's angle i."""
    first, second = np.split(x_BHTL, 2, axis=-1)
    turned = [first * cos_TL - second * sin_TL, second * cos_TL + first * sin_TL]
    return np.concatenate(turned, axis=-1).astype(x_BHTL.dtype, copy=False)


class NumpyEngine:
    """The engine over a file's own weights, int8 multiplied out. float64 measures the rounding of other engines."""

    name = "numpy"

    def __init__(self, weights: Weights, dtype: type[np.floating] = np.float32) -> None:
        self.config = config = weights.config
        self._weights = weights
        tensors = {n: weights.matrix(n).astype(dtype, copy=False) for n in weights.tensors if not n.endswith(".scale")}
        tensors |= {name: array.astype(dtype, copy=False) for name, array in weights.initial.items()}
        self._tokens_VD = tensors["token_embedding.weight"]
        self._positions_PD = tensors["position_embedding.weight"]
        self._head_VD = tensors.get("lm_head.weight", self._tokens_VD)
        self._final_norm = tensors["final_norm.weight"], tensors["final_norm.bias"]
        self._mixers: dict[str, tuple[Gdn | Gqa, Array, Array]] = {}
        for kind, mixer, norm in mixers(config):
            own = {n.removeprefix(f"{mixer}."): t for n, t in tensors.items() if n.startswith(f"{mixer}.")}
            module = Gdn(config, own) if kind == "gdn" else Gqa(config, own)
            self._mixers[mixer] = module, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]

    @property
    def weights_sha256(self) -> str:
        return self._weights.sha256

    def zero_state(self, batch: int = 1) -> NumpyState:
        if batch < 1:
            raise ValueError(f"a batch has 1 or more sequences, not {batch}")
        return NumpyState(0, batch, {n: module.zero_state(batch) for n, (module, _, _) in self._mixers.items()})

    def forward(
        self, ids: ArrayLike, state: NumpyState, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], NumpyState]:
        _require_own(state)
        c = self.config
        ids_BT = checked_ids(ids, state, c)
        stop = state.position + ids_BT.shape[1]
        x_BTD = self._tokens_VD[ids_BT] + self._positions_PD[state.position : stop]
        after: dict[str, GdnState | Rows] = {}
        for name, (module, weight_D, bias_D) in self._mixers.items():
            before: Any = state.mixers[name]
            y_BTD, after[name] = module(layer_norm(x_BTD, weight_D, bias_D, c.norm_eps), before, state.position)
            x_BTD += y_BTD
        x_BTD = layer_norm(x_BTD[:, -1:] if last_only else x_BTD, *self._final_norm, c.norm_eps)
        logits_BTV = linear(x_BTD, self._head_VD) * c.output_logit_scale
        return logits_BTV, NumpyState(stop, state.batch, after)

    def fork(self, state: NumpyState, count: int) -> NumpyState:
        _require_own(state)
        checked_count(state, count)
        forks = {
            name: mixer.repeated(count)
            if isinstance(mixer, Rows)
            else GdnState(np.repeat(mixer.memory_BHKV, count, axis=0), np.repeat(mixer.tail_BTW, count, axis=0))
            for name, mixer in state.mixers.items()
        }
        return NumpyState(state.position, count, forks)

    def freeze(self, state: NumpyState) -> Mapping[str, Array]:
        _require_own(state)
        checked_single(state)
        return state.snapshot()

    def thaw(self, arrays: Mapping[str, Array], position: int) -> NumpyState:
        checked_position(position, self.config)
        empty, mixers = self.zero_state(), dict[str, GdnState | Rows]()
        expected = {name: array.shape for name, array in empty.snapshot().items()}
        for name in expected:
            if name.endswith((".keys", ".values")):
                expected[name] = (*expected[name][:2], position, expected[name][3])
        dtype = self._tokens_VD.dtype
        checked_arrays(arrays, {name: (shape, dtype) for name, shape in expected.items()})
        for name, mixer in empty.mixers.items():
            if isinstance(mixer, GdnState):
                mixers[name] = GdnState(arrays[f"{name}.memory"].copy(), arrays[f"{name}.tail"].copy())
            else:
                rows = np.stack([arrays[f"{name}.keys"], arrays[f"{name}.values"]])
                mixers[name] = Rows(rows, Claims(position, position), position)
        return NumpyState(position, 1, mixers)


def _require_own(state: NumpyState) -> None:
    if not isinstance(state, NumpyState):
        raise TypeError(f"a state of the numpy engine is needed, not {type(state).__name__}")
