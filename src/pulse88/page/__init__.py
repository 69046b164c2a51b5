"""The page that musicians see: static files that a server gives out as they are. How they fit: docs/page.md."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"  # index.html and everything it names, in one flat folder
