"""A worker process: reads works from its standard input, one after another, and answers on its standard output.

    python -m pulse88.serve.worker '{"weights": null, "adapter": null, "index": null, "engine": "auto", "limits": {}}'

It ends when its input does, so nobody outlives the server. Messages of duets are served between two notes of whatever
else is under way.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from pulse88.continuation import Continuer
from pulse88.engine.layout import parameter_count
from pulse88.originality import default_index
from pulse88.overlap_index import OverlapIndex, OverlapIndexError
from pulse88.serve.duet_room import DuetRoom
from pulse88.serve.heap import map_large_blocks
from pulse88.serve.limits import Limits
from pulse88.serve.messages import Message, receive, send
from pulse88.serve.room import Room
from pulse88.serve.uploads import Refused


class Worker:
    """One worker between its two streams."""

    def __init__(self, inbox: BinaryIO, outbox: BinaryIO, room: Room) -> None:
        self._outbox, self._room = outbox, room
        self._duets = DuetRoom(room.continuer)
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._stop: str | None = None  # the work that is to be stopped
        self._aside: list[Message | None] = []  # what came while a work was under way, and waits for its end
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def run(self) -> None:
        """Works until the input ends."""
        while (message := self._aside.pop(0) if self._aside else self._waiting.get()) is not None:
            if not self._serve_at_once(message):
                self._work(message)

    def _listen(self, inbox: BinaryIO) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while (message := receive(inbox)) is not None:
                self._waiting.put(message)
        self._waiting.put(None)

    def _serve_at_once(self, message: Message) -> bool:
        """Serves what does not wait for the end of a work; whether it was such."""
        head = message.head
        if head["is"] == "stop":
            self._stop = head["work"]
        elif head["is"].startswith("duet_"):
            answer = {"work": head["work"]}
            try:
                self._send(answer | self._duets.do(head))
            except ValueError as error:
                self._send(answer | {"is": "refused", "status": 422, "detail": str(error)})
        else:
            return False
        return True

    def _work(self, message: Message) -> None:
        work = message.head["work"]

        def between() -> bool:
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting = self._waiting.get_nowait()
                    if waiting is None or not self._serve_at_once(waiting):
                        self._aside.append(waiting)
            return self._stop == work or None in self._aside

        began = time.process_time()
        try:
            head, blobs = self._room.do(message, lambda told: self._send({"work": work} | told), between)
        except Refused as error:
            head, blobs = {"is": "refused", "status": error.status, "detail": str(error)}, []
        except Exception as error:  # noqa: BLE001 - whatever it is, the server has to hear that this work failed
            traceback.print_exc()
            head, blobs = {"is": "failed", "detail": f"{type(error).__name__}: {error}"}, []
        self._send({"work": work, "cpu_s": time.process_time() - began} | head, blobs)

    def _send(self, head: dict[str, Any], blobs: list[bytes] | tuple[bytes, ...] = ()) -> None:
        send(self._outbox, head, blobs)


def main() -> None:
    """Loads the model, says so, and works."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business.
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever a library prints must not get between the messages.
    asked = json.loads(sys.argv[1])
    limits = Limits(**asked["limits"])
    _bound_memory(limits.worker_bytes)
    map_large_blocks()
    try:
        continuer = Continuer(asked["weights"], asked["engine"], asked["adapter"])
        index = _index(asked["index"])
    except (ValueError, ImportError, OSError) as error:
        send(outbox, {"is": "unable", "detail": str(error)})
        return
    model = {
        "parameters": parameter_count(continuer.weights.config),
        "weights_sha256": continuer.weights.sha256,
        "engine": continuer.engine.name,
        "context_notes": continuer.weights.config.max_positions // 4,
    }
    send(
        outbox, {"is": "ready", "model": model, "grid": continuer.weights.grid.to_json(), "inspects": index is not None}
    )
    with contextlib.suppress(BrokenPipeError):
        Worker(sys.stdin.buffer, outbox, Room(continuer, limits, index)).run()


def _index(path: str | None) -> OverlapIndex | None:
    """The index that was named, or the one that came with the weights; None if none did."""
    try:
        return OverlapIndex.read(Path(path) if path else default_index())
    except OverlapIndexError:
        if path:
            raise
        return None


def _bound_memory(size: int) -> None:
    if sys.platform.startswith("linux"):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
