"""Pulse88: give it the opening of a piano piece as MIDI, and it plays on."""

from __future__ import annotations

__version__ = "0.1.0"
