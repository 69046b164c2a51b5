#!/usr/bin/env python3
"""Feeds damaged input to everything that reads files, and counts what goes wrong.

    python stress/fuzz.py --runs 2000                 every target, mutations of good files
    python stress/fuzz.py midi --runs 100000 --corpus FOLDER     MIDI files of a folder as the good ones
    python stress/fuzz.py snapshot --coverage --seconds 600      coverage-guided, where atheris is installed

A target may refuse its input by a ValueError (or FileNotFoundError) and in no other way; it has 5 s; and the process
may not grow by more than 1 GB. What breaks a target is kept in stress/found/, to become a test.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_corpus import piece
from made_data import make_data
from pulse88 import archives, engine, generate, midi_file, shards, snapshot, suites
from pulse88.config import TINY, SamplingConfig
from pulse88.continuation import Continuer, provenance_of
from pulse88.engine import weights as weights_file
from pulse88.engine.adapter import adapted, read_adapter, write_adapter
from pulse88.overlap_index import OverlapIndex, build
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, FINE, SIZE

FOUND = Path(__file__).parent / "found"
SECONDS = 5  # that a target has for one input
GROWTH = 2**30  # bytes that the process may grow by


class Hang(Exception):
    """A target took longer than SECONDS."""


class Target(NamedTuple):
    """What is fed, good inputs to begin with, and the lines of code that see a mutation of them."""

    seeds: list[bytes]
    feed: Callable[[bytes], object]


def targets(folder: Path, corpus: Path | None) -> dict[str, Target]:
    """Every reader of files, by name; `folder` is for those that read paths."""
    midis = [midi_file.to_bytes(piece(seed, 40), texts=["a title"]) for seed in range(4)]
    if corpus:
        found = sorted(corpus.rglob("*.mid"))
        midis = [path.read_bytes() for path in found[:: max(1, len(found) // 400)]]
    tensors = weights_file.random_tensors(TINY, 0)
    save = folder / "weights.safetensors"
    weights_file.save(save, tensors, weights_file.metadata_of(TINY, FINE))
    weights_file.save(folder / "int8", weights_file.quantise(tensors), weights_file.metadata_of(TINY, FINE))
    weights = weights_file.read(save)
    small = engine.load(weights, "auto")
    take = generate.begin(small, [BOS], SamplingConfig(), random_seed=1)
    for _ in range(3):
        step = generate.advance(take)
        assert step
        take = step[1]
    name = "layers.0.gdn1.in_proj"
    low = {f"{name}.lora_A": np.ones((2, 32), np.float32), f"{name}.lora_B": np.ones((16, 2), np.float32)}
    write_adapter(folder / "adapter", "low-rank", weights, low, {})
    rows = [(f"a/{seed}", np.asarray(p.onset), np.asarray(p.pitch)) for seed, p in ((s, piece(s)) for s in range(4))]
    build(rows).write(folder / "index.npz")
    data = make_data(folder / "data")
    continued = Continuer(weights).continue_(piece(1), notes=4, seed_notes=20, random_seed=1)[0]
    continued.write(folder / "continued.mid")
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mid", midis[0])
        archive.writestr("b/c.mid", midis[1])
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        header = tarfile.TarInfo("a.mid")
        header.size = len(midis[0])
        tar.addfile(header, io.BytesIO(midis[0]))
    tokenizer = Tokenizer(FINE)

    def by_path(name: str, feed: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / f"fed-{name}"

        def run(data: bytes) -> object:
            path.write_bytes(data)
            return feed(path)

        return run

    def midi(data: bytes) -> object:
        performance = midi_file.read(data).performance
        return tokenizer.encode(performance) if len(performance) else None

    def tokens(data: bytes) -> object:
        return tokenizer.decode(np.frombuffer(data, np.uint8) % (SIZE + 3))

    def an_engine(path: Path) -> object:
        found = engine.load(weights_file.read(path), "auto")
        return found.forward([[BOS, 3]], found.zero_state())

    def manifest(data: bytes) -> object:
        (folder / "data/manifest.json").write_bytes(data)
        shards.read_grid(folder / "data")
        return shards.read_split(folder / "data", "train")

    good_manifest = (data / "manifest.json").read_bytes()
    shard = next(data.glob("*.npz"))
    good_shard = shard.read_bytes()

    def npz(content: bytes) -> object:
        (folder / "data/manifest.json").write_bytes(good_manifest)
        shard.write_bytes(content)
        try:
            return shards.read_split(folder / "data", "train")
        finally:
            shard.write_bytes(good_shard)

    def members(suffix: str) -> Callable[[bytes], object]:
        def feed(path: Path) -> object:
            kept = path.with_suffix(suffix)
            path.replace(kept)
            return [len(m.data) for m in archives.members(kept, archives.Limits()) if isinstance(m.data, bytes)]

        return by_path(f"archive{suffix.replace('.', '-')}", feed)

    suite = json.dumps(suites.tiny().to_json()).encode()
    return {
        "midi": Target(midis, midi),
        "tokens": Target([tokenizer.encode(piece(seed, 30)).ids.tobytes() for seed in range(4)], tokens),
        "provenance": Target([(folder / "continued.mid").read_bytes()], by_path("continued.mid", provenance_of)),
        "weights": Target([save.read_bytes()], by_path("weights", an_engine)),
        "int8": Target([(folder / "int8").read_bytes()], by_path("int8", an_engine)),
        "snapshot": Target([snapshot.dump(take)], lambda d: generate.advance(snapshot.load(small, d))),
        "adapter": Target(
            [(folder / "adapter").read_bytes()],
            by_path("adapter", lambda p: engine.load(adapted(weights, read_adapter(p)), "auto")),
        ),
        "index": Target([(folder / "index.npz").read_bytes()], by_path("index", OverlapIndex.read)),
        "manifest": Target([good_manifest], manifest),
        "shard": Target([good_shard], npz),
        "zip": Target([zipped.getvalue()], members(".zip")),
        "tar": Target([tarred.getvalue()], members(".tar.gz")),
        "suite": Target([suite], by_path("suite", suites.load)),
    }


def mutated(seed: bytes, other: bytes, chance: random.Random) -> bytes:
    """A few damages: bits, bytes, extreme numbers, pieces cut out, doubled, moved from elsewhere, an early end."""
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at, size = chance.randrange(len(data)), chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(8):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                number = chance.choice((0, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, chance.getrandbits(64)))
                data[at : at + size] = number.to_bytes(8, chance.choice(("big", "little")))[:size]
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                there = chance.randrange(len(other)) if other else 0
                data[at : at + size] = other[there : there + size]
            case 6:
                del data[at:]
            case 7:
                data[at:at] = chance.randbytes(size)
    return bytes(data)


def on_alarm(signum: int, frame: FrameType | None) -> None:
    raise Hang(f"longer than {SECONDS} s")


def one(target: Target, data: bytes) -> str:
    """`read`, `refused`, or the traceback of what should not have happened."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.feed(data)
        outcome = "read"
    except (ValueError, FileNotFoundError):
        outcome = "refused"
    except Exception:  # noqa: BLE001  that is what is looked for
        outcome = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcome if grown * 1024 < GROWTH else f"the process grew by {grown / 1024:.0f} MB"


