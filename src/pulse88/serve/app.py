"""The routes of docs/api.md, each a few lines over the service. OpenAPI comes from here."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mimetypes
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pulse88 import __version__, audio
from pulse88.page import STATIC
from pulse88.serve import examples, schemas
from pulse88.serve.duet import Duet
from pulse88.serve.guard import TOKEN_COOKIE, VISITOR_COOKIE, Doorway, Guard, cookies
from pulse88.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from pulse88.serve.problems import MEDIA_TYPE as PROBLEM_TYPE
from pulse88.serve.problems import Problem
from pulse88.serve.samples import LAYERS, PITCHES, SAMPLE_RATE
from pulse88.serve.schemas import Id
from pulse88.serve.service import KINDS, Service, parsed, sentence
from pulse88.serve.streams import NDJSON, SSE, EventStream, body_of, unless_gone, until_done

MIDI = "audio/midi"
MIDI_TYPES = frozenset({MIDI, "audio/x-midi", "audio/mid", "application/x-midi", "application/octet-stream"})
FOREVER = "public, max-age=31536000, immutable"
EXAMPLE_IDS = Literal["carol", "motif", "one-note", "piece"]

_log = logging.getLogger(__name__)


def application(service: Service, doorway: Doorway | None = None, *, renders_ahead: bool = True) -> Guard:
    """The ASGI application of a service. `renders_ahead`: samples are made while nobody waits, not at first use."""
    doorway = doorway or Doorway()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.pool.start()
        if renders_ahead:
            service.prepare_samples(PITCHES, LAYERS)
        yield
        await service.close()

    app = FastAPI(
        title="Pulse88",
        version=__version__,
        description="Piano continuation: see docs/api.md.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(Problem, _problem)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _fault)
    _page_routes(app)
    _status_routes(app, service)
    _seed_routes(app, service)
    _take_routes(app, service)
    _sound_routes(app, service)

    @app.websocket("/v1/duet")
    async def duet(socket: WebSocket) -> None:
        await Duet(service, socket).run()

    return Guard(app, doorway, service.metrics, service.limits.json_bytes)


def _answers(*statuses: int, **more: Any) -> dict[int | str, Any]:
    """What OpenAPI says of the problems that a route may answer with."""
    found = {"description": "A problem", "model": schemas.ProblemFacts}
    body = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemFacts"}}}
    problems: dict[int | str, Any] = {
        status: found | {"content": body} for status in (400, 401, 403, 500, 503, *statuses)
    }
    return {**problems, **{int(status.lstrip("s")): said for status, said in more.items()}}


def _bytes(description: str, *types: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}} for kind in types}}


def _midi_body(**others: Any) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (MIDI,)}
    return {"requestBody": {"required": True, "content": content | others}}


def _page_routes(app: FastAPI) -> None:
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


def _status_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/health", response_model=schemas.Health, responses=_answers(s503={"model": schemas.Health}))
    async def health() -> JSONResponse:
        """Whether a worker is ready."""
        ready = service.pool.ready
        status = "ok" if ready else "starting"
        told = {"status": status, "version": __version__, "workers": ready, "waiting": service.pool.waiting}
        return JSONResponse(told, 200 if ready else 503)

    @app.get("/metrics", responses={200: _bytes("Prometheus' text", "text/plain")}, response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": METRICS_TYPE})

    @app.get("/v1/info", responses=_answers())
    async def info() -> schemas.Info:
        """Model, limits and defaults."""
        return schemas.Info(
            version=__version__,
            model=service.pool.model,
            limits=service.limits.told(),
            defaults=schemas.defaults(),
        )

    @app.get("/v1/examples", response_model=schemas.Examples, responses=_answers(429))
    async def all_examples(request: Request) -> dict[str, Any]:
        """Seeds to begin with."""
        return {"examples": await service.examples(request.state.visitor)}

    @app.get(
        "/v1/examples/{id}.mid",
        responses=_answers(404, 422, s200=_bytes("A MIDI file", MIDI)),
        response_class=Response,
    )
    async def example(id: EXAMPLE_IDS) -> Response:
        """The MIDI file of an example."""
        found = next(example for example in examples.EXAMPLES if example.id == id)
        return Response(examples.midi(found), headers={"content-type": MIDI})


def _seed_routes(app: FastAPI, service: Service) -> None:
    played = {"application/json": {"schema": schemas.Played.model_json_schema()}}

    @app.post(
        "/v1/seeds",
        status_code=201,
        response_model=schemas.SeedFacts,
        responses=_answers(408, 413, 415, 422, 429),
        openapi_extra=_midi_body(**_inlined(played)),
    )
    async def make_seed(request: Request) -> Response:
        """Reads a MIDI file or played notes."""
        kind = _content_type(request)
        data = await body_of(
            request, service.limits.json_bytes if kind == "application/json" else service.limits.upload_bytes
        )
        visitor = request.state.visitor
        if kind == "application/json":
            seed = await unless_gone(request, service.seed_of_notes(visitor, data))
        elif kind in MIDI_TYPES:
            seed = await unless_gone(request, service.seed_of_midi(visitor, data))
        else:
            raise _wrong_type(kind)
        service.read_ahead(seed)
        return JSONResponse(service.seed_facts(seed), 201)

    @app.get("/v1/seeds/{id}", response_model=schemas.SeedFacts, responses=_answers(404, 422))
    async def seed(id: Id) -> Response:
        """A seed again."""
        return JSONResponse(service.seed_facts(service.memory.seeds.get(id)))

    @app.delete("/v1/seeds/{id}", status_code=204, responses=_answers(404, 422))
    async def forget_seed(id: Id) -> Response:
        """Forgets a seed."""
        service.forget_seed(id)
        return Response(status_code=204)


def _take_routes(app: FastAPI, service: Service) -> None:
    asked_json = {"application/json": {"schema": schemas.Continuation.model_json_schema(by_alias=True)}}

    @app.post(
        "/v1/continuations",
        responses=_answers(
            *(404, 406, 408, 409, 413, 415, 422, 429),
            s200=_bytes("Events as they come, or a MIDI file", NDJSON, SSE, MIDI),
        ),
        response_class=Response,
        openapi_extra=_midi_body(**_inlined(asked_json)),
    )
    async def continue_(request: Request) -> Response:
        """Continues a seed: a stream of events, or a MIDI file."""
        visitor = request.state.visitor
        wanted = _accepted(request)
        asked = await _continuation(request)
        if wanted == MIDI and asked.takes > 1:
            raise Problem(422, "takes: a MIDI file holds one take; ask for one, or for application/x-ndjson")
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        takes = await unless_gone(request, service.continued(visitor, asked, queue.put_nowait))

        def leave() -> None:
            for take in takes:
                service.takes.stop(take)

        if wanted != MIDI:
            return EventStream(until_done(queue, len(takes)), wanted, leave)

        async def made() -> bytes:
            async for event in until_done(queue, 1):
                if event is not None and event["type"] == "error":
                    raise Problem(event["problem"]["status"], event["problem"]["detail"])
            return await service.file(visitor, takes[0], "mid", "whole")

        try:
            data = await unless_gone(request, made())
        finally:
            leave()
        return Response(data, headers={"content-type": MIDI, "x-take": takes[0].id, "x-seed": takes[0].seed.id})

    async def _continuation(request: Request) -> schemas.Continuation:
        kind = _content_type(request)
        if kind == "application/json":
            return parsed(schemas.Continuation, await body_of(request, service.limits.json_bytes))
        if kind not in MIDI_TYPES:
            raise _wrong_type(kind)
        asked, settings = _from_query(request)
        data = await body_of(request, service.limits.upload_bytes)
        seed = await unless_gone(request, service.seed_of_midi(request.state.visitor, data))
        return parsed(schemas.Continuation, asked | {"seed": seed.id, "settings": settings})

    @app.post(
        "/v1/takes",
        status_code=201,
        response_model=schemas.TakeFacts,
        responses=_answers(408, 413, 415, 422, 429),
        openapi_extra=_midi_body(),
    )
    async def restore(request: Request) -> Response:
        """Brings a take back from the MIDI file that pulse88 wrote."""
        kind = _content_type(request)
        if kind not in MIDI_TYPES:
            raise _wrong_type(kind)
        data = await body_of(request, service.limits.upload_bytes)
        take = await unless_gone(request, service.restored(request.state.visitor, data))
        return JSONResponse(take.to_json(), 201)

    files = ", ".join(KINDS)

    @app.get(
        "/v1/takes/{id}.{kind}",
        responses=_answers(404, 409, 413, 422, 429, s200=_bytes(f"A file: {files}", *KINDS.values())),
        response_class=Response,
    )
    async def file(
        request: Request,
        id: Id,
        kind: Literal["mid", "wav", "png"],
        part: Annotated[Literal["whole", "new"], Query()] = "whole",
    ) -> Response:
        """A take as MIDI, audio or picture, with its seed or without."""
        take = service.memory.takes.get(id)
        data = await unless_gone(request, service.file(request.state.visitor, take, kind, part))
        name = f'attachment; filename="pulse88-{take.id[:8]}.{kind}"'
        return Response(data, headers={"content-type": KINDS[kind], "content-disposition": name})

    @app.get("/v1/takes/{id}", response_model=schemas.TakeFacts, responses=_answers(404, 422))
    async def take(id: Id) -> Response:
        """A take, as far as it is made."""
        return JSONResponse(service.memory.takes.get(id).to_json())

    @app.delete("/v1/takes/{id}", status_code=204, responses=_answers(404, 422))
    async def forget_take(id: Id) -> Response:
        """Stops a take and forgets it."""
        service.forget_take(id)
        return Response(status_code=204)


def _sound_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/samples", responses=_answers())
    async def samples() -> schemas.Samples:
        """Where the piano's samples are."""
        url = f"/v1/samples/{_font()[0]}/{{layer}}/{{pitch}}.wav"
        return schemas.Samples(rate=SAMPLE_RATE, layers=list(LAYERS), pitches=list(PITCHES), url=url)

    @app.get(
        "/v1/samples/{digest}/{layer}/{pitch}.wav",
        responses=_answers(404, 422, s200=_bytes("A WAV file", "audio/wav")),
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
            **_answers(s200=_bytes("A SoundFont 2 file", "audio/x-soundfont")),
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


def _accepted(request: Request) -> str:
    """What the client would have: the first of its types that there is; NDJSON for any."""
    for offered in request.headers.get("accept", "*/*").split(","):
        kind = offered.split(";")[0].strip().lower()
        if kind in MIDI_TYPES - {"application/octet-stream"}:
            return MIDI
        if kind in (NDJSON, SSE):
            return kind
        if kind in ("*/*", "application/*", "application/json"):
            return NDJSON
    raise Problem(406, f"the answer is {NDJSON}, {SSE} or {MIDI}: accept one of them")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _wrong_type(kind: str) -> Problem:
    return Problem(415, f"a body of type {kind[:80] or 'unknown'!r} is not read: send {MIDI} or application/json")


def _from_query(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked in a query, and the settings in it: words become numbers where they are such."""
    query = request.query_params
    asked: dict[str, Any] = {name: _value(query[name]) for name in ("takes", "random_seed") if name in query}
    if "seed_range" in query:
        asked["seed_range"] = [_value(word) for word in query["seed_range"].split(",")]
    settings: dict[str, Any] = {}
    for name, text in query.items():
        if name in ("density", "register"):
            settings[name] = [_value(word) for word in text.split(",")]
        elif name not in ("takes", "random_seed", "seed_range", "token"):
            settings[name] = _value(text)
    return asked, settings


def _value(text: str) -> Any:
    """A query's word as JSON has it."""
    if text in ("true", "false", "null", ""):
        return {"true": True, "false": False}.get(text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _inlined(content: dict[str, Any]) -> dict[str, Any]:
    """JSON schemas without references into themselves, which OpenAPI would look for elsewhere."""

    def within(value: Any, definitions: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return within(definitions[value["$ref"].rpartition("/")[2]], definitions)
            return {key: within(inner, definitions) for key, inner in value.items() if key != "$defs"}
        return [within(inner, definitions) for inner in value] if isinstance(value, list) else value

    return {kind: {"schema": within(body["schema"], body["schema"].get("$defs", {}))} for kind, body in content.items()}


def _answer(request: Request, problem: Problem) -> Response:
    headers = {"content-type": PROBLEM_TYPE}
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    if problem.status == 413:
        headers["connection"] = "close"
    return JSONResponse(problem.to_json(request.state.request_id), problem.status, headers)


async def _problem(request: Request, problem: Problem) -> Response:
    return _answer(request, problem)


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    return _answer(request, Problem(*sentence(error.errors())))


async def _http(request: Request, error: HTTPException) -> Response:
    said = {404: "there is nothing at this address", 405: f"{request.method} is not done here"}
    answer = _answer(request, Problem(error.status_code, said.get(error.status_code, str(error.detail))))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _fault(request: Request, error: Exception) -> Response:
    _log.error("request %s failed", request.state.request_id, exc_info=error)
    return _answer(request, Problem(500, "this went wrong here, not with you: report it with the request's id"))
