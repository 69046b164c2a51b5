"""Adapting weights to somebody's own few pieces: minutes on a CPU, and a small file that `continue --adapter` takes.

Held-out windows decide: training stops when they get no better, the best step is kept, and the figures that are told
are those of the file as it is loaded again, rounded to what the weights are.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pulse88 import shards
from pulse88.batches import Batches, TokenCorpus
from pulse88.checkpoint import load_model
from pulse88.config import RELEASE_RECIPE, FinetuneConfig, TrainConfig
from pulse88.engine import adapter as adapter_file
from pulse88.engine import weights as weights_file
from pulse88.engine.adapter import DOWN, Adapter, adapted, read_adapter, write_adapter
from pulse88.engine.weights import Tensors, Weights
from pulse88.evaluate import likelihood
from pulse88.initial_state import add_initial, initial_tensors
from pulse88.low_rank import add_low_rank, low_rank_tensors, put_low_rank
from pulse88.model import Pulse88
from pulse88.objective import nats, nats_of_each, split_targets
from pulse88.optimizer import make_optimizers, set_learning_rate
from pulse88.prepare import Job, merge, parse
from pulse88.rules import Rules
from pulse88.sitting import Sitting
from pulse88.vocabulary import BOS, EVENT_TOKENS, GRIDS, TimeGrid

Tell = Callable[[float, str], None]  # share done, 0-1, and a remark

TAIL = 0.15  # of every piece is held out where no piece can be
FEWEST_NOTES = 32  # of a piece that is prepared on the way
MOST_WINDOWS = 8  # held-out windows that are looked at, evenly spaced
BITS = 1 / math.log(2)


class FinetuneError(ValueError):
    """Weights can't be adapted as asked; the message says why, and the remedy."""


@dataclass(frozen=True)
class Figures:
    """How well held-out music is predicted, in bits a note."""

    windows: float  # of held-out windows
    prompt: float  # the second half of a held-out beginning, its first half read


@dataclass(frozen=True)
class Adapted:
    """What came of it."""

    before: Figures
    after: Figures  # of the file, as it is loaded
    train_pieces: int
    held_out: str  # what the figures are of, in words
    best_step: int
    steps: int  # that were taken
    ended_by: str  # `steps`, `minutes`, `patience` or the name of a signal
    minutes: float
    bytes: int


def finetune(
    weights_path: Path,
    data: Path,
    output: Path,
    config: FinetuneConfig,
    tell: Tell = lambda share, remark: None,
    *,
    start: Path | None = None,
) -> Adapted:
    """Adapts weights to `data`, a folder of `pulse88 prepare` or one of MIDI files, and writes the adapter.

    `start` is an adapter of these weights and this kind to go on from, with the windows that come after those that it
    has seen. Nothing is written, and FinetuneError raised, if held-out music isn't predicted better in the end. Other
    errors: WeightsError, AdapterError, ShardError, PrepareError (all of them ValueErrors).
    """
    began = time.monotonic()
    base = weights_file.read(weights_path)
    earlier = _earlier(start, base, config) if start else None
    steps_before = int(earlier.metadata["steps"]) if earlier else 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    window = min(config.window, base.config.max_positions) // EVENT_TOKENS * EVENT_TOKENS
    with _prepared(data, base.grid) as folder:
        corpus, excerpts, prompt, held_out = _sides(folder, base.grid, window)
    torch.manual_seed(config.seed)
    model = _on(load_model(adapted(base, earlier) if earlier and config.kind == "full" else base), device)
    tensors_of = _trainable(model, base, config, earlier.tensors if earlier else {})
    measure = _Measure(excerpts, prompt, window, torch.bfloat16 if device.type == "cuda" else None)
    before = measure(model)
    tuner = _Tuner(model, Batches(corpus, _recipe(config, window)), config, measure, before.windows, steps_before)
    with Sitting(config.minutes) as sitting:
        ended_by = tuner.run(sitting, tell)
    if not tuner.best_step:
        raise FinetuneError(
            f"held-out music was predicted at {before.windows:.3f} bits a note before and no better after "
            f"{tuner.steps} steps, so nothing is written: give more music, more steps, or a lower learning rate"
        )
    tuner.restore_best()
    notes = {"steps": str(steps_before + tuner.best_step), "bits_per_note_before": f"{before.windows:.4f}"}
    if config.kind == "low-rank":
        notes["rank"] = str(config.rank)
    write_adapter(output, config.kind, base, tensors_of(), notes)
    after = measure(_on(load_model(adapted(base, read_adapter(output))), device))
    return Adapted(
        before,
        after,
        len(corpus.names),
        held_out,
        tuner.best_step,
        tuner.steps,
        ended_by,
        (time.monotonic() - began) / 60,
        output.stat().st_size,
    )


