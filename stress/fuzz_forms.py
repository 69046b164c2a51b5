"""Damage that keeps an input's form: what is inside changes, and lengths, digests and compression fit it again.

A form opens an input, changes something inside by `change` (bytes to bytes), and closes it. It raises ValueError for
an input that it can't open: such are damaged as they are.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

Change = Callable[[bytes], bytes]
Form = Callable[[bytes, random.Random, Change], bytes]

WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4}
WIDTHS |= {"U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
LARGEST = 2**20  # bytes of what a form makes
DEEP, LONG = "<so deep>", "<so long>"  # stand for values that json can't write
EDGES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 127, 128, 255, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**400),
    *(1e308, 5e-324, math.inf, -math.inf, math.nan, "", "0", "x", "\0", "\ud800", "..", "/", "é" * 300, DEEP, LONG),
    *([], [[]], {}, [None], {"": None}, [0] * 1000),
)


# ---------------------------------------------------------------- JSON


def json_form(data: bytes, chance: random.Random, change: Change) -> bytes:
    """A JSON text; a tenth of the damages is to the text itself."""
    if chance.random() < 0.1:
        return change(data)
    return _text(tree_damaged(_tree(data), chance, change))


def _tree(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _text(tree: Any) -> bytes:
    text = json.dumps(tree, separators=(",", ":"))
    deep = "[" * 5000 + "]" * 5000
    return text.replace(json.dumps(DEEP), deep).replace(json.dumps(LONG), "9" * 5000).encode()


def tree_damaged(tree: Any, chance: random.Random, change: Change) -> Any:
    """The tree with one to four of its places changed, and itself at times."""
    box = [tree]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = list(_places(box))
        holder, key = chance.choice(places)
        value = holder[key]
        match chance.randrange(8):
            case 0 | 1:
                holder[key] = deepcopy(chance.choice(EDGES))
            case 2:
                other, at = chance.choice(places)
                holder[key] = json.loads(json.dumps(other[at]))
            case 3 if holder is not box:
                del holder[key]
            case 4 if isinstance(holder, list) and holder is not box:
                holder.insert(key, value)
            case 5 if isinstance(holder, dict):
                holder[_changed(key, chance, change)] = holder.pop(key)
            case _:
                holder[key] = _changed(value, chance, change)
    return box[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Where every value of a tree is: what holds it, and its key or place there."""
    waiting = [node]
    while waiting:
        holder = waiting.pop()
        keys: Any = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], (list, dict)):
                waiting.append(holder[key])


def _changed(value: Any, chance: random.Random, change: Change) -> Any:
    """A value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return chance.choice((value + 1, value - 1, -value, value * 2, chance.getrandbits(chance.choice((8, 64)))))
        case float():
            return chance.choice((value * 2, -value, value + 1e-9, chance.uniform(-1e3, 1e3)))
        case str():
            return change(value.encode("utf-8", "replace")).decode("utf-8", "replace")
        case list() if value:
            return value * 2 if chance.random() < 0.5 else value[: chance.randrange(len(value))]
    return deepcopy(chance.choice(EDGES))


# ---------------------------------------------------------------- safetensors


class Tensors(NamedTuple):
    """A safetensors file, opened."""

    metadata: dict[str, Any]
    tensors: list[tuple[str, dict[str, Any], bytes]]  # name, dtype and shape, values


def opened(data: bytes) -> Tensors:
    size = int.from_bytes(data[:8], "little")
    header = _tree(data[8 : 8 + size]) if 0 < size <= len(data) - 8 else None
    if not isinstance(header, dict):
        raise ValueError("no header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("no metadata")
    try:
        found = [
            (name, {"dtype": e["dtype"], "shape": e["shape"]}, data[8 + size :][slice(*e["data_offsets"])])
            for name, e in header.items()
        ]
    except (KeyError, TypeError) as error:
        raise ValueError("no tensors") from error
    return Tensors({**metadata}, found)


def closed(parts: Tensors) -> bytes:
    """The values of every tensor are cut or filled to its shape, so that the file is whole again."""
    header: dict[str, Any] = {"__metadata__": parts.metadata}
    values = bytearray()
    for name, about, data in parts.tensors:
        shape = about["shape"]
        whole = isinstance(shape, list) and all(type(n) is int and 0 <= n <= LARGEST for n in shape)
        size = math.prod(shape) * WIDTHS.get(about["dtype"], 1) if whole else len(data)
        size = size if size <= LARGEST else len(data)
        header[name] = {**about, "data_offsets": [len(values), len(values) + size]}
        values += data[:size].ljust(size, b"\0")
    text = _text(header)
    return struct.pack("<Q", len(text)) + text + bytes(values)


def safetensors_form(mend: Callable[[Tensors], Tensors] = lambda parts: parts) -> Form:
    """`mend` puts right what depends on the rest, such as a digest."""

    def form(data: bytes, chance: random.Random, change: Change) -> bytes:
        parts = opened(data)
        metadata, tensors = dict(parts.metadata), list(parts.tensors)
        at = chance.randrange(len(tensors)) if tensors else -1
        kind = chance.randrange(8)
        if kind < 4 and metadata:
            key = chance.choice(list(metadata))
            metadata[key] = _json_inside(metadata[key], chance, change)
        elif kind == 4 or at < 0:
            metadata = tree_damaged(metadata, chance, change)
        elif kind == 5:
            name, about, values = tensors[at]
            tensors[at] = name, about, change(values[:4096]) + values[4096:]
        elif kind == 6:
            name, about, values = tensors[at]
            shape = chance.choice(([], [0], [1], about["shape"][:-1], [*about["shape"], 1], about["shape"][::-1]))
            dtype = chance.choice((*WIDTHS, *([about["dtype"]] * 12)))
            tensors[at] = name, {"dtype": dtype, "shape": chance.choice((shape, about["shape"]))}, values
        else:
            name, about, values = tensors.pop(at)
            if chance.random() < 0.7:
                name = chance.choice(
                    (change(name.encode()).decode("utf-8", "replace"), chance.choice(parts.tensors)[0])
                )
                tensors.insert(at, (name, about, values))
        if not isinstance(metadata, dict):
            metadata = {"": str(metadata)}
        strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        return closed(mend(Tensors(strings, tensors)))

    return form


def _json_inside(text: str, chance: random.Random, change: Change) -> str:
    data = text.encode("utf-8", "replace")
    try:
        return json_form(data, chance, change).decode("utf-8", "replace")
    except ValueError:
        return change(data).decode("utf-8", "replace")


def array_of(about: dict[str, Any], data: bytes) -> Any:
    """A tensor's values as numpy has them; ValueError where it has no such type."""
    kinds = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1", "U8": "u1", "I64": "<i8", "I32": "<i4"}
    if about["dtype"] not in kinds:
        raise ValueError("no such type")
    size = math.prod(about["shape"]) * np.dtype(kinds[about["dtype"]]).itemsize
    return np.frombuffer(data[:size].ljust(size, b"\0"), kinds[about["dtype"]]).reshape(about["shape"])


