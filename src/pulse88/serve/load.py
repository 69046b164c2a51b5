"""How much is under way at once: requests, and bytes in and out. Bounded, so that no crowd fills the memory."""

from __future__ import annotations

from starlette.types import Message, Receive, Send

from pulse88.serve.limits import Limits
from pulse88.serve.problems import Problem

PIECE = 64 * 1024  # bytes that are handed on at once; the next when those have been taken


class Load:
    """What is under way now."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self.bodies = self.answers = 0  # the latter two in bytes


class Share:
    """What one request has of it."""

    def __init__(self, load: Load, receive: Receive, send: Send) -> None:
        self._load, self._receive, self._send = load, receive, send
        self._request = self._body = self._answer = 0

    def begin(self, *, counts: bool) -> None:
        """Problem 429 if there are too many requests under way; `counts` whether this one is of them."""
        if counts and self._load.requests >= self._load.limits.requests:
            raise Problem(429, "too many requests at once: come back in a few seconds", retry_after=5)
        self._request = int(counts)
        self._load.requests += self._request

    def end(self) -> None:
        """The request is over."""
        self._load.requests -= self._request
        self._load.bodies -= self._body
        self._load.answers -= self._answer
        self._request = self._body = self._answer = 0

    async def receive(self) -> Message:
        """What comes of the request; Problem 429 if too much comes from all together."""
        message = await self._receive()
        size = len(message.get("body", b""))
        self._body += size
        self._load.bodies += size
        if size and self._load.bodies > self._load.limits.bodies_bytes:
            raise Problem(429, "too much is being uploaded at once: come back in a few seconds", retry_after=5)
        return message

    async def send(self, message: Message) -> None:
        """Hands an answer on, as fast as it is taken."""
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= PIECE:
            await self._send(message)
            return
        self._answer += len(body)
        self._load.answers += len(body)
        more = message.get("more_body", False)
        for at in range(0, len(body), PIECE):
            last = at + PIECE >= len(body)
            await self._send({**message, "body": body[at : at + PIECE], "more_body": more or not last})
        self._load.answers -= len(body)
        self._answer -= len(body)

    def check_room(self, size: int) -> None:
        """Problem 429 if an answer of so many bytes is too much beside all others."""
        if self._load.answers + size > self._load.limits.answers_bytes:
            raise Problem(429, "too much is being downloaded at once: come back in a few seconds", retry_after=5)
