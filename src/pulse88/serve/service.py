"""Everything of one server, but HTTP: what the routes call. Each method is one thing that a visitor may want."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import secrets
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pulse88.serve import examples
from pulse88.serve.limits import Limits
from pulse88.serve.memory import Memory, Seed, Take, events_of, reading
from pulse88.serve.messages import Message
from pulse88.serve.metrics import Metrics
from pulse88.serve.pool import Pool
from pulse88.serve.problems import Problem
from pulse88.serve.schemas import Continuation, Settings
from pulse88.serve.takes import Sink, Takes

IDLE_SECONDS = 0.25  # between looks whether somebody waits
MOST_BACKGROUND = 64  # things that wait for nobody to wait

_log = logging.getLogger(__name__)

KINDS = {"mid": "audio/midi", "wav": "audio/wav", "png": "image/png"}


class Service:
    """A pool of workers, what is remembered, and who may ask how much."""

    def __init__(
        self,
        workers: int,
        weights: Path | None = None,
        adapter: Path | None = None,
        index: Path | None = None,
        engine: str = "auto",
        limits: Limits | None = None,
    ) -> None:
        self.limits, self.metrics = limits or Limits(), Metrics()
        files = {"weights": weights, "adapter": adapter, "index": index}
        self.pool = Pool(workers, files, engine, self.limits, self.metrics)
        self.memory = Memory(self.limits, self.metrics)
        self.takes = Takes(self.pool, self.memory, self.limits, self.metrics)
        self._quiet = asyncio.Lock()  # one thing at a time while nobody waits
        self._background: set[asyncio.Task[None]] = set()
        self._examples: list[dict[str, Any]] | None = None
        self._samples: dict[tuple[int, int], asyncio.Future[bytes]] = {}

    async def close(self) -> None:
        """Stops whatever is under way."""
        late: list[asyncio.Future[Any]] = [*self._background, *self._samples.values()]
        for doing in late:
            doing.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self.takes.close()
        await self.pool.close()

    # Seeds

    async def seed_of_midi(self, visitor: str, data: bytes) -> Seed:
        """A seed of an upload."""
        if len(data) > self.limits.upload_bytes:
            raise Problem(413, f"a MIDI file may have {self.limits.upload_bytes / 2**20:g} MiB: send a smaller one")
        _, message = await self.pool.do(visitor, "read", {"is": "read_midi"}, [data], first=True)
        return self._remembered(visitor, message)

    async def seed_of_notes(self, visitor: str, data: bytes) -> Seed:
        """A seed of played notes, as JSON."""
        _, message = await self.pool.do(visitor, "read", {"is": "read_notes"}, [data], first=True)
        return self._remembered(visitor, message)

    async def seed_of_rows(self, visitor: str, rows: list[list[float]], parts: Sequence[str]) -> Seed:
        """A seed of notes with parts, as a duet has them."""
        head = {"is": "read_rows", "rows": rows, "parts": list(parts)}
        _, message = await self.pool.do(visitor, "read", head, first=True)
        return self._remembered(visitor, message)

    async def _cut(self, visitor: str, seed: Seed, start: float, end: float) -> Seed:
        """The seed of a stretch of another; the same one for the same stretch."""
        if (known := self.memory.seeds.find(seed.cuts.get((start, end), ""))) is not None:
            return known
        head = {"is": "cut", "start": start, "end": end}
        _, message = await self.pool.do(visitor, "read", head, [seed.midi], first=True)
        cut = self._remembered(visitor, message)
        seed.cuts[start, end] = cut.id
        return cut

    def _remembered(self, visitor: str, message: Message) -> Seed:
        head, blobs = message
        read_notes = head.get("read_notes")
        told = json.dumps(head["facts"], separators=(",", ":")).encode()
        return self.memory.seeds.add(Seed(visitor, blobs[0], told, head["seed_ids"], read_notes))

    def seed_facts(self, seed: Seed) -> dict[str, Any]:
        """What is told of a seed."""
        return {"seed": seed.id} | seed.facts

    # Takes

    async def continued(self, visitor: str, asked: Continuation, sink: Sink) -> list[Take]:
        """Takes as they are asked for, under way; their events go to `sink`."""
        parent: dict[str, Any] | None = None
        if asked.parent is not None:
            seed, parent = await self._branched(visitor, self.memory.takes.get(asked.parent.take), asked.parent.note)
        elif asked.midi_base64 is not None:
            seed = await self.seed_of_midi(visitor, _unpacked(asked.midi_base64))
        else:
            assert asked.seed is not None
            seed = self.memory.seeds.get(asked.seed)
        if asked.seed_range is not None:
            start, end = asked.seed_range
            seed = await self._cut(visitor, seed, start, end)
        settings = asked.settings.resolved()
        most = self.seed_notes(settings["seed_notes"])
        if most < settings["seed_notes"] and "seed_notes" in asked.settings.model_fields_set:
            raise Problem(422, f"settings.seed_notes must be at most {most} with this model")
        settings["seed_notes"] = most
        random_seed = secrets.randbelow(2**32) if asked.random_seed is None else asked.random_seed
        takes = [
            Take(visitor, seed, settings, random_seed, number, parent, asked.takes) for number in range(asked.takes)
        ]
        self.takes.begin(takes, sink)
        return takes

    async def _branched(self, visitor: str, take: Take, note: int | None) -> tuple[Seed, dict[str, Any]]:
        """The seed of a take that goes on from a note of another."""
        if note is not None and note >= len(take.notes):
            raise Problem(
                422, f"parent.note: the take has {len(take.notes)} new notes, the last is {len(take.notes) - 1}"
            )
        keep = len(take.notes) if note is None else note + 1
        parent = {"take": take.id, "note": keep - 1}
        if not keep or take.seed_ids is None:
            return take.seed, parent
        head = self.facts_of(take) | {"is": "branch", "keep": keep}
        state = self.memory.state_before(take, keep)
        _, message = await self.pool.do(visitor, "branch", head, [take.seed.midi, state], first=True)
        seed = self._remembered(visitor, message)
        if message.blobs[1]:
            self.memory.snapshots.put(visitor, seed.id, 0, message.blobs[1])
        return seed, parent

    def facts_of(self, take: Take) -> dict[str, Any]:
        """What workers need to write a take."""
        return {
            "settings": take.settings,
            "random_seed": take.random_seed,
            "number": take.drawn,
            "seed_ids": take.seed_ids,
            "pitch_classes": take.pitch_classes,
            "made": take.made[: 4 * len(take.notes)].hex(),
        }

    async def file(self, visitor: str, take: Take, kind: str, part: str) -> bytes:
        """A take as a file: mid, wav or png."""
        if not events_of(take.made):
            if take.state == "done":
                raise Problem(409, "the take ended without a new note: ask for more seconds, or for another take")
            raise Problem(409, "there is no new note yet: wait for the first one")
        head = self.facts_of(take) | {"is": "write", "kind": kind, "only_new": part == "new"}
        _, message = await self.pool.do(visitor, f"write {kind}", head, [take.seed.midi], first=True)
        return message.blobs[0]

    async def restored(self, visitor: str, data: bytes) -> Take:
        """The take of a file that pulse88 wrote."""
        _, message = await self.pool.do(visitor, "read", {"is": "restore"}, [data], first=True)
        told = message.head["take"]
        seed = self._remembered(visitor, message)
        settings = Settings().resolved() | told["settings"]
        take = Take(visitor, seed, settings, told["random_seed"], told["number"])
        take.made, take.notes = bytes.fromhex(told["made"]), told["notes"]
        take.seed_ids, take.pitch_classes = seed.seed_ids, told["pitch_classes"]
        take.boundary, take.new_part, take.seconds = told["boundary"], told["new_part"], told["seconds"]
        take.state, take.reason, take.drawn = "done", "restored", told["number"]
        return self.memory.takes.add(take)

    def forget_take(self, id_: str) -> None:
        """Stops a take and forgets it."""
        take = self.memory.takes.get(id_)
        self.takes.stop(take)
        self.memory.takes.drop(id_)
        self.memory.snapshots.forget(take.id)

    def forget_seed(self, id_: str) -> None:
        """Forgets a seed; its takes keep what they need."""
        seed = self.memory.seeds.get(id_)
        self.memory.seeds.drop(seed.id)

    # What is done before it is asked for, while nobody waits

    def read_ahead(self, seed: Seed) -> None:
        """Has a seed read, so that its first take begins at once."""
        if len(self._background) < MOST_BACKGROUND:
            self._later(self._read(seed))

    async def _read(self, seed: Seed) -> None:
        take = Take(seed.visitor, seed, Settings().resolved(), 0, 0)
        take.settings["seed_notes"] = self.seed_notes(take.settings["seed_notes"])
        async with self._quiet:
            await self._idle()
            if self.memory.seeds.find(seed.id) is None or self.memory.snapshots.nearest(reading(take), 0) is not None:
                return
            settings = take.settings
            head = {"is": "read", "settings": settings, "seed_ids": seed.seed_ids, "number": 0, "random_seed": 0}
            _, message = await self.pool.do(seed.visitor, "read ahead", head, [seed.midi], admitted=True)
            self.memory.snapshots.put(seed.visitor, reading(take), 0, message.blobs[0])

    def prepare_samples(self, pitches: Sequence[int], layers: Sequence[int]) -> None:
        """Has all samples rendered, the loud ones first."""
        self._later(self._prepare(pitches, layers))

    async def _prepare(self, pitches: Sequence[int], layers: Sequence[int]) -> None:
        await self.pool.wait_until_ready()
        for layer in sorted(layers, reverse=True):
            for pitch in sorted(pitches, key=lambda pitch: abs(pitch - 62)):
                async with self._quiet:
                    await self._idle()
                    await self.sample(pitch, layer)

    async def _idle(self) -> None:
        while not self.pool.is_idle:
            await asyncio.sleep(IDLE_SECONDS)

    def _later(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("something that could wait failed: %s", error)

    def seed_notes(self, wanted: int) -> int:
        """As many of the wanted notes as the model's context holds."""
        return wanted if self.pool.model is None else min(wanted, self.pool.model["context_notes"] - 1)

    # What comes with it

    async def examples(self, visitor: str) -> list[dict[str, Any]]:
        """The example seeds, read once."""
        if self._examples is None:
            told = []
            for example in examples.EXAMPLES:
                head = {"is": "read_midi"}
                _, message = await self.pool.do(visitor, "read", head, [examples.midi(example)], first=True)
                facts = message.head["facts"]
                told.append(example._asdict() | {"notes": len(facts["notes"]), "seconds": facts["seconds"]})
            self._examples = told
        return self._examples

    async def sample(self, pitch: int, layer: int) -> bytes:
        """A struck key as WAV, rendered once."""
        key = (pitch, layer)
        if key not in self._samples:
            self._samples[key] = asyncio.ensure_future(self._rendered(pitch, layer))
        try:
            return await asyncio.shield(self._samples[key])
        except Problem:
            self._samples.pop(key, None)
            raise

    async def _rendered(self, pitch: int, layer: int) -> bytes:
        head = {"is": "sample", "pitch": pitch, "layer": layer}
        _, message = await self.pool.do("the server's samples", "sample", head, admitted=True)
        return message.blobs[0]


def parsed(model: type[BaseModel], data: bytes | dict[str, Any]) -> Any:
    """An object of a model; Problem 422 with the first field that is wrong, 400 if it is no JSON."""
    try:
        if isinstance(data, dict):
            return model.model_validate(data, strict=False)
        return model.model_validate_json(data)
    except ValidationError as error:
        raise Problem(*sentence(error.errors(include_url=False, include_context=False))) from None


def sentence(errors: Sequence[Any]) -> tuple[int, str]:
    """Status and words for what pydantic finds wrong."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return 400, f"the body is no JSON ({first['msg'].removeprefix('Invalid JSON: ')})"
    place = ".".join(str(step) for step in first["loc"] if step not in ("body", "query", "path")) or "the body"
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""
    return 422, f"{place}: {message[:1].lower()}{message[1:]}{more}"


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, f"midi_base64: is no base64 ({error})") from None
