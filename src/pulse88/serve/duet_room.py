"""What a worker does of duets: reads along while somebody plays, and answers. It knows ids only; duet.py knows times.

The server names the whole of what shall have been read, every time. A worker that has read the beginning of it reads
the rest, one that has not (it is new, or the end was played otherwise) reads from further back.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from pulse88 import generate
from pulse88.config import SamplingConfig, SteeringConfig
from pulse88.continuation import Continuer
from pulse88.generate import Event, Take
from pulse88.steering import Steering
from pulse88.vocabulary import BLOCKS, EVENT_TOKENS, Slot

STATES = 4  # that are kept of a duet; some 10 MB each
DUETS = 8  # whose states are kept


class DuetRoom:
    """The duets of one worker."""

    def __init__(self, continuer: Continuer) -> None:
        self._continuer = continuer
        self._read: OrderedDict[str, list[Take]] = OrderedDict()  # of each duet, oldest first

    def do(self, head: dict[str, Any]) -> dict[str, Any]:
        """`duet_read`, `duet_answer` or `duet_over`; ValueError for ids without sense."""
        match head["is"]:
            case "duet_over":
                self._read.pop(head["duet"], None)
                return {"is": "duet_over"}
            case "duet_read":
                began = time.perf_counter()
                self._at(head["duet"], tuple(bytes.fromhex(head["ids"])))
                return {"is": "duet_read", "read_s": time.perf_counter() - began}
            case _:
                return self._answer(head)

    def _at(self, duet: str, ids: tuple[int, ...]) -> Take:
        """The take that has read `ids`."""
        kept = self._read.setdefault(duet, [])
        self._read.move_to_end(duet)
        while len(self._read) > DUETS:
            self._read.popitem(last=False)
        known = [take for take in kept if ids[: len(take.window)] == take.window]
        if known:
            take = generate.after_reading(max(known, key=lambda take: len(take.window)), ids[_length(known) :])
        else:
            take = generate.begin(self._continuer.engine, ids, SamplingConfig(), random_seed=0)
        self._keep(duet, take)
        return take

    def _keep(self, duet: str, take: Take) -> None:
        kept = self._read[duet]
        others = [other for other in kept if other.window != take.window]
        kept[:] = [*others[-(STATES - 1) :], take]

    def _answer(self, head: dict[str, Any]) -> dict[str, Any]:
        """Up to `count` more notes of an answer, whose notes `made` are the last of `ids`.

        `over` where it breathes in its second half, or its time is up.
        """
        began = time.perf_counter()
        grid = self._continuer.tokenizer.grid
        made = bytes.fromhex(head["made"])
        take = self._at(head["duet"], tuple(bytes.fromhex(head["ids"])))
        read_s = time.perf_counter() - began
        sampling = SamplingConfig(temperature=head["temperature"], top_p=head["top_p"])
        take = generate.begin_after(take, sampling, random_seed=head["random_seed"], number=head["number"])
        take = replace(take, events=len(made) // EVENT_TOKENS)
        register = head["register"]
        config = SteeringConfig(
            register=None if register is None else (register[0], register[1]),
            pitch_classes=None if head["pitch_classes"] is None else tuple(head["pitch_classes"]),
        )
        before = [Event(*made[at : at + EVENT_TOKENS]) for at in range(0, len(made), EVENT_TOKENS)]
        steering = Steering.begin(config, grid, before, next_gap=None if before else head["gap"])
        events: list[int] = []
        over = False
        while len(events) < head["count"] * EVENT_TOKENS:
            step = generate.advance(take, steering)
            assert step is not None, "a duet's take has no end of its own"
            event, after = step
            gap = float(grid.seconds(Slot.DELTA, event.delta - BLOCKS[Slot.DELTA].start))
            elapsed = steering.elapsed + gap
            breathes = gap >= head["breath"] and steering.elapsed - head["gap"] > head["seconds"] / 2
            if steering.recent and (breathes or elapsed - head["gap"] > head["seconds"]):
                over = True
                break
            take, steering = after, steering.after(event)
            events += event
        self._keep(head["duet"], take)
        made_s = time.perf_counter() - began - read_s
        return {"is": "duet_answer", "ids": bytes(events).hex(), "over": over, "read_s": read_s, "made_s": made_s}


def _length(takes: list[Take]) -> int:
    return max(len(take.window) for take in takes)
