"""The short convolutions, SiLU and L2 norms before the delta rule as Triton kernels, forward and backward.

The same function as `heads` in model.py, of which a compiler makes kernels that read their inputs several times over:
on an H200 they took more than a third of a training step.

Shape legend: B batch, T tokens, C channels of queries, keys and values together, H heads, K key width, V value width,
W taps of the convolution, D channels of a program's head, DP the power of two at or above it, R tokens of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUE_CHANNELS = 128  # of a program where nothing is normalised, so that heads don't matter
TOKENS = 16  # of a program; with more, its values no longer fit into registers


@triton.jit
def _rows(x, tail, source, channel, inside, tokens, x_token, channels, W: tl.constexpr):
    """[R, DP] inputs of the tokens `source`; those before the first come from the tail, those after the last are 0."""
    here = (source >= 0) & (source < tokens)
    place = source[:, None] * x_token + channel[None, :]
    rows = tl.load(x + place, mask=here[:, None] & inside[None, :], other=0.0).to(tl.float32)
    if tl.program_id(0) == 0:
        place = (source[:, None] + (W - 1)) * channels + channel[None, :]
        rows += tl.load(tail + place, mask=(source < 0)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    return rows


@triton.jit
def _mixed(
    x, tail, weight, token, channel, inside, tokens, x_token, channels,
    DP: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """[R, DP] results of the convolution."""
    mixed = tl.zeros([R, DP], tl.float32)
    for tap in tl.static_range(W):
        rows = _rows(x, tail, token + (tap - (W - 1)), channel, inside, tokens, x_token, channels, W)
        mixed += rows * tl.load(weight + channel * W + tap, mask=inside, other=0.0).to(tl.float32)[None, :]
    return mixed


@triton.jit
def _forward(
    x, tail, weight, out, tokens, x_batch, x_token, channels, first_channel, heads, scale,
    D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, R: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """One head of R tokens: convolved, SiLU, and where NORMALISED divided by its length and times `scale`."""
    token = tl.program_id(0) * R + tl.arange(0, R)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, DP)
    inside = lane < D
    channel = first_channel + head * D + lane
    x += batch * x_batch
    tail += batch * (W - 1) * channels
    mixed = _mixed(x, tail, weight, token, channel, inside, tokens, x_token, channels, DP, W, R)
    result = mixed * tl.sigmoid(mixed)
    if NORMALISED:
        result *= scale * tl.rsqrt(tl.sum(result * result, 1) + 1e-6)[:, None]
    out += batch * tokens * heads * D
    place = (token[:, None] * heads + head) * D + lane[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & inside[None, :])


@triton.jit
def _backward_mixed(
    x, tail, weight, out_gradient, mixed_gradient, weight_gradients, tokens, x_batch, x_token, channels,
    first_channel, heads, scale,
    D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, R: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """Gradients of the convolution's results, and of its weights the part that these tokens have."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = block * R + tl.arange(0, R)
    lane = tl.arange(0, DP)
    inside = lane < D
    channel = first_channel + head * D + lane
    valid = (token < tokens)[:, None] & inside[None, :]
    x += batch * x_batch
    tail += batch * (W - 1) * channels
    mixed = _mixed(x, tail, weight, token, channel, inside, tokens, x_token, channels, DP, W, R)
    out_gradient += batch * tokens * heads * D
    place = (token[:, None] * heads + head) * D + lane[None, :]
    gradient = tl.load(out_gradient + place, mask=valid, other=0.0).to(tl.float32)
    gate = tl.sigmoid(mixed)
    if NORMALISED:
        active = mixed * gate
        inverse = tl.rsqrt(tl.sum(active * active, 1) + 1e-6)[:, None]
        unit = active * inverse
        gradient = scale * inverse * (gradient - unit * tl.sum(unit * gradient, 1)[:, None])
    gradient *= gate * (1 + mixed * (1 - gate))
    mixed_gradient += batch * tokens * channels
    tl.store(
        mixed_gradient + token[:, None] * channels + channel[None, :],
        gradient.to(mixed_gradient.dtype.element_ty),
        mask=valid,
    )
    weight_gradients += (batch * tl.num_programs(0) + block) * W * channels
    for tap in tl.static_range(W):
        rows = _rows(x, tail, token + (tap - (W - 1)), channel, inside, tokens, x_token, channels, W)
        tl.store(weight_gradients + tap * channels + channel, tl.sum(rows * gradient, 0), mask=inside)


