"""What a piece must be to be kept: named rules with their defaults, the figures they judge by, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from pulse88.config import setting

QUANTISED = ("any", "only", "never")
QUANTISED_SHARE = 0.9  # of the notes on the grid of 24 a quarter note, from which on a piece counts as quantised


@dataclass(frozen=True)
class Rules:
    """Everything that decides which pieces are kept, and on which side of the split. ValueError for nonsense."""

    grid: str = setting("fine", "Time grid of the tokens: fine or published.")
    largest_file: int = setting(4096, "Largest MIDI file that is read, in KiB.")
    max_other: float = setting(0.0, "Largest share of notes on drums or programs other than piano.")
    min_notes: int = setting(100, "Fewest notes of a piece.")
    max_notes: int = setting(100_000, "Most notes of a piece.")
    min_seconds: float = setting(10.0, "Shortest piece, from its first note to the end of its last sound.")
    max_seconds: float = setting(14_400.0, "Longest piece.")
    max_outside: float = setting(0.05, "Largest share of notes outside the 88 keys.")
    min_pitches: int = setting(8, "Fewest different pitches.")
    min_range: int = setting(12, "Fewest semitones from the lowest to the highest note.")
    min_density: float = setting(0.3, "Fewest notes a second, over the whole piece.")
    max_density: float = setting(50.0, "Most notes a second, over the whole piece.")
    max_silence: float = setting(60.0, "Longest silence within a piece, in seconds.")
    max_silence_share: float = setting(0.6, "Largest share of a piece's time in which nothing sounds.")
    min_velocities: int = setting(1, "Fewest different velocities; 2 refuses pieces that are all equally loud.")
    quantised: str = setting("any", "Pieces whose notes lie on a grid of 24 a quarter note: any, only or never.")
    near_duplicate: float = setting(0.5, "Share of 12-note shingles that makes a near-duplicate; above 1: none.")
    same_composition: float = setting(0.1, "Share of 12-note shingles, chords sorted, of two versions; above 1: none.")
    validation_share: float = setting(0.05, "Share of compositions held out, where the input names no split.")
    test_share: float = setting(0.0, "Share of compositions sealed for a test, where the input names no split.")
    max_pieces: int = setting(0, "Keep at most so many pieces, drawn by their hashes; 0 keeps all.")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be 0 or more, not {value}")
        if self.quantised not in QUANTISED:
            raise ValueError(f"quantised must be one of {', '.join(QUANTISED)}, not {self.quantised!r}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                "validation_share and test_share leave nothing to train on: they must add up to less than 1"
            )
        if self.near_duplicate == 0 or self.same_composition == 0:
            raise ValueError("near_duplicate and same_composition are shares above 0; above 1 no piece is one")


class Figures(NamedTuple):
    """What the rules judge a piece by."""

    notes: int
    other_share: float  # of all notes, those that aren't piano
    seconds: float  # from the first note to the end of the last sound
    outside_share: float  # of the piano notes, those outside the 88 keys
    pitches: int
    range: int  # semitones
    longest_silence: float  # seconds
    silence_share: float
    velocities: int
    quantised_share: float  # of the notes, those on the grid of 24 a quarter note


class Refusal(NamedTuple):
    """Why a file or a piece is not kept."""

    rule: str
    reason: str


def judge(figures: Figures, rules: Rules) -> Refusal | None:
    """The first rule that a piece breaks, with its figure; None if it breaks none."""
    f, density = figures, figures.notes / figures.seconds
    is_quantised = f.quantised_share >= QUANTISED_SHARE
    verdicts = (
        ("other instruments", f.other_share, 0, rules.max_other, "{:.1%} of its notes on other instruments"),
        ("length", f.notes, rules.min_notes, rules.max_notes, "{:,} notes"),
        ("length", f.seconds, rules.min_seconds, rules.max_seconds, "{:,.1f} seconds"),
        ("keyboard", f.outside_share, 0, rules.max_outside, "{:.1%} of its notes outside the 88 keys"),
        ("range", f.pitches, rules.min_pitches, 128, "{} different pitches"),
        ("range", f.range, rules.min_range, 128, "a range of {} semitones"),
        ("density", density, rules.min_density, rules.max_density, "{:.2f} notes a second"),
        ("silence", f.longest_silence, 0, rules.max_silence, "a silence of {:.1f} seconds"),
        ("silence", f.silence_share, 0, rules.max_silence_share, "{:.1%} of its time silent"),
        ("velocities", f.velocities, rules.min_velocities, 127, "{} different velocities"),
    )
    for rule, value, least, most, words in verdicts:
        if not least <= value <= most:
            bound = f"at least {least:g}" if value < least else f"at most {most:g}"
            return Refusal(rule, f"{words.format(value)}, asked for is {bound}")
    if rules.quantised != "any" and is_quantised != (rules.quantised == "only"):
        reason = f"{f.quantised_share:.0%} of its notes on the grid of 24 a quarter note"
        return Refusal("quantised", f"{reason}, asked for are {'quantised' if not is_quantised else 'played'} pieces")
    return None
