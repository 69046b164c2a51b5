"""The gated delta rule, one function with several kernels (arXiv 2412.06464, eq. 10).

Shape legend: B batch, T tokens, H heads, K key width, V value width, N chunks, C tokens of a chunk, S a second
index over the tokens of a chunk.

    memory <- exp(g_t) memory
    u_t     = beta_t (v_t - memory^T k_t)
    memory <- memory + k_t u_t^T
    o_t     = memory^T q_t

The number of tokens and the device may choose a kernel, never what is computed: `loop` is the truth, `step` is the
loop for one token, `chunked` needs a few matrix products a chunk, `fla` is flash-linear-attention's Triton kernel.
The memory is float32 (or wider) whatever the inputs are.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["loop", "chunked", "fla"]
CHUNK = 64


class MissingKernel(RuntimeError):
    """The kernel asked for can't run here; the message says what to install."""


def gated_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    memory_BHKV: Tensor,
    kernel: Kernel = "chunked",
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] in the type of `v` and the memory [B, H, K, V] after the last token.

    q (scaled) and k are L2-normalised by the caller; g is the log decay, <= 0; beta is in (0, 1). `chunked` takes a
    single token as a step; `fla` multiplies in the type of `v`, and needs what `require_fla` looks for.
    """
    if kernel == "fla":
        return _fla(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, memory_BHKV)
    wide = torch.promote_types(memory_BHKV.dtype, torch.float32)
    q, k, v, g, beta = (x.to(wide) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH))
    with torch.autocast(q.device.type, enabled=False):
        rule = loop if kernel == "loop" or q.shape[1] == 1 else chunked
        out_BTHV, memory_BHKV = rule(q, k, v, g, beta, memory_BHKV)
    return out_BTHV.to(v_BTHV.dtype), memory_BHKV


def step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, beta_BH: Tensor, memory_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: its output [B, H, V] and the memory after it."""
    decayed_BHKV = g_BH.exp()[..., None, None] * memory_BHKV
    recalled_BHV = torch.einsum("bhkv,bhk->bhv", decayed_BHKV, k_BHK)
    u_BHV = beta_BH[..., None] * (v_BHV - recalled_BHV)
    memory_BHKV = decayed_BHKV + k_BHK[..., None] * u_BHV[..., None, :]
    return torch.einsum("bhkv,bhk->bhv", memory_BHKV, q_BHK), memory_BHKV


def loop(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, memory_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The truth: one step after the other."""
    outs = []
    for t in range(q_BTHK.shape[1]):
        out_BHV, memory_BHKV = step(q_BTHK[:, t], k_BTHK[:, t], v_BTHV[:, t], g_BTH[:, t], beta_BTH[:, t], memory_BHKV)
        outs.append(out_BHV)
    return torch.stack(outs, dim=1), memory_BHKV


def chunked(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, memory_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in chunks of CHUNK tokens (arXiv 2412.06464, section 3.3; the WY form of arXiv 2406.06484).

    Within a chunk the u are the solution of a unit lower triangular system. It is solved by substitution: inverting
    it by repeated squaring loses all precision on trained weights.
    """
    tokens, wide = q_BTHK.shape[1], q_BTHK.dtype
    q, k, v, g, beta = (_to_chunks(x) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH))  # [B, H, N, C, ...]
    # Log decay from the chunk's start to each token, that token's own included. In float64: strong gates make it
    # reach thousands, and the small differences that weak gates leave between neighbours still count.
    decay_BHNC = g.double().cumsum(-1)
    causal_CS = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=g.device).tril()
    between_BHNCS = (decay_BHNC[..., :, None] - decay_BHNC[..., None, :]).to(wide)
    between_BHNCS = between_BHNCS.masked_fill(~causal_CS, -torch.inf).exp()
    from_start_BHNC1 = decay_BHNC.to(wide).exp()[..., None]
    to_end_BHNC1 = (decay_BHNC[..., -1:] - decay_BHNC).to(wide).exp()[..., None]
    system_BHNCS = (beta[..., None] * between_BHNCS * (k @ k.mT)).tril(-1)
    # What enters u is linear in the memory at the chunk's start: solve for both sides at once, for all chunks.
    right_BHNC = torch.cat((v, from_start_BHNC1 * k), dim=-1) * beta[..., None]
    solved = torch.linalg.solve_triangular(system_BHNCS, right_BHNC, upper=False, unitriangular=True)
    u_free_BHNCV, u_memory_BHNCK = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    scores_BHNCS = between_BHNCS * (q @ k.mT)
    q_decayed_BHNCK = from_start_BHNC1 * q
    k_to_end_BHNCK = to_end_BHNC1 * k

    outs = []
    for n in range(q.shape[2]):
        u_BHCV = u_free_BHNCV[:, :, n] - u_memory_BHNCK[:, :, n] @ memory_BHKV
        outs.append(q_decayed_BHNCK[:, :, n] @ memory_BHKV + scores_BHNCS[:, :, n] @ u_BHCV)
        memory_BHKV = from_start_BHNC1[:, :, n, -1:] * memory_BHKV + k_to_end_BHNCK[:, :, n].mT @ u_BHCV
    out_BHTV = torch.cat(outs, dim=2)[:, :, :tokens]
    return out_BHTV.transpose(1, 2), memory_BHKV


def _to_chunks(x_BTH: Tensor) -> Tensor:
    """[B, T, H, ...] to [B, H, N, C, ...]; zeros behind the end neither decay the memory nor write to it."""
    short = -x_BTH.shape[1] % CHUNK
    if short:
        x_BTH = torch.cat((x_BTH, x_BTH.new_zeros(x_BTH.shape[0], short, *x_BTH.shape[2:])), dim=1)
    chunks_BNCH = x_BTH.view(x_BTH.shape[0], -1, CHUNK, *x_BTH.shape[2:])
    return chunks_BNCH.movedim(3, 1)


def require_fla() -> None:
    """Raises MissingKernel, with the line to type, unless flash-linear-attention and a CUDA device are there."""
    if importlib.util.find_spec("fla") is None:
        raise MissingKernel(
            "the kernel `fla`, which training on CUDA takes, needs flash-linear-attention: "
            "pip install 'pulse88[gpu]', or choose the kernel `chunked` (slower, the same function)"
        )
    if not torch.cuda.is_available():
        raise MissingKernel("the kernel `fla` runs on CUDA devices only; choose `chunked` (the same function)")


def _fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    from pulse88.kernel_fla import gated_delta_rule_op  # needs Triton, which is not everywhere

    out, memory, _, _ = gated_delta_rule_op(q.to(v.dtype), k.to(v.dtype), v, g.float(), beta.to(v.dtype), memory)
    return out, memory