def _earlier(path: Path, base: Weights, config: FinetuneConfig) -> Adapter:
    """The adapter to go on from, which fits these weights; FinetuneError if it is of another kind or rank."""
    found = read_adapter(path)
    if not re.fullmatch(r"[0-9]{1,9}", found.metadata.get("steps", "")):
        raise FinetuneError(f"{path} doesn't say how many steps it took, so nobody can go on from it: make a new one")
    if found.kind != config.kind:
        raise FinetuneError(f"{path} is of the kind {found.kind}: give --kind {found.kind} to go on from it")
    adapted(base, found)
    ranks = sorted({len(tensor) for name, tensor in found.tensors.items() if name.endswith(DOWN)})
    if config.kind == "low-rank" and ranks != [config.rank]:
        raise FinetuneError(f"{path} is of rank {', '.join(map(str, ranks))}, not {config.rank}: give its --rank")
    return found


def _trainable(
    model: Pulse88, base: Weights, config: FinetuneConfig, values: Tensors
) -> Callable[[], dict[str, NDArray]]:
    """Makes what the kind trains trainable, from an earlier adapter's values on; gives what tells its tensors."""
    if config.kind == "full":
        return lambda: _full(model, base)
    if config.kind == "initial-state":
        state = add_initial(model, values)
        return lambda: {name: t.numpy() for name, t in initial_tensors(state).items()}
    added = add_low_rank(model, config.rank)
    put_low_rank(added, values)
    return lambda: {name: t.numpy() for name, t in low_rank_tensors(added).items()}


def _recipe(config: FinetuneConfig, window: int) -> TrainConfig:
    """The release's, gentler: what batches and optimizer need to know."""
    return replace(
        RELEASE_RECIPE,
        seed=config.seed,
        window=window,
        batch_windows=config.batch_windows,
        steps=config.steps,
        optimizer="adamw",
        learning_rate=config.peak_rate,
        weight_decay=0.0,
        warmup_steps=min(5, config.steps),
        constant_share=0.5,
        floor=0.1,
        tempo_stretch=config.tempo_stretch,
    )


def _on(model: Pulse88, device: torch.device) -> Pulse88:
    model.to(device).use_kernel("fla" if device.type == "cuda" else "chunked")
    return model


@contextlib.contextmanager
def _prepared(data: Path, grid: TimeGrid) -> Iterator[Path]:
    """The folder itself if it holds prepared data on this grid, else what is made of its MIDI files for a while."""
    if not data.exists():
        raise FinetuneError(f"{data}: there is no such folder: give one of MIDI files, or one of `pulse88 prepare`")
    if (data / shards.MANIFEST).exists() or (data / "metadata" / shards.MANIFEST).exists():
        if shards.read_grid(data).fingerprint != grid.fingerprint:
            raise FinetuneError(f"{data}: of another time grid than the weights: give the MIDI files instead")
        yield data
        return
    name = next((name for name, known in GRIDS.items() if known.fingerprint == grid.fingerprint), None)
    if name is None:
        raise FinetuneError(f"the weights have the time grid {grid.name!r}, which can't be prepared here")
    with tempfile.TemporaryDirectory(prefix="pulse88-") as made:
        # One's own pieces: short ones count, and of two takes of one piece both.
        job = Job(Rules(grid=name, min_notes=FEWEST_NOTES, min_seconds=1.0, near_duplicate=2.0, validation_share=0.15))
        parse([data], Path(made), job, processes=0)
        merge([Path(made)], Path(made))
        yield Path(made)


