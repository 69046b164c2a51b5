import ctypes
import ctypes.util
import gc
import importlib.machinery
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_law import TOLERANCE, distance, in_pieces, law_error, random_ids, random_weights, weights_of
from pulse88.config import TINY, ModelConfig
from pulse88.engine import library as native_library
from pulse88.engine.library import BYTES, FLOATS, KERNELS, PAGE, WORDS, Call, Sequence, kernels, library
from pulse88.engine.native import NativeEngine
from pulse88.engine.native_state import Cache, Loan, NativeState, Pool
from pulse88.engine.plan import ALIGNMENT
from pulse88.engine.reference import NumpyEngine
from pulse88.engine.weights import Weights

try:
    RUNNING = kernels()
except ImportError as problem:
    pytest.skip(f"no native engine to test: {problem}", allow_module_level=True)

# No width is a multiple of a vector, of a panel or of four; one key/value head serves three query heads.
ODD = ModelConfig(
    vocab_size=171,
    d_model=42,
    layer_types=(("gqa", "gdn"), ("gdn", "gqa")),
    max_positions=201,
    gdn_inner_dim=22,
    gdn_num_heads=3,
    gdn_key_dim=7,
    gdn_value_dim=9,
    conv_size=3,
    gqa_num_heads=3,
    gqa_kv_heads=1,
    tie_embeddings=False,
    output_logit_scale=42**-0.5,
)
GDN_ONLY = replace(TINY, layer_types=(("gdn", "gdn"),), conv_size=1)
GQA_ONLY = replace(TINY, layer_types=(("gqa",),))
SEQUENCE = {name for name, _ in Sequence._fields_}
SHAPES = {"tiny": TINY, "odd": ODD, "gdn": GDN_ONLY, "gqa": GQA_ONLY}


def weights_for(shape: str, precision: str) -> Weights:
    weights = weights_of(SHAPES[shape])
    return weights.as_int8() if precision == "int8" else weights


def engine(precision: str = "int8", kernel: str | None = None) -> NativeEngine:
    return NativeEngine(weights_for("tiny", precision), kernel)


def tolerance(precision: str) -> float:
    """Beside int8 weights keys, values and, for a kernel that sums bytes, activations have 11 to 16 bits."""
    return 1e-2 if precision == "int8" else TOLERANCE


# ---------------------------------------------------------------- the same function as the numpy engine


@pytest.mark.parametrize("kernel", RUNNING)
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_numpy_in_logits_and_states(shape, precision, kernel):
    weights = weights_for(shape, precision)
    ours, truth = NativeEngine(weights, kernel), NumpyEngine(weights)
    for batch, pieces in ((1, [1, 1, 14, 1, 90]), (2, [70, 1, 3]), (5, [20]), (7, [2, 1])):
        ids, start = random_ids(weights.config, batch, sum(pieces)), 0
        state, true_state = ours.zero_state(batch), truth.zero_state(batch)
        for piece in pieces:
            logits, state = ours.forward(ids[:, start : start + piece], state)
            true_logits, true_state = truth.forward(ids[:, start : start + piece], true_state)
            assert true_logits.std() > 1  # or the comparison would mean little
            np.testing.assert_allclose(logits, true_logits, atol=tolerance(precision), rtol=0)
            assert distance(state.snapshot(), true_state.snapshot()) < tolerance(precision)
            start += piece


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_agrees_with_numpy_in_full_size(precision):
    weights = random_weights("40m")
    weights = weights.as_int8() if precision == "int8" else weights
    ours, truth = NativeEngine(weights), NumpyEngine(weights)
    ids = random_ids(weights.config, 1, 150)
    logits, state = in_pieces(ours, ids, [149, 1])
    true_logits, true_state = in_pieces(truth, ids, [149, 1])
    np.testing.assert_allclose(logits, true_logits, atol=tolerance(precision), rtol=0)
    assert distance(state.snapshot(), true_state.snapshot()) < tolerance(precision)


