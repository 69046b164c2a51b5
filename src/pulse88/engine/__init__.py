"""The model on CPUs without torch: one contract, two engines of the same function.

`numpy` is the truth and runs everywhere; `native` is the fast one, compiled on installation. The law that both keep:
forward(x) equals forward of x's pieces with the state carried over, wherever the cut.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse88.config import ModelConfig
from pulse88.engine import layout
from pulse88.engine import weights as weights_file
from pulse88.engine.state import State
from pulse88.engine.weights import Weights, WeightsError

__all__ = ["ENGINES", "Engine", "JoiningEngine", "State", "Weights", "WeightsError", "joining", "load"]

ENGINES = ("auto", "native", "numpy")
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """A model that turns ids and a state into logits and the next state.

    A state belongs to the engine that made it and is never changed by a call; TypeError for another engine's.
    """

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights_sha256(self) -> str:
        """64 hex digits of the weights, see `Weights.sha256`."""

    def zero_state(self, batch: int = 1) -> Any:
        """The state that has seen nothing: zeros, or the weights' `initial`."""

    def forward(self, ids: ArrayLike, state: Any, *, last_only: bool = False) -> tuple[NDArray[np.float32], Any]:
        """Logits [B, T, V] of whole-number ids [B, T] and the state after them; [B, 1, V] with `last_only`.

        ValueError for ids outside the vocabulary, another batch than the state's, no tokens, or positions past
        `config.max_positions`.
        """

    def fork(self, state: Any, count: int) -> Any:
        """A single sequence's state as a batch of `count`; the origin and the forks don't disturb each other."""

    def freeze(self, state: Any) -> Mapping[str, NDArray[Any]]:
        """A single sequence's state as arrays that may be views; ValueError for a batch."""

    def thaw(self, arrays: Mapping[str, NDArray[Any]], position: int) -> Any:
        """The state that was frozen after `position` tokens, bit for bit. ValueError for arrays that don't fit."""


class JoiningEngine(Engine, Protocol):
    """An engine whose batches give each sequence, to the last bit, what it gets alone."""

    def join(self, states: Iterable[Any]) -> Any:
        """The sequences of several states as one batch; they may stand at different positions."""

    def split(self, state: Any) -> list[Any]:
        """A batch's sequences, each as a state."""


def joining(engine: Engine) -> JoiningEngine | None:
    """The engine, if it can join states."""
    return cast(JoiningEngine, engine) if hasattr(engine, "join") else None


def load(weights: str | Path | Weights, engine: str = "auto", *, threads: int = 1) -> Engine:
    """An engine over a weights file or weights in memory.

    `auto` takes native where it was built, and otherwise numpy, which it says in the log. WeightsError if the file
    can't be used, ValueError for an unknown engine, ImportError if native is asked for and was not built. `threads` of
    the native engine share prompts and batches, and change no bit; numpy's are set by its own environment variables.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}, there are {', '.join(ENGINES)}")
    if not isinstance(weights, Weights):
        weights = weights_file.read(weights)
    if beyond := layout.beyond_engines(weights.config):
        raise ValueError(f"{weights.path or 'these weights'}: the CPU engines don't compute {', '.join(beyond)}")
    if engine != "numpy":
        # Each engine is imported where it is chosen, so that a machine without the one starts the other.
        from pulse88.engine import native

        try:
            native.library()
        except ImportError as error:
            if engine == "native":
                raise
            _log.warning("the numpy engine runs, several times slower than the native one: %s", error)
        else:
            return native.NativeEngine(weights, threads=threads)
    from pulse88.engine.reference import NumpyEngine

    return NumpyEngine(weights)
