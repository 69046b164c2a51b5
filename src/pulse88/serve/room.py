"""What workers do: read uploads, play takes on, write files. Everything here may be given by strangers.

Of a take the server keeps what it is made of (seed, settings, ids, a snapshot), and tells all of it with every work, so
that any worker can do it; a worker only remembers the take that it played last, to spare itself the snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pulse88 import audio, generate, midi_file, picture, snapshot
from pulse88.config import SamplingConfig, SteeringConfig
from pulse88.continuation import Continuer, provenance_of
from pulse88.join import writable
from pulse88.notes import Note, Performance
from pulse88.originality import inspect
from pulse88.overlap_index import OverlapIndex
from pulse88.playing import NEW_PART_NAME, Continuation, Playing
from pulse88.provenance import ContinueConfig
from pulse88.ranking import rank
from pulse88.serve.limits import Limits
from pulse88.serve.messages import Message
from pulse88.serve.samples import struck_key
from pulse88.serve.uploads import Read, Refused, read_midi, read_played, read_rows
from pulse88.vocabulary import BOS, EVENT_TOKENS

RESTORED_NOTES = 256  # that a take which comes back is read from, as many as rolling on keeps

Tell = Callable[[dict[str, Any]], None]


class Room:
    """A loaded model and the works that it is asked for: `do` one, whole, its answer a head and blobs."""

    def __init__(self, continuer: Continuer, limits: Limits, index: OverlapIndex | None = None) -> None:
        """`index` is what takes are compared with, to tell how original they are."""
        self.continuer, self.limits, self.index = continuer, limits, index
        self._latest: tuple[str, Playing] | None = None  # the take that was played last, as it stands

    def do(self, work: Message, tell: Tell, between: Callable[[], bool]) -> Message:
        """Does a work. `tell` sends notes as they are made; `between` is called between notes and says whether to stop.

        Refused for what the visitor can mend; anything else that is raised is a fault of ours.
        """
        head, blobs = work
        try:
            match head["is"]:
                case "read_midi":
                    return self._seed(read_midi(blobs[0], self.limits))
                case "read_notes":
                    return self._seed(read_played(blobs[0], self.limits))
                case "read_rows":
                    return self._seed(read_rows(head["rows"], head["parts"]))
                case "cut":
                    return self._cut(blobs[0], head["start"], head["end"])
                case "read":
                    return self._read(head, blobs[0])
                case "play":
                    return self._play(head, blobs, tell, between)
                case "branch":
                    return self._branch(head, blobs)
                case "restore":
                    return self._restore(blobs[0])
                case "judge":
                    return self._judge(head, blobs[0])
                case "inspect":
                    return self._inspect(head, blobs[0])
                case "write":
                    return self._write(head, blobs[0])
                case "sample":
                    return Message({"is": "file"}, [struck_key(head["pitch"], head["layer"])])
        except Refused:
            raise
        except ValueError as error:
            raise Refused(422, str(error)) from error
        raise AssertionError(f"no work is called {head['is']!r}")

    # Seeds

    def _seed(
        self,
        read: Read,
        seed_ids: tuple[int, ...] | None = None,
        extra: dict[str, Any] | None = None,
        blobs: tuple[bytes, ...] = (),
    ) -> Message:
        """What the server keeps of a seed: its facts, and its MIDI file as `writable` has it."""
        performance, names, remarks = read
        encoding = self.continuer.tokenizer.encode(performance, ends=False)
        if not len(encoding.notes):
            raise Refused(422, "no note is on the 88 keys of a piano: there is nothing to continue")
        facts = {
            "notes": _rows(performance),
            "pedal": [
                [round(time, 6), value, part]
                for time, value, part in zip(
                    performance.pedal_time.tolist(),
                    performance.pedal_value.tolist(),
                    performance.pedal_part.tolist(),
                    strict=True,
                )
            ],
            "seconds": round(performance.end, 6),
            "boundary": round(float(performance.onset[-1]), 6),
            "parts": list(names),
            "read_from": int(encoding.notes[-ContinueConfig.seed_notes :].min()),
            "usable_notes": len(encoding.notes),
            "remarks": [*remarks, *encoding.report.lines()],
        }
        head = {"is": "seed", "facts": facts, "seed_ids": None if seed_ids is None else bytes(seed_ids).hex()}
        midi = midi_file.to_bytes(writable(performance), part_names=names)
        return Message(head | (extra or {}), [midi, *blobs])

    def _cut(self, midi: bytes, start: float, end: float) -> Message:
        """A seed of the notes before `end`, of which those from `start` on are read."""
        performance, report = midi_file.read(midi)
        before = performance.onset < end
        read = int((before & (performance.onset >= start)).sum())
        if not read:
            raise Refused(422, f"no note begins in {start:g} to {end:g} s: choose another range")
        early = performance.pedal_time < end
        cut = replace(
            performance.take(before),
            pedal_time=performance.pedal_time[early],
            pedal_value=performance.pedal_value[early],
            pedal_part=performance.pedal_part[early],
        )
        parts = np.unique(cut.part)
        names = tuple(report.parts[part] for part in parts)
        return self._seed(Read(writable(cut), names), extra={"read_notes": read})

    # Takes

    def _play(self, head: dict[str, Any], blobs: list[bytes], tell: Tell, between: Callable[[], bool]) -> Message:
        """Plays a take on for one turn: `made` ids are there already, and `most_notes` or `most_seconds` come."""
        began = time.perf_counter()
        asked = _asked(head)
        made = _ids(head["made"])
        playing, fresh = self._playing(head, blobs, asked, made)
        read_s = time.perf_counter() - began
        facts = playing.provenance
        tell(
            {
                "is": "begun",
                "boundary": facts.boundary,
                "new_part": facts.new_part,
                "read_notes": len(facts.seed_ids) // EVENT_TOKENS,
                "seed_ids": bytes(facts.seed_ids).hex(),
                "pitch_classes": facts.steering.pitch_classes,
            }
        )
        first = snapshot.dump(playing.take) if fresh and head["share"] else b""
        reason, deadline = "turn", time.perf_counter() + head["most_seconds"]
        stop_at = playing.notes + head["most_notes"]
        while playing.notes < stop_at and not between():
            note = next(playing, None)
            if note is None:
                length = playing.notes == asked[0].notes or not playing.ended
                reason = "length" if length else "end"
                break
            ids = bytes(playing.ids[-EVENT_TOKENS:]).hex()
            tell({"is": "note", "index": playing.notes - 1, "note": _row(note), "ids": ids})
            if time.perf_counter() > deadline:
                break
        self._latest = (_place(head["take"], playing), playing)
        is_over = reason != "turn"
        done = {
            "is": "done",
            "reason": reason,
            "notes": playing.notes,
            "seconds": playing.seconds,
            "read_s": read_s,
            "work_s": time.perf_counter() - began,
        }
        kept = snapshot.dump(playing.take) if head["keep"] or not is_over else b""
        return Message(done, [first, kept])

    def _read(self, head: dict[str, Any], midi: bytes) -> Message:
        """The state that has read a seed."""
        seed_ids = None if head["seed_ids"] is None else _ids(head["seed_ids"])
        (playing,) = self.continuer.begin(midi, *_asked(head), seed_ids=seed_ids)
        return Message({"is": "state"}, [snapshot.dump(playing.take)])

    def _playing(
        self, head: dict[str, Any], blobs: list[bytes], asked: _Settings, made: tuple[int, ...]
    ) -> tuple[Playing, bool]:
        """The take to go on with, and whether it has only just read its seed."""
        midi, snapshot_data = blobs
        config, sampling, steering = asked
        if self._latest is not None and self._latest[0] == f"{head['take']} {len(made)}":
            return self._latest[1], False
        seed_ids = None if head["seed_ids"] is None else _ids(head["seed_ids"])
        read = snapshot.load(self.continuer.engine, snapshot_data) if snapshot_data else None
        if made:
            assert seed_ids is not None
            if read is None:  # The snapshot was dropped.
                read = generate.begin(self.continuer.engine, seed_ids, sampling, random_seed=0)
            take = replace(
                generate.after_making(read, made[read.events * EVENT_TOKENS :]),
                sampling=sampling,
                random_seed=config.random_seed or 0,
                number=head["number"],
                may_end=steering.end_within is not None,
            )
            return self.continuer.resume(
                midi, config, sampling, steering, seed_ids=seed_ids, take=take, made=made
            ), False
        playings = self.continuer.begin(midi, config, sampling, steering, seed_ids=seed_ids, read=read)
        return playings[head["number"]], playings[head["number"]].take.window != (read.window if read else ())

    def _branch(self, head: dict[str, Any], blobs: list[bytes]) -> Message:
        """The seed of a take that goes on from another's first `keep` new notes, and the state after them."""
        midi, snapshot_data = blobs
        made = _ids(head["made"])[: head["keep"] * EVENT_TOKENS]
        parent = self._continuation(head, midi, made)
        seed_ids, state = _ids(head["seed_ids"]) + made, b""
        if snapshot_data:
            read = snapshot.load(self.continuer.engine, snapshot_data)
            unread = made[read.events * EVENT_TOKENS :]
            if len(read.window) + len(unread) <= self._longest:
                read = generate.begin_after(generate.after_reading(read, unread), read.sampling, random_seed=0)
                state, seed_ids = snapshot.dump(read), read.window
        if not state:
            seed_ids = _latest(seed_ids, self._longest)
        names = (*parent.seed_names, NEW_PART_NAME) if made else parent.seed_names
        whole = parent.whole if made else parent.seed
        return self._seed(Read(whole, names), seed_ids, blobs=(state,))

    @property
    def _longest(self) -> int:
        """Ids that a seed may have, BOS among them."""
        return generate.longest_seed(self.continuer.engine) * EVENT_TOKENS

    def _restore(self, data: bytes) -> Message:
        """The seed and the take of a file that pulse88 wrote."""
        performance, names, remarks = read_midi(data, self.limits)
        try:
            facts = provenance_of(data)
        except ValueError as error:
            raise Refused(422, f"the upload: {error}") from error
        if facts is None:
            raise Refused(
                422, "the upload carries no settings of pulse88, so it is no take: send it to /v1/seeds to continue it"
            )
        is_new = np.ones(len(performance), bool) if facts.only_new else performance.part == facts.new_part
        if not is_new.any():
            raise Refused(422, "the upload has no new notes: it was edited, send it to /v1/seeds to continue it")
        if facts.only_new or is_new.all():
            seed = self.continuer.tokenizer.decode(facts.seed_ids)
            seed = replace(seed, tempos=performance.tempos, meters=performance.meters).without_overlaps()
            names = ("Seed", NEW_PART_NAME)
        else:
            seed = performance.take(~is_new)
            heard = np.isin(seed.pedal_part, np.unique(seed.part))
            seed = replace(
                seed,
                pedal_time=seed.pedal_time[heard],
                pedal_value=seed.pedal_value[heard],
                pedal_part=seed.pedal_part[heard],
            )
        boundary = float(seed.onset[-1])
        new = performance.take(is_new)
        origin = 0.0 if facts.only_new else facts.boundary
        ids = self.continuer.tokenizer.encode(new, begins=False, ends=False, origin=min(origin, new.onset[0])).ids
        made = ids.tobytes()
        take = {
            "made": made.hex(),
            "notes": _rows(replace(new, onset=new.onset - origin + boundary, part=np.full(len(new), facts.new_part))),
            "boundary": boundary,
            "new_part": facts.new_part,
            "random_seed": facts.random_seed,
            "number": facts.take,
            "seconds": float(new.onset[-1] - origin),
            "pitch_classes": facts.steering.pitch_classes,
            "settings": {
                "temperature": facts.sampling.temperature,
                "top_p": facts.sampling.top_p,
                "density": facts.steering.density,
                "register": facts.steering.register,
                "in_key": facts.steering.in_key,
                "end_within": facts.steering.end_within,
            },
        }
        return self._seed(Read(seed, names[: facts.new_part], remarks), facts.seed_ids, {"take": take})

    def _continuation(self, head: dict[str, Any], midi: bytes, made: tuple[int, ...]) -> Continuation:
        asked = _asked(head)
        nobody = generate.begin(self.continuer.engine, [BOS], asked[1], random_seed=0)  # It won't be asked to play.
        take = replace(nobody, number=head["number"], random_seed=asked[0].random_seed or 0)
        seed_ids = _ids(head["seed_ids"])
        return self.continuer.resume(midi, *asked, seed_ids=seed_ids, take=take, made=made).continuation()

    def _write(self, head: dict[str, Any], midi: bytes) -> Message:
        """A take as a file: `kind` mid, wav or png, with the seed or without."""
        made = self._continuation(head, midi, _ids(head["made"]))
        if not len(made.new):
            raise Refused(409, "there is no new note yet: wait for the first one")
        if head["only_new"]:
            made = replace(made, provenance=replace(made.provenance, only_new=True))
        match head["kind"]:
            case "mid":
                data = made.to_bytes()
            case "png":
                data = picture.to_bytes(made.performance, boundary=made.split)
            case _:
                if made.performance.end > self.limits.audio_seconds:
                    raise Refused(
                        413,
                        f"it lasts {made.performance.end:,.0f} s, and audio is made of at most "
                        f"{self.limits.audio_seconds:,.0f} s: ask for part=new, or a shorter seed_range",
                    )
                data = audio.to_bytes(made.performance)
        return Message({"is": "file"}, [data])

    def _judge(self, head: dict[str, Any], midi: bytes) -> Message:
        """Which of several candidates speaks least against itself, and why (ranking.py)."""
        made = [self._continuation(head, midi, _ids(candidate)) for candidate in head["candidates"]]
        heard = [place for place, candidate in enumerate(made) if len(candidate.new)]
        if not heard:
            raise Refused(422, "no candidate has a note within the asked length: ask for more seconds")
        ranked = rank(self.continuer.engine, [made[place] for place in heard], self.index)
        points: list[float | None] = [None] * len(made)
        for one in ranked:
            points[heard[one.take]] = round(one.total, 3)
        return Message({"is": "judged", "best": heard[ranked[0].take], "points": points, "why": ranked[0].line()}, [])

    def _inspect(self, head: dict[str, Any], midi: bytes) -> Message:
        """The longest overlap of a take with the training data."""
        assert self.index is not None
        finding = inspect(self._continuation(head, midi, _ids(head["made"])).new, self.index)
        told = {"longest": finding.notes, "piece": finding.piece, "as_much_held_out": finding.as_much}
        return Message(
            {"is": "inspected", "originality": told | {"sentence": "; ".join(finding.lines(self.index))}}, []
        )


