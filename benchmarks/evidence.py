"""Whether ranking takes and guarding them helps: figures beside those of takes as they come.

    python benchmarks/evidence.py rank DATA [--prompts 12] [--takes 4] [--notes 200]
    python benchmarks/evidence.py guard DATA [--prompts 8] [--notes 600] [--temperature 0.8] [--top-p 0.9]

DATA is a folder made by `pulse88 prepare`; prompts are openings of 128 notes of its validation pieces.

rank: of the takes of each prompt, the overlapping area with what the composer wrote: of a take on average, of the one
that ranking picks, by all criteria and by each alone, and of the best one there is. The gain is paired over prompts,
with its 95 % interval.

guard: the same takes with and without a guard. Degenerate are windows of 192 notes, and those that the guard looks at;
a guard that only moved the fault elsewhere would show in the first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from pulse88 import Continuer, SamplingConfig, guard, musicality, shards, trials
from pulse88.distributions import compare
from pulse88.intervals import mean
from pulse88.notes import Performance
from pulse88.provenance import ContinueConfig
from pulse88.ranking import rank

WINDOW, STEP = 192, 48


def ranking(asked: argparse.Namespace, continuer: Continuer, prompts: list[trials.Prompt]) -> None:
    picked: dict[str, list[float]] = {}
    for done, trial in enumerate(trials.run(continuer, prompts, asked.takes, random_seed=asked.random_seed), 1):
        areas = [
            float(np.mean([area for area, _ in compare(trial.prompt.truth, take.new).values()])) for take in trial.takes
        ]
        ranked = rank(continuer.engine, trial.takes)
        by_take = {one.take: one for one in ranked}
        average = float(np.mean(areas))
        picked.setdefault("a take as it comes", []).append(average)
        picked.setdefault("ranked first", []).append(areas[ranked[0].take])
        for name in ("surprise", "pitch classes", "density"):
            best = min(by_take, key=lambda take: (by_take[take].points[name], take))
            picked.setdefault(f"by {name} alone", []).append(areas[best])
        picked.setdefault("most likely", []).append(areas[min(by_take, key=lambda t: by_take[t].bits_per_note)])
        picked.setdefault("ranked last", []).append(areas[ranked[-1].take])
        picked.setdefault("best there is", []).append(max(areas))
        print(f"  {done} of {len(prompts)}: {average:.3f} to {areas[ranked[0].take]:.3f}", flush=True)
    print(f"{len(prompts)} prompts, {asked.takes} takes of {asked.notes} notes")
    base = np.array(picked["a take as it comes"])
    for name, values in picked.items():
        gain = mean(np.array(values) - base)
        print(f"{name:24}{np.mean(values):7.3f}   gain {gain.text(3)}")


def degenerate_share(music: Performance) -> float:
    windows = range(0, max(1, len(music) - WINDOW + 1), STEP)
    return float(np.mean([bool(musicality.degenerate(music.take(slice(at, at + WINDOW)))) for at in windows]))


def guarding(asked: argparse.Namespace, continuer: Continuer, prompts: list[trials.Prompt]) -> None:
    sampling = SamplingConfig(temperature=asked.temperature, top_p=asked.top_p)
    config = ContinueConfig(notes=asked.notes, random_seed=asked.random_seed)
    rows = []
    for prompt in prompts:
        took, made = [], []
        for watches in ([], [guard.watch_degeneration()]):
            began = time.process_time()
            (playing,) = continuer.begin(prompt.seed, config, sampling)
            report = guard.play(playing, watches)
            took.append(time.process_time() - began)
            made.append(playing.continuation().new)
        shares = [degenerate_share(music) for music in made]
        bars = [musicality.bar_self_similarity(music) for music in made]
        cosines = [musicality.pitch_class_cosine(prompt.seed, music) for music in made]
        rows.append((*shares, len(report.returns), report.gave_up, took[1] / took[0], *bars, *cosines))
        print(f"  {prompt.name[:40]:40} {shares[0]:.2f} to {shares[1]:.2f}; {'; '.join(report.lines())}", flush=True)
    table = np.array(rows, float)
    print(
        f"{len(rows)} prompts, {asked.notes} notes, temperature {asked.temperature:g}, top-p {asked.top_p:g}\n"
        f"takes with a degenerate window: {(table[:, 0] > 0).sum()} without, {(table[:, 1] > 0).sum()} with the guard\n"
        f"degenerate windows: {table[:, 0].mean():.1%} without, {table[:, 1].mean():.1%} with\n"
        f"returns {table[:, 2].sum():.0f} in {(table[:, 2] > 0).sum()} takes, gave up in {table[:, 3].sum():.0f}; "
        f"time {np.mean(table[:, 4]):.2f} times\n"
        f"bars alike {table[:, 5].mean():.2f} without, {table[:, 6].mean():.2f} with; "
        f"cosine {table[:, 7].mean():.2f}, {table[:, 8].mean():.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rank", "guard"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--takes", type=int, default=4)
    parser.add_argument("--notes", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    continuer = Continuer(asked.weights)
    corpus = shards.read_split(asked.data, "validation")
    prompts = trials.prompts(corpus, continuer.weights.grid, asked.prompts, notes=asked.notes)
    (ranking if asked.what == "rank" else guarding)(asked, continuer, prompts)


if __name__ == "__main__":
    main()
