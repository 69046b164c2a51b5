"""flash-linear-attention's kernel of the gated delta rule as one operator that torch.compile can see past.

The package's public function ends every compiled graph, twice 26 times a step. Registered as an operator with its own
gradient, the same kernels leave the whole model one graph, so the elementwise work around them is fused.

Shape legend: B batch, T tokens, H heads, K key width, V value width, C tokens of the kernel's chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd, chunk_gated_delta_rule_fwd
from torch import Tensor

KERNEL_CHUNK = 64


@torch.library.custom_op("pulse88::gated_delta_rule", mutates_args=())
def gated_delta_rule_op(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs [B, T, H, V], the last memory [B, H, K, V], and for the gradient the decays and the chunks' inverses."""
    decay, out, inverse, last, _, _ = chunk_gated_delta_rule_fwd(
        q=q.contiguous(),
        k=k.contiguous(),
        v=v.contiguous(),
        g=g.contiguous(),
        beta=beta.contiguous(),
        scale=1.0,
        initial_state=memory.contiguous(),
        output_final_state=True,
        chunk_size=KERNEL_CHUNK,
    )
    return out, last, decay, inverse


@gated_delta_rule_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inverse = k.new_empty(*k.shape[:3], KERNEL_CHUNK)
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(v, memory_format=contiguous),
        torch.empty_like(memory, memory_format=contiguous),
        torch.empty_like(g, memory_format=contiguous),
        inverse,
    )


@torch.library.custom_op("pulse88::gated_delta_rule_backward", mutates_args=())
def gated_delta_rule_backward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    inverse: Tensor,
    memory: Tensor,
    out_gradient: Tensor,
    last_gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta and the first memory."""
    dq, dk, dv, dbeta, dg, dmemory, _, _ = chunk_gated_delta_rule_bwd(
        q=q.contiguous(),
        k=k.contiguous(),
        v=v.contiguous(),
        g=decay,
        beta=beta.contiguous(),
        A=inverse,
        scale=1.0,
        initial_state=memory.contiguous(),
        do=out_gradient.contiguous(),
        dht=None if last_gradient is None else last_gradient.contiguous(),
        chunk_size=KERNEL_CHUNK,
    )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg.to(decay.dtype), dbeta.to(beta.dtype), dmemory


@gated_delta_rule_backward_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    inverse: Tensor,
    memory: Tensor,
    out_gradient: Tensor,
    last_gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (q, k, v, decay, beta, memory)
    first, *others = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)
    return (first, *others)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, beta, memory = inputs
    _, _, decay, inverse = output
    ctx.mark_non_differentiable(decay, inverse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, decay, beta, inverse, memory)


def _gradients(ctx: Any, out: Tensor | None, last: Tensor | None, *_: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v, decay, beta, inverse, memory = ctx.saved_tensors
    if out is None:
        out = torch.zeros_like(v)
    return gated_delta_rule_backward_op(q, k, v, decay, beta, inverse, memory, out.to(v.dtype), last)


gated_delta_rule_op.register_autograd(_gradients, setup_context=_save)
