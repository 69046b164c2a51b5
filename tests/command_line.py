"""Commands as a user types them, in this process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from pulse88.cli import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def good(*arguments: str | Path) -> str:
    """What a command that succeeds prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*arguments: str | Path, code: int = 1) -> str:
    """What a command that fails says, on the error stream only."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)  # no other exception came out
    assert not result.stdout
    return result.stderr