_Settings = tuple[ContinueConfig, SamplingConfig, SteeringConfig]


def _asked(head: dict[str, Any]) -> _Settings:
    """The settings of a work."""
    settings = head["settings"]
    steering = SteeringConfig(
        density=None if settings["density"] is None else (settings["density"][0], settings["density"][1]),
        register=None if settings["register"] is None else (settings["register"][0], settings["register"][1]),
        in_key=settings["in_key"],
        pitch_classes=tuple(head["pitch_classes"]) if head.get("pitch_classes") is not None else None,
        end_within=settings["end_within"],
    )
    config = ContinueConfig(
        seconds=settings["seconds"],
        notes=settings["notes"],
        seed_notes=settings["seed_notes"],
        takes=head["number"] + 1,
        random_seed=head["random_seed"],
    )
    return config, SamplingConfig(temperature=settings["temperature"], top_p=settings["top_p"]), steering


def _ids(digits: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(digits))


def _place(take: str, playing: Playing) -> str:
    return f"{take} {len(playing.ids)}"


def _rows(performance: Performance) -> list[list[float]]:
    return [_row(note) for note in performance]


def _row(note: Note) -> list[float]:
    return [round(note.onset, 6), round(note.duration, 6), note.pitch, note.velocity, note.part]


def _latest(ids: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The latest whole events of a sequence that is too long."""
    if len(ids) <= most:
        return ids
    return ids[-min(most, RESTORED_NOTES * EVENT_TOKENS) :]