def test_what_is_no_number_is_not_lost():
    """A weight that makes activations infinite makes the logits no numbers, with every kernel."""
    tensors = dict(weights_for("gqa", "fp32").tensors)
    tensors["layers.0.norm_gqa.weight"] = np.full(TINY.d_model, 3e38, np.float32)
    for kernel in RUNNING:
        ours = NativeEngine(Weights(GQA_ONLY, tensors).as_int8(), kernel)
        logits, _ = ours.forward([[1, 2, 3]], ours.zero_state())
        assert np.isnan(logits).any(), kernel


def test_rounding_is_no_larger_than_numpys():
    weights = random_weights("tiny")
    ids = random_ids(TINY, 1, 250)
    exact = NumpyEngine(weights, np.float64)
    truth = exact.forward(ids, exact.zero_state())[0]
    worst = [
        np.abs(e.forward(ids, e.zero_state())[0] - truth).max() for e in (NumpyEngine(weights), NativeEngine(weights))
    ]
    assert worst[1] < 3 * worst[0]


def test_strong_gates_leave_weak_ones_their_precision():
    """A page's log decays may sum to thousands; what is small after that still counts."""
    tensors = dict(random_weights("tiny").tensors)
    for name in tensors:
        if name.endswith("a_proj.weight"):
            tensors[name] = tensors[name] * np.float32(30)
        if name.endswith("A_log"):
            tensors[name] = np.full_like(tensors[name], np.log(16))
    weights = Weights(TINY, tensors)
    ids = random_ids(TINY, 1, 200)
    exact = NumpyEngine(weights, np.float64)
    truth, true_state = exact.forward(ids, exact.zero_state())
    for ours in (NativeEngine(weights), NumpyEngine(weights)):
        logits, state = ours.forward(ids, ours.zero_state())
        np.testing.assert_allclose(logits, truth, atol=TOLERANCE, rtol=0)
        assert distance(state.snapshot(), true_state.snapshot()) < TOLERANCE


# ---------------------------------------------------------------- the law, to the last bit


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([1, 2, 3, 15, 16, 17, 33, 64, 65, 129]), min_size=2, max_size=5),
    batch=st.sampled_from([1, 2, 3, 6]),
    shape=st.sampled_from(sorted(SHAPES)),
    precision=st.sampled_from(["int8", "fp32"]),
    kernel=st.sampled_from(RUNNING),
    seed=st.integers(0, 9),
)
def test_the_law_holds_at_any_cut(pieces, batch, shape, precision, kernel, seed):
    """A prompt fed in pieces equals the prompt fed at once, bit for bit."""
    config = SHAPES[shape]
    while sum(pieces) > config.max_positions:
        pieces.pop()
    ids = random_ids(config, batch, sum(pieces), seed)
    law = NativeEngine(weights_for(shape, precision), kernel)
    whole, whole_state = law.forward(ids, law.zero_state(batch))
    logits, state = in_pieces(law, ids, pieces)
    assert np.array_equal(logits, whole)
    for name, array in whole_state.snapshot().items():
        assert np.array_equal(state.snapshot()[name], array), name


@pytest.mark.parametrize("kernel", RUNNING)
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_law_holds_token_by_token(precision, kernel):
    assert law_error(engine(precision, kernel), random_ids(TINY, 2, 70), [1] * 70) == 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_law_holds_in_full_size(precision):
    weights = random_weights("40m")
    law = NativeEngine(weights.as_int8() if precision == "int8" else weights)
    assert law_error(law, random_ids(law.config, 2, 101), [65, 1, 1, 34]) == 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("batch", [2, 3, 4, 5, 16])
def test_a_batch_equals_its_single_runs(precision, batch):
    ours, ids = engine(precision), random_ids(TINY, batch, 35)
    logits, state = in_pieces(ours, ids, [33, 1, 1])
    for row in range(batch):
        alone, single = in_pieces(ours, ids[row : row + 1], [33, 1, 1])
        assert np.array_equal(logits[row], alone[0])
        assert all(np.array_equal(state.snapshot()[name][row], a[0]) for name, a in single.snapshot().items())


