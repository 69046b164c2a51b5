"""A duet over a WebSocket: somebody plays, pauses, and is answered; when they play again, the answer yields.

A worker reads along while somebody plays (duet_room.py); what was played is history.py's. Times are the player's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from pulse88 import key
from pulse88.notes import Note, Performance
from pulse88.serve.duet_messages import Hello, Key, read_message
from pulse88.serve.history import History
from pulse88.serve.pool import Worker
from pulse88.serve.problems import Problem, WorkerLost
from pulse88.serve.schemas import sampled
from pulse88.serve.service import Service, sentence
from pulse88.tokenizer import Tokenizer
from pulse88.vocabulary import EVENT_TOKENS, FINE

LEAD = (
    0.05  # seconds that the first note of an answer lies behind the noticed pause at least, so that it is made in time
)
AHEAD = 2.0  # seconds that notes are made before they sound
BATCH = 4  # notes of an answer that are made at once,
IN_TIME = 0.5  # when so many seconds are made already; before, each is sent as soon as it is there
SHARE = 0.78  # of the context, that what was played may fill before its beginning is forgotten
KEY_NOTES = 64  # that tell the key
BURST = 1000  # messages that may come at once
OUR_PART = 1
CLOCK_SET_BACK = 5.0  # seconds; a message that old tells that the player's clock was set back
READY_SECONDS = 10.0  # that a lost worker may take to be replaced

_log = logging.getLogger(__name__)


class Duet:
    """One duet, from hello to the end of the connection."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._id = secrets.token_hex(8)
        self._tokenizer = Tokenizer(FINE)  # until the workers' grid is known
        self._visitor: str = socket.state.visitor
        self._hello = Hello(type="hello")
        self._worker: Worker | None = None
        self.history = History(self._tokenizer, 0)
        self._clock_offset: float | None = None  # our clock less the player's; the message that came soonest counts
        self._answers = 0
        self._answer: _Answer | None = None
        self._random_seed = 0
        self._pause: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Plays until the other side leaves."""
        await self._socket.accept()
        self._service.metrics.duets(1)
        try:
            await self._converse()
        except WebSocketDisconnect:
            pass
        except Problem as problem:
            await self._complain(problem)
            with contextlib.suppress(RuntimeError):
                await self._socket.close(1008)
        finally:
            self._service.metrics.duets(-1)
            await self._leave()

    async def _leave(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        for task in (self._answer.task if self._answer else None, self._reading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Problem, RuntimeError):
                    await task
        if self._worker is not None:
            self._worker.send({"is": "duet_over", "duet": self._id, "work": 0})
            self._service.pool.leave(self._worker)

    async def _converse(self) -> None:
        self._check_room()
        await self._service.pool.wait_until_ready()
        silent = self._service.limits.duet_hello_seconds
        assert self._service.pool.grid is not None and self._service.pool.model is not None
        self._tokenizer = Tokenizer(self._service.pool.grid)
        self.history = History(self._tokenizer, int(SHARE * self._service.pool.model["context_notes"]))
        began, messages = time.monotonic(), 0
        while True:
            text = await self._next(silent)
            if not messages:  # A place is for those who say something.
                self._check_room()
                self._worker = self._service.pool.aside()
            messages, silent = messages + 1, self._service.limits.duet_silent_seconds
            allowed = BURST + self._service.limits.duet_messages_a_second * (time.monotonic() - began)
            if messages > allowed:
                raise Problem(429, "messages come too fast: this is no piano")
            try:
                message = read_message(text)
            except ValidationError as error:
                status, detail = sentence(error.errors(include_url=False, include_context=False))
                await self._complain(Problem(status, f"message {messages}: {detail}"))
                continue
            try:
                await self._hear(message)
            except WorkerLost as lost:
                await self._complain(lost)

    def _check_room(self) -> None:
        if self._service.pool.duets >= self._service.limits.duets:
            raise Problem(429, "too many duets at once: come back later", retry_after=60)

    async def _next(self, seconds: float) -> str:
        """The next message; Problem 408 if none comes for so long."""
        try:
            return await asyncio.wait_for(self._socket.receive_text(), seconds)
        except asyncio.TimeoutError:
            raise Problem(408, f"no message for {seconds:g} s: connect again to play on") from None

    async def _hear(self, message: Any) -> None:
        if message.type == "hello":
            await self._greet(message)
            return
        if message.type == "save":
            await self._save()
            return
        self._note_clock(message.time)
        match message.type:
            case "on":
                await self._yield(message.time)
                self.history.phrase.on(message.time, message.pitch, message.velocity)
            case "off":
                self.history.phrase.off(message.time, message.pitch)
            case "pedal":
                self.history.phrase.pedal(message.time, message.value)
            case "answer":
                await self._yield(message.time)
                self._begin_answer()
            case "yield":
                await self._yield(message.time)
            case "ping":
                await self._send({"type": "pong", "time": message.time})
        if isinstance(message, Key):
            self._wait_for_pause()
            self._read_along()

    async def _greet(self, hello: Hello) -> None:
        self._hello = hello
        random_seed = secrets.randbelow(2**32) if hello.random_seed is None else hello.random_seed
        self._random_seed = random_seed
        if hello.seed is not None:
            seed = self._service.memory.seeds.get(hello.seed)
            rows = seed.facts["notes"]
            notes = [Note(on, long, int(pitch), int(velocity)) for on, long, pitch, velocity, _ in rows]
            self.history.begin_with(notes)
        told = {"settings": hello.settings.told(), "pause": hello.pause, "answer_seconds": hello.answer_seconds}
        await self._send({"type": "ready", "random_seed": random_seed} | told)

    # Clocks and pauses

    def _note_clock(self, told: float) -> None:
        offset = time.monotonic() - told
        known = self._clock_offset
        if known is None or offset < known or offset > known + CLOCK_SET_BACK:
            self._clock_offset = offset

    def _now(self) -> float:
        """The player's clock."""
        return time.monotonic() - (self._clock_offset or 0.0)

    def _wait_for_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._hello.pause and not self.history.phrase.down and self.history.phrase.notes:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(self._hello.pause, self._begin_answer)

    # Reading along

    def _read_along(self) -> None:
        """Has the worker read what is over of the phrase; one reading at a time."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        read: tuple[int, ...] = ()
        while True:
            ids = self.history.over()
            if len(ids) <= EVENT_TOKENS or ids == read:
                return
            read = ids
            with contextlib.suppress(Problem):  # Whatever it is, the answer will meet it again.
                await self._ask({"is": "duet_read", "ids": bytes(ids).hex()})
            known = (len(self.history.ids) + EVENT_TOKENS * len(self.history.phrase.notes) - len(ids)) // EVENT_TOKENS
            await self._send({"type": "listening", "read": len(ids) // EVENT_TOKENS, "unread": max(known, 0)})

    # Answering

    def _begin_answer(self) -> None:
        if self._answer is None and not self.history.is_empty:
            self._answer = _Answer(self, self._answers)
            self._answers += 1

    def answer_over(self, made: bytes, notes: list[Note]) -> None:
        """An answer, or what was heard of it, is part of what was played."""
        self._answer = None
        self.history.add_answer(made, notes)

    async def _yield(self, now: float) -> None:
        if self._answer is not None:
            await self._answer.give_way(now)

    # Talking

    async def _save(self) -> None:
        notes = self.history.everything
        first = min((note.onset for note in notes), default=0.0)
        rows = [[note.onset - first, note.duration, note.pitch, note.velocity, note.part] for note in notes]
        seed = await self._service.seed_of_rows(self._visitor, rows, ("You", "Pulse88"))
        await self._send({"type": "saved", "seed": seed.id})

    async def _ask(self, head: dict[str, Any]) -> dict[str, Any]:
        """What the worker answers; once more with another one if it was lost."""
        pool = self._service.pool
        assert self._worker is not None
        try:
            return await pool.do_aside(self._worker, head | {"duet": self._id})
        except WorkerLost:
            pool.leave(self._worker)
            self._worker = None
            await asyncio.wait_for(pool.wait_until_ready(), READY_SECONDS)
            self._worker = pool.aside()
            return await pool.do_aside(self._worker, head | {"duet": self._id})

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await self._socket.send_text(json.dumps(message, separators=(",", ":")))

    async def _complain(self, problem: Problem) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._send({"type": "error", "problem": problem.to_json()})


class _Answer:
    """One answer under way."""

    def __init__(self, duet: Duet, number: int) -> None:
        self._duet, self._number = duet, number
        self._made = b""
        self._notes: list[Note] = []
        self.task = asyncio.create_task(self._run())

    async def give_way(self, now: float) -> None:
        """Stops; notes that begin after `now` were never played."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Problem):
            await self.task
        if self._duet._answer is not self:
            return  # It had just come to its end.
        kept = sum(note.onset <= now for note in self._notes)
        self._duet.answer_over(self._made[: EVENT_TOKENS * kept], self._notes[:kept])
        await self._duet._send({"type": "yielded", "answer": self._number, "time": now, "kept": kept})

    async def _run(self) -> None:
        try:
            await self._play()
        except Problem as problem:
            self._duet.answer_over(self._made, self._notes)
            await self._duet._complain(problem)
        except (WebSocketDisconnect, RuntimeError):
            self._duet.answer_over(self._made, self._notes)  # Nobody is there any more.
        except Exception:  # noqa: BLE001 - whatever it is, the duet has to go on
            _log.exception("an answer failed")
            self._duet.answer_over(self._made, self._notes)
            await self._duet._complain(Problem(500, "the answer went wrong here, not with you: play on"))

    async def _play(self) -> None:
        duet = self._duet
        noticed = time.perf_counter()
        now = duet._now()
        duet.history.end_phrase(now)
        if not duet.history.ids:
            raise Problem(422, "nothing that was played is on the 88 keys of a piano: there is nothing to answer")
        await duet._send({"type": "answering", "answer": self._number, "time": round(now, 4)})
        settings = duet._hello.settings
        temperature, top_p = sampled(settings.liveliness, settings.temperature, settings.top_p)
        anchor = now if duet.history.anchor is None else duet.history.anchor
        first = duet.history.begins_at(now + LEAD)
        scale = None
        if settings.in_key and duet.history.notes:
            scale = key.find(Performance.from_notes(duet.history.notes[-KEY_NOTES:])).pitch_classes
        asked = {
            "is": "duet_answer",
            "temperature": temperature,
            "top_p": top_p,
            "register": settings.register_,
            "pitch_classes": scale,
            "random_seed": duet._random_seed,
            "number": self._number,
            "seconds": duet._hello.answer_seconds,
            "breath": max(duet._hello.pause, 0.5),
            "gap": first - anchor,
        }
        over = False
        while not over:
            ahead = self._notes[-1].onset - duet._now() if self._notes else 0.0
            count = BATCH if ahead > IN_TIME else 1
            ids = bytes(duet.history.with_answer(self._made))
            answer = await duet._ask(asked | {"ids": ids.hex(), "made": self._made.hex(), "count": count})
            over, ids = answer["over"], bytes.fromhex(answer["ids"])
            if not self._made and ids:
                took = time.perf_counter() - noticed
                anchor = max(first, duet._now()) - self._gap(ids)
            for note in self._placed(anchor, ids):
                index = len(self._notes)
                self._notes.append(note)
                row = [round(note.onset, 4), round(note.duration, 4), note.pitch, note.velocity, OUR_PART]
                await duet._send({"type": "note", "answer": self._number, "index": index, "note": row})
            if not self._made and ids:
                await self._tell_latency(took, answer)
            self._made += ids
            if not over:
                await asyncio.sleep(max(self._notes[-1].onset - AHEAD - duet._now(), 0.0))
        # What was made is heard to its end, unless the other plays before.
        await asyncio.sleep(max(self._notes[-1].onset - duet._now(), 0.0) if self._notes else 0.0)
        duet.answer_over(self._made, self._notes)
        await duet._send({"type": "answered", "answer": self._number, "notes": len(self._notes)})

    def _gap(self, ids: bytes) -> float:
        """Seconds before the first note, as the grid has them."""
        return float(self._duet._tokenizer.decode(tuple(ids)).onset[0])

    def _placed(self, anchor: float, ids: bytes) -> list[Note]:
        origin = self._notes[-1].onset if self._notes else anchor
        return list(self._duet._tokenizer.decode(tuple(ids), origin=origin, part=OUR_PART)) if ids else []

    async def _tell_latency(self, took: float, answer: dict[str, Any]) -> None:
        self._duet._service.metrics.duet_note(took)
        shares = {"read_ms": answer["read_s"], "made_ms": answer["made_s"]}
        shares["waited_ms"] = took - answer["read_s"] - answer["made_s"]
        told = {name: round(1000 * seconds, 1) for name, seconds in shares.items()}
        message = {"type": "latency", "answer": self._number, "first_note_ms": round(1000 * took, 1)}
        await self._duet._send(message | told)