@triton.jit
def _backward_inputs(
    weight, mixed_gradient, x_gradient, tail_gradient, tokens, channels,
    DP: tl.constexpr, W: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs and, for the W - 1 rows before the first token, of the tail."""
    source = tl.program_id(0) * R + tl.arange(0, R) - (W - 1)
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * DP + tl.arange(0, DP)
    inside = channel < channels
    mixed_gradient += batch * tokens * channels
    total = tl.zeros([R, DP], tl.float32)
    for tap in tl.static_range(W):
        token = source + ((W - 1) - tap)
        rows = tl.load(
            mixed_gradient + token[:, None] * channels + channel[None, :],
            mask=((token >= 0) & (token < tokens))[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        total += rows * tl.load(weight + channel * W + tap, mask=inside, other=0.0).to(tl.float32)[None, :]
    x_gradient += batch * tokens * channels
    tl.store(
        x_gradient + source[:, None] * channels + channel[None, :],
        total.to(x_gradient.dtype.element_ty),
        mask=((source >= 0) & (source < tokens))[:, None] & inside[None, :],
    )
    if tl.program_id(0) == 0:
        tail_gradient += batch * (W - 1) * channels
        tl.store(
            tail_gradient + (source[:, None] + (W - 1)) * channels + channel[None, :],
            total.to(tail_gradient.dtype.element_ty),
            mask=(source < 0)[:, None] & inside[None, :],
        )


def _parts(channels: int, heads: int, key_dim: int) -> list[tuple[int, int, int, bool]]:
    """Of queries, keys and values: first channel, number of programs, channels of one, whether normalised."""
    keys = heads * key_dim
    values = channels - 2 * keys
    width = VALUE_CHANNELS if values % VALUE_CHANNELS == 0 else values // heads
    return [(0, heads, key_dim, True), (keys, heads, key_dim, True), (2 * keys, values // width, width, False)]


@torch.library.custom_op("pulse88::heads", mutates_args=())
def heads_op(x: Tensor, tail: Tensor, weight: Tensor, heads: int, key_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys [B, T, H, K] and values [B, T, H, V] of projections [B, T, C], a tail and weights [C, W]."""
    x, tail, weight = _rowwise(x), tail.contiguous(), weight.contiguous()
    batch, tokens, channels = x.shape
    outs = _empty_heads(x, heads, key_dim)
    for out, (first, programs, width, normalised) in zip(outs, _parts(channels, heads, key_dim), strict=True):
        _forward[(triton.cdiv(tokens, TOKENS), programs, batch)](
            x, tail, weight, out, tokens, x.stride(0), x.stride(1), channels, first, programs,
            key_dim**-0.5 if first == 0 else 1.0,
            D=width, DP=triton.next_power_of_2(width), W=weight.shape[1], R=TOKENS, NORMALISED=normalised,
        )  # fmt: skip
    return outs


@heads_op.register_fake
def _(x: Tensor, tail: Tensor, weight: Tensor, heads: int, key_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_heads(x, heads, key_dim)


@torch.library.custom_op("pulse88::heads_backward", mutates_args=())
def heads_backward_op(
    x: Tensor, tail: Tensor, weight: Tensor, key_dim: int, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the projections, the tail and the weights."""
    x, tail, weight = _rowwise(x), tail.contiguous(), weight.contiguous()
    batch, tokens, channels = x.shape
    heads, taps = dq.shape[2], weight.shape[1]
    blocks = triton.cdiv(tokens, TOKENS)
    mixed_gradient = x.new_empty(batch, tokens, channels)
    weight_gradients = torch.empty(batch * blocks, taps, channels, device=x.device, dtype=torch.float32)
    for out, (first, programs, width, normalised) in zip((dq, dk, dv), _parts(channels, heads, key_dim), strict=True):
        _backward_mixed[(blocks, programs, batch)](
            x, tail, weight, out.contiguous(), mixed_gradient, weight_gradients, tokens, x.stride(0), x.stride(1),
            channels, first, programs, key_dim**-0.5 if first == 0 else 1.0,
            D=width, DP=triton.next_power_of_2(width), W=taps, R=TOKENS, NORMALISED=normalised,
        )  # fmt: skip
    x_gradient, tail_gradient = torch.empty_like(mixed_gradient), torch.empty_like(tail)
    _backward_inputs[(triton.cdiv(tokens + taps - 1, TOKENS), triton.cdiv(channels, VALUE_CHANNELS), batch)](
        weight, mixed_gradient, x_gradient, tail_gradient, tokens, channels, DP=VALUE_CHANNELS, W=taps, R=TOKENS
    )
    return x_gradient, tail_gradient, weight_gradients.sum(0).T.contiguous().to(weight.dtype)


@heads_backward_op.register_fake
def _(
    x: Tensor, tail: Tensor, weight: Tensor, key_dim: int, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
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
    x, tail, weight, _, ctx.key_dim = inputs
    ctx.save_for_backward(x, tail, weight)


def _gradients(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    return (*heads_backward_op(*ctx.saved_tensors, ctx.key_dim, dq, dk, dv), None, None)


heads_op.register_autograd(_gradients, setup_context=_save)