def test_last_only_is_the_last_of_all():
    ours, ids = engine(), random_ids(TINY, 2, 150)
    whole, one = ours.forward(ids, ours.zero_state(2))
    last, other = ours.forward(ids, ours.zero_state(2), last_only=True)
    assert last.shape == (2, 1, 171)
    assert np.array_equal(last[:, 0], whole[:, -1])
    assert all(np.array_equal(one.snapshot()[name], array) for name, array in other.snapshot().items())


def tampered(state: NativeState, part: str) -> NativeState:
    """A copy of the state that has forgotten one part, as a careless engine would."""
    pool = Pool()

    def copy(loan: Loan) -> Loan:
        other = pool.take(loan.array.shape, halves=True)
        other.array[...] = loan.array
        return other

    (strand,) = state.strands
    memory, rows, tails = copy(strand.memory_MHKV), copy(strand.rows_MF), copy(strand.tails_MTW)
    cache = Cache(TINY, strand.cache.kept, len(strand.cache.keys_AGNE), strand.cache.capacity, strand.cache.capacity)
    cache.fill(strand.cache, 0, strand.position)
    other = replace(strand, memory_MHKV=memory, rows_MF=rows, tails_MTW=tails, cache=cache)
    page_keys, errors, _ = other.page(TINY)
    parts = {"memory": memory.array, "tail": tails.array, "errors": errors, "page keys": page_keys}
    forgotten = (parts | {"keys": cache.keys_AGNE})[part]
    assert forgotten.any()
    forgotten[...] = 0
    memory.round_halves()
    return NativeState(TINY, (other,))


@pytest.mark.parametrize("part", ["memory", "tail", "errors", "page keys", "keys"])
def test_a_state_that_forgets_a_part_breaks_the_law(part):
    ids = random_ids(TINY, 1, 64)
    assert law_error(engine(), ids, [40, 24], lambda state: state) == 0
    assert law_error(engine(), ids, [40, 24], lambda state: tampered(state, part)) > 100 * TOLERANCE


# ---------------------------------------------------------------- states


@pytest.mark.parametrize("start", [1, 15, 16, 20, 31, 32])
def test_an_old_state_can_be_used_again(start):
    ours, ids = engine(), random_ids(TINY, 2, 100)
    _, state = ours.forward(ids[:, :start], ours.zero_state(2))
    before = state.snapshot()
    first, _ = ours.forward(ids[:, 33:40], state)
    other, _ = ours.forward(ids[:, 60:70], state)
    again, after = ours.forward(ids[:, 33:40], state)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other[:, :7])
    assert all(np.array_equal(before[name], now) for name, now in state.snapshot().items())
    assert (state.position, after.position) == (start, start + 7)


def test_branches_of_one_state_grow_side_by_side():
    ours, ids = engine(), random_ids(TINY, 4, 60)
    _, origin = ours.forward(ids[:1, :10], ours.zero_state())
    states = [origin] * 4
    for t in range(10, 60):
        for branch in range(4):
            _, states[branch] = ours.forward(ids[branch : branch + 1, t : t + 1], states[branch])
    for branch in range(4):
        sequence = np.concatenate([ids[:1, :10], ids[branch : branch + 1, 10:]], axis=1)
        _, alone = ours.forward(sequence, ours.zero_state())
        assert all(np.array_equal(states[branch].snapshot()[n], array) for n, array in alone.snapshot().items())


