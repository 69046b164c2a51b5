"""A seed played on: the room where the music wing and the model wing meet.

    continuer = Continuer()
    for continuation in continuer.continue_("seed.mid", seconds=30, takes=2):
        continuation.write(f"take{continuation.provenance.take}.mid")

What the model reads are the ids of the seed's last notes; where and how the new notes join the seed says join.py.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pulse88 import __version__, engine, generate, key, midi_file
from pulse88.config import UNSTEERED, SamplingConfig, SteeringConfig
from pulse88.engine.adapter import adapted, read_adapter
from pulse88.engine.weights import Weights
from pulse88.engine.weights import read as read_weights
from pulse88.join import next_part, writable
from pulse88.notes import Performance
from pulse88.playing import Continuation, Playing, in_groups, play_together
from pulse88.provenance import ContinueConfig, Provenance
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import BOS, EVENT_TOKENS

WEIGHTS_NAME = "pulse88-40m.safetensors"
SEED_PART_NAME = "Seed"  # of a performance, whose parts have no names
MOST_MISSING = 10_000  # notes that a file may lack of those it says it has, and is replayed; else it may say any number

Seed = Performance | str | Path | bytes


class _Asked(NamedTuple):
    """A seed and what is asked of it, before the model has read anything."""

    config: ContinueConfig
    seed: Performance  # as it is written
    seed_names: tuple[str, ...]
    remarks: tuple[str, ...]
    provenance: Provenance


class Continuer:
    """A loaded model that plays on from seeds. Loading reads the weights once; it may be used again and again."""

    def __init__(
        self,
        weights: str | Path | Weights | None = None,
        engine_name: str = "auto",
        adapter: str | Path | None = None,
        *,
        threads: int = 1,
    ) -> None:
        """`adapter` is a file that `pulse88 finetune` made of these weights; see `engine.load` for `threads`.

        Errors: FileNotFoundError, WeightsError or AdapterError (ValueErrors), ValueError for an unknown engine.
        """
        if not isinstance(weights, Weights):
            path = Path(weights) if weights else default_weights()
            if not path.exists():
                raise FileNotFoundError(f"{path}: there is no such weights file: check --weights, or leave it out")
            weights = read_weights(path)
        weights = adapted(weights, read_adapter(adapter)) if adapter else weights
        self.weights = weights.about()
        self.engine = engine.load(weights, engine_name, threads=threads)
        self.tokenizer = Tokenizer(self.weights.grid)

    def continue_(
        self,
        seed: Seed,
        *,
        seconds: float | None = None,
        notes: int | None = None,
        seed_notes: int = 128,
        takes: int = 1,
        sampling: SamplingConfig | None = None,
        random_seed: int | None = None,
        until_end: bool = False,
        only_new: bool = False,
        steering: SteeringConfig | None = None,
    ) -> list[Continuation]:
        """`takes` continuations of a MIDI file or a performance; what the settings mean is said in ContinueConfig.

        ValueError (a MidiError is one) if the seed can't be read or has no piano note, and for settings that mean
        nothing.
        """
        config = ContinueConfig(seconds, notes, seed_notes, takes, random_seed, until_end, only_new)
        playings = self.begin(seed, config, sampling, steering)
        for group in in_groups(playings):
            for _ in play_together(group):
                pass
        return [playing.continuation() for playing in playings]

    def stream(
        self,
        seed: Seed,
        *,
        seconds: float | None = None,
        notes: int | None = None,
        seed_notes: int = 128,
        sampling: SamplingConfig | None = None,
        random_seed: int | None = None,
        until_end: bool = False,
        steering: SteeringConfig | None = None,
    ) -> Playing:
        """The first take's notes as they are made, on the seed's clock; settings and errors as in `continue_`.

        After any note `.take` is where it stands (see snapshot.py), and `.continuation()` what has been made.
        """
        config = ContinueConfig(seconds, notes, seed_notes, 1, random_seed, until_end)
        return self.begin(seed, config, sampling, steering)[0]

    def begin(
        self,
        seed: Seed,
        config: ContinueConfig | None = None,
        sampling: SamplingConfig | None = None,
        steering: SteeringConfig | None = None,
        *,
        seed_ids: Sequence[int] | None = None,
        read: generate.Take | None = None,
    ) -> list[Playing]:
        """Reads the seed once, for all takes; nothing new is made yet. Errors as in `continue_`.

        `seed_ids` are what the model reads instead of the seed's own last notes. `read` is a take whose window is what
        would be read: then nothing is.
        """
        asked = self._asked(seed, config, sampling, steering, seed_ids)
        facts = asked.provenance
        if read is not None and read.window == facts.seed_ids:
            first = generate.begin_after(read, facts.sampling, random_seed=facts.random_seed, may_end=facts.until_end)
        else:
            first = generate.begin(
                self.engine,
                facts.seed_ids,
                facts.sampling,
                random_seed=facts.random_seed,
                may_end=facts.until_end,
                keep=facts.keep,
            )
        return [self._playing(asked, first.numbered(number)) for number in range(asked.config.takes)]

    def resume(
        self,
        seed: Seed,
        config: ContinueConfig,
        sampling: SamplingConfig,
        steering: SteeringConfig,
        *,
        seed_ids: Sequence[int],
        take: generate.Take,
        made: Sequence[int],
    ) -> Playing:
        """A playing that goes on from `take`, which has written the ids `made` since the join. Errors as in `begin`."""
        return self._playing(self._asked(seed, config, sampling, steering, seed_ids), take, made)

    def _asked(
        self,
        seed: Seed,
        config: ContinueConfig | None,
        sampling: SamplingConfig | None,
        steering: SteeringConfig | None,
        seed_ids: Sequence[int] | None,
    ) -> _Asked:
        config, sampling, steering = config or ContinueConfig(), sampling or SamplingConfig(), steering or UNSTEERED
        performance, names, remarks = _read(seed)
        if seed_ids is None:
            seed_ids, more_remarks = self.seed_ids(performance, config.seed_notes, _name_of(seed))
            remarks += more_remarks
        if steering.in_key and steering.pitch_classes is None:
            found = key.find(performance.take(slice(-config.seed_notes, None)))
            steering = replace(steering, pitch_classes=found.pitch_classes)
        written = writable(performance)
        provenance = Provenance(
            version=__version__,
            weights_sha256=self.weights.sha256,
            engine=self.engine.name,
            sampling=sampling,
            random_seed=secrets.randbelow(2**32) if config.random_seed is None else config.random_seed,
            take=0,
            until_end=config.until_end or steering.end_within is not None,
            only_new=config.only_new,
            keep=generate.default_keep(self.engine),
            boundary=float(performance.onset[-1]),
            new_part=next_part(written),
            new_notes=0,
            seed_ids=tuple(int(i) for i in seed_ids),
            steering=steering,
        )
        return _Asked(config, written, names, remarks, provenance)

    def _playing(self, asked: _Asked, take: generate.Take, made: Sequence[int] = ()) -> Playing:
        return Playing(
            self.tokenizer,
            take,
            asked.seed,
            asked.provenance.boundary,
            replace(asked.provenance, take=take.number),
            limit_notes=asked.config.notes,
            limit_seconds=asked.config.limit_seconds,
            seed_names=asked.seed_names,
            remarks=asked.remarks,
            made=made,
        )

    def replay(self, source: str | Path | bytes) -> Playing:
        """The take that a file written by `Continuation.write` holds, about to be made again from its settings.

        The bytes are the same if weights, engine and pulse88's version are; ValueError for other weights, for a file
        without pulse88's settings, and for one that says it has over MOST_MISSING notes more than it has. Another
        engine may differ where two ids are almost equally likely.
        """
        name = _name_of(source)
        provenance = provenance_of(source)
        if provenance is None:
            raise ValueError(f"{name} carries no pulse88 settings: only what `pulse88 continue` wrote can be replayed")
        if provenance.weights_sha256 != self.weights.sha256:
            raise ValueError(
                f"{name} was made with other weights (sha256 {provenance.weights_sha256[:16]}..., these have "
                f"{self.weights.sha256[:16]}...): name the files it was made with by --weights, --adapter"
            )
        heard, report = midi_file.read(source)
        if provenance.new_notes > len(heard) + MOST_MISSING:
            raise ValueError(
                f"{name} says that {provenance.new_notes:,} of its notes are new, and holds {len(heard):,} in all: its "
                f"settings are damaged, or it was cut short; at most {MOST_MISSING:,} that it lacks are made again"
            )
        if provenance.only_new:
            seed, boundary = Performance(tempos=heard.tempos, meters=heard.meters), 0.0
        else:
            seed, boundary = heard.take(heard.part != provenance.new_part), provenance.boundary
        take = generate.begin(
            self.engine,
            provenance.seed_ids,
            provenance.sampling,
            random_seed=provenance.random_seed,
            number=provenance.take,
            may_end=provenance.until_end,
            keep=provenance.keep,
        )
        return Playing(
            self.tokenizer,
            take,
            seed,
            boundary,
            provenance,
            limit_notes=provenance.new_notes,
            limit_seconds=math.inf,
            seed_names=report.parts[: provenance.new_part],
        )

    def seed_ids(self, performance: Performance, seed_notes: int, name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Ids of the last notes, with BOS if they are all, and remarks on what encoding changed."""
        longest = generate.longest_seed(self.engine)
        if seed_notes > longest:
            positions = self.engine.config.max_positions
            raise ValueError(f"seed_notes must be at most {longest} with a context of {positions}, not {seed_notes}")
        encoding = self.tokenizer.encode(performance, begins=True, ends=False)
        events = encoding.ids.tolist()[1:]
        if not events:
            raise ValueError(f"{name} has no note on the 88 keys of a piano: there is nothing to continue")
        window = events[-seed_notes * EVENT_TOKENS :]
        bos = (BOS,) if len(window) == len(events) else ()
        return (*bos, *window), tuple(encoding.report.lines())


