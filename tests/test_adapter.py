"""Adapters: what they change, what they leave, and whose weights they refuse. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_law import TOLERANCE, law_error
from pulse88 import engine as engines
from pulse88.config import TINY, SamplingConfig
from pulse88.continuation import Continuer
from pulse88.engine import Engine
from pulse88.engine.adapter import AdapterError, adapted, read_adapter, rounded, write_adapter
from pulse88.engine.layout import initial_shapes
from pulse88.engine.weights import Weights, metadata_of, quantise, random_tensors, read, save
from pulse88.generate import advance, begin, longest_seed
from pulse88.notes import Note, Performance
from pulse88.snapshot import SnapshotError, dump, load
from pulse88.vocabulary import BOS, FINE

MODULE = "layers.0.gdn1.in_proj"
NAME = MODULE + ".weight"


def low_rank(size: float, seed: int = 3, rank: int = 2) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    a = random.standard_normal((rank, TINY.d_model)).astype(np.float16)
    b = (size * random.standard_normal((TINY.gdn_inner_dim, rank))).astype(np.float16)
    return {f"{MODULE}.lora_A": a, f"{MODULE}.lora_B": b}


@pytest.fixture
def base(tmp_path: Path) -> Weights:
    save(tmp_path / "base.safetensors", quantise(random_tensors(TINY, 1)), metadata_of(TINY, FINE))
    return read(tmp_path / "base.safetensors")


@pytest.fixture
def exact(tmp_path: Path) -> Weights:
    save(tmp_path / "exact.safetensors", random_tensors(TINY, 1), metadata_of(TINY, FINE))
    return read(tmp_path / "exact.safetensors")


def test_a_low_rank_change_is_added_to_its_matrix_and_to_nothing_else(exact: Weights, tmp_path: Path) -> None:
    change = low_rank(0.1)
    write_adapter(tmp_path / "a.safetensors", "low-rank", exact, change, {"steps": "7"})
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.metadata["steps"] == "7"
    changed = adapted(exact, adapter)
    up, down = (change[f"{MODULE}.lora_{letter}"].astype(np.float32) for letter in "BA")
    np.testing.assert_allclose(changed.matrix(NAME), exact.matrix(NAME) + up @ down, rtol=1e-6)
    for name in exact.tensors:
        assert (name == NAME) != np.array_equal(changed.tensors[name], exact.tensors[name])
    assert changed.sha256 != exact.sha256
    assert changed.grid == exact.grid


def test_int8_stays_int8_and_small_changes_are_not_lost(base: Weights, tmp_path: Path) -> None:
    """Changes of a hundredth of a step would all be rounded away to the nearest; by chance their mean survives."""
    step = float(base.tensors[NAME + ".scale"].mean())
    write_adapter(tmp_path / "a.safetensors", "low-rank", base, low_rank(0.03 * step), {})
    adapter = read_adapter(tmp_path / "a.safetensors")
    changed = adapted(base, adapter)
    assert changed.tensors[NAME].dtype == np.int8
    up, down = (adapter.tensors[f"{MODULE}.lora_{letter}"].astype(np.float32) for letter in "BA")
    wanted, got = up @ down, changed.matrix(NAME) - base.matrix(NAME)
    assert np.abs(wanted).max() < step / 2
    assert (got != 0).any()
    slope = float((got * wanted).sum() / (wanted * wanted).sum())
    noise = float(np.sqrt((np.abs(wanted) * step * wanted**2).sum()) / (wanted * wanted).sum())
    assert abs(slope - 1) < 4 * noise  # four standard errors of the chance
    again = adapted(base, adapter)
    np.testing.assert_array_equal(again.tensors[NAME], changed.tensors[NAME])
    assert again.sha256 == changed.sha256


def test_what_has_not_changed_is_rounded_to_itself(base: Weights) -> None:
    for name, tensor in base.tensors.items():
        if tensor.dtype == np.int8:
            same = rounded(name, base.matrix(name), base.tensors, np.random.default_rng(0))
            np.testing.assert_array_equal(same[name], tensor)
            np.testing.assert_array_equal(same[name + ".scale"], base.tensors[name + ".scale"])


def test_a_row_that_grows_gets_a_larger_step(base: Weights) -> None:
    grown = base.matrix(NAME).copy()
    grown[2] *= 3
    changed = rounded(NAME, grown, base.tensors, np.random.default_rng(0))
    scale = changed[NAME + ".scale"]
    assert np.flatnonzero(scale != base.tensors[NAME + ".scale"]).tolist() == [2]
    assert np.abs(changed[NAME] * scale[:, None] - grown).max() <= scale.max() * 1.001


def test_full_tensors_take_the_places_of_others(base: Weights, tmp_path: Path) -> None:
    norm = base.tensors["final_norm.weight"] * 2
    table = {name: base.tensors[name] for name in (NAME, NAME + ".scale")}
    table[NAME] = -table[NAME]
    write_adapter(tmp_path / "full.safetensors", "full", base, {"final_norm.weight": norm, **table}, {})
    changed = adapted(base, read_adapter(tmp_path / "full.safetensors"))
    np.testing.assert_array_equal(changed.tensors["final_norm.weight"], norm)
    np.testing.assert_array_equal(changed.matrix(NAME), -base.matrix(NAME))


def first_states(size: float = 1.0, seed: int = 5) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    shapes = initial_shapes(TINY)
    return {name: (size * random.standard_normal(shape)).astype(np.float16) for name, shape in shapes.items()}


def engines_of(weights: Weights) -> list[Engine]:
    try:
        return [engines.load(weights, name) for name in ("numpy", "native")]
    except ImportError:
        return [engines.load(weights, "numpy")]


def test_an_initial_state_is_what_every_engine_begins_with(base: Weights, exact: Weights, tmp_path: Path) -> None:
    states, ids = first_states(), np.array([[BOS, 0, 60, 130, 160, 5, 64, 131]] * 2)
    for weights in (base, exact, base.as_int8()):
        write_adapter(tmp_path / "a.safetensors", "initial-state", weights, states, {})
        tuned = adapted(weights, read_adapter(tmp_path / "a.safetensors"))
        assert tuned.sha256 != weights.sha256
        assert all(tuned.tensors[name] is weights.tensors[name] for name in weights.tensors)
        found = []
        for engine, plain in zip(engines_of(tuned), engines_of(weights), strict=True):
            state = engine.zero_state(2)
            assert state.position == 0
            for name, array in state.snapshot().items():
                if name in states:
                    np.testing.assert_array_equal(array, np.stack([states[name]] * 2))
            logits_BTV, _ = engine.forward(ids, state)
            assert np.abs(logits_BTV - plain.forward(ids, plain.zero_state(2))[0]).max() > 0.1
            assert law_error(engine, ids, [1, 2, 5]) < TOLERANCE
            again = engine.thaw(engine.freeze(engine.zero_state()), 0)
            alone, _ = engine.forward(ids[:1], engine.zero_state())
            np.testing.assert_array_equal(engine.forward(ids[:1], again)[0], alone)
            np.testing.assert_allclose(alone, logits_BTV[:1], atol=TOLERANCE)  # BLAS may sum a single row otherwise.
            found.append(logits_BTV)
        np.testing.assert_allclose(found[0], found[-1], atol=1e-4 if weights is exact else 0.05)


def test_past_the_context_the_state_is_built_again_from_the_adapters(exact: Weights, tmp_path: Path) -> None:
    """A take that rolls on reads what is kept from the adapter's state, not from zeros."""
    write_adapter(tmp_path / "a.safetensors", "initial-state", exact, first_states(), {})
    tuned = adapted(exact, read_adapter(tmp_path / "a.safetensors"))
    engine = engines.load(tuned, "numpy")
    take = begin(engine, (5, 60, 130, 160) * longest_seed(engine), SamplingConfig(), random_seed=1)
    while len(take.window) + 3 <= TINY.max_positions:
        _, take = advance(take) or (None, take)
    again = load(engine, dump(take))
    step, same = advance(take), advance(again)
    assert step is not None and same is not None
    assert step[0] == same[0]
    after = step[1]
    assert len(after.window) < len(take.window)
    _, whole = engine.forward([list(after.window[:-1])], engine.zero_state())
    np.testing.assert_allclose(
        whole.snapshot()["layers.0.gdn1.memory"], after.state.snapshot()["layers.0.gdn1.memory"], atol=1e-4
    )
    other = engines.load(exact, "numpy")
    with pytest.raises(SnapshotError, match="made with other weights"):
        load(other, dump(take))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.clear(), "holds nothing"),
        (lambda t: t.pop("layers.0.gdn1.tail"), "layers.0.gdn1.tail: missing"),
        (lambda t: t.update({"layers.9.gdn1.memory": t["layers.0.gdn1.memory"]}), "layers.9.gdn1.memory: unexpected"),
        (lambda t: t.update({"layers.0.gdn1.tail": np.zeros((2, 2), np.float16)}), r"expected float32 \[3, 64\]"),
        (lambda t: t["layers.1.gdn2.memory"].fill(np.nan), "256 values are not finite"),
        (lambda t: t.update({"layers.0.gdn1.tail": np.zeros((3, 64), np.int32)}), "of another type than float16"),
    ],
)
def test_initial_states_that_do_not_fit_are_refused(base: Weights, tmp_path: Path, spoil: Any, words: str) -> None:
    states = first_states()
    spoil(states)
    write_adapter(tmp_path / "a.safetensors", "initial-state", base, states, {})
    with pytest.raises(AdapterError, match=words):
        adapted(base, read_adapter(tmp_path / "a.safetensors"))