def _sides(folder: Path, grid: TimeGrid, window: int) -> tuple[TokenCorpus, TokenCorpus, NDArray[np.int64], str]:
    """The training pieces, held-out excerpts of a window at most, a held-out beginning, and in words what is held out.

    Where no piece is held out, or more of them than not, the end of every piece is.
    """
    splits = {piece["split"] for piece in shards.read_manifest(folder)["pieces"]}
    sides = {split: shards.read_split(folder, split) for split in sorted(splits & {"train", "validation"})}
    if not sides:
        raise FinetuneError(f"{folder}: none of its pieces can be trained on: give more, or longer ones")
    corpus, held_out = sides.get("train"), sides.get("validation")
    if corpus and held_out and len(corpus.tokens) >= len(held_out.tokens):
        words = f"{len(held_out.names)} held-out piece{'s' * (len(held_out.names) != 1)}"
    else:  # Of few pieces chance holds out all or none.
        corpus, held_out = _without_tails(_together(list(sides.values())))
        words = f"the last {TAIL:.0%} of every piece"
    prompt = held_out.tokens[: min(int(held_out.lengths[0]) - 1, window + 1)].astype(np.int64)
    return corpus, _excerpts(held_out, window), prompt, words


def _together(sides: list[TokenCorpus]) -> TokenCorpus:
    return TokenCorpus(
        np.concatenate([side.tokens for side in sides]),
        np.concatenate([side.lengths for side in sides]),
        tuple(name for side in sides for name in side.names),
        sides[0].grid,
    )


def _without_tails(corpus: TokenCorpus) -> tuple[TokenCorpus, TokenCorpus]:
    """Every piece without its last TAIL, and these as pieces of their own, which begin with BOS and delta 0."""
    heads, tails = [], []
    for start, length in zip(corpus.starts.tolist(), corpus.lengths.tolist(), strict=True):
        ids = corpus.tokens[start : start + length]
        events = (length - 2) // EVENT_TOKENS
        cut = 1 + EVENT_TOKENS * max(1, events - max(1, round(TAIL * events)))
        tail = ids[cut:].copy()
        if len(tail) > 1:
            tail[0] = 0
        heads.append(ids[:cut])
        tails.append(np.concatenate(([BOS], tail)).astype(np.uint8))
    return _joined(heads, corpus), _joined(tails, corpus)


def _joined(pieces: list[NDArray[np.uint8]], like: TokenCorpus) -> TokenCorpus:
    return replace(like, tokens=np.concatenate(pieces), lengths=np.array([len(piece) for piece in pieces], np.int64))


