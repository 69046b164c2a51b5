"""The seeds that come with pulse88."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pulse88.serve


class ExampleSeed(NamedTuple):
    """A seed to begin with."""

    id: str
    title: str
    about: str


EXAMPLES = (
    ExampleSeed("carol", "A carol", "God Rest Ye Merry, Gentlemen, the traditional melody"),
    ExampleSeed("motif", "Four notes", "A motif that could go anywhere"),
    ExampleSeed("one-note", "One note", "C4, once"),
    ExampleSeed("piece", "A whole piece", "A concert performance from the MAESTRO data set, CC BY-NC-SA 4.0"),
)


def folder() -> Path:
    """Where they lie: in the installed package, or in the repository. FileNotFoundError if in neither."""
    package = Path(pulse88.serve.__file__).parents[1]
    for place in (package / "_examples", package.parents[1] / "examples"):
        if all((place / example.id / "seed.mid").is_file() for example in EXAMPLES):
            return place
    raise FileNotFoundError("the example seeds are neither in the package nor in examples/: install pulse88 again")


def midi(example: ExampleSeed) -> bytes:
    """Its MIDI file."""
    return (folder() / example.id / "seed.mid").read_bytes()
