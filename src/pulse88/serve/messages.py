"""What goes between the server and its workers: a JSON object and blobs of bytes, framed by their lengths.

    4 bytes   length of the JSON, big-endian, the JSON itself holding "blobs": [length, ...]
    then the blobs, one after another

Nothing in a message is run when it is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

LONGEST = 256 * 2**20  # bytes of a message: what is longer is none of ours


class Message(NamedTuple):
    """One message; `head["is"]` says what it is."""

    head: dict[str, Any]
    blobs: list[bytes]


def packed(head: dict[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """The pieces of a message, to be written one after another."""
    data = json.dumps(head | {"blobs": [len(blob) for blob in blobs]}, separators=(",", ":")).encode()
    return [len(data).to_bytes(4, "big") + data, *blobs]


def send(stream: BinaryIO, head: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Writes a message and flushes."""
    for piece in packed(head, blobs):
        stream.write(piece)
    stream.flush()


def receive(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream; None where it ends."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    head = json.loads(_exactly(stream, _checked(int.from_bytes(size, "big"))))
    blobs = [_exactly(stream, _checked(length)) for length in head.pop("blobs")]
    return Message(head, blobs)


async def receive_async(stream: asyncio.StreamReader) -> Message | None:
    """The next message of an asyncio stream; None where it ends, in the middle of a message too, or makes no sense."""
    try:
        size = int.from_bytes(await stream.readexactly(4), "big")
        head = json.loads(await stream.readexactly(_checked(size)))
        blobs = [await stream.readexactly(_checked(length)) for length in head.pop("blobs")]
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return None
    return Message(head, blobs)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the stream ends inside a message")
    return data


def _checked(length: int) -> int:
    if not 0 <= length <= LONGEST:
        raise ValueError(f"a message of {length} bytes is none of ours")
    return length
