"""What every request passes before anything else is done: host, origin, token, size; and what every answer carries.

A page on another site can send requests to a server on this machine, by its address or by a name that it makes point
here. So a Host must be one of ours, and where a browser says which page asks (Origin), that must be our own.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulse88.serve.limits import Limits
from pulse88.serve.load import Load, Share
from pulse88.serve.metrics import Metrics
from pulse88.serve.problems import MEDIA_TYPE, Problem

VISITOR_COOKIE, TOKEN_COOKIE = "pulse88_visitor", "pulse88_token"
VISITOR = re.compile(r"[A-Za-z0-9-]{8,64}")
OPEN_PATHS = frozenset({"/v1/health"})  # what balancers ask has no token
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": CONTENT_POLICY,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Doorway:
    """Who may come in."""

    hosts: tuple[str, ...] = LOOPBACK  # names that the server goes by; none at all: any
    origins: tuple[str, ...] = ()  # of other sites that may ask, such as https://example.org
    token: str = ""  # that every request must carry; empty: none

    def check(self, scope: Scope, headers: Headers) -> None:
        """Problem for whoever may not."""
        host = _name(headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            raise Problem(
                403,
                f"this server does not go by the name {host[:80]!r}: use its address, or start it with --name NAME",
            )
        origin = headers.get("origin")
        asks = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if origin and asks and origin not in self.origins and urlsplit(origin).netloc != headers.get("host"):
            raise Problem(
                403, f"requests from {origin[:80]} are refused: start the server with --allow-origin {origin[:80]}"
            )
        if self.token and scope["path"] not in OPEN_PATHS and not self._knows(scope, headers):
            raise Problem(401, "this server wants a token: send `Authorization: Bearer TOKEN`, or open /?token=TOKEN")

    def _knows(self, scope: Scope, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer "), cookies(headers).get(TOKEN_COOKIE, "")]
        given += parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return any(hmac.compare_digest(token.encode(), self.token.encode()) for token in given)


class Guard:
    """The outermost layer of the server."""

    def __init__(self, app: ASGIApp, doorway: Doorway, metrics: Metrics, limits: Limits) -> None:
        self._app, self._doorway, self._metrics, self._limits = app, doorway, metrics, limits
        self._load = Load(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        began = time.perf_counter()
        request_id = secrets.token_hex(6)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["visitor"] = visitor(scope, headers)
        status = 0
        share = scope["state"]["share"] = Share(self._load, receive, send)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                for name, value in ALWAYS.items():
                    answered.setdefault(name, value)
                self._allow(headers, answered)
                route = getattr(scope.get("route"), "path", "other")  # never what was asked: ids make no series
                self._metrics.answered(scope["method"], route, status, time.perf_counter() - began)
            await share.send(message)

        if scope["type"] == "http" and scope["method"] == "OPTIONS" and headers.get("origin") in self._doorway.origins:
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b""})
            return
        try:
            self._doorway.check(scope, headers)
            self._check_size(headers)
            share.begin(counts=scope["path"] not in OPEN_PATHS)
        except Problem as problem:
            await refuse(problem, scope, receive, answer, request_id)
        else:
            await self._app(scope, share.receive, answer)
        finally:
            share.end()
        _log.info(
            "%s %s %s %d %.0f ms",
            request_id,
            scope.get("method", "WS"),
            scope["raw_path"].decode("latin-1")[:200],  # as it was sent: no line ends in it
            status,
            1000 * (time.perf_counter() - began),
        )

    def _check_size(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Problem(400, "the request's Content-Length is no number")
        if int(length) > self._limits.json_bytes:
            raise too_large(self._limits.json_bytes)
        if headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "a packed body is not read: send it without Content-Encoding")

    def _allow(self, asked: Headers, answered: MutableHeaders) -> None:
        origin = asked.get("origin")
        if origin in self._doorway.origins:
            answered["access-control-allow-origin"] = origin
            answered["access-control-allow-headers"] = "authorization, content-type, x-visitor"
            answered["access-control-allow-methods"] = "GET, POST, DELETE"
            answered["access-control-expose-headers"] = "x-request-id, x-take, x-seed"
            answered["cross-origin-resource-policy"] = "cross-origin"
            answered.add_vary_header("origin")


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
    """Answers a request with a problem, before its body is read."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:120]})
        return
    body = json.dumps(problem.to_json(request_id)).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if problem.retry_after is not None:
        headers.append((b"retry-after", str(problem.retry_after).encode()))
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if problem.status == 413:
        headers.append((b"connection", b"close"))  # so that nobody sends the rest of it
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def too_large(most: int) -> Problem:
    """The problem of a body that is too large."""
    return Problem(413, f"the body is larger than {most / 2**20:g} MiB, the most that is read: send a smaller file")


def visitor(scope: Scope, headers: Headers) -> str:
    """Who asks, as far as taking turns goes: by cookie, header, or address."""
    given = cookies(headers).get(VISITOR_COOKIE) or headers.get("x-visitor") or ""
    if VISITOR.fullmatch(given):
        return hashlib.sha256(given.encode()).hexdigest()[:16]
    client = scope.get("client")
    return f"at {client[0]}" if client else "unknown"


def cookies(headers: Headers) -> dict[str, str]:
    """The cookies of a request; none if they make no sense."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    return urlsplit(f"//{host}").hostname or "" if not host.startswith("//") else ""