# ---------------------------------------------------------------- archives


def zip_form(inside: dict[str, Form] | None = None) -> Form:
    """A zip whose members change, or their names, with the check sums to it. `inside` has forms for some members."""

    def form(data: bytes, chance: random.Random, change: Change) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        except Exception as error:
            raise ValueError("no zip") from error
        if not members:
            raise ValueError("an empty zip")
        at = chance.randrange(len(members))
        name, content = members.pop(at)
        kind = chance.randrange(8)
        if kind:
            content = _by_form((inside or {}).get(name), content, chance, change)
        if kind != 1:
            members.insert(at, (name if kind else change(name.encode()).decode("utf-8", "replace"), content))
        out = io.BytesIO()
        packing = zipfile.ZIP_DEFLATED if chance.random() < 0.3 else zipfile.ZIP_STORED
        with zipfile.ZipFile(out, "w", packing) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content, packing)
        return out.getvalue()

    return form


def _by_form(form: Form | None, data: bytes, chance: random.Random, change: Change) -> bytes:
    try:
        return form(data, chance, change) if form else change(data)
    except ValueError:
        return change(data)


def npy_form(inside: Form | None = None) -> Form:
    """An .npy whose header or values change; the values are one text or file where `inside` knows its form."""

    def form(data: bytes, chance: random.Random, change: Change) -> bytes:
        if data[:6] != b"\x93NUMPY" or len(data) < 10:
            raise ValueError("no array")
        start = 10 + int.from_bytes(data[8:10], "little")
        head, values = data[10:start], data[start:]
        if chance.random() < 0.3:
            head = change(head)
        elif inside is None:
            values = change(values)
        else:
            values = _by_form(inside, values, chance, change)
            head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(values)},), }}\n".encode()
        return data[:8] + struct.pack("<H", len(head) % 2**16) + head + values

    return form


def lzma_form(inside: Form | None = None) -> Form:
    def form(data: bytes, chance: random.Random, change: Change) -> bytes:
        try:
            content = lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError("no lzma") from error
        return lzma.compress(_by_form(inside, content, chance, change), preset=0)

    return form


def tar_gz_form(data: bytes, chance: random.Random, change: Change) -> bytes:
    """A tar whose bytes change, with the check sums of its headers to it, packed again."""
    try:
        tar = gzip.decompress(data)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError("no gzip") from error
    blocks = [tar[at : at + 512] for at in range(0, len(tar) - 511, 512)]
    headers = [n for n, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if not headers:
        raise ValueError("no tar")
    at = chance.choice(headers) if chance.random() < 0.8 else chance.randrange(len(blocks))
    block = change(blocks[at])[:512].ljust(512, b"\0")
    if at in headers:
        unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
        block = block[:148] + f"{unsigned:06o}\0 ".encode() + block[156:]
    blocks[at] = block
    if chance.random() < 0.1:
        blocks.insert(at, chance.choice(blocks))
    return gzip.compress(b"".join(blocks), 1)


# ---------------------------------------------------------------- MIDI


def midi_form(data: bytes, chance: random.Random, change: Change) -> bytes:
    """A MIDI file one of whose chunks changes, with its length to it."""
    chunks, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size
    if not chunks:
        raise ValueError("no chunks")
    chosen = chance.randrange(len(chunks))
    kind, body = chunks.pop(chosen)
    start = chance.randrange(max(1, len(body) - 256)) if chance.random() < 0.7 else 0
    body = body[:start] + change(body[start : start + 512]) + body[start + 512 :]
    for _ in range(chance.choice((0, 1, 1, 1, 1, 2))):
        chunks.insert(chosen, (kind, body))
    return b"".join(kind + struct.pack(">I", len(body)) + body for kind, body in chunks)
