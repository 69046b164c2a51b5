"""A stretch of training by the clock: when it ends, and when a checkpoint is due. No torch."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Sitting:
    """Notes SIGTERM and Ctrl-C instead of dying of them, and tells whether its time is over.

    A context: outside of it signals do what they did before. In a thread other than the main one it hears none,
    as Python has it.
    """

    def __init__(self, minutes: float | None = None, checkpoint_minutes: float = 0.0) -> None:
        """`minutes` until it is over, None for never; `checkpoint_minutes` between checkpoints, 0 for none."""
        self.began = self.saved = time.monotonic()
        self.minutes, self.checkpoint_minutes = minutes, checkpoint_minutes
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Sitting:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    @property
    def over(self) -> bool:
        """Whether its minutes have passed."""
        return self.minutes is not None and time.monotonic() - self.began > 60 * self.minutes

    @property
    def checkpoint_due(self) -> bool:
        """Whether the minutes between checkpoints have passed since the last one."""
        return 0 < self.checkpoint_minutes < (time.monotonic() - self.saved) / 60

    def note_checkpoint(self) -> None:
        """The next checkpoint is due so many minutes from now."""
        self.saved = time.monotonic()