def default_weights() -> Path:
    """The weights that came with pulse88: in the installed package, or in the repository's weights/ folder.

    FileNotFoundError, naming the remedy, if neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "_weights", package / "weights", package.parents[1] / "weights"):
        if (folder / WEIGHTS_NAME).is_file():
            return folder / WEIGHTS_NAME
    raise FileNotFoundError(
        f"{WEIGHTS_NAME} is neither in the package nor in weights/: install pulse88 again, or name a file by --weights"
    )


def provenance_of(source: str | Path | bytes) -> Provenance | None:
    """What a MIDI file says it was made of; None if pulse88 didn't write it. ValueError if that is damaged."""
    try:
        return Provenance.found_in(midi_file.read_texts(source))
    except midi_file.MidiError:
        raise
    except ValueError as error:
        raise ValueError(f"{_name_of(source)}: {error}") from error


def _name_of(seed: Seed) -> str:
    return str(seed) if isinstance(seed, (str, Path)) else "the seed"


def _read(seed: Seed) -> tuple[Performance, tuple[str, ...], tuple[str, ...]]:
    """The seed, the names of its parts, and remarks on what reading changed."""
    if isinstance(seed, Performance):
        performance, remarks = seed, tuple[str, ...]()
        names: tuple[str, ...] = (SEED_PART_NAME,) * len(set(seed.part.tolist()))
    else:
        performance, report = midi_file.read(seed)
        names, remarks = report.parts, tuple(report.lines())
    if not len(performance):
        raise ValueError(f"{_name_of(seed)} has no piano note: there is nothing to continue")
    return performance, names, remarks
