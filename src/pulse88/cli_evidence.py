"""Steering by evidence at the terminal: guards, limits on quoting, and the best of several takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pulse88.terminal import FILE, Decorated, progress, say

if TYPE_CHECKING:
    from pulse88.guard import Watch
    from pulse88.overlap_index import OverlapIndex
    from pulse88.playing import Continuation, Playing
    from pulse88.ranking import Ranked


@dataclass(frozen=True)
class Evidence:
    """What of a continuation is to be looked at."""

    best_of: int
    guard: bool
    originality: bool
    max_overlap: int | None
    index_path: Path | None

    @classmethod
    def taken_from(cls, asked: dict[str, Any]) -> Evidence:
        """Takes its options out of a command's; a usage error if they contradict the others."""
        mine = {name: asked.pop(name) for name in ("best_of", "guard", "originality", "max_overlap", "index_path")}
        if mine["best_of"] > 1:
            if asked["takes"] > 1:
                raise click.UsageError("--best-of writes one take of several, --takes all: give one of them")
            asked["takes"] = mine["best_of"]
        return cls(**mine)

    @cached_property
    def index(self) -> OverlapIndex | None:
        """The index that was named or is needed; that of the released weights, if there is one, for ranking."""
        from pulse88.originality import default_index
        from pulse88.overlap_index import OverlapIndex, OverlapIndexError

        needed = self.originality or self.max_overlap is not None or self.index_path is not None
        if not needed and self.best_of < 2:
            return None
        try:
            return OverlapIndex.read(self.index_path or default_index())
        except OverlapIndexError:
            if needed:
                raise
            return None

    @property
    def watches(self) -> list[Watch]:
        """What a guard looks for; nothing if none was asked for."""
        from pulse88 import guard

        found = [guard.watch_degeneration()] if self.guard else []
        if self.max_overlap is not None:
            assert self.index is not None
            found.append(guard.watch_overlaps(self.index, self.max_overlap))
        return found

    def warn(self) -> None:
        """Says what the index can't promise."""
        if self.max_overlap is not None and self.index is not None and self.max_overlap < self.index.resolution - 1:
            say(
                True,
                f"this index always sees overlaps of {self.index.resolution} notes, and shorter ones often; for more, "
                "make one with a smaller `pulse88 index --every`",
            )

    def play(self, playing: Playing, label: str) -> None:
        """Plays to the end under watch, and says what was done."""
        from pulse88 import guard

        with progress(label) as tell:
            report = guard.play(
                playing, self.watches, lambda playing: tell(playing.share, f"{playing.notes} notes, going on")
            )
        for line in report.lines():
            click.echo(f"guard: {line}")

    def best(self, made: list[Continuation], engine: Any) -> Continuation:
        """The take that ranks first, and why, on the terminal."""
        from pulse88.ranking import rank

        ranked: list[Ranked] = rank(engine, made, self.index)
        for place, one in enumerate(ranked, 1):
            click.echo(f"{place}. take {made[one.take].provenance.take + 1}: {one.line()}")
        return made[ranked[0].take]

    def tell(self, continuation: Continuation) -> None:
        """Says how original it is, if that was asked."""
        from pulse88.originality import inspect

        if self.originality and self.index is not None:
            finding = inspect(continuation.new, self.index)
            click.echo(f"originality: {'; '.join(finding.lines(self.index))}.")


def evidence_options(command: Decorated) -> Decorated:
    """--best-of, --guard, --originality, --max-overlap and --index."""
    options: list[Callable[[Decorated], Decorated]] = [
        click.option("--best-of", default=1, type=click.IntRange(min=1), help="Make so many takes, write the best."),
        click.option("--guard", is_flag=True, help="Where music dies or loops, go back and play on otherwise."),
        click.option("--originality", is_flag=True, help="Tell the longest overlap with the training data."),
        click.option(
            "--max-overlap", type=click.IntRange(min=13), help="Go back where more notes than this would be quoted."
        ),
        click.option("--index", "index_path", type=FILE, help="Index of the training data (`pulse88 index`)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