def keep(name: str, data: bytes, problem: str) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"\n{path}\n{problem}", flush=True)


def by_chance(name: str, target: Target, runs: int, seconds: float, seed: int) -> bool:
    chance = random.Random(f"{seed} {name}")
    found: Counter[str] = Counter()
    places: set[str] = set()
    began = time.monotonic()
    for _ in range(runs):
        if time.monotonic() - began > seconds:
            break
        data = mutated(chance.choice(target.seeds), chance.choice(target.seeds), chance)
        outcome = one(target, data)
        found[outcome if outcome in ("read", "refused") else "broken"] += 1
        if outcome not in ("read", "refused") and (place := "\n".join(outcome.splitlines()[-3:])) not in places:
            places.add(place)
            keep(name, data, outcome)
    took = time.monotonic() - began
    print(
        f"{name:11} {sum(found.values()):7,} inputs, {found['read']:7,} read, {found['refused']:7,} refused, "
        f"{found['broken']:4,} broken, {took:6.1f} s",
        flush=True,
    )
    return not found["broken"]


def by_coverage(name: str, target: Target, seconds: float) -> None:
    """Never returns: atheris ends the process, with an error if it found something."""
    import atheris  # type: ignore[import-not-found]

    atheris.instrument_all()

    def feed(data: bytes) -> None:
        outcome = one(target, data)
        if outcome not in ("read", "refused"):
            keep(name, data, outcome)
            raise RuntimeError(outcome)

    corpus = Path(tempfile.mkdtemp())
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds:.0f}", str(corpus)], feed)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="all of them if none is named")
    parser.add_argument("--runs", type=int, default=1000, help="inputs a target")
    parser.add_argument("--seconds", type=float, default=600, help="at most, a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder of MIDI files to begin with")
    parser.add_argument("--coverage", action="store_true", help="guided by atheris; one target")
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, on_alarm)
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder), asked.corpus)
        names = asked.targets or list(known)
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
        if asked.coverage:
            by_coverage(names[0], known[names[0]], asked.seconds)
        return 0 if all([by_chance(n, known[n], asked.runs, asked.seconds, asked.seed) for n in names]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
