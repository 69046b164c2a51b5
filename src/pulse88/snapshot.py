"""A take as bytes, and the take from them, in another process if need be: it goes on bit for bit.

    data = dump(take)
    for event, take in play(load(engine, data)): ...

The bytes are a safetensors file: the state's arrays as its engine has them, and in the metadata the take's facts, the
weights' sha256 and a digest of all of it. Nothing in it is run, and nothing is used before it is checked. Bit for bit
is meant for the same engine on the same kind of CPU; another CPU goes on from the same state with its own rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as serialise

from pulse88.config import SamplingConfig
from pulse88.engine.weights import in_order
from pulse88.generate import LARGEST_SEED, Take
from pulse88.vocabulary import BOS, EVENT_TOKENS, Grammar, Slot

if TYPE_CHECKING:
    from pulse88.engine import Engine

FORMAT = "1"
_FACTS: dict[str, type] = {
    **{"sampling": dict, "random_seed": int, "number": int, "may_end": bool},
    **{"keep": int, "anchor": str, "window": str, "events": int},
}


class SnapshotError(ValueError):
    """Bytes that are no snapshot, are damaged, or belong to another engine or other weights."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the snapshot can't be used: {problem}")


def dump(take: Take) -> bytes:
    """The take as it stands. Equal takes give equal bytes."""
    arrays = {name: np.ascontiguousarray(array) for name, array in take.engine.freeze(take.state).items()}
    facts = {name: getattr(take, name) for name in _FACTS}
    facts |= {"sampling": asdict(take.sampling), "anchor": bytes(take.anchor).hex(), "window": bytes(take.window).hex()}
    metadata = {
        "pulse88_snapshot": FORMAT,
        "engine": take.engine.name,
        "weights_sha256": take.engine.weights_sha256,
        "take": json.dumps(facts, separators=(",", ":")),
    }
    return in_order(serialise(arrays, metadata | {"digest": _digest(metadata, arrays)}))


def load(engine: Engine, data: bytes) -> Take:
    """The take that was dumped, on an engine of the same name over the same weights. SnapshotError if it can't be."""
    metadata = _metadata(data)
    if metadata.get("pulse88_snapshot") != FORMAT:
        found = metadata.get("pulse88_snapshot")
        raise SnapshotError(f"its format is {found!r}, and this version reads {FORMAT!r}: make it again")
    try:
        arrays = arrays_of(data)
    except KeyError as error:
        raise SnapshotError(f"an array is of the type {error}, which numpy doesn't know") from error
    if metadata.pop("digest", None) != _digest(metadata, arrays):
        raise SnapshotError("its digest is not that of its contents: it is damaged")
    if metadata.get("engine") != engine.name:
        raise SnapshotError(f"it is of the engine {metadata.get('engine')}, not {engine.name}")
    if metadata.get("weights_sha256") != engine.weights_sha256:
        raise SnapshotError(
            f"it was made with other weights (sha256 {metadata.get('weights_sha256', '')[:16]}..., these have "
            f"{engine.weights_sha256[:16]}...)"
        )
    try:
        return _take(engine, json.loads(metadata.get("take", "")), arrays)
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotError(str(error)) from error


def _take(engine: Engine, facts: Any, arrays: Mapping[str, NDArray[Any]]) -> Take:
    if not isinstance(facts, dict) or facts.keys() != _FACTS.keys():
        raise ValueError("the take's facts are not those of this version")
    for name, kind in _FACTS.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"the take's {name} is {facts[name]!r}")
    anchor, window = (tuple(bytes.fromhex(facts[name])) for name in ("anchor", "window"))
    if not all(0 <= facts[name] <= LARGEST_SEED for name in ("number", "events", "random_seed")):
        raise ValueError("a number of the take is out of its range")
    grammar = Grammar.of(window)
    if not 0 < len(window) <= engine.config.max_positions + 1 or grammar.slot is not Slot.DELTA:
        raise ValueError(f"the take's window of {len(window)} ids ends inside an event, or is none")
    kept, whole = facts["keep"] * EVENT_TOKENS, Grammar.of(anchor).slot is Slot.DELTA
    if not whole or BOS in anchor or not 2 * len(anchor) <= kept <= engine.config.max_positions + 1 - EVENT_TOKENS:
        raise ValueError(f"the take's anchor of {len(anchor)} ids doesn't fit the {facts['keep']} events that are kept")
    if facts["sampling"].keys() != {field.name for field in fields(SamplingConfig)}:
        raise ValueError("the sampling's settings are not those of this version")
    state = engine.thaw(arrays, len(window) - 1)
    sampling = SamplingConfig(**facts["sampling"])
    own = {name: facts[name] for name in ("random_seed", "number", "may_end", "keep", "events")}
    return Take(engine, sampling, anchor=anchor, window=window, state=state, grammar=grammar, **own)


def _metadata(data: bytes) -> dict[str, str]:
    try:
        deserialize(data)  # type: ignore[no-untyped-call]  # Checks the header against the bytes.
    except SafetensorError as error:
        raise SnapshotError(f"it is no whole safetensors file: {error}") from error
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__") or {}


def _digest(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    described = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([metadata, described], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name].data)
    return digest.hexdigest()