@pytest.mark.parametrize("start", [5, 16, 47, 64, 150])
def test_forks_disturb_neither_each_other_nor_their_origin(start):
    ours, ids = engine(), random_ids(TINY, 3, start + 20)
    _, origin = ours.forward(ids[:1, :start], ours.zero_state())
    before = origin.snapshot()
    forks = ours.fork(origin, 3)
    assert (forks.batch, forks.position) == (3, start)
    logits, after = ours.forward(ids[:, start:], forks)
    for row in range(3):
        alone, _ = ours.forward(ids[row : row + 1, start:], origin)
        assert np.array_equal(logits[row], alone[0])
    assert all(np.array_equal(before[name], now) for name, now in origin.snapshot().items())
    assert all(np.array_equal(forks.snapshot()[name][1], array[0]) for name, array in before.items())
    _, alone = ours.forward(ids[1:2, start:], origin)
    assert all(np.array_equal(after.snapshot()[name][1], array[0]) for name, array in alone.snapshot().items())
    assert ours.fork(origin, 1) == origin
    with pytest.raises(ValueError, match="batch of 3"):
        ours.fork(after, 2)
    with pytest.raises(ValueError, match="1 or more"):
        ours.fork(origin, 0)


def test_room_is_used_again_and_never_while_a_state_holds_it():
    ours, ids = engine(), random_ids(TINY, 1, 200)
    kept, state = [], ours.zero_state()
    for t in range(200):
        _, state = ours.forward(ids[:, t : t + 1], state)
        if t % 7 == 0:
            kept.append((state, state.snapshot()))
    for old, before in kept:
        assert all(np.array_equal(before[name], now) for name, now in old.snapshot().items())
    pool = Pool()
    first = pool.take((4, 5))
    address = first.array.ctypes.data
    assert address % ALIGNMENT == 0
    second = pool.take((4, 5))
    assert second.array.ctypes.data != address
    del first
    assert pool.take((5, 4)).array.ctypes.data == address


def test_threads_may_share_a_state():
    ours, ids = engine(), random_ids(TINY, 8, 60)
    _, origin = ours.forward(ids[:1, :20], ours.zero_state())
    alone = [in_pieces_from(ours, ids[row : row + 1, 20:], origin) for row in range(8)]
    results: list[Any] = [None] * 8

    def work(row: int) -> None:
        results[row] = in_pieces_from(ours, ids[row : row + 1, 20:], origin)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, results, strict=True))


def in_pieces_from(ours: NativeEngine, ids: np.ndarray, state: NativeState) -> np.ndarray:
    rows = []
    for t in range(ids.shape[1]):
        logits, state = ours.forward(ids[:, t : t + 1], state)
        rows.append(logits)
    return np.concatenate(rows, axis=1)


def test_other_threads_run_during_a_forward():
    ours = engine()
    state, ids = ours.zero_state(2000), random_ids(TINY, 2000, 1)
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        ours.forward(ids, state)
        ended.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # Nobody is made to give way, so this thread runs only if the library lets it.
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        assert not ended.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


# ---------------------------------------------------------------- threads


@pytest.fixture(scope="module")
def crews() -> dict[tuple[str, int], NativeEngine]:
    weights = {precision: weights_for("odd", precision) for precision in ("int8", "fp32")}
    return {(p, threads): NativeEngine(weights[p], threads=threads) for p in weights for threads in (1, 2, 5)}


@settings(max_examples=15, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([1, 3, 16, 33, 64]), min_size=1, max_size=3),
    batch=st.sampled_from([1, 2, 7]),
    precision=st.sampled_from(["int8", "fp32"]),
    threads=st.sampled_from([2, 5]),
)
def test_threads_change_no_bit(crews, pieces, batch, precision, threads):
    ids = random_ids(ODD, batch, sum(pieces))
    logits, state = in_pieces(crews[precision, threads], ids, pieces)
    alone, single = in_pieces(crews[precision, 1], ids, pieces)
    assert np.array_equal(logits, alone)
    assert all(np.array_equal(state.snapshot()[name], array) for name, array in single.snapshot().items())


@pytest.mark.parametrize("kernel", RUNNING)
def test_every_kernel_has_threads(kernel):
    ids = random_ids(TINY, 3, 40)
    ours = [NativeEngine(weights_for("tiny", "int8"), kernel, threads) for threads in (1, 3)]
    one, many = (in_pieces(e, ids, [33, 7])[0] for e in ours)
    assert np.array_equal(one, many)


