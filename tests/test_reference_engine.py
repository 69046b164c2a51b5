from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_law import TOLERANCE, in_pieces, law_error, random_ids, random_weights, weights_of
from pulse88.config import TINY
from pulse88.engine.reference import (
    GdnState,
    NumpyEngine,
    NumpyState,
    delta_rule,
    delta_rule_chunked,
    delta_rule_loop,
    sigmoid,
)
from pulse88.engine.state import Rows
from pulse88.engine.weights import Weights

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 100)
GDN_ONLY = replace(TINY, layer_types=(("gdn",),), tie_embeddings=False)
GQA_ONLY = replace(TINY, layer_types=(("gqa",),))


def engine(preset: str = "tiny") -> NumpyEngine:
    return NumpyEngine(random_weights(preset))


# ---------------------------------------------------------------- the recurrence


def recurrence_inputs(tokens: int, gate: float, dtype: type, seed: int = 0) -> tuple[np.ndarray, ...]:
    """q, k, v, g, beta and memory of 2 sequences and 3 heads; g is about -gate."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 2, 3, tokens, 8))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, memory = rng.standard_normal((2, 3, tokens, 16)), rng.standard_normal((2, 3, 8, 16))
    g, beta = -gate * rng.uniform(0.5, 1.5, (2, 3, tokens)), rng.uniform(0, 1, (2, 3, tokens))
    return tuple(x.astype(dtype) for x in (q, k, v, g, beta, memory))


def test_loop_is_the_equation_of_the_paper():
    q, k, v, g, beta, memory = recurrence_inputs(5, 0.3, np.float64)
    o, after = delta_rule_loop(q, k, v, g, beta, memory)
    for b in range(2):
        for h in range(3):
            s_KV = memory[b, h]
            for t in range(5):
                key = k[b, h, t][:, None]
                erase = np.eye(8) - beta[b, h, t] * key @ key.T
                s_KV = np.exp(g[b, h, t]) * erase @ s_KV + beta[b, h, t] * key @ v[b, h, t][None]
                np.testing.assert_allclose(o[b, h, t], s_KV.T @ q[b, h, t], atol=1e-13)
            np.testing.assert_allclose(after[b, h], s_KV, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-4)])
@pytest.mark.parametrize("gate", [0.0, 1e-3, 0.1, 5.0, 200.0])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunked_form_equals_the_loop(tokens, gate, dtype, tolerance):
    inputs = recurrence_inputs(tokens, gate, dtype)
    o, memory = delta_rule_loop(*inputs)
    for chunk in (1, 16, 32, 64):
        o_chunked, memory_chunked = delta_rule_chunked(*inputs, chunk=chunk)
        assert o_chunked.dtype == memory_chunked.dtype == dtype
        np.testing.assert_allclose(o_chunked, o, atol=tolerance, rtol=0)
        np.testing.assert_allclose(memory_chunked, memory, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_strong_gates_leave_weak_ones_their_precision(dtype, tolerance):
    """A sum of log decays that has grown to thousands must not round away the small differences after it."""
    q, k, v, g, beta, memory = recurrence_inputs(100, 1e-3, dtype)
    g[:, :, ::17] = -400
    for ours, truth in zip(
        delta_rule_chunked(q, k, v, g, beta, memory), delta_rule_loop(q, k, v, g, beta, memory), strict=True
    ):
        np.testing.assert_allclose(ours, truth, atol=tolerance, rtol=0)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_equal_keys_do_not_upset_the_triangular_system(tokens):
    """The hardest case for the chunked form: one key again and again, no decay, full steps."""
    q, k, v, g, beta, memory = recurrence_inputs(tokens, 0.0, np.float32)
    k[:], beta[:] = k[:, :, :1], 0.99
    for ours, truth in zip(
        delta_rule_chunked(q, k, v, g, beta, memory), delta_rule_loop(q, k, v, g, beta, memory), strict=True
    ):
        np.testing.assert_allclose(ours, truth, atol=1e-4, rtol=0)


def test_the_recurrence_leaves_its_arguments_alone():
    for tokens in (1, 40):
        inputs = recurrence_inputs(tokens, 0.1, np.float32)
        copies = [x.copy() for x in inputs]
        delta_rule(*inputs)
        assert all(np.array_equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_sigmoid_survives_extremes():
    x = np.array([-1e4, -100, -1, 0, 1, 100, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(x), [0, 3.783506e-44, 0.26894143, 0.5, 0.73105858, 1, 1], rtol=0.02)


# ---------------------------------------------------------------- the law


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([1, 2, 3, 31, 32, 33, 63, 64, 65]), min_size=2, max_size=4),
    batch=st.sampled_from([1, 3]),
    config=st.sampled_from([TINY, GDN_ONLY, GQA_ONLY]),
    seed=st.integers(0, 9),
)
def test_the_law_holds_at_any_cut(pieces, batch, config, seed):
    """A prompt fed in pieces equals the prompt fed at once: GDN alone, attention alone and the whole model."""
    law = NumpyEngine(weights_of(config))
    pieces = [min(piece, config.max_positions - 3) for piece in pieces]
    while sum(pieces) > config.max_positions:
        pieces.pop()
    assert law_error(law, random_ids(config, batch, sum(pieces), seed), pieces) < TOLERANCE


def test_the_law_holds_token_by_token():
    ids = random_ids(TINY, 2, 70)
    assert law_error(engine(), ids, [1] * 70) < TOLERANCE


def test_the_law_holds_in_full_size():
    assert law_error(engine("40m"), random_ids(TINY, 1, 70), [33, 1, 36]) < TOLERANCE


def tampered(state: NumpyState, part: str) -> NumpyState:
    """A copy of the state that has forgotten one part, as a careless engine would."""

    def forget(mixer: GdnState | Rows) -> GdnState | Rows:
        if isinstance(mixer, GdnState):
            memory = np.zeros_like(mixer.memory_BHKV) if part == "memory" else mixer.memory_BHKV
            return GdnState(memory, np.zeros_like(mixer.tail_BTW) if part == "tail" else mixer.tail_BTW)
        if part != "keys":
            return mixer
        rows = mixer.repeated(1)
        rows.view()[0] = 0
        return rows

    return replace(state, mixers={name: forget(mixer) for name, mixer in state.mixers.items()})


@pytest.mark.parametrize("part", ["memory", "tail", "keys"])
def test_a_state_that_forgets_a_part_breaks_the_law(part):
    ids = random_ids(TINY, 1, 64)
    assert law_error(engine(), ids, [40, 24]) < TOLERANCE
    assert law_error(engine(), ids, [40, 24], lambda state: tampered(state, part)) > 100 * TOLERANCE


@pytest.mark.parametrize("preset", ["tiny"])
def test_float32_is_near_float64(preset):
    ids = random_ids(TINY, 1, 200)
    exact = NumpyEngine(random_weights(preset), np.float64)
    logits, _ = engine(preset).forward(ids, engine(preset).zero_state())
    truth, _ = exact.forward(ids, exact.zero_state())
    assert truth.dtype == np.float64
    assert logits.dtype == np.float32
    assert truth.std() > 1  # or the comparison would mean little
    np.testing.assert_allclose(logits, truth, atol=TOLERANCE, rtol=0)


def test_float64_keeps_the_law_to_rounding():
    exact = NumpyEngine(random_weights("tiny"), np.float64)
    assert law_error(exact, random_ids(TINY, 2, 130), [65, 1, 64]) < 1e-11


# ---------------------------------------------------------------- states


def test_an_old_state_can_be_used_again():
    numpy_engine, ids = engine(), random_ids(TINY, 2, 60)
    _, state = numpy_engine.forward(ids[:, :20], numpy_engine.zero_state(2))
    before = state.snapshot()
    first, _ = numpy_engine.forward(ids[:, 20:40], state)
    other, _ = numpy_engine.forward(ids[:, 40:60], state)  # Would overwrite the first one's keys and values.
    again, after = numpy_engine.forward(ids[:, 20:40], state)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert all(np.array_equal(before[name], now) for name, now in state.snapshot().items())
    assert (state.position, after.position) == (20, 40)


def test_branches_of_one_state_grow_side_by_side():
    numpy_engine, ids = engine(), random_ids(TINY, 4, 40)
    _, origin = numpy_engine.forward(ids[:1, :10], numpy_engine.zero_state())
    states = [origin] * 4
    for t in range(10, 40):
        for branch in range(4):
            _, states[branch] = numpy_engine.forward(ids[branch : branch + 1, t : t + 1], states[branch])
    for branch in range(4):
        sequence = np.concatenate([ids[:1, :10], ids[branch : branch + 1, 10:]], axis=1)
        _, state = in_pieces(numpy_engine, sequence, [10] + [1] * 30)
        for name, array in state.snapshot().items():
            np.testing.assert_allclose(states[branch].snapshot()[name], array, atol=1e-5)


def test_forks_disturb_neither_each_other_nor_their_origin():
    numpy_engine, ids = engine(), random_ids(TINY, 3, 50)
    _, origin = numpy_engine.forward(ids[:1, :30], numpy_engine.zero_state())
    before = origin.snapshot()
    forks = numpy_engine.fork(origin, 3)
    assert (forks.batch, forks.position) == (3, 30)
    logits, after = numpy_engine.forward(ids[:, 30:], forks)
    for row in range(3):
        alone, _ = numpy_engine.forward(ids[row : row + 1, 30:], origin)
        np.testing.assert_allclose(logits[row], alone[0], atol=TOLERANCE, rtol=0)
    assert all(np.array_equal(before[name], now) for name, now in origin.snapshot().items())
    assert all(np.array_equal(forks.snapshot()[name][1], array[0]) for name, array in before.items())
    with pytest.raises(ValueError, match="batch of 3"):
        numpy_engine.fork(after, 2)
    with pytest.raises(ValueError, match="1 or more"):
        numpy_engine.fork(origin, 0)


def test_a_batch_equals_its_single_runs():
    numpy_engine, ids = engine(), random_ids(TINY, 4, 45)
    logits, _ = in_pieces(numpy_engine, ids, [44, 1])
    for row in range(4):
        alone, _ = in_pieces(numpy_engine, ids[row : row + 1], [44, 1])
        np.testing.assert_allclose(logits[row], alone[0], atol=TOLERANCE, rtol=0)


def test_last_only_is_the_last_of_all():
    numpy_engine, ids = engine(), random_ids(TINY, 2, 33)
    all_logits, one = numpy_engine.forward(ids, numpy_engine.zero_state(2))
    last, other = numpy_engine.forward(ids, numpy_engine.zero_state(2), last_only=True)
    assert last.shape == (2, 1, 171)
    np.testing.assert_allclose(last[:, 0], all_logits[:, -1], atol=1e-5)
    assert all(np.array_equal(one.snapshot()[name], array) for name, array in other.snapshot().items())


def test_rows_are_copied_only_when_they_must_be():
    empty = Rows.empty(2, 1, 1, 4)
    first = empty.grown(3, 100)
    second = first.grown(1, 100)
    assert second.buffer_ABHND is first.buffer_ABHND
    assert first.grown(1, 100).buffer_ABHND is not first.buffer_ABHND  # The next row belongs to `second`.
    assert second.grown(200 - 4, 200).view().shape == (2, 1, 1, 200, 4)


# ---------------------------------------------------------------- refusals


def test_positions_past_the_table_are_refused():
    numpy_engine = engine()
    _, state = numpy_engine.forward(random_ids(TINY, 1, 256), numpy_engine.zero_state(), last_only=True)
    with pytest.raises(ValueError, match="256 tokens seen and 1 more"):
        numpy_engine.forward([[0]], state)
    with pytest.raises(ValueError, match="256 positions"):
        numpy_engine.forward(random_ids(TINY, 1, 257), numpy_engine.zero_state())


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[171]], "vocabulary"),
        ([[-1]], "vocabulary"),
        ([[]], "whole numbers"),
        (np.zeros((1, 0), int), "no tokens"),
        ([0], "whole numbers"),
        ([[0.0]], "whole numbers"),
        ([[True]], "whole numbers"),
        ([[0], [1]], "batch of 2"),
    ],
)
def test_ids_that_mean_nothing_are_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        engine().forward(ids, engine().zero_state())


def test_other_engines_states_are_refused():
    with pytest.raises(TypeError, match="numpy engine"):
        engine().forward([[0]], object())
    with pytest.raises(ValueError, match="1 or more"):
        engine().zero_state(0)


# ---------------------------------------------------------------- what engines may do to weights


def test_output_projections_may_be_merged():
    """No nonlinearity stands between o_proj and out_proj, so an engine may multiply them out beforehand."""
    weights = random_weights("tiny")
    merged = dict(weights.tensors)
    for prefix in [n.removesuffix(".in_proj.weight") for n in merged if n.endswith(".in_proj.weight")]:
        o_proj, out_proj = f"{prefix}.core.o_proj.weight", f"{prefix}.out_proj.weight"
        product = weights.matrix(out_proj).astype(np.float64) @ weights.matrix(o_proj)
        # The same product in other factors of the same shape: the first 16 columns of an orthogonal basis.
        left, right = np.linalg.qr(product)
        merged[out_proj], merged[o_proj] = left[:, :16].astype(np.float32), right[:16].astype(np.float32)
        assert not np.allclose(merged[o_proj], weights.matrix(o_proj), atol=0.1)
    ids = random_ids(TINY, 1, 50)
    ours, truth = NumpyEngine(Weights(TINY, merged)), engine()
    a, b = (e.forward(ids, e.zero_state())[0] for e in (ours, truth))
    np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)


def test_int8_weights_are_computed_as_what_they_say():
    weights = random_weights("tiny").as_int8()
    dense = {name: weights.matrix(name) for name in weights.tensors if not name.endswith(".scale")}
    ids = random_ids(TINY, 1, 40)
    stored, plain = NumpyEngine(weights), NumpyEngine(Weights(TINY, dense))
    assert np.array_equal(stored.forward(ids, stored.zero_state())[0], plain.forward(ids, plain.zero_state())[0])
    exact = engine().forward(ids, engine().zero_state())[0]
    rounded = stored.forward(ids, stored.zero_state())[0]
    assert 1e-3 < np.sqrt(np.square(rounded - exact).mean()) < 0.2
