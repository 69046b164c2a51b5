"""Adapting tiny weights to made-up pieces: held-out music gets better, and what is told is true of the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pulse88[train]'")

from made_corpus import piece, write_folder  # noqa: E402
from prepared import prepared  # noqa: E402
from pulse88 import engine as engines  # noqa: E402
from pulse88 import finetune as room  # noqa: E402
from pulse88 import shards  # noqa: E402
from pulse88.checkpoint import load_model  # noqa: E402
from pulse88.cli import main  # noqa: E402
from pulse88.config import ADAPTER_KINDS, TINY, FinetuneConfig  # noqa: E402
from pulse88.engine.adapter import adapted, read_adapter, write_adapter  # noqa: E402
from pulse88.engine.layout import initial_shapes  # noqa: E402
from pulse88.engine.weights import Weights, metadata_of, quantise, random_tensors, read, save  # noqa: E402
from pulse88.finetune import FinetuneError, finetune  # noqa: E402
from pulse88.initial_state import add_initial  # noqa: E402
from pulse88.low_rank import add_low_rank, low_rank_tensors  # noqa: E402
from pulse88.midi_file import to_bytes  # noqa: E402
from pulse88.vocabulary import BOS, FINE, PUBLISHED, Grammar  # noqa: E402

QUICK = FinetuneConfig(rank=2, steps=20, window=128, learning_rate=1e-2, look_every=5)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save(path, quantise(random_tensors(TINY, 1)), metadata_of(TINY, FINE))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("prepared"), train=4, validation=2)


def midi_folder(folder: Path, pieces: int, notes: int = 150) -> Path:
    return write_folder(folder, {f"my piece {n}.mid": to_bytes(piece(n, notes)) for n in range(pieces)})


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_held_out_music_is_predicted_better_by_the_file_as_loaded(
    weights: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "my.safetensors"
    told: list[tuple[float, str]] = []
    config, gain = replace(QUICK, kind=kind), 1.0
    if kind == "initial-state":  # The gates of random weights forget it soon.
        config, gain = replace(config, learning_rate=0.1), 0.3
    done = finetune(weights, data, out, config, lambda share, remark: told.append((share, remark)))
    assert done.after.windows < done.before.windows - gain
    assert done.after.prompt < done.before.prompt - gain
    assert (done.train_pieces, done.held_out) == (4, "2 held-out pieces")
    assert done.steps == 20
    assert done.bytes == out.stat().st_size
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    corpus, excerpts, prompt, _ = room._sides(data, FINE, 128)
    merged = adapted(read(weights), read_adapter(out))
    assert merged.quantised
    assert room._Measure(excerpts, prompt, 128, None)(load_model(merged)) == done.after
    assert not set(corpus.names) & set(excerpts.names)


@pytest.mark.parametrize(("kind", "rate"), [("low-rank", 0.01), ("full", 0.01), ("initial-state", 0.1)])
def test_it_goes_on_from_an_earlier_adapter(weights: Path, data: Path, tmp_path: Path, kind: str, rate: float) -> None:
    config = replace(QUICK, kind=kind, steps=5, learning_rate=rate)
    first = finetune(weights, data, tmp_path / "a", config)
    second = finetune(weights, data, tmp_path / "b", config, start=tmp_path / "a")
    if kind == "low-rank":  # in int8 the file's change is rounded, the one that is trained is not
        assert second.before.windows == pytest.approx(first.after.windows, abs=0.05)
    else:
        assert second.before == first.after
    assert second.after.windows < first.after.windows
    steps = [read_adapter(tmp_path / name).metadata["steps"] for name in "ab"]
    assert steps == [str(first.best_step), str(first.best_step + second.best_step)]


def test_it_goes_on_with_the_windows_that_come_next(weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    batch = room.Batches.batch
    monkeypatch.setattr(room.Batches, "batch", lambda self, step: (seen.append(step), batch(self, step))[1])
    for name, start in (("a", None), ("b", weights.parent / "a")):
        finetune(weights, data, weights.parent / name, replace(QUICK, steps=5), start=start)
    assert seen == list(range(10))


def test_only_an_adapter_of_the_same_kind_and_rank_can_be_gone_on_from(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    finetune(weights, data, tmp_path / "a", replace(QUICK, steps=5))
    with pytest.raises(FinetuneError, match="of the kind low-rank: give --kind low-rank"):
        finetune(weights, data, tmp_path / "b", replace(QUICK, kind="initial-state"), start=tmp_path / "a")
    with pytest.raises(FinetuneError, match="of rank 2, not 3: give its --rank"):
        finetune(weights, data, tmp_path / "b", replace(QUICK, rank=3), start=tmp_path / "a")
    found = read_adapter(tmp_path / "a")
    write_adapter(tmp_path / "c", "low-rank", read(weights), found.tensors, {})
    with pytest.raises(FinetuneError, match="doesn't say how many steps"):
        finetune(weights, data, tmp_path / "b", QUICK, start=tmp_path / "c")


def test_a_model_without_gdn_blocks_has_no_initial_state(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, layer_types=(("gqa",),))
    save(tmp_path / "w", random_tensors(config, 1), metadata_of(config, FINE))
    with pytest.raises(ValueError, match="no GDN blocks and so no initial state: choose another kind"):
        finetune(tmp_path / "w", data, tmp_path / "a", replace(QUICK, kind="initial-state"))


def test_torch_begins_with_the_same_initial_state_as_the_engines(weights: Path, tmp_path: Path) -> None:
    base, chance = read(weights), np.random.default_rng(0)
    states = {name: chance.standard_normal(shape, np.float32) for name, shape in initial_shapes(TINY).items()}
    write_adapter(tmp_path / "a", "initial-state", base, states, {})
    tuned = adapted(base, read_adapter(tmp_path / "a"))
    model, engine = load_model(tuned), engines.load(tuned, "numpy")
    ids = np.array([[BOS, 0, 60, 130, 160, 5, 64, 131]] * 2)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(ids), model.zero_state(2))
        plain, _ = load_model(base)(torch.from_numpy(ids), load_model(base).zero_state(2))
    np.testing.assert_allclose(logits.numpy(), engine.forward(ids, engine.zero_state(2))[0], atol=1e-4)
    assert (logits - plain).abs().max() > 0.1
    assert set(load_model(base).state_dict()) == {name for name in base.tensors if not name.endswith(".scale")}


def test_nothing_but_the_initial_state_is_trained(weights: Path) -> None:
    model = load_model(read(weights))
    added = add_initial(model)
    ids = torch.tensor([[BOS, 0, 60, 130, 160]] * 2)
    before = load_model(read(weights))(ids, model.zero_state(2))[0]
    logits, _ = model(ids, model.zero_state(2))
    torch.testing.assert_close(logits, before)
    torch.autograd.backward(logits.square().sum())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == {id(p) for p in added.values()}
    assert set(added) == set(initial_shapes(TINY))
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in trained.values())


def test_the_same_line_makes_the_same_file(weights: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        finetune(weights, data, tmp_path / name, replace(QUICK, steps=5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    finetune(weights, data, tmp_path / "c", replace(QUICK, steps=5, seed=1))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_an_addition_changes_nothing_before_it_is_trained(weights: Path) -> None:
    model, ids = load_model(read(weights)), torch.tensor([[BOS, 0, 60, 130, 160]])
    before, _ = model(ids, model.zero_state())
    added = add_low_rank(model, 2)
    after, _ = model(ids, model.zero_state())
    torch.testing.assert_close(before, after)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(added)
    assert all("parametrizations" in name for name in trained)


def test_what_the_file_says_is_what_was_trained(weights: Path, tmp_path: Path) -> None:
    """The product of the file's matrices is the change that the parametrization makes, its scale included."""
    model = load_model(read(weights))
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    added = add_low_rank(model, 2, scale=1.5)
    with torch.no_grad():
        for change in added.values():
            change.B_RK.normal_()
    tensors = low_rank_tensors(added)
    for name in added:
        got = tensors[f"{name}.lora_B"].float() @ tensors[f"{name}.lora_A"].float()
        wanted = model.get_submodule(name).weight - plain[f"{name}.weight"]
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)  # float16


