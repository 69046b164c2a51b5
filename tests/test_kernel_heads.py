"""The Triton kernels before the delta rule are the lines of torch that they replace, gradients included."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from torch import Tensor  # noqa: E402

from pulse88.model import convolved_heads  # noqa: E402

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, which comes with torch for CUDA")
needs_gpu = pytest.mark.skipif(not (HAS_TRITON and torch.cuda.is_available()), reason="needs a CUDA device and Triton")


def made(batch: int, tokens: int, heads: int, key_dim: int, value_dim: int, device: str) -> list[Tensor]:
    """Projections (a slice of wider rows, as in the model), a tail and weights."""
    random = torch.Generator().manual_seed(tokens)
    channels = heads * (2 * key_dim + value_dim)
    wide = torch.randn(batch, tokens, channels + 24, generator=random)
    tail, weight = torch.randn(batch, 3, channels, generator=random), torch.randn(channels, 4, generator=random)
    leaves = [x.to(device).requires_grad_() for x in (wide, tail, weight)]
    return [leaves[0][..., :channels], *leaves]


def distance(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).norm() / true.detach().norm())


def largest_distance(batch: int, tokens: int, heads: int, key_dim: int, value_dim: int, device: str) -> float:
    """Over results and gradients, between the kernels in float32 and the lines of torch in float64."""
    from pulse88.kernel_heads import heads_op

    x, *leaves = made(batch, tokens, heads, key_dim, value_dim, device)
    found = heads_op(x, leaves[1], leaves[2], heads, key_dim)
    weights = [torch.randn_like(out) for out in found]
    gradients = torch.autograd.grad(sum((o * w).sum() for o, w in zip(found, weights, strict=True)), leaves)  # type: ignore[arg-type]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    true = convolved_heads(exact[0][..., : x.shape[-1]], exact[1], exact[2], heads, key_dim)
    total = sum((o * w).sum() for o, w in zip(true, weights, strict=True))
    pairs = zip((*found, *gradients), (*true, *torch.autograd.grad(total, exact)), strict=True)  # type: ignore[arg-type]
    return max(distance(a, b) for a, b in pairs)


SHAPES = [(2, 37, 2, 8, 16), (1, 2, 4, 80, 160), (2, 70, 4, 80, 160), (1, 1, 2, 16, 32)]


@needs_triton
def test_triton_interpreted_agrees_with_torch() -> None:
    """In a process of its own, because Triton asks for its interpreter when it is imported."""
    program = f"import test_kernel_heads as t\nprint(max(t.largest_distance(*s, 'cpu') for s in {SHAPES}) < 1e-6)"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.stdout.strip() == "True", found.stderr


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_compiled_agrees_with_torch(shape: tuple[int, int, int, int, int]) -> None:
    assert largest_distance(*shape, "cuda") < 1e-6