def test_helpers_sleep_between_calls():
    ours = NativeEngine(weights_for("tiny", "int8"), threads=4)
    ours.forward(random_ids(TINY, 1, 64), ours.zero_state())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.5  # three that spin would take up to three seconds, and one alone one


def test_calls_from_several_threads_share_one_crew():
    ours, ids = NativeEngine(weights_for("tiny", "int8"), threads=3), random_ids(TINY, 4, 60)
    alone = [ours.forward(ids[row : row + 1], ours.zero_state())[0] for row in range(4)]
    results: list[Any] = [None] * 4

    def work(row: int) -> None:
        for _ in range(10):
            results[row] = ours.forward(ids[row : row + 1], ours.zero_state())[0]

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, results, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_process_computes_without_the_helpers_it_lost():
    program = """
import os, sys
import numpy as np
from pulse88.config import TINY
from pulse88.engine.native import NativeEngine
from pulse88.engine.weights import Weights, random_tensors
engine = NativeEngine(Weights(TINY, random_tensors(TINY, 0)), threads=3)
ids = np.arange(64)[None]
before = engine.forward(ids, engine.zero_state())[0]
child = os.fork()
if not child:
    os._exit(not np.array_equal(engine.forward(ids, engine.zero_state())[0], before))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_an_engine_that_goes_takes_its_helpers_along():
    tasks = Path("/proc/self/task")

    def count() -> int:
        return len(list(tasks.iterdir()))

    if not tasks.is_dir():
        pytest.skip("this system doesn't list a process's threads")
    before = count()
    ours = NativeEngine(weights_for("tiny", "int8"), threads=4)
    assert count() == before + 3
    del ours
    gc.collect()
    assert count() == before


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_numbers_of_threads_that_make_no_sense_are_refused(threads):
    with pytest.raises(ValueError, match="1 to 64 threads"):
        NativeEngine(weights_for("tiny", "int8"), threads=threads)


# ---------------------------------------------------------------- refusals


def test_positions_past_the_table_are_refused():
    ours = engine()
    _, state = ours.forward(random_ids(TINY, 1, 256), ours.zero_state(), last_only=True)
    with pytest.raises(ValueError, match="256 tokens seen and 1 more"):
        ours.forward([[0]], state)


@pytest.mark.parametrize(
    ("ids", "words"), [([[171]], "vocabulary"), ([[-1]], "vocabulary"), ([[0], [1]], "batch of 2")]
)
def test_ids_that_mean_nothing_are_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        engine().forward(ids, engine().zero_state())


def test_states_of_other_engines_and_models_are_refused():
    ours, numpy_engine = engine(), NumpyEngine(random_weights("tiny"))
    with pytest.raises(TypeError, match="NumpyState"):
        ours.forward([[0]], numpy_engine.zero_state())
    with pytest.raises(TypeError, match="NumpyState"):
        ours.fork(numpy_engine.zero_state(), 2)
    with pytest.raises(ValueError, match="another shape"):
        ours.forward([[0]], NativeEngine(weights_of(ODD)).zero_state())
    with pytest.raises(ValueError, match="another shape or precision"):  # Its keys and values have other sizes.
        ours.forward([[0]], engine("fp32").zero_state())
    with pytest.raises(ValueError, match="1 or more"):
        ours.zero_state(0)


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="mmx"):
        NativeEngine(random_weights("tiny"), "mmx")
    assert kernels()[0] == KERNELS[0] == "baseline"
    assert not library().p88_runs(99)


def test_shapes_that_the_library_has_no_room_for_are_refused():
    with pytest.raises(ValueError, match="use numpy"):
        NativeEngine(weights_of(replace(TINY, conv_size=17, layer_types=(("gdn",),))))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), far=st.one_of(st.integers(-(2**63), -2), st.integers(10**6, 2**63 - 1)))
def test_plans_that_point_outside_are_refused(data, far):
    """Whatever value of a plan is changed to one that lies outside the weights."""
    plan, size = PLANNED._plan.copy(), PLANNED._weights.size
    assert size < 10**6
    check = library().p88_check
    assert check(plan.ctypes.data, plan.size, size)
    assert not check(plan.ctypes.data, plan.size - 1, size)
    plan[data.draw(st.sampled_from(np.flatnonzero(plan > 0).tolist()))] = far  # The others mark what a mixer lacks.
    assert not check(plan.ctypes.data, plan.size, size)


PLANNED = NativeEngine(weights_of(TINY))


def test_weights_that_are_too_short_are_refused():
    plan, size = PLANNED._plan, PLANNED._weights.size
    check = library().p88_check
    assert not any(check(plan.ctypes.data, plan.size, short) for short in (0, 4, size // 2, size - 65))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 0},
        {"batch": 2**62},
        {"tokens": 0},
        {"position": -1},
        {"position": 256},
        {"position": 2**62},
        {"tokens": 2**62},
        {"capacity": 0},
        {"capacity": 24},
        {"prefix": 64},
        {"prefix": -64},
        {"prefix_capacity": -64},
        {"prefix_capacity": 8},
        {"scratch_floats": 100},
        {"threads": 0},
        {"threads": 65},
    ],
)
def test_calls_that_do_not_fit_are_refused(changes):
    ids = np.zeros((1, 4), np.int64)
    fitting = {
        "batch": 1,
        "tokens": 4,
        "position": 0,
        "capacity": 64,
        "logit_rows": 0,
        "scratch_floats": 2**40,
        "threads": 1,
    }

    def call_of(**changes: int) -> Any:
        values = fitting | changes
        sequence = Sequence(**{name: values[name] for name in values.keys() & SEQUENCE})
        own = {name: values[name] for name in values.keys() - SEQUENCE}
        return ctypes.byref(Call(**own, ids=ids.ctypes.data, sequences=(Sequence * 1)(sequence)))

    pointers = PLANNED._plan.ctypes.data, PLANNED._weights.ctypes.data
    assert library().p88_forward(0, *pointers, call_of(**changes)) == 0
    ids[0, 3] = 171
    assert library().p88_forward(0, *pointers, call_of()) == 0


# ---------------------------------------------------------------- packing


@given(rows=st.integers(1, 150), quads=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_packed_matrices_hold_every_value_once(rows, quads):
    cols, rng = 4 * quads, np.random.default_rng(rows)
    padded = -(-rows // 16) * 16
    for form in (FLOATS, WORDS, BYTES):
        values = rng.integers(-127, 128, (rows, cols)).astype(np.float32 if form == FLOATS else np.int8)
        size = library().p88_packed_bytes(form, rows, cols)
        assert size == padded * cols * values.itemsize
        packed = np.full(size, 99, np.uint8)
        assert library().p88_pack(form, values.ctypes.data, rows, cols, packed.ctypes.data, size)
        assert not library().p88_pack(form, values.ctypes.data, rows, cols, packed.ctypes.data, size - 1)
        whole, start = packed.view(values.dtype), 0
        for first in range(0, padded, 64):
            width = min(64, padded - first)
            group = whole[start : start + width * cols]
            real = values[first : first + width]
            if form == BYTES:  # Four inputs of an output side by side, each 128 too large.
                quads_of = group.view(np.uint8).reshape(quads, width, 4)[:, : len(real)].astype(np.int64) - 128
                assert np.array_equal(quads_of.swapaxes(0, 1).reshape(real.shape), real)
            elif form == WORDS:  # Words of four inputs, the lowest first, each carrying into the next.
                words = group.view("<i4").reshape(quads, width).astype(np.int64)
                sums = real.astype(np.int64).reshape(-1, quads, 4) @ (1 << np.array([0, 8, 16, 24]))
                assert np.array_equal(words[:, : len(real)].T, sums)
                assert not words[:, len(real) :].any()
            else:
                assert np.array_equal(group.reshape(cols, width)[:, : len(real)].T, real)
                assert not group.reshape(cols, width)[:, len(real) :].any()
            start += width * cols
    assert library().p88_packed_bytes(BYTES, 1, 2**16 + 4) == -1  # Its sums might not fit 32 bits.
    assert not library().p88_pack(3, values.ctypes.data, rows, cols, packed.ctypes.data, size)


def test_halves_are_rounded_as_numpy_rounds_them():
    """Keys and values of int8 weights are what numpy's float16 makes of them."""
    for kernel in RUNNING:
        tensors = dict(weights_of(GQA_ONLY).as_int8().tensors)
        # A tiny scale and a large one, for halves below the normal ones and near the largest.
        scale = tensors["layers.0.gqa.v_proj.weight.scale"]
        tensors["layers.0.gqa.v_proj.weight.scale"] = scale * np.geomspace(1e-7, 3e3, scale.size, dtype=np.float32)
        weights = Weights(GQA_ONLY, tensors)
        ours, wide = NativeEngine(weights, kernel), NativeEngine(Weights(GQA_ONLY, dense(weights)), kernel)
        ids = random_ids(GQA_ONLY, 1, 70)
        _, state = ours.forward(ids, ours.zero_state())
        _, exact = wide.forward(ids, wide.zero_state())
        for kept, full in zip(state.strands[0].keys_values(), exact.strands[0].keys_values(), strict=True):
            assert kept.dtype == np.float16
            rounded = full.astype(np.float16)
            steps = np.abs(kept.view(np.int16).astype(int) - rounded.view(np.int16).astype(int))
            same_sign = np.signbit(kept) == np.signbit(rounded)
            assert (steps[same_sign] <= (2 if kernel == "avx512vnni" else 1)).mean() > 0.98


