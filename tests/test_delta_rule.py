"""The kernels of the gated delta rule against the loop in float64: outputs, memory, all gradients."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from pulse88 import delta_rule  # noqa: E402
from pulse88.delta_rule import CHUNK, MissingKernel, gated_delta_rule  # noqa: E402

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 130)
NAMES = ("q", "k", "v", "g", "beta", "memory")
WEAK, STRONG = 0.01, 20.0  # largest log decay of a token
HAS_FLA = importlib.util.find_spec("fla") is not None and torch.cuda.is_available()


def inputs(
    tokens: int, decay: float = 1.0, *, batch: int = 2, heads: int = 2, keys: int = 6, values: int = 5, seed: int = 0
) -> list[Any]:
    """q, k, v, g, beta and a memory that isn't zero, in float64."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(batch, tokens, heads, keys), dim=-1) for _ in range(2))
    g = -decay * torch.rand(batch, tokens, heads, generator=random, dtype=torch.float64)
    beta = normal(batch, tokens, heads).sigmoid()
    return [q * keys**-0.5, k, normal(batch, tokens, heads, values), g, beta, normal(batch, heads, keys, values)]


def alike_keys(tokens: int, **shape: int) -> list[Any]:
    """What trained weights do on a repeated note: keys that hardly differ, beta near 1, hardly any decay."""
    q, k, v, g, beta, memory = inputs(tokens, 1e-3, **shape)
    k = torch.nn.functional.normalize(k[:, :1] + 0.05 * k, dim=-1)
    return [q, k, v, g, torch.full_like(beta, 0.99), memory]


def with_gradients(rule: Callable[..., Any], arguments: list[Any], weights: tuple[Any, Any] | None = None) -> list[Any]:
    """Outputs, last memory, and the gradients of a weighted sum of both with respect to every argument."""
    leaves = [x.detach().clone().requires_grad_() for x in arguments]
    out, memory = rule(*leaves)
    if weights is None:
        random = torch.Generator().manual_seed(1)
        weights = tuple(torch.randn(x.shape, generator=random, dtype=torch.float64) for x in (out, memory))
    loss = sum((x.double() * w.to(x.device)).sum() for x, w in zip((out, memory), weights, strict=True))
    return [out.detach(), memory.detach(), *torch.autograd.grad(loss, leaves)]


