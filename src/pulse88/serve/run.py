"""Starting and stopping the server: the socket, who may come in, the address that is told, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from pulse88.serve.app import application
from pulse88.serve.connections import MOST, Connection, Socket
from pulse88.serve.guard import LOOPBACK, Doorway, is_loopback
from pulse88.serve.heap import map_large_blocks
from pulse88.serve.limits import STANDARD, Limits
from pulse88.serve.problems import Problem
from pulse88.serve.service import Service

GOODBYE_SECONDS = 2  # that streams have to end when the server goes down
LARGEST_DUET_MESSAGE = 4096  # bytes


@dataclass(frozen=True)
class ServeConfig:
    """How to listen. ValueError for what can't be."""

    host: str = "127.0.0.1"
    port: int = 8088  # 0 takes any that is free
    workers: int = 1
    weights: Path | None = None
    adapter: Path | None = None
    index: Path | None = None  # that takes are compared with
    engine: str = "auto"
    token: str = ""
    names: tuple[str, ...] = ()  # that the server goes by, beside its address
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask
    limits: Limits = STANDARD

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be 0 to 65535, not {self.port}")
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, not {self.workers}")

    @property
    def is_open(self) -> bool:
        """Whether others than this machine reach it."""
        return not is_loopback(self.host)


def serve(config: ServeConfig, tell: Callable[[str], None], *, open_browser: bool = False) -> None:
    """Serves until Ctrl-C or SIGTERM. `tell` gets lines for people; the first is the address, when it listens.

    OSError if the address can't be listened on; ValueError if no worker can begin.
    """
    map_large_blocks()
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when all is closed
        asyncio.run(_serve(config, tell, open_browser))


async def _serve(config: ServeConfig, tell: Callable[[str], None], open_browser: bool) -> None:
    _allow_files(MOST + 256)
    token = config.token or (secrets.token_urlsafe(18) if config.is_open else "")
    hosts: Sequence[str] = () if config.is_open and not config.names else (*LOOPBACK, config.host, *config.names)
    service = Service(config.workers, config.weights, config.adapter, config.index, config.engine, config.limits)
    app = application(service, Doorway(tuple(hosts), config.origins, token))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
            timeout_keep_alive=30,
            http=Connection,
            ws=Socket,
            ws_max_size=LARGEST_DUET_MESSAGE,
            backlog=512,
        )
    )
    with _listening(config) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        tell(f"Pulse88 listens on {address}")
        if config.is_open:
            tell(
                f"Everybody who reaches this machine and knows the token may use it: {address}?token={token}\n"
                "Token and music go over the network as they are: put TLS before it (docs/deploy.md)."
            )
        logging.getLogger(__name__).info("%d workers", config.workers)
        serving = asyncio.create_task(server.serve([listener]))
        beginning = asyncio.create_task(_begun(service, tell, address if open_browser else "", token))
        try:
            await asyncio.wait((serving, beginning), return_when=asyncio.FIRST_COMPLETED)
            if beginning.done() and beginning.exception() is not None:
                server.should_exit = True
                await serving
                raise ValueError(str(beginning.exception()))
            await serving
        finally:
            beginning.cancel()
            with contextlib.suppress(asyncio.CancelledError, Problem):
                await beginning


async def _begun(service: Service, tell: Callable[[str], None], browse: str, token: str) -> None:
    """Waits for a worker, and says so."""
    while not service.pool.started:
        await asyncio.sleep(0.01)
    await service.pool.wait_until_ready()
    tell("Ready. Ctrl-C stops it.")
    if browse:
        webbrowser.open(browse + (f"?token={token}" if token else ""))


def _allow_files(count: int) -> None:
    """So many open files at least, where the system lets us ask: a connection is one."""
    if os.name == "posix":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < count:
            most = count if hard == resource.RLIM_INFINITY else min(count, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        where = f"{config.host}:{config.port}"
        raise OSError(
            error.errno, f"can't be listened on ({error.strerror}): choose another --port, or 0 for any", where
        ) from error
    listener.listen(512)
    listener.setblocking(False)
    return listener
