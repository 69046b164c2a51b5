#!/usr/bin/env python3
"""Feeds damaged input to everything that reads files, and counts what goes wrong.

    python stress/fuzz.py --runs 2000                 every target, mutations of good inputs
    python stress/fuzz.py midi --runs 100000 --corpus FOLDER     MIDI files of a folder as the good ones
    python stress/fuzz.py --coverage --seconds 600    coverage-guided, every target in a process of its own (atheris)

Three of four damages keep the input's form (fuzz_forms.py), so that digests and lengths don't hide what is behind. A
target may refuse its input by a ValueError (or FileNotFoundError) and in no other way; it has 5 s of the processor; and
one input may not make the process grow by more than 256 MB. What breaks a target is kept in stress/found/, to become a
test.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE)]

from fuzz_forms import Change  # noqa: E402
from fuzz_targets import Target, targets  # noqa: E402

FOUND = HERE / "found"
SECONDS = 5  # of the processor, that a target has for one input
STUCK = 60  # after so many on the clock the process is ended: it waits, or hangs where no signal reaches it
GROWTH = 2**28  # bytes that the process may grow by at one input
IN_FORM = 0.75  # share of damages that keep the form
FOLLOWED = {"pulse88", "json", "zipfile", "tarfile", "gzip", "click", "safetensors", "fuzz_targets", "fuzz_commands"}
MOST = ("places", "slowest", "largest_mb", "peak_mb")  # figures that don't add up


class Hang(Exception):
    """A target took longer than SECONDS."""


class Tally:
    """What came of the inputs of one target so far."""

    def __init__(self, name: str, target: Target) -> None:
        self.name, self.target = name, target
        self.found: Counter[str] = Counter()
        self.places: Counter[str] = Counter()  # of the code, at which inputs were refused or broke
        self.slowest = 0.0
        self.largest = 0  # KB that one input made the process grow by

    def feed(self, data: bytes) -> str:
        """Feeds one input: `read`, `refused at the door`, `refused`, or the traceback of what may not happen."""
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        place = ""
        faulthandler.dump_traceback_later(STUCK, exit=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            self.target.feed(data)
            outcome = "read"
        except (ValueError, FileNotFoundError) as error:
            at_door = any(words in str(error) for words in self.target.door)
            outcome, place = "refused at the door" if at_door else "refused", _place(error)
        except Exception as error:  # noqa: BLE001  that is what is looked for
            outcome, place = traceback.format_exc(), _place(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown * 1024 >= GROWTH and self.found:
            outcome = f"the process grew by {grown / 1024:.0f} MB\n{outcome}"
        self.slowest = max(self.slowest, time.process_time() - began)
        self.largest = max(self.largest, grown if self.found else 0)
        broken = outcome not in ("read", "refused", "refused at the door")
        if broken and not self.places[f"broken {place}"]:
            keep(self.name, data, outcome)
        self.found["broken" if broken else outcome] += 1
        self.places[f"broken {place}" if broken else place] += 1
        return outcome

    def summary(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "inputs": sum(self.found.values()),
            **{kind: self.found[kind] for kind in ("read", "refused", "refused at the door", "broken")},
            "places": sum(1 for place in self.places if place and not place.startswith("broken")),
            "slowest": round(self.slowest, 2),
            "largest_mb": round(self.largest / 1024, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
            "cpu_seconds": round(used.ru_utime + used.ru_stime),
        }


def _place(error: BaseException) -> str:
    """The innermost line of pulse88 that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if f"{os.sep}pulse88{os.sep}" in f.filename]
    return f"{type(error).__name__} {ours[-1] if ours else 'elsewhere'}"


def on_alarm(signum: int, frame: FrameType | None) -> None:
    raise Hang(f"longer than {SECONDS} s")


def keep(name: str, data: bytes, problem: str) -> None:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"\n{path}\n{problem}", flush=True)


