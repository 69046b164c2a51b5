"""Files and arguments that nobody means: refused in words, or taken; no other exception, and no endless memory."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as serialise

from command_line import run
from made_corpus import piece
from made_data import make_data
from pulse88 import engine, generate, listening, midi_file, overlap_index, shards, snapshot, suites
from pulse88.config import TINY, SamplingConfig
from pulse88.continuation import Continuer
from pulse88.engine import weights as weights_file
from pulse88.engine.adapter import AdapterError, adapted, read_adapter, write_adapter
from pulse88.engine.weights import Weights, WeightsError, in_order
from pulse88.journal import read_chunk
from pulse88.labels import Labels
from pulse88.overlap_index import OverlapIndex, OverlapIndexError
from pulse88.provenance import MARK, Provenance
from pulse88.vocabulary import BOS, FINE, TimeGrid

DEEP = "[" * 20_000 + "]" * 20_000  # deeper than Python's reader of JSON goes
LAW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(st.integers(-2, 70), st.sampled_from([2**31, 2**63, -(2**63), 10**400]), st.floats())
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "w"
    tensors = weights_file.quantise(weights_file.random_tensors(TINY, 0))
    weights_file.save(path, tensors, weights_file.metadata_of(TINY, FINE))
    return weights_file.read(path)


# ---------------------------------------------------------------- JSON


def as_file(name: str, text: str, folder: Path) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: TimeGrid.from_json(DEEP),
        lambda folder: suites.load(as_file("suite.json", DEEP, folder)),
        lambda folder: shards.read_manifest(as_file("manifest.json", DEEP, folder).parent),
        lambda folder: Labels.read(licences=[str(as_file("licences.json", DEEP, folder))]),
        lambda folder: read_chunk(as_file("chunk", DEEP, folder)),
        lambda folder: listening.read_answers(as_file("key.json", DEEP, folder), []),
    ],
    ids=["grid", "suite", "manifest", "licences", "chunk", "key"],
)
def test_json_that_is_too_deep_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recursion|no JSON|not a time grid"):
        read(tmp_path)


@pytest.mark.parametrize("text", [DEEP, '{"rope_base": 1' + "0" * 400 + "}"])
def test_a_models_configuration_that_is_too_deep_or_too_large_is_refused(text: str, tmp_path: Path) -> None:
    metadata = weights_file.metadata_of(TINY, FINE) | {"model_config": text}
    weights_file.save(tmp_path / "w", weights_file.random_tensors(TINY, 0), metadata)
    with pytest.raises(WeightsError, match="model_config"):
        weights_file.read(tmp_path / "w")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint after a step of training, and what loads one from a folder."""
    pytest.importorskip("torch", reason="torch isn't installed: pip install '.[train]'")
    import torch

    from pulse88 import checkpoint
    from pulse88.config import TINY_RECIPE
    from pulse88.model import Pulse88
    from pulse88.optimizer import make_optimizers

    def fresh() -> Any:
        model = Pulse88(TINY_RECIPE.model_config)
        return model, make_optimizers(model, TINY_RECIPE)

    torch.manual_seed(0)
    model, optimizers = fresh()
    logits, _ = model(torch.tensor([[BOS, 3, 60]]), model.zero_state())
    logits.sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    circumstances = checkpoint.Circumstances(FINE, "data", 1)
    run = tmp_path_factory.mktemp("run")
    at = checkpoint.Progress(1, 9)
    folder = checkpoint.save(run, model, optimizers, at, TINY_RECIPE, circumstances, {})
    return folder, lambda of: checkpoint.load(of, *fresh(), TINY_RECIPE, circumstances)