def distance(found: list[Any], truth: list[Any]) -> dict[str, float]:
    """Largest difference of each, in units of the truth's own largest value."""
    names = ("out", "last memory", *(f"gradient of {name}" for name in NAMES))
    return {
        name: float((a.double().cpu() - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for name, a, b in zip(names, found, truth, strict=True)
    }


@pytest.mark.parametrize("decay", [WEAK, 1.0, STRONG])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunked_is_the_loop(tokens: int, decay: float) -> None:
    arguments = inputs(tokens, decay)
    truth = with_gradients(delta_rule.loop, arguments)
    apart = distance(with_gradients(delta_rule.chunked, arguments), truth)
    assert max(apart.values()) < 1e-12, apart
    assert all(float(x.abs().max()) > 1e-9 for x in truth)  # or a difference in its units would mean little


def test_the_loop_is_the_written_recurrence() -> None:
    """The equations at the top of the module, in numpy, head by head."""
    q, k, v, g, beta, memory = (x.numpy() for x in inputs(7))
    out, last = delta_rule.loop(*inputs(7))
    for b, h in np.ndindex(2, 2):
        S = memory[b, h]
        for t in range(7):
            S = math.exp(g[b, t, h]) * S
            u = beta[b, t, h] * (v[b, t, h] - S.T @ k[b, t, h])
            S = S + np.outer(k[b, t, h], u)
            np.testing.assert_allclose(out[b, t, h], S.T @ q[b, t, h], atol=1e-14)
        np.testing.assert_allclose(last[b, h], S, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_memory_is_carried_over_any_cut(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(2, 150))
    cuts = data.draw(st.lists(st.integers(1, tokens - 1), max_size=5, unique=True).map(sorted))
    decay = data.draw(st.sampled_from([WEAK, 1.0, STRONG]))
    *streams, memory = inputs(tokens, decay, batch=1, seed=tokens)
    whole, last = gated_delta_rule(*streams, memory, "chunked")
    outs = []
    for begin, end in zip([0, *cuts], [*cuts, tokens], strict=True):
        out, memory = gated_delta_rule(*(x[:, begin:end] for x in streams), memory, "chunked")
        outs.append(out)
    assert float((torch.cat(outs, 1) - whole).abs().max()) < 1e-12
    assert float((memory - last).abs().max()) < 1e-12


def test_the_check_of_cuts_can_fail() -> None:
    *streams, memory = inputs(80, WEAK)
    whole, _ = gated_delta_rule(*streams, memory, "chunked")
    forgotten, _ = gated_delta_rule(*(x[:, 40:] for x in streams), torch.zeros_like(memory), "chunked")
    assert float((forgotten - whole[:, 40:]).abs().max()) > 0.1


def test_float32_is_near() -> None:
    for tokens in (17, 64, 130):
        for decay in (WEAK, 1.0, STRONG):
            arguments = inputs(tokens, decay)
            truth = with_gradients(delta_rule.loop, arguments)
            apart = distance(with_gradients(delta_rule.chunked, [x.float() for x in arguments]), truth)
            assert max(apart.values()) < 2e-5, (tokens, decay, apart)


def test_strong_gates_leave_weak_ones_their_precision() -> None:
    """Sums of log decays that have grown to thousands don't round away the small differences after them."""
    arguments = inputs(130, 1e-3)
    arguments[3][:, ::17] = -2000.0
    truth = with_gradients(delta_rule.loop, arguments)
    apart = distance(with_gradients(delta_rule.chunked, [x.float() for x in arguments]), truth)
    assert max(apart.values()) < 2e-5, apart


def test_the_memory_is_wide_whatever_the_inputs_are() -> None:
    *streams, memory = inputs(70)
    truth, last = delta_rule.loop(*streams, memory)
    narrow = [x.bfloat16() for x in streams[:3]] + [x.float() for x in streams[3:]]
    for kernel in ("chunked", "loop"):
        out, after = gated_delta_rule(*narrow, memory.float(), kernel)
        assert out.dtype is torch.bfloat16
        assert after.dtype is torch.float32
        assert float((out - truth).abs().max()) < 0.02
        assert float((after - last).abs().max()) < 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):  # leaves the recurrence in float32
        again, _ = gated_delta_rule(*(x.float() for x in (*streams, memory)))
    assert float((again - truth).abs().max()) < 1e-5


def by_repeated_squaring(q: Any, k: Any, v: Any, g: Any, beta: Any, memory: Any) -> Any:
    """Outputs of one chunk whose system is inverted as (I - A)(I + A^2)(I + A^4)...: right, and hopeless in float32."""
    q, k, v, g, beta = (x.transpose(1, 2) for x in (q, k, v, g, beta))
    decay = g.cumsum(-1)
    between = (decay[..., :, None] - decay[..., None, :]).tril().exp().tril()
    power = -(beta[..., None] * between * (k @ k.mT)).tril(-1)
    identity = torch.eye(q.shape[2], dtype=q.dtype)
    inverse = identity + power
    for _ in range(math.ceil(math.log2(q.shape[2])) - 1):
        power = power @ power
        inverse = inverse @ (identity + power)
    u = inverse @ (beta[..., None] * (v - decay.exp()[..., None] * k @ memory))
    out = decay.exp()[..., None] * q @ memory + (between * (q @ k.mT)) @ u
    return out.transpose(1, 2)


def test_substitution_holds_where_repeated_squaring_fails() -> None:
    arguments = alike_keys(CHUNK, keys=16, values=8)
    truth, _ = delta_rule.loop(*arguments)
    size = float(truth.abs().max())
    narrow = [x.float() for x in arguments]
    squaring = by_repeated_squaring(*narrow)
    assert float((by_repeated_squaring(*inputs(CHUNK)) - delta_rule.loop(*inputs(CHUNK))[0]).abs().max()) < 1e-10
    assert float((squaring - truth).abs().max()) / size > 1  # float32 holds none of its digits
    assert float((delta_rule.chunked(*narrow)[0] - truth).abs().max()) / size < 1e-4


def test_hard_gradients_hold_too() -> None:
    arguments = alike_keys(130, keys=16, values=8)
    truth = with_gradients(delta_rule.loop, arguments)
    apart = distance(with_gradients(delta_rule.chunked, [x.float() for x in arguments]), truth)
    assert max(apart.values()) < 1e-3, apart


def test_a_missing_kernel_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingKernel, match=r"pip install 'pulse88\[gpu\]'.*chunked"):
        delta_rule.require_fla()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingKernel, match=r"CUDA devices only.*chunked"):
        delta_rule.require_fla()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    delta_rule.require_fla()


