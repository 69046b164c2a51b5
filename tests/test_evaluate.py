"""Likelihood: every token once, the same whatever the batch, exact for a known distribution; grid-free widths."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="torch, the extra `train`, is not installed")

from pulse88 import engine as engines  # noqa: E402
from pulse88.batches import TokenCorpus  # noqa: E402
from pulse88.checkpoint import load_model  # noqa: E402
from pulse88.cli import main  # noqa: E402
from pulse88.config import TINY  # noqa: E402
from pulse88.engine.adapter import write_adapter  # noqa: E402
from pulse88.engine.layout import initial_shapes  # noqa: E402
from pulse88.engine.weights import Weights, metadata_of, random_tensors, read, save  # noqa: E402
from pulse88.engine_score import bits_of_events, engine_score  # noqa: E402
from pulse88.evaluate import likelihood, torch_score  # noqa: E402
from pulse88.likelihood import (  # noqa: E402
    GRID_FREE_SHIFT,
    Likelihood,
    grid_bits,
    grid_bits_per_note,
    log_widths,
    measure,
    seconds_of_pieces,
    spans,
    spans_of_events,
)
from pulse88.model import Pulse88  # noqa: E402
from pulse88.vocabulary import BLOCKS, BOS, EOS, FINE, PUBLISHED, SIZE, Slot, TimeGrid  # noqa: E402


def a_corpus(notes: tuple[int, ...], seed: int = 0) -> TokenCorpus:
    random = np.random.default_rng(seed)
    pieces = []
    for count in notes:
        events = np.stack([random.integers(b.start, b.stop, count) for b in BLOCKS.values()], axis=1)
        pieces.append(np.concatenate(([BOS], events.ravel(), [EOS])).astype(np.uint8))
    names = tuple(f"{'ab'[i % 2]}/{i}.mid" for i in range(len(notes)))
    return TokenCorpus(np.concatenate(pieces), np.array([len(p) for p in pieces]), names)


@pytest.fixture(scope="module")
def model() -> Pulse88:
    torch.manual_seed(0)
    return Pulse88(replace(TINY, embedding_init_std=1.0, max_positions=64))


@pytest.mark.parametrize("length", [2, 6, 63, 64, 65, 66, 97, 98, 99, 1000])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 60), (64, 4), (62, 31)])
def test_each_target_is_counted_once_with_context(length: int, window: int, stride: int) -> None:
    seen: list[int] = []
    for begin, end, counted in spans(length, window, stride):
        assert end - begin <= window + 1
        assert begin == 0 or begin % 4 == 1, "a later window begins on an event"
        assert counted > begin
        if begin:
            assert counted - begin >= window - stride, "less context than promised"
        seen += range(counted, end)
    assert seen == list(range(1, length))


@pytest.mark.parametrize("length", [2, 6, 63, 64, 65, 66, 97, 98, 99, 1000])
@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 60), (64, 4), (62, 31)])
def test_without_ends_every_event_is_counted_once_in_the_same_window(length: int, window: int, stride: int) -> None:
    seen: list[int] = []
    windows = {token: begin for begin, end, counted in spans(length, window, stride) for token in range(counted, end)}
    for begin, end, counted in spans_of_events(length, window, stride):
        assert begin % 4 == 1
        assert end < length
        assert {windows[token] for token in range(counted, end)} == {begin if begin > 1 else 0}
        seen += range(counted, end)
    assert seen == list(range(2, length - 1))


def test_without_ends_a_model_reads_neither(model: Pulse88) -> None:
    corpus = a_corpus((5,))
    ids = torch.from_numpy(corpus.tokens[1:-1].astype(np.int64))[None]
    with torch.no_grad():
        logits, _ = model(ids[:, :-1], model.zero_state())
    by_hand = -torch.log_softmax(logits, -1)[0, torch.arange(19), ids[0, 1:]]
    found = likelihood(model, corpus, window=64, ends=False)
    assert found.nats.sum() == pytest.approx(float(by_hand.sum()), rel=1e-5)
    assert found.by_slot()["ends"] == 0
    assert found.notes.tolist() == [5]
    shared = [likelihood(model, a_corpus((40, 90)), window=64, rank=r, world=2, ends=False).nats for r in range(2)]
    assert np.allclose(sum(shared), likelihood(model, a_corpus((40, 90)), window=64, ends=False).nats, rtol=1e-6)


@pytest.mark.parametrize("stride", [0, 3, 64, 100])
def test_a_stride_that_skips_tokens_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride must be"):
        list(spans(200, 64, stride))


def test_the_batch_and_the_processes_do_not_change_the_result(model: Pulse88) -> None:
    corpus = a_corpus((3, 40, 17, 90))
    whole = likelihood(model, corpus, window=64, batch=1)
    batched = likelihood(model, corpus, window=64, batch=5)
    shared = [likelihood(model, corpus, window=64, batch=2, rank=r, world=3).nats for r in range(3)]
    assert np.allclose(whole.nats, batched.nats, rtol=1e-6)
    assert np.allclose(whole.nats, sum(shared), rtol=1e-6)
    assert whole.notes.tolist() == [3, 40, 17, 90]


def test_a_short_piece_agrees_with_the_model_by_hand(model: Pulse88) -> None:
    corpus = a_corpus((5,))
    ids = torch.from_numpy(corpus.tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits, _ = model(ids[:, :-1], model.zero_state())
    by_hand = -torch.log_softmax(logits, -1)[0, torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    found = likelihood(model, corpus, window=64)
    assert found.nats.sum() == pytest.approx(float(by_hand.sum()), rel=1e-5)
    assert found.nats[0, Slot.PITCH] == pytest.approx(float(by_hand[1::4].sum()), rel=1e-5)
    assert found.nats[0, 4] == pytest.approx(float(by_hand[-1]), rel=1e-5)


def test_a_uniform_model_costs_log2_of_the_vocabulary_a_token(model: Pulse88) -> None:
    uniform = Pulse88(model.config)
    with torch.no_grad():
        uniform.token_embedding.weight.zero_()
    found = likelihood(uniform, a_corpus((10, 30)), window=64)
    tokens = 40 * 4 + 2  # every token but BOS
    assert found.bits_per_note == pytest.approx(tokens * math.log2(SIZE) / 40, rel=1e-6)
    assert sum(found.by_slot().values()) == pytest.approx(found.bits_per_note)


def test_sources_are_weighted_by_notes() -> None:
    nats = np.array([[math.log(2), 0, 0, 0, 0], [3 * math.log(2), 0, 0, 0, 0], [8 * math.log(2), 0, 0, 0, 0]])
    found = Likelihood(nats, np.array([1, 3, 2]), ("a/1", "a/2", "b/1"))
    assert found.by_source() == pytest.approx({"a": 1.0, "b": 4.0})
    assert found.bits_per_note == pytest.approx(2.0)


def test_widths_of_a_grid_fill_the_line() -> None:
    for grid in (FINE, PUBLISHED):
        times = grid.seconds(Slot.DELTA, np.arange(32))
        top = 2 * times[-1] - (times[-1] + times[-2]) / 2
        total = np.exp2(log_widths(grid, Slot.DELTA)).sum()
        assert total == pytest.approx(math.log((top + GRID_FREE_SHIFT) / GRID_FREE_SHIFT))


def test_splitting_bins_costs_bits_but_no_grid_free_bits() -> None:
    """Twice as many bins of half the width and half the probability: one bit more, and the same density."""
    shift = GRID_FREE_SHIFT

    def uniform(step: float) -> TimeGrid:
        times = tuple(float(shift * math.exp(step * i) - shift) for i in range(32))
        return TimeGrid("uniform", times, tuple(t + 0.05 for t in times), carries_error=False)

    coarse, fine = (log_widths(uniform(step), Slot.DELTA)[5:20] for step in (0.10, 0.05))
    assert np.allclose(coarse - fine, 1.0, atol=0.01)


def test_grid_bits_are_the_mean_over_notes() -> None:
    corpus = a_corpus((50, 20))
    delta, duration = log_widths(FINE, Slot.DELTA), log_widths(FINE, Slot.DURATION)
    events = np.concatenate([corpus.tokens[1:201].reshape(-1, 4), corpus.tokens[203:283].reshape(-1, 4)]).astype(int)
    expected = np.mean([delta[e[0]] + duration[e[2] - BLOCKS[Slot.DURATION].start] for e in events])
    assert grid_bits_per_note(corpus, FINE) == pytest.approx(expected)


def test_grid_bits_and_seconds_are_those_of_each_piece() -> None:
    corpus = a_corpus((50, 1, 20))
    for piece, (start, length) in enumerate(zip(corpus.starts, corpus.lengths, strict=True)):
        alone = TokenCorpus(corpus.tokens[start : start + length], corpus.lengths[piece : piece + 1], ("a/b",))
        assert grid_bits(corpus, FINE)[piece] == pytest.approx(grid_bits_per_note(alone, FINE) * (length // 4))
        deltas = corpus.tokens[start + 1 : start + length - 1 : 4]
        assert seconds_of_pieces(corpus, FINE)[piece] == pytest.approx(FINE.seconds(Slot.DELTA, deltas).sum())


def test_the_order_of_the_pieces_does_not_change_the_result(model: Pulse88) -> None:
    corpus = a_corpus((3, 40, 17, 90, 33))
    order = [3, 0, 4, 2, 1]
    tokens = [corpus.tokens[corpus.starts[i] : corpus.starts[i] + corpus.lengths[i]] for i in order]
    moved = TokenCorpus(np.concatenate(tokens), corpus.lengths[order], tuple(corpus.names[i] for i in order))
    score = torch_score(model)
    here, there = (measure(score, c, window=64, batch=b) for c, b in ((corpus, 3), (moved, 2)))
    assert np.allclose(here.nats[order], there.nats, rtol=1e-6)
    assert np.allclose(here.context_nats[order], there.context_nats, rtol=1e-6)


def test_contexts_hold_all_tokens_of_whole_windows(model: Pulse88) -> None:
    corpus = a_corpus((100, 5))
    found = measure(torch_score(model), corpus, window=64, batch=2)
    windows = sum(end - begin == 65 for begin, end, _ in spans(402, 64, 32))
    assert found.context_tokens.sum(axis=1).tolist() == [64 * windows, 0]
    assert found.context_tokens[0, :2].tolist() == [63 * windows, windows]
    first = torch_score(model)(corpus.tokens[None, :65].astype(np.int64))
    one = measure(torch_score(model), TokenCorpus(corpus.tokens[:65], np.array([65]), ("a/b",)), window=64)
    assert one.context_nats[0, :2] == pytest.approx([first[0, :63].sum(), first[0, 63]], rel=1e-6)


def test_an_engine_and_torch_agree() -> None:
    config = replace(TINY, max_positions=64)
    weights = Weights(config, random_tensors(config, 0), FINE)
    corpus = a_corpus((30, 20, 40))
    by_torch = likelihood(load_model(weights), corpus, window=64)
    by_engine = measure(engine_score(engines.load(weights, "numpy")), corpus, window=64, batch=3)
    assert np.allclose(by_torch.nats, by_engine.nats, rtol=1e-4)
    assert by_engine.bits_per_note == pytest.approx(by_torch.bits_per_note, rel=1e-5)


@pytest.mark.parametrize("begins", [True, False])
def test_bits_of_events_after_a_seed_are_those_of_their_windows(begins: bool) -> None:
    config = replace(TINY, max_positions=64)
    engine = engines.load(Weights(config, random_tensors(config, 0), FINE), "numpy")
    ids = a_corpus((40,)).tokens[:-1].astype(np.int64)
    ids = ids if begins else ids[1:]
    cut = 21 if begins else 20
    bits = bits_of_events(engine, ids[:cut].tolist(), ids[cut:].tolist())
    assert len(bits) == 35
    score = engine_score(engine)
    first = 65 if begins else 64  # the first window reads as much
    by_hand = score(ids[None, :first])[0, cut - 1 : cut + 39].reshape(-1, 4).sum(axis=1) / math.log(2)
    assert np.allclose(bits[:10], by_hand, rtol=1e-6)
    begin = 33 if begins else 32  # the second begins half a window later, on an event
    later = score(ids[None, begin : begin + 65])[0]
    at = cut + 4 * 15
    assert bits[15] == pytest.approx(later[at - begin - 1 : at - begin + 3].sum() / math.log(2), rel=1e-6)


def test_the_command_measures_weights_on_prepared_data(tmp_path: Path) -> None:
    corpus = a_corpus((30, 20, 40))
    write_data(tmp_path, corpus, FINE)
    tensors = random_tensors(TINY, 0)
    save(tmp_path / "w.safetensors", tensors, metadata_of(TINY, FINE))
    asked = ["evaluate", "--data", str(tmp_path), "--weights", str(tmp_path / "w.safetensors"), "--pieces", "2"]
    by_hand = likelihood(load_model(read(tmp_path / "w.safetensors")), corpus, window=256)
    chosen = by_hand.nats[[0, 2]].sum() / 70 / math.log(2)
    for engine in ("torch", "numpy"):
        told = CliRunner().invoke(main, [*asked, "--engine", engine])
        assert told.exit_code == 0, told.output
        assert f"2 pieces, 70 notes of validation, engine {engine}" in told.output
        assert f"{chosen:8.3f} bits a note" in told.output


def test_the_command_measures_weights_with_an_adapter(tmp_path: Path) -> None:
    write_data(tmp_path, a_corpus((30,)), FINE)
    save(tmp_path / "w.safetensors", random_tensors(TINY, 0), metadata_of(TINY, FINE))
    chance, base = np.random.default_rng(1), read(tmp_path / "w.safetensors")
    states = {name: chance.standard_normal(shape, np.float32) for name, shape in initial_shapes(TINY).items()}
    write_adapter(tmp_path / "a.safetensors", "initial-state", base, states, {})
    asked = ["evaluate", "--data", str(tmp_path), "--weights", str(tmp_path / "w.safetensors"), "--engine"]
    told = []
    for engine in ("torch", "numpy"):
        for adapter in ([], ["--adapter", str(tmp_path / "a.safetensors")]):
            found = CliRunner().invoke(main, [*asked, engine, *adapter])
            assert found.exit_code == 0, found.output
            told.append(found.output.splitlines()[1])
    assert told[:2] == told[2:]
    assert told[0] != told[1]


def test_the_command_refuses_data_on_another_grid(tmp_path: Path) -> None:
    write_data(tmp_path, a_corpus((5,)), PUBLISHED)
    save(tmp_path / "w.safetensors", random_tensors(TINY, 0), metadata_of(TINY, FINE))
    told = CliRunner().invoke(main, ["evaluate", "--data", str(tmp_path), "--weights", str(tmp_path / "w.safetensors")])
    assert told.exit_code == 1
    assert "prepare the data again with --grid fine" in told.output


def write_data(folder: Path, corpus: TokenCorpus, grid: TimeGrid) -> None:
    np.savez(folder / "shard.npz", tokens=corpus.tokens)
    pieces = [
        {"name": name, "split": "validation", "shard": "shard.npz", "offset": int(start), "length": int(length)}
        for name, start, length in zip(corpus.names, corpus.starts, corpus.lengths, strict=True)
    ]
    manifest = {"time_grid": json.loads(grid.to_json()), "pieces": pieces}
    (folder / "manifest.json").write_text(json.dumps(manifest))