@pytest.mark.parametrize(
    "content",
    [
        *(DEEP, "\xff", "[]", "3", {"step": "1"}, {"step": True}, {"step": -1}, {"tokens": 1e9}, {"config": []}),
        *({"config": {"steps": None}}, {"time_grid": 3}, {"time_grid": "other"}, {"scaler": 3}, {"data": "other"}),
    ],
)
def test_a_training_state_that_means_nothing_is_refused(content: Any, training: Any, tmp_path: Path) -> None:
    good, load = training
    folder = shutil.copytree(good, tmp_path / good.name)
    assert load(folder).progress.step == 1
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "state.json").read_text()) | content)
    (folder / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"step-00000001"):
        load(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_tensors_of_a_checkpoint_that_have_another_shape_are_refused(name: str, training: Any, tmp_path: Path) -> None:
    good, load = training
    folder = shutil.copytree(good, tmp_path / good.name)
    tensors = dict(snapshot.arrays_of((folder / name).read_bytes()))
    changed = next(entry for entry, array in tensors.items() if array.ndim == 2)
    (folder / name).write_bytes(serialise(tensors | {changed: tensors[changed][:-1].copy()}))
    with pytest.raises(ValueError, match=rf"{name}: .*delete its folder"):
        load(folder)
    (folder / name).write_bytes((good / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{name}: .*delete its folder"):
        load(folder)


@pytest.mark.parametrize(
    "key", ["{}", "[]", '{"test": "t", "clips": {"a": {"system": "A"}}}', '{"test": 3, "clips": {}}']
)
def test_what_is_no_key_of_a_listening_test_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"key\.json: no key of a listening test: give the key"):
        listening.read_answers(as_file("key.json", key, tmp_path), [])


@pytest.mark.parametrize("changes", [{"length": 1e999}, {"length": None}, {"md5": "zz"}])
def test_a_row_of_the_originals_form_that_says_nothing_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    row = {"md5": "ff" * 16, "npz_path": "0.npz", "length": 8, "source_path": "a/b.mid"} | changes
    as_file("manifest.json", json.dumps([row]), tmp_path)
    with pytest.raises(shards.ShardError, match=r"manifest\.json"):
        shards.read_split(tmp_path, "train")


def test_a_name_that_is_no_word_is_refused_where_few_pieces_are_drawn_too(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["pieces"][0]["name"] = 3.5
    as_file("manifest.json", json.dumps(manifest), data)
    with pytest.raises(shards.ShardError, match=r"name is 3\.5"):
        shards.read_split(data, "train", max_pieces=2)


# ---------------------------------------------------------------- arrays


def an_index(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """An index's file, its header and its arrays."""
    music, path = piece(1), folder / "index.npz"
    overlap_index.build([("a/b", np.asarray(music.onset), np.asarray(music.pitch))]).write(path)
    with np.load(path) as arrays:
        parts = dict(arrays)
    return path, json.loads(lzma.decompress(parts["header"].tobytes())), parts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": [3]}, "names are no list of words"),
        ({"counts": [-1]}, "counts are no list of numbers"),
        ({"counts": [1.5]}, "counts are no list of numbers"),
        ({"counts": [2**50]}, "counts are no list of numbers"),
        ({"counts": []}, "parts don't fit together"),
        ({"about": 3}, "parts don't fit together"),
        ({"every": True}, "every is True"),
        ({"every": 10**9}, "every is 1000000000"),
    ],
)
def test_an_index_with_a_header_that_means_nothing_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path, header, parts = an_index(tmp_path)
    np.savez(path, **parts | {"header": overlap_index._squeezed(json.dumps(header | changes).encode())})
    with pytest.raises(OverlapIndexError, match=words):
        OverlapIndex.read(path)


def test_parts_of_an_index_do_not_unpack_to_more_than_fits(tmp_path: Path) -> None:
    path, _, parts = an_index(tmp_path)
    for name in ("gaps", "seconds"):
        np.savez(path, **parts | {name: overlap_index._squeezed(bytes(2**20))})
        with pytest.raises(OverlapIndexError, match=r"has more than .* bytes"):
            OverlapIndex.read(path)
    np.savez(path, **parts | {"gaps": parts["gaps"][:-9]})
    with pytest.raises(OverlapIndexError, match="cut off"):
        OverlapIndex.read(path)
    np.savez(path, **parts | {"seeds": parts["seeds"][:1]})
    with pytest.raises(OverlapIndexError, match="no index"):
        OverlapIndex.read(path)


@pytest.mark.parametrize(
    "header", ["{'descr': '<f8', 'shape': (2**99", "{'descr': 'x\0', ", "(" * 500, "{'descr': '|O'"]
)
def test_headers_of_arrays_that_do_not_parse_are_refused(header: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("tokens.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(ValueError, match=r"a\.npz: "):
        shards.read_npz(tmp_path / "a.npz", ["tokens"])


def test_an_array_that_unpacks_to_too_much_is_refused_before_it_is(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "UNPACKED_BYTES", 2**16)
    np.savez_compressed(tmp_path / "a.npz", tokens=np.zeros(2**22, np.uint8))
    with pytest.raises(ValueError, match=r"tokens\.npy unpacks to 4,194,304 bytes"):
        shards.read_npz(tmp_path / "a.npz", ["tokens"])


# ---------------------------------------------------------------- adapters


@LAW
@given(data=st.data())
def test_an_adapter_of_whatever_shapes_is_merged_or_refused(weights: Weights, tmp_path: Path, data: Any) -> None:
    def tensor() -> np.ndarray:
        fits = data.draw(st.sampled_from([(2, 32), (16, 2), (2, 32), (16, 2), (), (2,), (0, 32), (16, 0), (2, 32, 1)]))
        kind = data.draw(st.sampled_from(["<f4", "<f2", "<f8", "<i8", "i1", "?"]))
        value = data.draw(st.sampled_from([0.0, 0.01, 1e30, float("inf"), float("nan"), -1.0]))
        with np.errstate(all="ignore"):
            return np.full(fits, value if kind in ("<f4", "<f8") else np.nan_to_num(value, posinf=1.0) > 0).astype(kind)

    module = data.draw(st.sampled_from(["layers.0.gdn1.in_proj", "final_norm", "layers.9.x", ""]))
    kind = data.draw(st.sampled_from(["low-rank", "full", "initial-state"]))
    names = data.draw(st.lists(st.sampled_from(["lora_A", "lora_B", "weight", "weight.scale", "memory"]), max_size=3))
    write_adapter(
        tmp_path / "a", kind, weights, {f"{module}.{name}": tensor() for name in ["lora_A", "lora_B", *names]}, {}
    )
    try:
        changed = adapted(weights, read_adapter(tmp_path / "a"))
    except (AdapterError, WeightsError) as error:
        assert str(error)
    else:
        assert all(np.isfinite(array).all() for array in changed.tensors.values())
        assert engine.load(changed, "numpy").forward([[BOS]], engine.load(changed, "numpy").zero_state())


@pytest.mark.parametrize("kind", ["BF16", "F8_E5M2"])
def test_types_that_numpy_does_not_know_are_refused(kind: str, weights: Weights, tmp_path: Path) -> None:
    low = {"layers.0.gdn1.in_proj.lora_A": np.zeros((2, 32), np.float16)}
    write_adapter(tmp_path / "a", "low-rank", weights, low, {})
    data = (tmp_path / "a").read_bytes()
    size = int.from_bytes(data[:8], "little")
    values = data[8 + size :]
    text = data[8 : 8 + size].replace(b'"F16"', f'"{kind}"'.encode())
    if kind != "BF16":
        values, text = values[:64], text.replace(b"[0,128]", b"[0,64]")
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + values)
    with pytest.raises(AdapterError, match=f"lora_A is of the type {kind}"):
        read_adapter(tmp_path / "a")


# ---------------------------------------------------------------- takes as bytes


@pytest.fixture(scope="module")
def taken(weights: Weights) -> tuple[Any, dict[str, str], dict[str, np.ndarray]]:
    """An engine, and the metadata and the arrays of a take on it."""
    used = engine.load(weights, "numpy")
    take = generate.begin(used, [BOS], SamplingConfig(), random_seed=1)
    for _ in range(3):
        step = generate.advance(take)
        assert step is not None
        take = step[1]
    data = snapshot.dump(take)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return used, header["__metadata__"], dict(snapshot.arrays_of(data))


@LAW
@given(data=st.data())
def test_a_signed_snapshot_of_whatever_facts_goes_on_or_is_refused(taken: Any, data: Any) -> None:
    used, metadata, arrays = taken
    facts = json.loads(metadata["take"])
    for name in data.draw(st.lists(st.sampled_from([*sorted(facts), "more"]), min_size=1, max_size=3)):
        likely = st.sampled_from(["", "00", "aa" * 4, "053c82a0" * 3]) if name in ("anchor", "window") else NUMBERS
        facts[name] = data.draw(st.one_of(likely, VALUES))
    if data.draw(st.booleans()):
        facts["sampling"] = asdict(SamplingConfig()) | {
            data.draw(st.sampled_from(["top_k", "top_p"])): data.draw(VALUES)
        }
    changed = metadata | {"take": json.dumps(facts)}
    del changed["digest"]
    signed = in_order(serialise(arrays, changed | {"digest": snapshot._digest(changed, arrays)}))
    try:
        take = snapshot.load(used, signed)
    except snapshot.SnapshotError as error:
        assert "can't be used" in str(error)
    else:
        step = generate.advance(take)
        assert step is None or len(step[0]) == 4


@pytest.mark.parametrize("name", ["random_seed", "take", "keep", "new_notes"])
def test_settings_of_a_file_with_numbers_past_all_bounds_are_refused(name: str, weights: Weights) -> None:
    made = Continuer(weights).continue_(piece(1, 20), notes=2, seed_notes=9, random_seed=1)[0].provenance
    text = made.to_text()
    assert Provenance.from_text(text) == made
    values = json.loads(text.removeprefix(MARK)) | {name: 2**64}
    with pytest.raises(ValueError, match=f"damaged pulse88 settings: {name} is"):
        Provenance.from_text(MARK + json.dumps(values))


def test_a_snapshot_of_types_that_numpy_does_not_know_is_refused(taken: Any) -> None:
    used, metadata, arrays = taken
    data = serialise(arrays, metadata).replace(b'"F32"', b'"I32"')
    with pytest.raises(snapshot.SnapshotError, match="digest"):
        snapshot.load(used, data)
    odd = serialise({"a": np.zeros(4, np.uint16)}, metadata).replace(b'"U16"', b'"BF16"')
    text = odd[8:].partition(b"}}")[0] + b"}}"
    with pytest.raises(snapshot.SnapshotError, match="of the type 'BF16'"):
        snapshot.load(used, len(text).to_bytes(8, "little") + text + bytes(8))


# ---------------------------------------------------------------- the command line

OPTIONS = {
    "--notes": st.integers(-3, 6),
    "--seed-notes": NUMBERS,
    "--takes": st.one_of(st.integers(-1, 2), st.sampled_from([10**9, 2**63])),
    "--best-of": st.one_of(st.integers(-1, 2), st.sampled_from([10**9, 2**63])),
    "--temperature": NUMBERS,
    "--top-p": NUMBERS,
    "--top-k": NUMBERS,
    "--min-p": NUMBERS,
    "--end-within": NUMBERS,
    "--random-seed": NUMBERS,
    "--engine": st.sampled_from(["numpy", "", "x", "../numpy"]),
    "-o": st.sampled_from(["o.mid", ".", "", "no/such/o.mid", "seed.mid", "x" * 300]),
}


@settings(LAW, max_examples=40)
@given(data=st.data())
def test_whatever_is_asked_a_command_ends_in_words(weights: Weights, tmp_path: Path, data: Any) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        midi_file.write(piece(1, 20), "seed.mid")
        line = ["continue", "seed.mid", "--weights", str(weights.path), "--notes", "2", "--seed-notes", "9"]
        for option in data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3)):
            line += [option, str(data.draw(OPTIONS[option]))]
        for option, count in (("--register", 2), ("--density", 2)):
            if data.draw(st.integers(0, 3)) == 0:
                line += [option, *(str(data.draw(NUMBERS)) for _ in range(count))]
        result = run(*line)
        assert isinstance(result.exception, (SystemExit, type(None))), (line, result.exception)
        assert result.exit_code in (0, 1, 2), (line, result.output)
        assert result.exit_code == 0 or result.stderr.strip(), line
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written stays"
    finally:
        os.chdir(before)


def test_more_takes_than_fit_are_refused_before_any_is_begun(weights: Weights, tmp_path: Path) -> None:
    midi_file.write(piece(1, 20), tmp_path / "seed.mid")
    for option in ("--takes", "--best-of"):
        result = run("continue", tmp_path / "seed.mid", "--weights", weights.path, option, "2147483648")
        assert result.exit_code == 2
        assert "takes must be 1000 or fewer" in result.stderr


def test_more_pieces_than_there_are_is_all_of_them(weights: Weights, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    asked = ("evaluate", "--weights", weights.path, "--data", data, "--engine", "numpy")
    everything = run(*asked)
    assert everything.exit_code == 0, everything.output
    assert run(*asked, "--pieces", "2147483648").stdout == everything.stdout