def _excerpts(held_out: TokenCorpus, window: int) -> TokenCorpus:
    """At most MOST_WINDOWS windows of the pieces, side by side and evenly spaced, each as a piece of its own."""
    places = [
        (piece, begin, min(begin + window + 1, length))
        for piece, length in enumerate(held_out.lengths.tolist())
        for begin in [0, *range(1 + window // EVENT_TOKENS * EVENT_TOKENS, length - EVENT_TOKENS, window)]
    ]
    chosen = np.unique(np.linspace(0, len(places) - 1, MOST_WINDOWS).round().astype(int))
    found = [places[i] for i in chosen.tolist()]
    starts = held_out.starts
    return TokenCorpus(
        np.concatenate([held_out.tokens[starts[p] + a : starts[p] + b] for p, a, b in found]),
        np.array([b - a for _, a, b in found], np.int64),
        tuple(held_out.names[p] for p, _, _ in found),
        held_out.grid,
    )


class _Measure:
    """Figures of a model on held-out music."""

    def __init__(
        self, excerpts: TokenCorpus, prompt: NDArray[np.int64], window: int, precision: torch.dtype | None
    ) -> None:
        self.excerpts, self.window, self.precision = excerpts, window, precision
        self._prompt = torch.from_numpy(prompt)[None]

    def windows(self, model: Pulse88) -> float:
        found = likelihood(model, self.excerpts, window=self.window, batch=2, precision=self.precision)
        return found.bits_per_note

    @torch.no_grad()
    def __call__(self, model: Pulse88) -> Figures:
        windows = self.windows(model)
        was_training = model.training
        model.eval()
        ids = self._prompt.to(model.token_embedding.weight.device)
        with torch.autocast(ids.device.type, dtype=self.precision, enabled=self.precision is not None):
            logits, _ = model(ids[:, :-1], model.zero_state())
        each = nats_of_each(logits, ids[:, 1:])[0]
        model.train(was_training)
        notes = max(1, len(each) // EVENT_TOKENS // 2)
        return Figures(windows, float(each[-notes * EVENT_TOKENS :].sum()) / notes * BITS)


class _Tuner:
    """The loop: steps, a look at held-out windows every few of them, and the best values so far."""

    def __init__(
        self, model: Pulse88, batches: Batches, config: FinetuneConfig, measure: _Measure, before: float, seen: int
    ) -> None:
        self.model, self.batches, self.config, self._measure = model, batches, config, measure
        self._seen = seen  # steps whose windows an earlier adapter has had
        self.optimizers = make_optimizers(model, batches.config)
        self.steps, self.best_step, self._best_bits = 0, 0, before
        self._looked_at = self._looks_since_best = 0
        self._best: dict[str, Tensor] = {}

    def run(self, sitting: Sitting, tell: Tell) -> str:
        """Trains, with a look at the end in any case; why it ended."""
        config = self.config
        tell(0.0, f"{self._best_bits:.3f} bits a note before")
        while True:
            over = "minutes" if sitting.over else "steps" if self.steps == config.steps else ""
            over = "signal" if sitting.signal else over
            share = self.steps / config.steps
            if self.steps > self._looked_at and (over or self.steps % config.look_every == 0):
                tell(share, f"step {self.steps}: {self._look():.3f} bits a note")
                over = over or ("patience" if self._looks_since_best == config.patience else "")
            else:
                tell(share, f"step {self.steps}")
            if over:
                return over
            self._step(self.steps)
            self.steps += 1

    def _look(self) -> float:
        """Bits a note of held-out windows; keeps the values if they are the best so far."""
        bits = self._measure.windows(self.model)
        self._looked_at = self.steps
        self._looks_since_best += 1
        if bits < self._best_bits:
            self._best_bits, self.best_step, self._looks_since_best = bits, self.steps, 0
            self._best = {name: p.detach().clone() for name, p in self._trained()}
        return bits

    def restore_best(self) -> None:
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self._best[name])

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _step(self, step: int) -> None:
        recipe = self.batches.config
        set_learning_rate(self.optimizers, recipe.learning_rate_at(step))
        device = self.model.token_embedding.weight.device
        inputs, targets, counts = split_targets(torch.from_numpy(self.batches.batch(self._seen + step)).to(device))
        self.model.train()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = self.model(inputs, self.model.zero_state(len(inputs)))
        loss = nats(logits, targets, counts) / counts.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for _, p in self._trained()], recipe.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _full(model: Pulse88, base: Weights) -> dict[str, NDArray]:
    """Every tensor of the model, in the form that it has in the weights."""
    chance = np.random.default_rng(0)
    tensors: dict[str, NDArray] = {}
    for name, value in model.state_dict().items():
        tensors |= adapter_file.rounded(name, value.detach().float().cpu().numpy(), base.tensors, chance)
    return tensors
