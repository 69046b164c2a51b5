"""Pulse88 in torch: one definition for training, prefill and decoding. Read downwards.

THE LAW, for every mixer, layer and the model: state in, state out. forward(x, state) equals forward of x's two halves
with the state carried over, wherever the cut. Training is a prefill from the zero state whose result is thrown away.

Shape legend: B batch, T tokens, D model width, I inner width of a GDN block, H heads, K key width, V value width,
G key/value heads of attention, E width of an attention head, C convolved channels, W = conv_size - 1 kept tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pulse88.config import ModelConfig
from pulse88.delta_rule import Kernel, gated_delta_rule, require_fla

# ---------------------------------------------------------------- state


@dataclass(frozen=True)
class GDNState:
    """What a GDN block remembers: the last inputs of its convolution, and its memory in float32."""

    tail_BWC: Tensor
    memory_BHKV: Tensor


@dataclass(frozen=True)
class GQAState:
    """What an attention block remembers: rotated keys, and values, of every token so far."""

    keys_BTGE: Tensor
    values_BTGE: Tensor


@dataclass(frozen=True)
class NoState:
    """What an mlp remembers."""


MixerState = GDNState | GQAState | NoState


@dataclass(frozen=True)
class State:
    """The whole model's memory after `position` tokens: an argument and a result, never an attribute."""

    position: int
    layers: tuple[tuple[MixerState, ...], ...]

    def fork(self, count: int) -> State:
        """`count` copies along the batch, so that one prefill serves many takes; ValueError unless the batch is 1."""

        def copies(mixer: MixerState) -> MixerState:
            grown = {name: value.repeat_interleave(count, dim=0) for name, value in vars(mixer).items()}
            return replace(mixer, **grown)

        if any(value.shape[0] != 1 for layer in self.layers for mixer in layer for value in vars(mixer).values()):
            raise ValueError("only the state of a single sequence can be forked")
        return State(self.position, tuple(tuple(copies(mixer) for mixer in layer) for layer in self.layers))


# ---------------------------------------------------------------- mixers

KERNEL_TAPS = 4  # the size of convolution that kernel_heads.py has kernels for

Angles = tuple[Tensor, Tensor] | None  # cosines and sines [T, E] of the rotary positions of a call's tokens


