"""The short convolutions, SiLU and L2 norms before the delta rule as Triton kernels, forward and backward.

The same function as `convolved_heads` in model.py, of which a compiler makes kernels that read their inputs several
times over: on an H200 they took more than a third of a training step. Here one warp walks along the tokens with the
last four inputs and gradients of its channels in registers, so that every value is read once.

Shape legend: B batch, T tokens, C channels of queries, keys and values together, H heads, K key width, V value width,
W = 4 taps of the convolution, D channels of a program, DP the power of two at or above it, N tokens of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TAPS = 4  # of the convolution; the kernels hold as many values by name
VALUE_CHANNELS = 128  # of a program over values: they aren't normalised, so heads don't matter
TOKENS = 64  # of a program


@triton.jit
def _row(x, tail, token, lane, inside, tokens, x_token, channels, first):
    """[DP] inputs of a token: before the first they are the tail's, after the last 0."""
    row = tl.load(x + token * x_token + first + lane, mask=inside & (token >= 0) & (token < tokens), other=0.0)
    row = row.to(tl.float32)
    if token < 0:
        row = tl.load(tail + (token + 3) * channels + first + lane, mask=inside, other=0.0).to(tl.float32)
    return row


@triton.jit
def _walk_forward(
    x, tail, weight, out, tokens, x_token, out_token, channels, first, out_first, scale,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """D channels from `first` on of N tokens: convolved, SiLU, where NORMALISED of length `scale`."""
    lane = tl.arange(0, DP)
    inside = lane < D
    w0 = tl.load(weight + first + lane, mask=inside, other=0.0)
    w1 = tl.load(weight + channels + first + lane, mask=inside, other=0.0)
    w2 = tl.load(weight + 2 * channels + first + lane, mask=inside, other=0.0)
    w3 = tl.load(weight + 3 * channels + first + lane, mask=inside, other=0.0)
    begin = tl.program_id(1) * N
    x0 = _row(x, tail, begin - 3, lane, inside, tokens, x_token, channels, first)
    x1 = _row(x, tail, begin - 2, lane, inside, tokens, x_token, channels, first)
    x2 = _row(x, tail, begin - 1, lane, inside, tokens, x_token, channels, first)
    ahead = tl.load(x + begin * x_token + first + lane, mask=inside & (begin < tokens), other=0.0)
    for step in range(0, N):
        token = begin + step
        there = inside & (token < tokens)
        x3 = ahead.to(tl.float32)
        # Asked for a turn early, because memory answers late.
        ahead = tl.load(x + (token + 1) * x_token + first + lane, mask=inside & (token + 1 < tokens), other=0.0)
        mixed = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        result = mixed * tl.sigmoid(mixed)
        if NORMALISED:
            result *= scale * tl.rsqrt(tl.sum(result * result, 0) + 1e-6)
        tl.store(out + token * out_token + out_first + lane, result.to(out.dtype.element_ty), mask=there)
        x0, x1, x2 = x1, x2, x3


@triton.jit
def _forward(
    x, tail, weight, q, k, v, tokens, x_batch, x_token, channels, scale,
    H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Programs 0 to H - 1 make a head of queries each, H to 2 H - 1 one of keys, the others V channels of values."""
    part, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    keys = H * K
    x += batch * x_batch
    tail += batch * 3 * channels
    q += batch * tokens * keys
    k += batch * tokens * keys
    v += batch * tokens * (channels - 2 * keys)
    if part < H:
        at = part * K
        _walk_forward(x, tail, weight, q, tokens, x_token, keys, channels, at, at, scale, K, KP, N, True)
    elif part < 2 * H:
        at = part * K
        _walk_forward(x, tail, weight, k, tokens, x_token, keys, channels, at, at - keys, 1.0, K, KP, N, True)
    else:
        at = (part - 2 * H) * V
        values = channels - 2 * keys
        _walk_forward(x, tail, weight, v, tokens, x_token, values, channels, 2 * keys + at, at, 1.0, V, VP, N, False)


@triton.jit
def _walk_backward(
    x, tail, weight, out_gradient, x_gradient, tail_gradient, weight_gradient,
    tokens, x_token, out_token, channels, first, out_first, scale,
    D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """Gradients of D channels of N inputs, of the tail where it is next to them, and what they add to the weights'.

    An input counts in the token's own result and the three after it, so the walk goes three tokens further.
    """
    lane = tl.arange(0, DP)
    inside = lane < D
    w0 = tl.load(weight + first + lane, mask=inside, other=0.0)
    w1 = tl.load(weight + channels + first + lane, mask=inside, other=0.0)
    w2 = tl.load(weight + 2 * channels + first + lane, mask=inside, other=0.0)
    w3 = tl.load(weight + 3 * channels + first + lane, mask=inside, other=0.0)
    begin = tl.program_id(1) * N
    x0 = _row(x, tail, begin - 3, lane, inside, tokens, x_token, channels, first)
    x1 = _row(x, tail, begin - 2, lane, inside, tokens, x_token, channels, first)
    x2 = _row(x, tail, begin - 1, lane, inside, tokens, x_token, channels, first)
    d0 = tl.zeros([DP], tl.float32)
    d1 = tl.zeros([DP], tl.float32)
    d2 = tl.zeros([DP], tl.float32)
    sum0 = tl.zeros([DP], tl.float32)
    sum1 = tl.zeros([DP], tl.float32)
    sum2 = tl.zeros([DP], tl.float32)
    sum3 = tl.zeros([DP], tl.float32)
    x_ahead = tl.load(x + begin * x_token + first + lane, mask=inside & (begin < tokens), other=0.0)
    d_ahead = tl.load(out_gradient + begin * out_token + out_first + lane, mask=inside & (begin < tokens), other=0.0)
    for step in range(0, N + 3):
        token = begin + step
        x3, d3 = x_ahead.to(tl.float32), d_ahead.to(tl.float32)
        there = inside & (token + 1 < tokens)
        x_ahead = tl.load(x + (token + 1) * x_token + first + lane, mask=there, other=0.0)
        d_ahead = tl.load(out_gradient + (token + 1) * out_token + out_first + lane, mask=there, other=0.0)
        mixed = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        gate = tl.sigmoid(mixed)
        if NORMALISED:
            active = mixed * gate
            inverse = tl.rsqrt(tl.sum(active * active, 0) + 1e-6)
            unit = active * inverse
            d3 = scale * inverse * (d3 - unit * tl.sum(unit * d3, 0))
        d3 *= gate * (1 + mixed * (1 - gate))
        total = (w0 * d3 + w1 * d2 + w2 * d1 + w3 * d0).to(x_gradient.dtype.element_ty)
        source = token - 3
        tl.store(x_gradient + source * channels + first + lane, total, mask=inside & (step >= 3) & (source < tokens))
        if source < 0:
            rest = total.to(tail_gradient.dtype.element_ty)
            tl.store(tail_gradient + token * channels + first + lane, rest, mask=inside)
        own = tl.where(step < N, d3, 0.0)
        sum0 += own * x0
        sum1 += own * x1
        sum2 += own * x2
        sum3 += own * x3
        x0, x1, x2 = x1, x2, x3
        d0, d1, d2 = d1, d2, d3
    tl.store(weight_gradient + first + lane, sum0, mask=inside)
    tl.store(weight_gradient + channels + first + lane, sum1, mask=inside)
    tl.store(weight_gradient + 2 * channels + first + lane, sum2, mask=inside)
    tl.store(weight_gradient + 3 * channels + first + lane, sum3, mask=inside)


@triton.jit
def _backward(
    x, tail, weight, dq, dk, dv, x_gradient, tail_gradient, weight_gradients,
    tokens, x_batch, x_token, channels, scale,
    H: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The same programs as in `_forward`; each block of tokens has weight gradients of its own, [B, T / N, W, C]."""
    part, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    keys = H * K
    x += batch * x_batch
    tail += batch * 3 * channels
    dq += batch * tokens * keys
    dk += batch * tokens * keys
    dv += batch * tokens * (channels - 2 * keys)
    x_gradient += batch * tokens * channels
    tail_gradient += batch * 3 * channels
    weight_gradients += (batch * tl.num_programs(1) + tl.program_id(1)) * 4 * channels
    if part < H:
        at = part * K
        _walk_backward(
            x, tail, weight, dq, x_gradient, tail_gradient, weight_gradients,
            tokens, x_token, keys, channels, at, at, scale, K, KP, N, True,
        )  # fmt: skip
    elif part < 2 * H:
        at = part * K
        _walk_backward(
            x, tail, weight, dk, x_gradient, tail_gradient, weight_gradients,
            tokens, x_token, keys, channels, at, at - keys, 1.0, K, KP, N, True,
        )  # fmt: skip
    else:
        at = (part - 2 * H) * V
        _walk_backward(
            x, tail, weight, dv, x_gradient, tail_gradient, weight_gradients,
            tokens, x_token, channels - 2 * keys, channels, 2 * keys + at, at, 1.0, V, VP, N, False,
        )  # fmt: skip


def _layout(x: Tensor, heads: int, key_dim: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of programs, and their constants."""
    batch, tokens, channels = x.shape
    values = channels - 2 * heads * key_dim
    width = VALUE_CHANNELS if values % VALUE_CHANNELS == 0 else values // heads
    grid = (2 * heads + values // width, triton.cdiv(tokens, TOKENS), batch)
    padded = {"KP": triton.next_power_of_2(key_dim), "VP": triton.next_power_of_2(width)}
    return grid, {"H": heads, "K": key_dim, "V": width, "N": TOKENS, "num_warps": 1} | padded


@torch.library.custom_op("pulse88::heads", mutates_args=())
def heads_op(x: Tensor, tail: Tensor, weight: Tensor, heads: int, key_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys [B, T, H, K] and values [B, T, H, V] of projections [B, T, C], a tail and weights [C, W]."""
    assert weight.shape[1] == TAPS
    x = _rowwise(x)
    outs = _empty_heads(x, heads, key_dim)
    grid, constants = _layout(x, heads, key_dim)
    _forward[grid](
        x, tail.contiguous(), weight.T.contiguous(), *outs, x.shape[1], x.stride(0), x.stride(1), x.shape[2],
        key_dim**-0.5, **constants,
    )  # fmt: skip
    return outs


@heads_op.register_fake
def _(x: Tensor, tail: Tensor, weight: Tensor, heads: int, key_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_heads(x, heads, key_dim)


@torch.library.custom_op("pulse88::heads_backward", mutates_args=())
def heads_backward_op(
    x: Tensor, tail: Tensor, weight: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projections, the tail and the weights."""
    x, tail = _rowwise(x), tail.contiguous()
    batch, tokens, channels = x.shape
    grid, constants = _layout(x, dq.shape[2], dq.shape[3])
    x_gradient, tail_gradient = x.new_empty(x.shape), torch.zeros_like(tail)
    weight_gradients = torch.empty(batch, grid[1], TAPS, channels, device=x.device, dtype=torch.float32)
    _backward[grid](
        x, tail, weight.T.contiguous(), dq.contiguous(), dk.contiguous(), dv.contiguous(),
        x_gradient, tail_gradient, weight_gradients, tokens, x.stride(0), x.stride(1), channels,
        dq.shape[3] ** -0.5, **constants,
    )  # fmt: skip
    return x_gradient, tail_gradient, weight_gradients.sum((0, 1)).T.contiguous().to(weight.dtype)


@heads_backward_op.register_fake
def _(x: Tensor, tail: Tensor, weight: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(tail, memory_format=contiguous),
        torch.empty_like(weight, memory_format=contiguous),
    )


def _rowwise(x: Tensor) -> Tensor:
    """A slice of wider rows may stay one; its channels must lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_heads(x: Tensor, heads: int, key_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, channels = x.shape
    value_dim = channels // heads - 2 * key_dim
    return (
        x.new_empty(batch, tokens, heads, key_dim),
        x.new_empty(batch, tokens, heads, key_dim),
        x.new_empty(batch, tokens, heads, value_dim),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    return (*heads_backward_op(*ctx.saved_tensors, dq, dk, dv), None, None)


heads_op.register_autograd(_gradients, setup_context=_save)