def test_other_weights_and_other_files_are_refused(base: Weights, exact: Weights, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", "low-rank", base, low_rank(0.1), {})
    with pytest.raises(AdapterError, match=r"a\.safetensors belongs to other weights .*by --weights"):
        adapted(exact, read_adapter(tmp_path / "a.safetensors"))
    with pytest.raises(AdapterError, match="no adapter of pulse88: `pulse88 finetune` makes some"):
        read_adapter(tmp_path / "base.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-10])
    with pytest.raises(AdapterError, match="no whole safetensors file"):
        read_adapter(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no such adapter"):
        read_adapter(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop(f"{MODULE}.lora_B"), "has no pair"),
        (lambda t: t.update({f"{MODULE}.lora_A": np.zeros((2, 7), np.float16)}), "of another shape"),
        (lambda t: t.update({f"{MODULE}.lora_B": np.zeros((16, 3), np.float16)}), "of another shape"),
        (lambda t: t.update({"layers.9.x.lora_A": t[f"{MODULE}.lora_A"]}), "has no pair"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(base: Weights, tmp_path: Path, spoil: Any, words: str) -> None:
    tensors = low_rank(0.1)
    spoil(tensors)
    write_adapter(tmp_path / "a.safetensors", "low-rank", base, tensors, {})
    with pytest.raises(AdapterError, match=words):
        adapted(base, read_adapter(tmp_path / "a.safetensors"))


def test_a_continuation_with_an_adapter_is_another_and_is_replayed_with_it(base: Weights, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", "low-rank", base, low_rank(3.0), {})
    seed = Performance.from_notes(Note(0.3 * n, 0.25, 60 + n % 7, 64) for n in range(12))
    plain = Continuer(tmp_path / "base.safetensors", "numpy")
    tuned = Continuer(tmp_path / "base.safetensors", "numpy", tmp_path / "a.safetensors")
    (one,), (other,) = (c.continue_(seed, notes=12, seed_notes=8, random_seed=1) for c in (plain, tuned))
    assert one.ids.tolist() != other.ids.tolist()
    assert tuned.replay(other.to_bytes()).finish().to_bytes() == other.to_bytes()
    with pytest.raises(ValueError, match=r"other weights .*--adapter"):
        plain.replay(other.to_bytes())