class RMSNorm(nn.Module):
    """Scales the last axis to a root mean square of 1, in float32, times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight


class GatedDeltaNet(nn.Module):
    """The Gated DeltaNet layer of width I (arXiv 2412.06464, section 3.4). Parameters as published; computed fused."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, keys, values, heads = (
            config.gdn_inner_dim,
            config.gdn_key_width,
            config.gdn_value_width,
            config.gdn_num_heads,
        )
        self.config = config
        self.kernel: Kernel = "chunked"
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, values, bias=False)
        self.a_proj = nn.Linear(width, heads, bias=False)
        self.b_proj = nn.Linear(width, heads, bias=False)
        if config.gdn_output_gate:
            self.g_proj = nn.Linear(width, values, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.q_conv1d = nn.Conv1d(keys, keys, config.conv_size, groups=keys, bias=False)
        self.k_conv1d = nn.Conv1d(keys, keys, config.conv_size, groups=keys, bias=False)
        self.v_conv1d = nn.Conv1d(values, values, config.conv_size, groups=values, bias=False)
        self.o_norm = RMSNorm(config.gdn_value_dim, config.norm_eps)
        self.o_proj = nn.Linear(values, width, bias=False)
        # The state before the first token, where it isn't zero.
        self.initial_memory: nn.Parameter | None
        self.initial_tail: nn.Parameter | None
        self.register_parameter("initial_memory", None)
        self.register_parameter("initial_tail", None)

    def forward(self, x_BTI: Tensor, state: GDNState) -> tuple[Tensor, GDNState]:
        q_BTHK, k_BTHK, v_BTHV, gate_BTHV, g_BTH, beta_BTH, tail_BWC = self.inputs(x_BTI, state.tail_BWC)
        out_BTHV, memory_BHKV = gated_delta_rule(
            q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state.memory_BHKV, self.kernel
        )
        return self.output(out_BTHV, gate_BTHV), GDNState(tail_BWC, memory_BHKV)

    def inputs(
        self, x_BTI: Tensor, tail_BWC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Everything the delta rule takes, the output gate, and the convolution's new tail."""
        heads, key_dim = self.config.gdn_num_heads, self.config.gdn_key_dim
        qkv_BTC, gate_BTV, a_BTH, b_BTH = self.project(x_BTI)
        convs = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        weight_CX = torch.cat([c.weight[:, 0] for c in convs])
        if self.kernel == "fla" and self.config.conv_size == KERNEL_TAPS:
            from pulse88.kernel_heads import heads_op  # needs Triton, which is not everywhere

            q_BTHK, k_BTHK, v_BTHV = heads_op(qkv_BTC, tail_BWC, weight_CX, heads, key_dim)
        else:
            q_BTHK, k_BTHK, v_BTHV = convolved_heads(qkv_BTC, tail_BWC, weight_CX, heads, key_dim)
        recent_BWC = qkv_BTC[:, max(qkv_BTC.shape[1] - tail_BWC.shape[1], 0) :].to(tail_BWC.dtype)
        tail_BWC = torch.cat((tail_BWC[:, recent_BWC.shape[1] :], recent_BWC), dim=1)
        gate_BTHV = None if gate_BTV is None else heads_apart(gate_BTV, heads)
        wide = torch.promote_types(qkv_BTC.dtype, torch.float32)
        g_BTH = -self.A_log.to(wide).exp() * F.softplus(a_BTH.to(wide) + self.dt_bias)
        beta_BTH = b_BTH.to(wide).sigmoid()
        return q_BTHK, k_BTHK, v_BTHV, gate_BTHV, g_BTH, beta_BTH, tail_BWC

    def project(self, x_BTI: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Queries, keys and values side by side, the output gate, and what decay and beta are made of."""
        qkv = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        ab = torch.cat((self.a_proj.weight, self.b_proj.weight))
        gated = self.config.gdn_output_gate
        if self.kernel == "fla":
            # Several products: the gradient of a single one would first have to be gathered from its parts.
            a_BTH, b_BTH = F.linear(x_BTI, ab).chunk(2, dim=-1)
            return F.linear(x_BTI, qkv), self.g_proj(x_BTI) if gated else None, a_BTH, b_BTH
        parts = (qkv, self.g_proj.weight, ab) if gated else (qkv, ab)
        fused = F.linear(x_BTI, torch.cat(parts))
        heads = self.config.gdn_num_heads
        qkv_BTC, gate_BTV, a_BTH, b_BTH = torch.split(
            fused, [len(qkv), fused.shape[-1] - len(qkv) - 2 * heads, heads, heads], dim=-1
        )
        return qkv_BTC, gate_BTV if gated else None, a_BTH, b_BTH

    def output(self, out_BTHV: Tensor, gate_BTHV: Tensor | None) -> Tensor:
        """Normalised per head, gated, projected back to I."""
        normed = self.o_norm(out_BTHV)
        gated = normed if gate_BTHV is None else normed * F.silu(gate_BTHV.to(normed.dtype))
        return self.o_proj(gated.flatten(-2).to(out_BTHV.dtype))

    def zero_state(self, batch: int, like: Tensor) -> GDNState:
        config = self.config
        channels = 2 * config.gdn_key_width + config.gdn_value_width
        memory = (batch, config.gdn_num_heads, config.gdn_key_dim, config.gdn_value_dim)
        wide = torch.promote_types(like.dtype, torch.float32)
        tail_BWC = like.new_zeros(batch, config.conv_size - 1, channels)
        memory_BHKV = like.new_zeros(memory, dtype=wide)
        if self.initial_tail is not None and self.initial_memory is not None:
            tail_BWC, memory_BHKV = tail_BWC + self.initial_tail, memory_BHKV + self.initial_memory
        return GDNState(tail_BWC, memory_BHKV)


def convolved_heads(
    qkv_BTC: Tensor, tail_BWC: Tensor, weight_CX: Tensor, heads: int, key_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys [B, T, H, K] and values [B, T, H, V] after convolution and SiLU; queries and keys of length 1,
    queries times K ** -0.5. Where Triton runs, kernel_heads.py computes the same.
    """
    keys = heads * key_dim
    mixed_BTC = F.silu(causal_conv(qkv_BTC, tail_BWC, weight_CX))
    q_BTK, k_BTK, v_BTV = torch.split(mixed_BTC, [keys, keys, qkv_BTC.shape[-1] - 2 * keys], dim=-1)
    q_BTHK = l2_normalise(heads_apart(q_BTK, heads)) * key_dim**-0.5
    k_BTHK = l2_normalise(heads_apart(k_BTK, heads))
    dtype = qkv_BTC.dtype
    return q_BTHK.to(dtype), k_BTHK.to(dtype), heads_apart(v_BTV, heads).to(dtype)


def causal_conv(x_BTC: Tensor, tail_BWC: Tensor, weight_CX: Tensor) -> Tensor:
    """Depthwise causal convolution over T, `tail` being the W inputs before; in float32 or the wider type of `x`.

    Written as shifted products, because compilers fuse those with what comes before and after.
    """
    padded = torch.cat((tail_BWC.to(x_BTC.dtype), x_BTC), dim=1)
    tokens, width = x_BTC.shape[1], weight_CX.shape[1]
    wide = torch.promote_types(x_BTC.dtype, torch.float32)
    mixed = sum(padded[:, i : i + tokens].to(wide) * weight_CX[:, i] for i in range(width))
    assert isinstance(mixed, Tensor)
    return mixed


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """[..., heads * width] to [..., heads, width]."""
    return x.view(*x.shape[:-1], heads, -1)


def l2_normalise(x: Tensor) -> Tensor:
    """The last axis divided by its length, sqrt(sum of squares + 1e-6)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GDNBlock(nn.Module):
    """640 to 320, a Gated DeltaNet of width 320, and back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, config.gdn_inner_dim, bias=False)
        self.core = GatedDeltaNet(config)
        self.out_proj = nn.Linear(config.gdn_inner_dim, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, state: GDNState, angles: Angles) -> tuple[Tensor, GDNState]:
        x_BTI, state = self.core(self.in_proj(x_BTD), state)
        return self.dropout(self.out_proj(x_BTI)), state

    def zero_state(self, batch: int, like: Tensor) -> GDNState:
        return self.core.zero_state(batch, like)


class GQABlock(nn.Module):
    """Causal softmax attention with rotary positions (arXiv 2104.09864) and grouped keys (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, shared = config.d_model, config.gqa_kv_heads * config.gqa_head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, state: GQAState, angles: Angles) -> tuple[Tensor, GQAState]:
        config, tokens = self.config, x_BTD.shape[1]
        shared = config.gqa_kv_heads * config.gqa_head_dim
        fused = F.linear(x_BTD, torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)))
        q, k, v = torch.split(fused, [config.d_model, shared, shared], dim=-1)
        q_BTHE = rotate(heads_apart(q, config.gqa_num_heads), angles)
        keys = rotate(heads_apart(k, config.gqa_kv_heads), angles)
        values = heads_apart(v, config.gqa_kv_heads)
        past, mask = state.keys_BTGE.shape[1], None
        if past:
            keys = torch.cat((state.keys_BTGE, keys.to(state.keys_BTGE.dtype)), dim=1)
            values = torch.cat((state.values_BTGE, values.to(state.values_BTGE.dtype)), dim=1)
            mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=x_BTD.device).tril(past)
        out_BHTE = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2),
            keys.to(q_BTHE.dtype).transpose(1, 2),
            values.to(q_BTHE.dtype).transpose(1, 2),
            attn_mask=mask,
            is_causal=past == 0,
            dropout_p=config.attention_dropout if self.training else 0.0,
            enable_gqa=True,
        )
        out_BTD = self.out_proj(out_BHTE.transpose(1, 2).flatten(-2))
        return self.dropout(out_BTD), GQAState(keys, values)

    def zero_state(self, batch: int, like: Tensor) -> GQAState:
        empty = like.new_zeros(batch, 0, self.config.gqa_kv_heads, self.config.gqa_head_dim)
        return GQAState(empty, empty)


class MLPBlock(nn.Module):
    """Two linear layers with GELU between them: no mixer of tokens, but what transformers have in a mixer's place."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.mlp_ratio * config.d_model, bias=False)
        self.down_proj = nn.Linear(config.mlp_ratio * config.d_model, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, state: NoState, angles: Angles) -> tuple[Tensor, NoState]:
        return self.dropout(self.down_proj(F.gelu(self.up_proj(x_BTD)))), state

    def zero_state(self, batch: int, like: Tensor) -> NoState:
        return NoState()


def rotary_angles(position: int, tokens: int, config: ModelConfig, like: Tensor) -> Angles:
    """The angles of `tokens` positions from `position` on, found in float64, in float32 or the wider type of `like`."""
    half = config.gqa_head_dim // 2
    frequency = config.rope_base ** (-torch.arange(half, device=like.device, dtype=torch.float64) / half)
    angle = (position + torch.arange(tokens, device=like.device, dtype=torch.float64))[:, None] * frequency
    twice = torch.cat((angle, angle), dim=-1)
    wide = torch.promote_types(like.dtype, torch.float32)
    return twice.cos().to(wide), twice.sin().to(wide)


def rotate(x_BTHE: Tensor, angles: Angles) -> Tensor:
    """Each pair (e, e + E/2) of the last axis turned by its angle ("rotate half"); nothing turned without angles."""
    if angles is None:
        return x_BTHE
    cos_TE, sin_TE = angles
    x = x_BTHE.to(cos_TE.dtype)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos_TE[:, None] + turned * sin_TE[:, None]).to(x_BTHE.dtype)


# ---------------------------------------------------------------- layer and model

MIXERS: dict[str, type[GDNBlock] | type[GQABlock] | type[MLPBlock]] = {
    "gdn": GDNBlock,
    "gqa": GQABlock,
    "mlp": MLPBlock,
}


def mixer_names(kinds: tuple[str, ...]) -> list[str]:
    """The published names of a layer's mixers: gdn1, gdn2, ..., gqa (numbered only if there are several)."""
    names = []
    for index, kind in enumerate(kinds):
        number = kinds[: index + 1].count(kind)
        names.append(kind if kind == "gqa" and kinds.count(kind) == 1 else f"{kind}{number}")
    return names


class Layer(nn.Module):
    """x = x + mixer(LayerNorm(x)), for each mixer of the layer in turn, or for all of them at once (parallel)."""

    def __init__(self, kinds: tuple[str, ...], config: ModelConfig) -> None:
        super().__init__()
        self.parallel = config.parallel_mixers
        self.names = mixer_names(kinds)
        for name, kind in zip(self.names, kinds, strict=True):
            self.add_module(f"norm_{name}", nn.LayerNorm(config.d_model, config.norm_eps))
            self.add_module(name, MIXERS[kind](config))

    def forward(
        self, x_BTD: Tensor, states: tuple[MixerState, ...], angles: Angles
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        after, input_BTD = [], x_BTD
        for name, state in zip(self.names, states, strict=True):
            read_BTD = input_BTD if self.parallel else x_BTD
            mixed, state = getattr(self, name)(getattr(self, f"norm_{name}")(read_BTD), state, angles)
            x_BTD = x_BTD + mixed
            after.append(state)
        return x_BTD, tuple(after)


class Pulse88(nn.Module):
    """The whole model: logits, state = model(ids, state)."""

    def __init__(self, config: ModelConfig, kernel: Kernel = "chunked") -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # computes each layer again in the backward pass
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.learned_positions:
            self.position_embedding = nn.Embedding(config.max_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(kinds, config) for kinds in config.layer_types)
        self.final_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        init_weights(self)
        self.use_kernel(kernel)

    def use_kernel(self, kernel: Kernel) -> None:
        """Chooses the delta rule's kernel; MissingKernel where it can't run. What is computed stays the same."""
        if kernel == "fla":
            require_fla()
        for module in self.modules():
            if isinstance(module, GatedDeltaNet):
                module.kernel = kernel

    def zero_state(self, batch: int = 1) -> State:
        """The state before the first token: zeros, unless initial states were put into the GDN blocks."""
        like = self.token_embedding.weight.detach()
        layers = tuple(
            tuple(getattr(layer, name).zero_state(batch, like) for name in layer.names)
            for layer in self.layers
            if isinstance(layer, Layer)
        )
        return State(0, layers)

    def forward(self, ids_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, T, vocabulary] in float32 for what follows each id, and the state after the last.

        ValueError without tokens, and beyond the position table: roll on by rebuilding the state from the last notes.
        A model without the table has no such end.
        """
        tokens, position = ids_BT.shape[1], state.position
        if not tokens:
            raise ValueError("no tokens")
        if self.config.learned_positions and position + tokens > self.config.max_positions:
            raise ValueError(
                f"{position} + {tokens} tokens are more than the {self.config.max_positions} positions of this model"
            )
        x_BTD = self.token_embedding(ids_BT)
        if self.config.learned_positions:
            positions_T = torch.arange(position, position + tokens, device=ids_BT.device)
            x_BTD = x_BTD + self.position_embedding(positions_T)
        x_BTD = self.dropout(x_BTD)
        # Once for all layers, out here: a compiled layer would find them anew for every row and head.
        weight = self.token_embedding.weight
        angles = rotary_angles(position, tokens, self.config, weight) if self.config.rope else None
        after = []
        for layer, states in zip(self.layers, state.layers, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BTD, states = checkpoint(layer, x_BTD, states, angles, use_reentrant=False)
            else:
                x_BTD, states = layer(x_BTD, states, angles)
            after.append(states)
        return self.logits(x_BTD), State(position + tokens, tuple(after))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The head in full precision: it is small, and bfloat16 logits cost bits."""
        head = self.token_embedding.weight if self.config.tie_embeddings else self.lm_head.weight
        with torch.autocast(x_BTD.device.type, enabled=False):
            normed = self.final_norm(x_BTD.to(head.dtype))
            return F.linear(normed, head) * self.config.output_logit_scale


def init_weights(model: Pulse88) -> None:
    """Initial weights.

    parameter                      distribution
    token table                    N(0, embedding_init_std)
    position table                 N(0, position_init_std)
    linear and convolution         U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default
    A_log                          log of U(0, 16) (bounded away from 0)
    dt_bias                        inverse softplus of a step log-uniform in [0.001, 0.1]
    norms                          weight 1, bias 0
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            tokens = module is model.token_embedding
            std = model.config.embedding_init_std if tokens else model.config.position_init_std
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Linear | nn.Conv1d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, GatedDeltaNet):
            with torch.no_grad():
                module.A_log.copy_(torch.empty_like(module.A_log).uniform_(1e-4, 16).log())
                step = torch.empty_like(module.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
                module.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