def test_a_folder_of_midi_is_prepared_on_the_way(weights: Path, tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "my", 5)
    before = sorted(tmp_path.rglob("*"))
    done = finetune(weights, folder, tmp_path / "a.safetensors", replace(QUICK, steps=5))
    assert 3 <= done.train_pieces <= 4
    assert done.held_out.startswith(f"{5 - done.train_pieces} held-out piece")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a.safetensors"])  # nothing else is left behind


def test_of_a_single_piece_the_end_is_held_out(weights: Path, tmp_path: Path) -> None:
    folder = midi_folder(tmp_path / "my", 1)
    done = finetune(weights, folder, tmp_path / "a.safetensors", replace(QUICK, steps=5))
    assert (done.train_pieces, done.held_out) == (1, "the last 15% of every piece")


def test_heads_and_tails_are_the_whole_piece_and_legal(data: Path) -> None:
    corpus = shards.read_split(data, "train")
    heads, tails = room._without_tails(corpus)
    for n, (start, length) in enumerate(zip(corpus.starts.tolist(), corpus.lengths.tolist(), strict=True)):
        head, tail = (
            side.tokens[side.starts[n] : side.starts[n] + side.lengths[n]].tolist() for side in (heads, tails)
        )
        ids = corpus.tokens[start : start + length].tolist()
        assert head == ids[: len(head)]
        assert tail[2:] == ids[len(head) + 1 :]
        assert tail[:2] == [BOS, 0]
        assert len(tail) - 2 == pytest.approx(0.15 * length, abs=5)
        Grammar.of(head)


