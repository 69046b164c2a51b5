"""The two matrices that end a GDN block as one: the numpy engine, which has two, is the truth."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_law import TOLERANCE, distance, in_pieces, law_error, random_ids, random_weights, weights_of
from pulse88.config import TINY, SamplingConfig
from pulse88.engine.adapter import adapted, read_adapter, write_adapter
from pulse88.engine.layout import initial_shapes
from pulse88.engine.library import kernels, library
from pulse88.engine.native import NativeEngine
from pulse88.engine.reference import NumpyEngine
from pulse88.engine.weights import Weights, metadata_of, quantise, read, save
from pulse88.generate import begin
from pulse88.snapshot import SnapshotError, dump, load
from pulse88.vocabulary import FINE

try:
    RUNNING = kernels()
except ImportError as problem:
    pytest.skip(f"no native engine to test: {problem}", allow_module_level=True)

ODD = replace(TINY, gdn_inner_dim=22, gdn_num_heads=3, gdn_key_dim=7, gdn_value_dim=9)  # int8 rows of 27 aren't packed
SQUARE = replace(TINY, gdn_inner_dim=TINY.d_model)
SHAPES = {"tiny": TINY, "odd": ODD}
INNER, OUTER = "layers.0.gdn1.core.o_proj", "layers.0.gdn1.out_proj"


def merged(weights: Weights, kernel: str | None = None, threads: int = 1) -> NativeEngine:
    return NativeEngine(weights, kernel, threads, merge_outputs=True)


def logits_of(engine: Any, ids: np.ndarray) -> np.ndarray:
    return np.asarray(engine.forward(ids, engine.zero_state(len(ids)))[0])


def products(weights: Weights) -> dict[str, np.ndarray]:
    """Name of every out_proj of a GDN block and its product with o_proj."""
    names = [name.removesuffix(".core.o_proj.weight") for name in weights.tensors if name.endswith(".o_proj.weight")]
    return {
        f"{name}.out_proj.weight": weights.matrix(f"{name}.out_proj.weight").astype(np.float64)
        @ weights.matrix(f"{name}.core.o_proj.weight")
        for name in names
    }


@pytest.mark.parametrize("kernel", RUNNING)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_with_two_matrices_over_prompts_and_steps(shape: str, kernel: str) -> None:
    weights = weights_of(SHAPES[shape])
    for batch, pieces in ((1, [1, 1, 14, 1, 90]), (2, [70, 1, 3]), (7, [2, 1])):
        ids = random_ids(weights.config, batch, sum(pieces))
        logits, state = in_pieces(merged(weights, kernel), ids, pieces)
        truth, true_state = in_pieces(NumpyEngine(weights), ids, pieces)
        assert truth.std() > 1  # or the comparison would mean little
        np.testing.assert_allclose(logits, truth, atol=TOLERANCE, rtol=0)
        assert distance(state.snapshot(), true_state.snapshot()) < TOLERANCE


def test_float32_agrees_in_full_size() -> None:
    weights = random_weights("40m")
    ids = random_ids(weights.config, 1, 40)
    logits, state = in_pieces(merged(weights), ids, [39, 1])
    truth, true_state = in_pieces(NumpyEngine(weights), ids, [39, 1])
    np.testing.assert_allclose(logits, truth, atol=TOLERANCE, rtol=0)
    assert distance(state.snapshot(), true_state.snapshot()) < TOLERANCE


@pytest.mark.parametrize("kernel", RUNNING)
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_rounded_anew_and_stays_as_near_to_float32(shape: str, kernel: str) -> None:
    weights = weights_of(SHAPES[shape])
    ids, int8 = random_ids(weights.config, 2, 60), weights.as_int8()
    truth, two, one = (
        logits_of(e, ids) for e in (NumpyEngine(weights), NativeEngine(int8, kernel), merged(int8, kernel))
    )
    errors = [float(np.sqrt(np.square(found - truth).mean())) for found in (two, one)]
    assert np.abs(one - two).max() > 1e-3
    assert errors[1] < 1.5 * errors[0] < 0.3


@pytest.mark.parametrize("kernel", RUNNING)
def test_int8_is_the_product_rounded_by_output_row(kernel: str) -> None:
    """Where a block is as wide inside as outside, o_proj can hold the product, and out_proj hand it on."""
    weights = weights_of(SQUARE).as_int8()
    tensors = dict(weights.tensors)
    for name, product in products(weights).items():
        o_proj = name.replace("out_proj", "core.o_proj")
        tensors |= quantise({o_proj: product, name: np.eye(SQUARE.d_model, dtype=np.float32)})
    ids = random_ids(SQUARE, 2, 60)
    np.testing.assert_allclose(
        logits_of(merged(weights, kernel), ids),
        logits_of(NumpyEngine(Weights(SQUARE, tensors)), ids),
        atol=1e-2,
        rtol=0,
    )


def test_one_of_two_in_int8_makes_the_product_float32() -> None:
    weights = weights_of(TINY)
    names = [name for name in weights.tensors if name.endswith("o_proj.weight")]
    half = Weights(TINY, {**weights.tensors, **quantise({name: weights.tensors[name] for name in names})})
    ids = random_ids(TINY, 1, 40)
    # Beside int8, whatever is int8, keys and values have half precision.
    np.testing.assert_allclose(logits_of(merged(half), ids), logits_of(NumpyEngine(half), ids), atol=1e-2, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([1, 2, 15, 16, 17, 33, 64, 65]), min_size=2, max_size=3),
    batch=st.sampled_from([1, 3, 6]),
    shape=st.sampled_from(sorted(SHAPES)),
    int8=st.booleans(),
    kernel=st.sampled_from(RUNNING),
    threads=st.sampled_from([1, 2]),
)
def test_the_law_holds_at_any_cut(
    pieces: list[int], batch: int, shape: str, int8: bool, kernel: str, threads: int
) -> None:
    weights = weights_of(SHAPES[shape])
    law = merged(weights.as_int8() if int8 else weights, kernel, threads)
    assert law_error(law, random_ids(law.config, batch, sum(pieces)), pieces) == 0


@pytest.mark.parametrize("kind", ["low-rank", "full", "initial-state"])
def test_adapters_are_in_the_product(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "base.safetensors", random_weights("tiny").tensors, metadata_of(TINY, FINE))
    weights, random = read(tmp_path / "base.safetensors"), np.random.default_rng(3)
    change: dict[str, np.ndarray]
    if kind == "initial-state":
        change = {n: random.standard_normal(shape).astype(np.float32) for n, shape in initial_shapes(TINY).items()}
    elif kind == "full":
        change = {f"{name}.weight": -2 * weights.matrix(f"{name}.weight")[::-1] for name in (INNER, OUTER)}
    else:
        shapes = {name: weights.matrix(f"{name}.weight").shape for name in (INNER, OUTER)}
        change = {f"{n}.lora_A": random.standard_normal((2, columns)) for n, (_, columns) in shapes.items()}
        change |= {f"{n}.lora_B": random.standard_normal((rows, 2)) for n, (rows, _) in shapes.items()}
        change = {name: (0.3 * array).astype(np.float16) for name, array in change.items()}
    write_adapter(tmp_path / "a.safetensors", kind, weights, change, {})
    tuned, ids = adapted(weights, read_adapter(tmp_path / "a.safetensors")), random_ids(TINY, 2, 40)
    logits = logits_of(merged(tuned), ids)
    assert np.abs(logits - logits_of(merged(weights), ids)).max() > 0.1
    np.testing.assert_allclose(logits, logits_of(NumpyEngine(tuned), ids), atol=TOLERANCE, rtol=0)


def test_snapshots_go_on_only_where_the_numbers_are_the_same() -> None:
    weights = random_weights("tiny")
    one, two = merged(weights), NativeEngine(weights)
    take = dump(begin(one, [5, 60, 140, 160], SamplingConfig(), random_seed=1))
    assert load(merged(weights), take).state.position == load(one, take).state.position
    with pytest.raises(SnapshotError, match="other weights"):
        load(two, take)
    assert two.weights_sha256 == weights.sha256


def test_products_that_are_not_finite_are_refused() -> None:
    tensors = dict(random_weights("tiny").tensors)
    for name in (INNER, OUTER):
        tensors[f"{name}.weight"] = np.full_like(tensors[f"{name}.weight"], 1e30)
    weights = Weights(TINY, tensors)
    with pytest.raises(ValueError, match=rf"{OUTER}\.weight times .* leave merge_outputs off"):
        merged(weights)
    NativeEngine(weights)


def test_plans_without_the_first_matrix_are_checked() -> None:
    """An `out` of the wrong width is read past its end if nobody looks."""
    plan, size = (other := NativeEngine(weights_of(ODD)))._plan, other._weights.size
    check, rows, cols = library().p88_check, ODD.gdn_inner_dim, ODD.gdn_num_heads * ODD.gdn_value_dim
    assert check(plan.ctypes.data, plan.size, size)
    first = np.flatnonzero((plan[:-1] == rows) & (plan[1:] == cols))
    assert len(first) == sum(kinds.count("gdn") for kinds in ODD.layer_types)
    for index in first:
        changed = plan.copy()
        changed[index] = 0  # said to be absent, so that the second would be given more than it takes
        assert not check(changed.ctypes.data, changed.size, size)
