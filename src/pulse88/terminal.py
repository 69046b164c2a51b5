"""What the commands share at the terminal: error lines, options, progress, remarks."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from pulse88.config import help_of

FILE = click.Path(path_type=Path)
INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Doors(click.Group):
    """Turns the errors that users can mend into one line and exit status 1, and Ctrl-C into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, ImportError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # The reader of our pipe has seen enough; click leaves quietly.
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(where + (error.strerror or str(error))) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo("\nStopped. Takes that were finished are kept, nothing is left half-written.", err=True)
            ctx.exit(INTERRUPTED)


def field_option(config: type, name: str, **settings: Any) -> Callable[[Decorated], Decorated]:
    """The option for a configuration's field: its name, sentence and default."""
    default = getattr(config, name)
    return click.option(
        "--" + name.replace("_", "-"),
        default=default,
        help=help_of(config, name),
        show_default=default is not None and not settings.get("is_flag"),
        **settings,
    )


def model_options(command: Decorated) -> Decorated:
    """--weights, --adapter and --engine."""
    engine = "What computes the model: auto, native or numpy."
    command = click.option("--engine", default="auto", show_default=True, help=engine)(command)
    command = adapter_option(command)
    weights = "Weights file (safetensors); without it, the weights that came with pulse88."
    return click.option("--weights", type=FILE, help=weights)(command)


def adapter_option(command: Decorated) -> Decorated:
    """--adapter."""
    return click.option("--adapter", type=FILE, help="Adapter that `pulse88 finetune` made of these weights.")(command)


def output_options(command: Decorated) -> Decorated:
    """--wav, --png and --soundfont."""
    command = click.option("--soundfont", type=FILE, help="Soundfont (SF2) for the WAV, for a better piano.")(command)
    command = click.option("--png", type=FILE, help="Also draw a picture, old and new in two colours.")(command)
    return click.option("--wav", type=FILE, help="Also render to audio.")(command)


def verbose_option(command: Decorated) -> Decorated:
    """-v, --verbose."""
    return click.option("-v", "--verbose", is_flag=True, help="Tell what was changed, left out or chosen.")(command)


def say(verbose: bool, *lines: str) -> None:
    """Remarks, on the error stream."""
    for line in lines if verbose else ():
        click.echo(line, err=True)


def log_if(verbose: bool) -> None:
    """Shows the log as well."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")


@contextmanager
def progress(label: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, nothing in a pipe; yields what to tell the share done, 0 to 1, and a remark."""
    if not sys.stderr.isatty():
        yield lambda share, remark: None
        return
    steps = 1000
    bar: Any
    with click.progressbar(length=steps, label=label, file=sys.stderr, item_show_func=lambda remark: remark) as bar:
        remark_told = ""

        def tell(share: float, remark: str) -> None:
            nonlocal remark_told
            remark_told = remark
            bar.update(int(share * steps) - bar.pos, remark)

        yield tell
        bar.update(steps - bar.pos, remark_told)
