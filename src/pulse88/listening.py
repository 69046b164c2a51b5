"""A blind listening test of several systems' continuations of the same prompts, and the table of its answers.

The protocol is that of MIREX 2025's symbolic continuation: coherence, structure, creativity and musicality from 1 to 5;
beside it each pair of systems is heard on each prompt, A against B. The page holds no system's name: clips have random
names, and which is which stands in a key file beside the page's folder, to be kept by whoever asks.

Shape legend: systems x prompts clips.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import midirenderer
import numpy as np

from pulse88 import audio, midi_file
from pulse88.intervals import Interval, ratio
from pulse88.listening_page import page
from pulse88.notes import Performance
from pulse88.report import table
from pulse88.written import make_folder, write_whole

SCALES = {
    "coherence": ("Does it go on from the beginning?", "1: as if from another piece, 5: as if by the same hand"),
    "structure": ("Does it have phrases and a shape?", "1: wanders, 5: well built"),
    "creativity": ("Does it have ideas of its own?", "1: none, or copies, 5: surprises well"),
    "musicality": ("How good is it as music?", "1: unbearable, 5: I would listen again"),
}
PROMPT_SECONDS = 10.0  # of the prompt that are heard
SECONDS = 30.0  # of the continuation


def common(systems: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """The MIDI files of every prompt that all systems have, by system; of several takes the first.

    A prompt is a file's name without `-takeN`. ValueError if there are fewer than two systems or no common prompt.
    """
    if len(systems) < 2:
        raise ValueError("a comparison takes two systems or more: name them as NAME=FOLDER NAME=FOLDER")
    found = {}
    for name, folder in systems.items():
        files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.mid")):
            files.setdefault(re.sub(r"-take\d+$", "", path.stem), path)
        found[name] = files
    shared = set.intersection(*(set(files) for files in found.values()))
    if not shared:
        places = ", ".join(f"{folder} has {len(found[name])}" for name, folder in systems.items())
        raise ValueError(f"no MIDI file has the same name in all folders ({places}): name them after their prompts")
    return {prompt: {name: files[prompt] for name, files in found.items()} for prompt in sorted(shared)}


def excerpt(performance: Performance, prompt_seconds: float = PROMPT_SECONDS, seconds: float = SECONDS) -> Performance:
    """From so long before the continuation, which is the last of several parts, to so long after it begins."""
    parts = np.unique(performance.part)
    new = performance.part == parts[-1] if len(parts) > 1 else np.ones(len(performance), bool)
    join = float(performance.onset[new].min())
    begins = max(0.0, join - (prompt_seconds if len(parts) > 1 else 0.0))
    inside = (performance.onset >= begins) & (performance.onset < join + seconds)
    heard = performance.sustained().take(inside)  # so that no pedal before the excerpt is missed
    cut = np.minimum(heard.duration, join + seconds - heard.onset)
    return Performance(
        heard.onset - begins, np.maximum(cut, 0.01), heard.pitch, heard.velocity, np.zeros(len(heard), np.uint8)
    )


def sound(performance: Performance, kind: str, soundfont: Path | None) -> bytes:
    """A WAV file, or an Ogg Opus file, a sixth as large; AudioError as audio.render."""
    if kind == "wav":
        return audio.to_bytes(performance, soundfont=soundfont)
    font = (soundfont or audio.default_soundfont()).read_bytes()
    return bytes(midirenderer.render_opus_from(font, midi_file.to_bytes(performance.without_overlaps())))


def make(
    systems: Mapping[str, Path],
    folder: Path,
    *,
    title: str = "Which continuation?",
    kind: str = "wav",
    prompt_seconds: float = PROMPT_SECONDS,
    seconds: float = SECONDS,
    soundfont: Path | None = None,
    random_seed: int = 0,
    pairs: bool = True,
    ratings: bool = True,
) -> Path:
    """Writes the page and its clips into a folder, and the key beside it, FOLDER.key.json; the key's path.

    Errors: ValueError as `common`, MidiError, AudioError.
    """
    prompts = common(systems)
    random = np.random.default_rng(random_seed)
    make_folder(folder / "audio")
    clips: dict[str, dict[str, str]] = {}
    sounds: dict[str, str] = {}
    content = hashlib.sha256()
    for prompt, files in prompts.items():
        for system, path in files.items():
            clip = random.bytes(6).hex()
            data = sound(excerpt(midi_file.read(path).performance, prompt_seconds, seconds), kind, soundfont)
            write_whole(folder / "audio" / f"{clip}.{kind}", data)
            content.update(data)
            clips[clip] = {"system": system, "prompt": prompt}
            sounds[clip] = f"audio/{clip}.{kind}"
    name_of = {(of["prompt"], of["system"]): clip for clip, of in clips.items()}
    items: list[dict[str, Any]] = []
    for prompt in prompts if pairs else ():
        for both in itertools.combinations(systems, 2):
            order = random.permutation(2)
            chosen = [name_of[prompt, both[at]] for at in order]
            items.append({"id": random.bytes(4).hex(), "kind": "pair", "clips": chosen})
    if ratings:
        items += [{"id": random.bytes(4).hex(), "kind": "rating", "clips": [clip]} for clip in clips]
    items = [items[at] for at in random.permutation(len(items))]
    identity = content.hexdigest()[:16]
    test = {
        "id": identity,
        "introduction": "You will hear short piano pieces. Each begins with the same few seconds as others; what "
        "follows was made in different ways. Take headphones if you can. You may stop at any time: what you have "
        "answered is kept in this browser.",
        "hint": f"The first {prompt_seconds:g} s are given; judge what comes after." if prompt_seconds else "",
        "scales": [{"name": name, "question": q, "hint": hint} for name, (q, hint) in SCALES.items()],
        "items": items,
        "audio": dict(sorted(sounds.items())),
    }
    write_whole(folder / "index.html", page(title, test).encode())
    key = folder.with_name(f"{folder.name}.key.json")
    write_whole(key, (json.dumps({"test": identity, "clips": clips}, indent=1) + "\n").encode())
    return key


def read_answers(key: Path, answers: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of CSV files, without their heads; of one listener's answers to an item the last ones count.

    ValueError, naming file and line, for what isn't an answer to the key's test.
    """
    known = _read_key(key)
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for path in answers:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), 2):
                problem = _problem(row, known)
                if problem:
                    raise ValueError(f"{path}, line {line}: {problem}")
                found[row["listener"], row["item"], row["scale"]] = row
    if not found:
        raise ValueError("no answers: name the CSV files that the page let listeners download")
    return list(found.values())