def resident() -> float:
    """MB of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


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


def damaged(target: Target, data: bytes, chance: random.Random, change: Change) -> bytes:
    """`data` after one damage, inside its form if it has one and still keeps to it."""
    if target.form and chance.random() < IN_FORM:
        try:
            return target.form(data, chance, change)
        except Exception:  # noqa: BLE001  it can't be opened any more
            pass
    return change(data)


def by_chance(name: str, target: Target, runs: int, seconds: float, seed: int) -> bool:
    chance = random.Random(f"{seed} {name}")
    tally, began, early = Tally(name, target), time.monotonic(), 0.0
    for data in target.seeds:
        tally.feed(data)
    for number in range(runs):
        if time.monotonic() - began > seconds:
            break
        other = chance.choice(target.seeds)
        data = damaged(target, chance.choice(target.seeds), chance, lambda d, o=other: mutated(d, o, chance))
        tally.feed(data)
        if number == runs // 10:
            early = resident()
    told = tally.summary() | {"seconds": round(time.monotonic() - began, 1), "resident_mb_at_a_tenth": round(early, 1)}
    print(name, json.dumps(told | {"resident_mb_at_the_end": round(resident(), 1)}), flush=True)
    return not tally.found["broken"]


# ---------------------------------------------------------------- guided by coverage


def explore(name: str, target: Target, seconds: float, folder: Path) -> None:
    """Never returns: atheris ends the process. `folder` keeps interesting inputs and, every second, the tally."""
    import atheris  # type: ignore[import-not-found]

    for value in gc.get_objects():
        if isinstance(value, FunctionType) and (value.__module__ or "").partition(".")[0] in FOLLOWED:
            atheris.instrument_func(value)
    tally, told = Tally(name, target), [0.0]

    def feed(data: bytes) -> None:
        (folder / "current").write_bytes(data)
        tally.feed(data)
        if time.monotonic() > told[0] + 1:
            told[0] = time.monotonic()
            (folder / "tally.part").write_text(json.dumps(tally.summary()))
            (folder / "tally.part").replace(folder / "tally.json")

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        return damaged(target, data, chance, lambda d: bytes(atheris.Mutate(d, max(len(d) * 2, 64))))[:most]

    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds):
        (inputs / f"seed-{number}").write_bytes(data)
    most = max(4096, 2 * max(map(len, target.seeds)))
    flags = [f"-max_total_time={seconds:.0f}", f"-max_len={most}", f"-timeout={STUCK}", "-rss_limit_mb=4096"]
    # Crossing puts halves together that don't fit, and of five damages at once one is refused and hides the others.
    flags += ["-cross_over=0", "-mutate_depth=1"] if target.form else []
    atheris.Setup([sys.argv[0], *flags, str(inputs)], feed, custom_mutator=mutator)
    signal.signal(signal.SIGPROF, on_alarm)
    atheris.Fuzz()


def by_coverage(name: str, seconds: float, corpus: Path | None, folder: Path) -> bool:
    """Explores in a process of its own, again with the rest of the time if that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    began, deaths, total = time.monotonic(), 0, Counter[str]()
    last: dict[str, Any] = {}
    while (left := seconds - (time.monotonic() - began)) > 1 and deaths < 20:
        (folder / "tally.json").unlink(missing_ok=True)
        command = [sys.executable, __file__, name, "--explore", str(folder), "--seconds", str(left)]
        with (folder / "log").open("ab") as log:
            child = subprocess.Popen(command + (["--corpus", str(corpus)] if corpus else []), stderr=log, stdout=log)
            try:
                status = child.wait(left + 2 * STUCK)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
        last = json.loads((folder / "tally.json").read_text()) if (folder / "tally.json").exists() else {}
        total.update({key: value for key, value in last.items() if key not in MOST})
        if not status:
            break
        deaths += 1
        keep(name, (folder / "current").read_bytes(), f"the process ended with {status}; see {folder / 'log'}")
    log_text = (folder / "log").read_text(errors="replace")
    done, cover = re.findall(r"^Done (\d+) runs", log_text, re.M), re.findall(r"cov: (\d+) ft: (\d+)", log_text)
    told = {**last, **total, "runs": sum(map(int, done)), "seconds": round(time.monotonic() - began), "deaths": deaths}
    first, final = (cover[at] if cover else ("", "") for at in (0, -1))
    print(name, json.dumps(told | {"covered": [int(first[0] or 0), int(final[0] or 0)]}), flush=True)
    return not total["broken"] and not deaths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="all of them if none is named")
    parser.add_argument("--runs", type=int, default=1000, help="inputs a target")
    parser.add_argument("--seconds", type=float, default=600, help="at most, a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder of MIDI files to begin with")
    parser.add_argument("--coverage", action="store_true", help="guided by atheris")
    parser.add_argument("--keep", type=Path, help="with --coverage: folder for logs and interesting inputs")
    parser.add_argument("--explore", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=Path, nargs="+", help="feed these files to one target")
    asked = parser.parse_args()
    signal.signal(signal.SIGPROF, on_alarm)
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder), asked.corpus)
        names = asked.targets or list(known)
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
        if asked.explore:
            explore(names[0], known[names[0]](), asked.seconds, asked.explore)
        if asked.again:
            tally = Tally(names[0], known[names[0]]())
            print("\n".join(f"{path}: {tally.feed(path.read_bytes())}" for path in asked.again))
            return 1 if tally.found["broken"] else 0
        if asked.coverage:
            kept = asked.keep or Path(folder) / "kept"
            return 0 if all([by_coverage(n, asked.seconds, asked.corpus, kept / n) for n in names]) else 1
        return 0 if all([by_chance(n, known[n](), asked.runs, asked.seconds, asked.seed) for n in names]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
