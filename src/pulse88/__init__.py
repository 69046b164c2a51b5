"""Pulse88: give it the opening of a piano piece as MIDI, and it plays on.

    from pulse88 import Continuer, draw, render

    (made,) = Continuer().continue_("seed.mid", seconds=30)
    made.write("out.mid")
    render(made.performance, "out.wav")
    draw(made.performance, "out.png", boundary=made.split)

Public names are loaded when they are first used, so that `import pulse88` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pulse88.audio import render
    from pulse88.config import SamplingConfig
    from pulse88.continuation import Continuer, default_weights
    from pulse88.midi_file import MidiError
    from pulse88.notes import Meter, Note, Performance, Tempo
    from pulse88.picture import draw
    from pulse88.playing import Continuation, Playing
    from pulse88.provenance import ContinueConfig, Provenance
    from pulse88.tokenizer import Tokenizer
    from pulse88.vocabulary import TimeGrid

__all__ = [
    "Continuation",
    "ContinueConfig",
    "Continuer",
    "Meter",
    "MidiError",
    "Note",
    "Performance",
    "Playing",
    "Provenance",
    "SamplingConfig",
    "Tempo",
    "TimeGrid",
    "Tokenizer",
    "__version__",
    "default_weights",
    "draw",
    "render",
]

_HOMES = {
    "Continuation": "playing",
    "ContinueConfig": "provenance",
    "Continuer": "continuation",
    "Meter": "notes",
    "MidiError": "midi_file",
    "Note": "notes",
    "Performance": "notes",
    "Playing": "playing",
    "Provenance": "provenance",
    "SamplingConfig": "config",
    "Tempo": "notes",
    "TimeGrid": "vocabulary",
    "Tokenizer": "tokenizer",
    "default_weights": "continuation",
    "draw": "picture",
    "render": "audio",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pulse88' has no attribute {name!r}")
    return getattr(import_module(f"pulse88.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
