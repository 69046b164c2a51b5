"""`pulse88 serve`: the page and the HTTP API."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pulse88.crew import cores
from pulse88.terminal import FILE, model_options

MISSING = "pulse88 serve needs {name}, which is not installed: pip install 'pulse88[serve]'"
PACKAGES = frozenset({"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "websockets"})


@click.command(short_help="Open the page, and serve the HTTP API.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; see docs/deploy.md for more."
)
@click.option("--port", default=8088, show_default=True, help="Port to listen on; 0 takes any that is free.")
@click.option("--workers", type=int, help="Processes that play; one a core.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--token", default="", envvar="PULSE88_TOKEN", help="Word that every request must carry; or PULSE88_TOKEN."
)
@click.option("--name", "names", multiple=True, help="Name that the server goes by, such as piano.example.org.")
@click.option("--allow-origin", "origins", multiple=True, help="Other site whose pages may ask: https://example.org.")
@model_options
@click.option("--index", type=FILE, help="Index of training data, to tell how original takes are (`pulse88 index`).")
@click.option("-v", "--verbose", is_flag=True, help="Log every request, by its id.")
def serve(
    host: str,
    port: int,
    workers: int | None,
    open_browser: bool,
    token: str,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    weights: Path | None,
    adapter: Path | None,
    index: Path | None,
    engine: str,
    verbose: bool,
) -> None:
    """Open a page on which music plays on, and serve the API that it uses (docs/api.md).

    Nothing leaves this machine. Others reach it only with --host, and then with a token.
    """
    try:
        from pulse88.serve.run import ServeConfig
        from pulse88.serve.run import serve as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise click.ClickException(MISSING.format(name=error.name)) from error
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    config = ServeConfig(host, port, workers or cores(), weights, adapter, index, engine, token, names, origins)
    run(config, click.echo, open_browser=open_browser)
    click.echo("Stopped.")