def dense(weights: Weights) -> dict[str, np.ndarray]:
    return {name: weights.matrix(name) for name in weights.tensors if not name.endswith(".scale")}


@pytest.mark.parametrize("kernel", [kernel for kernel in RUNNING if kernel != "baseline"])
def test_a_memory_is_read_in_half_precision_and_kept_in_single(kernel):
    ours, ids = engine("int8", kernel), random_ids(TINY, 1, 3 * PAGE)
    _, state = ours.forward(ids, ours.zero_state())
    loan = state.strands[0].memory_MHKV
    written = loan.halves().copy()
    loan.round_halves()
    assert np.array_equal(loan.halves(), written)  # what C rounds, numpy rounds in the same way
    assert written.dtype == np.float16
    assert not np.array_equal(written.astype(np.float32), loan.array.reshape(-1))
    before, _ = ours.forward(ids[:, :1], state)
    loan.halves()[...] *= 1.5
    after, _ = ours.forward(ids[:, :1], state)
    assert not np.array_equal(before, after)
    assert engine("fp32", kernel).zero_state().strands[0].memory_MHKV.halves().size == 0


def test_pages_begin_where_python_thinks():
    assert library().p88_size_of(3) == PAGE
    ours = engine("fp32")
    _, state = ours.forward(random_ids(TINY, 1, PAGE), ours.zero_state())
    _, later = ours.forward(random_ids(TINY, 1, 3), state)
    (before,), (after,) = state.strands, later.strands
    assert after.memory_MHKV is before.memory_MHKV  # Within a page nothing is rewritten.
    assert after.rows_MF is before.rows_MF


def test_a_missing_or_foreign_library_is_told(monkeypatch):
    library.cache_clear()
    monkeypatch.setattr(native_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not built"):
        library()
    monkeypatch.undo()
    for origin, words in ((__file__, "does not open"), (ctypes.util.find_library("c"), "other sources")):
        found = importlib.machinery.ModuleSpec("_native", None, origin=origin)
        monkeypatch.setattr(native_library.importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(ImportError, match=words):
            library()
        monkeypatch.undo()
    monkeypatch.setattr(native_library, "KEYS", 8)
    with pytest.raises(ImportError, match="other sources"):
        library()
    monkeypatch.undo()
    library.cache_clear()
    assert library().p88_runs(0)