def _read_key(path: Path) -> dict[str, Any]:
    """What `make` wrote beside the page; ValueError for another file."""
    remedy = "give the key that `pulse88 listen-test` wrote beside the page"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error}): {remedy}") from error
    clips = known.get("clips") if isinstance(known, dict) else None
    whole = isinstance(clips, dict) and all(
        isinstance(of, dict) and isinstance(of.get("system"), str) and isinstance(of.get("prompt"), str)
        for of in clips.values()
    )
    if not whole or not isinstance(known.get("test"), str):
        raise ValueError(f"{path}: no key of a listening test: {remedy}")
    return dict(known)


def _problem(row: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if (
        None in row
        or None in row.values()
        or set(row) != {*("test", "listener", "kind", "item", "clips", "scale", "value")}
    ):
        return "not a row of answers; give the file as the page wrote it"
    if row["test"] != known["test"]:
        return f"of another test ({row['test']}, the key is of {known['test']})"
    clips = row["clips"].split(" ")
    if len(clips) != (2 if row["kind"] == "pair" else 1) or not all(clip in known["clips"] for clip in clips):
        return f"clips {row['clips']!r} are not in the key"
    allowed = ("first", "none", "second") if row["kind"] == "pair" else ("1", "2", "3", "4", "5")
    scales = ("preference",) if row["kind"] == "pair" else tuple(SCALES)
    if row["value"] not in allowed or row["scale"] not in scales:
        return f"{row['scale']} can't be {row['value']!r}"
    return ""


def results(key: Path, rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown tables: the scales by system, and every pair's wins, with intervals.

    Listeners are resampled where there are five or more, since one listener's answers hang together; prompts otherwise.
    """
    clips = _read_key(key)["clips"]
    listeners = sorted({row["listener"] for row in rows})
    by_listener = len(listeners) >= 5
    prompts = sorted({clips[row["clips"].split(" ")[0]]["prompt"] for row in rows})
    unit = "listeners" if by_listener else "prompts"
    lines = [f"{len(listeners)} listeners, {len(prompts)} prompts; 95 % intervals over {unit} in brackets."]

    def cluster(row: Mapping[str, str]) -> str:
        return row["listener"] if by_listener else clips[row["clips"].split(" ")[0]]["prompt"]

    systems = list(dict.fromkeys(clip["system"] for clip in clips.values()))
    rated = [row for row in rows if row["kind"] == "rating"]
    if rated:
        body = []
        for system in systems:
            mine = [row for row in rated if clips[row["clips"]]["system"] == system]
            means = [
                _mean([(cluster(row), float(row["value"])) for row in mine if row["scale"] == scale])
                for scale in SCALES
            ]
            body.append([system, str(len(mine)), *(interval.text(2) for interval in means)])
        lines += ["", *table(["system", "answers", *SCALES], body)]
    paired = [row for row in rows if row["kind"] == "pair"]
    if paired:
        body = []
        for first, second in itertools.combinations(systems, 2):
            scores = [
                (cluster(row), score) for row in paired if (score := _score(row, clips, first, second)) is not None
            ]
            counts = [sum(score == value for _, score in scores) for value in (1.0, 0.5, 0.0)]
            body.append([f"{first} against {second}", *map(str, counts), _mean(scores).text(2)])
        lines += ["", *table(["pair", "wins", "no preference", "losses", "share won (ties half)"], body)]
    return "\n".join(lines) + "\n"


def _score(row: Mapping[str, str], clips: Mapping[str, Mapping[str, str]], first: str, second: str) -> float | None:
    """1 if the first of two systems won, 0 if the second, 0.5 if neither; None for another pair."""
    heard = [clips[clip]["system"] for clip in row["clips"].split(" ")]
    if set(heard) != {first, second}:
        return None
    if row["value"] == "none":
        return 0.5
    return float(heard[row["value"] == "second"] == first)


def _mean(scores: Sequence[tuple[str, float]]) -> Interval:
    """Of values with the names of their clusters."""
    names = sorted({name for name, _ in scores})
    sums = [sum(value for name, value in scores if name == of) for of in names]
    return ratio(sums, [sum(name == of for name, _ in scores) for of in names])
