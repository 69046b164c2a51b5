"""Connections that hold up nobody: those that ask for nothing, or take nothing, are ended, whatever they promise.

A client may be as slow as it likes as long as something moves. What is half open, asks by drops, or reads by drops
would else keep a place, and what waits to be sent to it, for as long as it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MOST = 1000  # connections at once; where more come, those that ask for nothing go, the longest idle first
ASK_SECONDS = 30.0  # that the head of a request may take, and until the next request on the same connection
TAKE_SECONDS = 30.0  # that 48 KiB of what waits to be sent may take, or the rest once all is said
LOOK_SECONDS = 5.0  # between looks at each connection


class Watch:
    """Looks after one connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._stuck: float | None = None  # since when it takes nothing
        self.idle: float | None = self._loop.time()  # since when it has asked for nothing; None while it is answered
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def paused(self, full: bool) -> None:
        """What waits to be sent has grown too long, or is short again."""
        self._stuck = self._loop.time() if full else None

    def answers(self, busy: bool) -> None:
        """A request is under way from now on, or none."""
        self.idle = None if busy else self.idle or self._loop.time()

    def end(self) -> None:
        """Looks no more."""
        self._timer.cancel()

    def cut(self) -> None:
        """Ends the connection at once, with what waits to be sent, here and in the system."""
        if self._stuck is not None:
            at_once = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._transport.abort()

    def _look(self) -> None:
        now = self._loop.time()
        if self._transport.is_closing() and self._stuck is None:
            self._stuck = now
        if (self._stuck is not None and now - self._stuck > TAKE_SECONDS) or (
            self.idle is not None and now - self.idle > ASK_SECONDS
        ):
            self.cut()
        else:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)


class Connection(H11Protocol):
    """One HTTP connection."""

    watch: Watch

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.watch = Watch(transport)
        if len(self.connections) > MOST:
            _make_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.watch.answers(self.cycle is not None and not self.cycle.response_complete)

    def on_response_complete(self) -> None:
        self.watch.idle = self.watch._loop.time()
        super().on_response_complete()
        self.watch.answers(not self.cycle.response_complete)  # The next request may have come with the last one.

    def handle_websocket_upgrade(self, event: Any) -> None:
        self.watch.end()  # The other protocol has its own.
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch.paused(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch.paused(False)


class Socket(WebSocketsSansIOProtocol):
    """One WebSocket; uvicorn's pings notice who is gone."""

    watch: Watch

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.watch = Watch(transport)
        self.watch.idle = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watch.paused(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch.paused(False)


def _make_room(new: Connection) -> None:
    """Ends the connection that has been idle longest; the new one if all others are busy."""
    idle = [
        (connection.watch.idle, place, connection)
        for place, connection in enumerate(new.connections)
        if isinstance(connection, Connection) and connection is not new and connection.watch.idle is not None
    ]
    (min(idle)[2] if idle else new).watch.cut()
