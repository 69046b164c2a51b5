"""What is fed with damaged input: good inputs to begin with, the code that reads them, and their form."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save as serialise

from fuzz_forms import (
    Form,
    Tensors,
    array_of,
    json_form,
    lzma_form,
    midi_form,
    npy_form,
    safetensors_form,
    tar_gz_form,
    zip_form,
)
from made_corpus import piece
from made_data import make_data
from prepared import prepared
from pulse88 import archives, engine, generate, midi_file, shards, snapshot, suites
from pulse88.config import TINY, SamplingConfig
from pulse88.continuation import Continuer, provenance_of
from pulse88.engine import weights as weights_file
from pulse88.engine.adapter import adapted, read_adapter, write_adapter
from pulse88.engine.weights import in_order
from pulse88.overlap_index import OverlapIndex, build
from pulse88.provenance import MARK
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, FINE, SIZE

PUBLISHED_TINY = {
    **{"vocab_size": 171, "d_model": 32, "n_layers": 3, "max_sequence_length": 256, "dropout": 0.1},
    **{"attention_dropout": 0.1, "tie_embeddings": True, "embedding_init_std": 0.02, "output_logit_scale": None},
    **{"gdn_inner_dim": 16, "gdn_num_heads": 2, "gqa_num_heads": 4, "gqa_groups": 2, "attention_every_n_layers": 2},
}
Feed = Callable[[bytes], object]
MODULE = "layers.0.gdn1.in_proj"


class Target(NamedTuple):
    """`door`: words of refusals that come before the contents are looked at, such as that of a wrong digest."""

    seeds: list[bytes]
    feed: Feed
    form: Form | None = None
    door: tuple[str, ...] = ()


def targets(folder: Path, corpus: Path | None) -> dict[str, Callable[[], Target]]:
    """Every reader of files, by name; `folder` is for those that read paths."""

    def by_path(name: str, feed: Callable[[Path], object]) -> Feed:
        path = folder / f"fed-{name}"

        def run(data: bytes) -> object:
            path.write_bytes(data)
            return feed(path)

        return run

    def saved(name: str, int8: bool = False) -> Path:
        tensors: Any = weights_file.random_tensors(TINY, 0)
        path = folder / name
        weights_file.save(
            path, weights_file.quantise(tensors) if int8 else tensors, weights_file.metadata_of(TINY, FINE)
        )
        return path

    def midi() -> Target:
        seeds = [midi_file.to_bytes(piece(seed, 40), texts=["a title"]) for seed in range(4)]
        if corpus:
            found = sorted(corpus.rglob("*.mid"))
            seeds = [path.read_bytes() for path in found[:: max(1, len(found) // 400)]]
        tokenizer = Tokenizer(FINE)

        def feed(data: bytes) -> object:
            performance = midi_file.read(data).performance
            return tokenizer.encode(performance) if len(performance) else None

        return Target(seeds, feed, midi_form)

    def tokens() -> Target:
        tokenizer = Tokenizer(FINE)
        seeds = [tokenizer.encode(piece(seed, 30)).ids.tobytes() for seed in range(4)]
        return Target(seeds, lambda data: tokenizer.decode(np.frombuffer(data, np.uint8) % (SIZE + 3)))

    def settings() -> Target:
        continuer = Continuer(weights_file.read(saved("weights.safetensors")))
        made = [continuer.continue_(piece(n), notes=4, seed_notes=20, random_seed=n)[0] for n in range(2)]
        feed = by_path("continued.mid", provenance_of)

        def form(data: bytes, chance: Any, change: Any) -> bytes:
            text = next((t for t in midi_file.read_texts(data) if t.startswith(MARK)), "")
            if not text:
                raise ValueError("no settings")
            changed = json_form(text[len(MARK) :].encode("utf-8", "replace"), chance, change)
            return midi_file.to_bytes(piece(1, 4), texts=[MARK + changed.decode("utf-8", "replace")])

        return Target([take.to_bytes() for take in made], feed, form)

    def weights(int8: bool) -> Target:
        name = "int8" if int8 else "weights"

        def feed(path: Path) -> object:
            found = engine.load(weights_file.read(path), "auto")
            return found.forward([[BOS, 3]], found.zero_state())

        seeds = [saved(name, int8).read_bytes()]
        if not int8:  # as the original publishes them, with its metadata and without any
            found: Any = weights_file.random_tensors(TINY, 0)
            seeds += [
                in_order(serialise(found, about)) for about in ({"model_config": json.dumps(PUBLISHED_TINY)}, None)
            ]
        return Target(seeds, by_path(name, feed), safetensors_form(), ("not a whole safetensors file",))

    def a_snapshot() -> Target:
        small = engine.load(weights_file.read(saved("weights.safetensors")), "auto")
        takes = []
        for may_end in (True, False):
            take = generate.begin(small, [BOS], SamplingConfig(), random_seed=1, may_end=may_end)
            for _ in range(3):
                step = generate.advance(take)
                assert step
                take = step[1]
            takes.append(snapshot.dump(take))

        def signed(parts: Tensors) -> Tensors:
            metadata = {key: value for key, value in parts.metadata.items() if key != "digest"}
            try:
                arrays = {name: array_of(about, data) for name, about, data in parts.tensors}
            except ValueError:
                return parts  # no digest can be told
            return Tensors({**metadata, "digest": snapshot._digest(metadata, arrays)}, parts.tensors)

        return Target(
            takes,
            lambda data: generate.advance(snapshot.load(small, data)),
            safetensors_form(signed),
            ("no whole safetensors file", "its format is", "its digest is not"),
        )

    def adapter() -> Target:
        base = weights_file.read(saved("int8", True))
        low = {f"{MODULE}.lora_A": np.ones((2, 32), np.float32), f"{MODULE}.lora_B": np.ones((16, 2), np.float32)}
        full = {"final_norm.weight": np.ones(32, np.float32)}
        full |= {name: base.tensors[name] for name in (f"{MODULE}.weight", f"{MODULE}.weight.scale")}
        for kind, tensors in (("low-rank", low), ("full", full)):
            write_adapter(folder / f"adapter-{kind}", kind, base, tensors, {"notes": "a few"})

        def belonging(parts: Tensors) -> Tensors:
            return Tensors({**parts.metadata, "base_sha256": base.sha256}, parts.tensors)

        def feed(path: Path) -> object:
            found = engine.load(adapted(base, read_adapter(path)), "auto")
            return found.forward([[BOS, 3]], found.zero_state())

        return Target(
            [(folder / f"adapter-{kind}").read_bytes() for kind in ("low-rank", "full")],
            by_path("adapter", feed),
            safetensors_form(belonging),
            ("no whole safetensors file", "is no adapter of pulse88", "belongs to other weights"),
        )

    def index() -> Target:
        pieces = ((seed, piece(seed)) for seed in range(4))
        build([(f"a/{seed}", np.asarray(p.onset), np.asarray(p.pitch)) for seed, p in pieces]).write(folder / "index")
        asked = piece(2)

        def feed(path: Path) -> object:
            return OverlapIndex.read(path).overlaps(np.asarray(asked.onset), np.asarray(asked.pitch))

        squeezed = {"header.npy": npy_form(lzma_form(json_form))}
        squeezed |= {f"{name}.npy": npy_form(lzma_form()) for name in ("gaps", "seconds")}
        form = zip_form(squeezed | {"seeds.npy": npy_form()})
        return Target([(folder / "index").read_bytes()], by_path("index", feed), form, ("zip", "CRC"))

    def manifest() -> Target:
        data = make_data(folder / "data")

        def feed(content: bytes) -> object:
            (data / "manifest.json").write_bytes(content)
            shards.read_grid(data)
            return shards.read_split(data, "train", max_pieces=3)

        return Target([(data / "manifest.json").read_bytes()], feed, json_form)

    def shard() -> Target:
        data = prepared(folder / "sharded", train=3, validation=1)
        path = next(data.glob("train*.npz"))

        def feed(content: bytes) -> object:
            path.write_bytes(content)
            return shards.read_split(data, "train"), shards.read_notes(data, path.name)

        arrays = ("tokens", "token_offsets", *shards.COLUMNS, "note_offsets")
        form = zip_form({f"{name}.npy": npy_form() for name in arrays})
        return Target([path.read_bytes()], feed, form, ("zip", "CRC"))

    def published() -> Target:
        """The original's form: the input is a zip of its manifest and one NPZ."""
        data = folder / "published"
        (data / "data").mkdir(parents=True)
        ids = Tokenizer(FINE).encode(piece(1, 20)).ids[1:-1].astype(np.int16)
        columns = {"tokens": ids, "onsets": np.arange(len(ids)) / 16, "durations": np.full(len(ids), 0.2)}
        npz = io.BytesIO()
        np.savez(npz, **columns)
        row = {"md5": "ff" * 16, "npz_path": "data/0.npz", "length": len(ids), "source_path": "a/b.mid"}
        both = io.BytesIO()
        with zipfile.ZipFile(both, "w") as archive:
            archive.writestr("manifest", json.dumps([row]))
            archive.writestr("npz", npz.getvalue())

        def feed(content: bytes) -> object:
            try:
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    (data / "manifest.json").write_bytes(archive.read("manifest"))
                    (data / "data/0.npz").write_bytes(archive.read("npz"))
            except Exception as error:
                raise ValueError("this fuzzer's own packing is damaged") from error
            shards.read_grid(data)
            return shards.read_split(data, "train"), shards.read_notes(data, "data/0.npz")

        inner = zip_form({f"{name}.npy": npy_form() for name in columns})
        return Target(
            [both.getvalue()], feed, zip_form({"manifest": json_form, "npz": inner}), ("own packing", "zip", "CRC")
        )

    def archive_of(suffix: str) -> Target:
        midis = [midi_file.to_bytes(piece(seed, 4)) for seed in range(2)]
        out = io.BytesIO()
        if suffix == ".zip":
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.mid", midis[0])
                archive.writestr("b/c.mid", midis[1])
        else:
            with tarfile.open(fileobj=out, mode="w:gz") as tar:
                for name, data in zip(("a.mid", "b/c.mid"), midis, strict=True):
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))

        def feed(data: bytes) -> object:
            path = folder / f"archive{suffix}"
            path.write_bytes(data)
            found = list(archives.members(path, archives.Limits()))
            if any(member.problem for member in found):
                raise ValueError("told as a member's problem")
            return found

        return Target([out.getvalue()], feed, zip_form() if suffix == ".zip" else tar_gz_form)

    def suite() -> Target:
        texts = [json.dumps(suites.tiny().to_json()).encode()]
        texts.append(b'{"name": "a", "recipe": {"steps": 1}, "rows": [{"name": "b", "asks": "c", "model": {}}]}')
        return Target(texts, by_path("suite", suites.load), json_form)

    def commands() -> Target:
        from fuzz_commands import DOOR, Commands, arguments_form  # it imports torch

        made = Commands(folder / "commands")
        return Target(made.seeds, made.feed, arguments_form(made.good), DOOR)

    return {
        "midi": midi,
        "tokens": tokens,
        "settings": settings,
        "weights": lambda: weights(False),
        "int8": lambda: weights(True),
        "snapshot": a_snapshot,
        "adapter": adapter,
        "index": index,
        "manifest": manifest,
        "shard": shard,
        "published": published,
        "zip": lambda: archive_of(".zip"),
        "tar": lambda: archive_of(".tar.gz"),
        "suite": suite,
        "commands": commands,
    }