def test_excerpts_are_windows_side_by_side(data: Path) -> None:
    corpus = shards.read_split(data, "train")
    excerpts = room._excerpts(corpus, 64)
    assert len(excerpts.lengths) == room.MOST_WINDOWS
    assert excerpts.lengths.max() <= 65
    whole = corpus.tokens.tobytes()
    for start, length in zip(excerpts.starts.tolist(), excerpts.lengths.tolist(), strict=True):
        ids = excerpts.tokens[start : start + length]
        assert ids.tobytes() in whole
        Grammar.of(ids[:-1].tolist())


def test_nothing_is_written_where_nothing_is_gained(weights: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="no better after 10 steps, so nothing is written"):
        finetune(weights, data, tmp_path / "a", replace(QUICK, learning_rate=50.0, patience=2))
    assert list(tmp_path.iterdir()) == []


def test_patience_and_minutes_end_it(weights: Path, data: Path, tmp_path: Path) -> None:
    done = finetune(
        weights, data, tmp_path / "a", replace(QUICK, steps=400, look_every=1, patience=1, learning_rate=0.1)
    )
    assert done.ended_by == "patience"
    assert done.best_step == done.steps - 1
    with pytest.raises(FinetuneError, match="no better after 0 steps"):
        finetune(weights, data, tmp_path / "b", replace(QUICK, minutes=1e-9))


def test_another_grid_and_missing_data_are_refused(weights: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "published.safetensors"
    save(other, random_tensors(TINY, 1), metadata_of(TINY, PUBLISHED))
    with pytest.raises(FinetuneError, match="another time grid than the weights"):
        finetune(other, data, tmp_path / "a", QUICK)
    with pytest.raises(FinetuneError, match="no such folder"):
        finetune(weights, tmp_path / "none", tmp_path / "a", QUICK)
    strange = replace(FINE, name="strange", delta=(*FINE.delta[:-1], 9.0))
    save(other, random_tensors(TINY, 1), metadata_of(TINY, strange))
    with pytest.raises(FinetuneError, match="'strange', which can't be prepared"):
        finetune(other, midi_folder(tmp_path / "my", 1), tmp_path / "a", QUICK)


def test_from_the_command_line_to_a_continuation(weights: Path, tmp_path: Path) -> None:
    folder, out = midi_folder(tmp_path / "my", 3), tmp_path / "my.safetensors"
    settings = ["--rank", "2", "--steps", "5", "--window", "128", "--learning-rate", "0.01", "--look-every", "5"]
    line = ["finetune", "--data", str(folder), "-o", str(out), "--weights", str(weights)]
    told = CliRunner().invoke(main, [*line, *settings])
    assert told.exit_code == 0, told.output
    assert "step 5 of 5 kept (ended by steps)" in told.output
    assert "held-out windows" in told.output
    seed = str(folder / "my piece 0.mid")
    played = ["continue", seed, "--weights", str(weights), "--notes", "4", "--random-seed", "1", "--engine", "numpy"]
    for name, adapter in (("plain", []), ("tuned", ["--adapter", str(out)])):
        found = CliRunner().invoke(main, [*played, *adapter, "-o", str(tmp_path / f"{name}.mid"), "--seed-notes", "8"])
        assert found.exit_code == 0, found.output
    again = ["replay", str(tmp_path / "tuned.mid"), "--weights", str(weights), "--adapter", str(out)]
    assert "the same bytes" in CliRunner().invoke(main, [*again, "-o", str(tmp_path / "again.mid")]).output
    again = CliRunner().invoke(main, [*line[:-1], str(weights), *settings, "--adapter", str(out)])
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(main, [*line, "--kind", "huge"])
    assert refused.exit_code == 2


def test_weights_of_every_form_can_be_adapted(data: Path, tmp_path: Path) -> None:
    save(tmp_path / "w", random_tensors(TINY, 2), metadata_of(TINY, FINE))
    finetune(tmp_path / "w", data, tmp_path / "a", replace(QUICK, steps=5))
    merged: Weights = adapted(read(tmp_path / "w"), read_adapter(tmp_path / "a"))
    assert not merged.quantised
