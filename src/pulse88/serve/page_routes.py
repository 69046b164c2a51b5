"""The page, and the sounds that it plays: static files, samples and the soundfont."""

from __future__ import annotations

import hashlib
import mimetypes
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.responses import Response

from pulse88 import audio
from pulse88.page import STATIC
from pulse88.serve import schemas
from pulse88.serve.documented import answers, bytes_of
from pulse88.serve.guard import TOKEN_COOKIE, VISITOR_COOKIE, cookies
from pulse88.serve.problems import Problem
from pulse88.serve.samples import LAYERS, PITCHES, SAMPLE_RATE
from pulse88.serve.service import Service

FOREVER = "public, max-age=31536000, immutable"


def page_routes(app: FastAPI) -> None:
    """`/` and the files of the page."""

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        answer = _static(request, "index.html")
        known = cookies(request.headers)
        if VISITOR_COOKIE not in known:
            answer.set_cookie(VISITOR_COOKIE, secrets.token_hex(16), httponly=True, samesite="strict", max_age=2**25)
        if token := request.query_params.get("token"):
            answer.set_cookie(TOKEN_COOKIE, token, httponly=True, samesite="strict", max_age=2**25)
        return answer

    @app.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return _static(request, name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon(request: Request) -> Response:
        return _static(request, "icon.svg")


def _static(request: Request, name: str) -> Response:
    """A file of the page, if it is one of those that were found in its folder: no path is made of what is asked."""
    path = _static_files().get(name)
    if path is None:
        raise Problem(404, f"the page has no file {name[:80]!r}")
    data = path.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    kind = {".js": "text/javascript", ".mjs": "text/javascript"}.get(path.suffix, kind)
    charset = "; charset=utf-8" if kind.startswith("text/") else ""
    return Response(data, headers=headers | {"content-type": kind + charset})


def _static_files() -> dict[str, Path]:
    return {path.name: path for path in STATIC.iterdir() if path.is_file()}


def sound_routes(app: FastAPI, service: Service) -> None:
    """Samples and soundfont."""

    @app.get("/v1/samples", responses=answers())
    async def samples() -> schemas.Samples:
        """Where the piano's samples are."""
        url = f"/v1/samples/{_font()[0]}/{{layer}}/{{pitch}}.wav"
        return schemas.Samples(rate=SAMPLE_RATE, layers=list(LAYERS), pitches=list(PITCHES), url=url)

    @app.get(
        "/v1/samples/{digest}/{layer}/{pitch}.wav",
        responses=answers(404, 422, s200=bytes_of("A WAV file", "audio/wav")),
        response_class=Response,
    )
    async def sample(
        digest: Annotated[str, InPath(pattern="^[0-9a-f]{8}$")],
        layer: int,
        pitch: int,
    ) -> Response:
        """One struck key, 16 bit, mono."""
        if digest != _font()[0] or layer not in LAYERS or pitch not in PITCHES:
            raise Problem(404, "there is no such sample: ask /v1/samples for those there are")
        data = await service.sample(pitch, layer)
        return Response(data, headers={"content-type": "audio/wav", "cache-control": FOREVER})

    @app.get(
        "/v1/soundfont",
        responses={
            304: {"description": "As before"},
            **answers(s200=bytes_of("A SoundFont 2 file", "audio/x-soundfont")),
        },
        response_class=Response,
    )
    async def soundfont(request: Request) -> Response:
        """The soundfont that the samples come from."""
        digest, data = _font()
        headers = {"etag": f'"{digest}"', "cache-control": "public, max-age=86400"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers | {"content-type": "audio/x-soundfont"})


@lru_cache(maxsize=1)
def _font() -> tuple[str, bytes]:
    """Digest and bytes of the soundfont; read once."""
    data = audio.default_soundfont().read_bytes()
    return hashlib.sha256(data).hexdigest()[:8], data
