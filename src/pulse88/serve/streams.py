"""Bodies in and events out: reading no more than is allowed, and streaming until it is over or nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pulse88.serve.guard import too_large
from pulse88.serve.problems import Problem

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0
BODY_SECONDS = 30.0  # that an upload may take

Result = TypeVar("Result")


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request; Problem 413 as soon as it is too large, 408 if it takes too long."""
    try:
        return await asyncio.wait_for(_read(request, most), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Problem(408, f"the body did not come within {BODY_SECONDS:g} s: send it again") from None


async def _read(request: Request, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise too_large(most)
            pieces.append(piece)
    except ClientDisconnect:
        raise Problem(408, "the one who asked has gone") from None
    return b"".join(pieces)


async def unless_gone(request: Request, wanted: Awaitable[Result]) -> Result:
    """The result; cancelled when the one who asked has gone, which ends in a Problem that nobody hears.

    For requests whose body has been read.
    """
    task = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Problem(408, "the one who asked has gone")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Events as NDJSON or SSE, each sent when it is there. `leave` is called at the end, whoever ended it."""

    def __init__(
        self, events: AsyncIterator[dict[str, Any] | None], media_type: str, leave: Callable[[], None]
    ) -> None:
        self.status_code, self.background = 200, None
        self.media_type = media_type
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._leave()
            for task in (gone, sending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            body = self._line(event)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _line(self, event: dict[str, Any] | None) -> bytes:
        """An event, or for None what keeps the connection open."""
        if self.media_type == SSE:
            return b": waiting\n\n" if event is None else b"data: " + _json(event) + b"\n\n"
        return b"\n" if event is None else _json(event) + b"\n"


async def until_done(queue: asyncio.Queue[dict[str, Any]], takes: int) -> AsyncIterator[dict[str, Any] | None]:
    """The events of so many takes until each is done; None where nothing has come for a while."""
    while takes:
        try:
            event = await asyncio.wait_for(queue.get(), KEEP_ALIVE_SECONDS)
        except asyncio.TimeoutError:
            yield None
            continue
        takes -= event["type"] in ("done", "error")
        yield event


def _json(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()