@pytest.mark.skipif(not HAS_FLA, reason="needs a CUDA device and flash-linear-attention: pip install 'pulse88[gpu]'")
@pytest.mark.parametrize("dtype, tolerance", [("float32", 4e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("make", [inputs, alike_keys])
@pytest.mark.parametrize("tokens", [63, 64, 130])
def test_fla_is_the_loop(make: Any, tokens: int, dtype: str, tolerance: float) -> None:
    """Measured on an H200 with fla 0.6.0: 1.5e-3 in float32 (TF32 inside), 4.6e-3 in bfloat16."""
    arguments = make(tokens, keys=80, values=160)
    truth = with_gradients(delta_rule.loop, arguments)
    narrow = [x.to("cuda", getattr(torch, dtype)) for x in arguments[:3]]
    wide = [x.to("cuda", torch.float32) for x in arguments[3:]]
    found = with_gradients(lambda *x: gated_delta_rule(*x, kernel="fla"), [*narrow, *wide])
    apart = distance(found, truth)
    assert max(apart.values()) < tolerance, apart


STAND_IN = """
import sys, types, torch
from concurrent.futures import ThreadPoolExecutor
from pulse88 import delta_rule

def forward(*, q, k, v, g, beta, scale, initial_state, output_final_state, chunk_size):
    assert all(x.is_contiguous() for x in (q, k, v, g, beta, initial_state)) and scale == 1.0 and output_final_state
    out, last = delta_rule.chunked(q, k, v, g, beta, initial_state)
    return g.cumsum(1), out.contiguous(), k.new_zeros(*k.shape[:3], chunk_size), last.contiguous(), None, None

def backward(*, q, k, v, g, beta, A, scale, initial_state, do, dht, chunk_size):
    g = torch.diff(g, dim=1, prepend=torch.zeros_like(g[:, :1]))
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, g, beta, initial_state)]
    with torch.enable_grad():
        out, last = delta_rule.chunked(*leaves)
        loss = (out * do).sum() + (0 if dht is None else (last * dht).sum())
        dq, dk, dv, dg, dbeta, dmemory = torch.autograd.grad(loss, leaves)
    return dq, dk, dv, dbeta, dg, dmemory, None, None

def elsewhere(**arguments):  # autograd can't be entered again from the thread that walks it
    return pool.submit(lambda: backward(**arguments)).result()

pool = ThreadPoolExecutor(1)
import test_delta_rule as t
for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule", "fla.ops.gated_delta_rule.chunk"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].chunk_gated_delta_rule_fwd, sys.modules[name].chunk_gated_delta_rule_bwd = forward, elsewhere

def fla(*arguments):
    return delta_rule.gated_delta_rule(*arguments, kernel="fla")

arguments = [x.float() for x in t.inputs(70)]
worst = max(t.distance(t.with_gradients(fla, arguments), t.with_gradients(delta_rule.loop, t.inputs(70))).values())
assert worst < 2e-5, worst
zero = torch.zeros(2, 2, 6, 5, dtype=torch.float64)
weights = (torch.ones(2, 70, 2, 5, dtype=torch.float64), zero)
def outputs_only(*arguments):
    out, last = fla(*arguments)
    return out, last.detach()
truth = t.with_gradients(delta_rule.loop, t.inputs(70), weights)
assert max(t.distance(t.with_gradients(outputs_only, arguments, weights), truth).values()) < 2e-5
compiled = torch.compile(fla, backend="aot_eager", fullgraph=True)  # one graph, or it raises
torch.testing.assert_close(compiled(*arguments), fla(*arguments))
assert t.distance(t.with_gradients(compiled, arguments), t.with_gradients(delta_rule.loop, t.inputs(70)))["out"] < 2e-5
print("agrees")
"""


def test_the_operator_around_fla_passes_all_arguments_and_gradients() -> None:
    """The operator of kernel_fla.py over a stand-in of the package's two functions, in a process of its own."""
    here = Path(__file__).parent
    found = subprocess.run([sys.executable, "-c", STAND_IN], cwd=here, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "agrees", found.stderr
