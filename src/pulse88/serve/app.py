"""The routes of docs/api.md, each a few lines over the service. OpenAPI comes from here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pulse88 import __version__
from pulse88.serve import examples, schemas
from pulse88.serve.documented import MIDI, answers, bytes_of, inlined, leading_to, midi_body
from pulse88.serve.duet import Duet
from pulse88.serve.guard import Doorway, Guard
from pulse88.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from pulse88.serve.page_routes import page_routes, sound_routes
from pulse88.serve.problems import MEDIA_TYPE as PROBLEM_TYPE
from pulse88.serve.problems import Problem
from pulse88.serve.samples import LAYERS, PITCHES
from pulse88.serve.schemas import Id
from pulse88.serve.service import KINDS, Service, parsed, sentence
from pulse88.serve.streams import NDJSON, SSE, EventStream, body_of, unless_gone, until_done

MIDI_TYPES = frozenset({MIDI, "audio/x-midi", "audio/mid", "application/x-midi", "application/octet-stream"})
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
    page_routes(app)
    _status_routes(app, service)
    _seed_routes(app, service)
    _take_routes(app, service)
    sound_routes(app, service)

    @app.websocket("/v1/duet")
    async def duet(socket: WebSocket) -> None:
        await Duet(service, socket).run()

    return Guard(app, doorway, service.metrics, service.limits)


def _status_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/health", response_model=schemas.Health, responses=answers(s503={"model": schemas.Health}))
    async def health() -> JSONResponse:
        """Whether a worker is ready."""
        ready = service.pool.ready
        status = "ok" if ready else "starting"
        told = {"status": status, "version": __version__, "workers": ready, "waiting": service.pool.waiting}
        return JSONResponse(told, 200 if ready else 503)

    @app.get("/metrics", responses={200: bytes_of("Prometheus' text", "text/plain")}, response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": METRICS_TYPE})

    @app.get("/v1/info", responses=answers())
    async def info() -> schemas.Info:
        """Model, limits and defaults."""
        return schemas.Info(
            version=__version__,
            model=service.pool.model,
            limits=service.limits.told(),
            originality=service.pool.inspects,
            defaults=schemas.defaults(),
        )

    @app.get("/v1/examples", response_model=schemas.Examples, responses=answers(429))
    async def all_examples(request: Request) -> dict[str, Any]:
        """Seeds to begin with."""
        return {"examples": await service.examples(request.state.visitor)}

    @app.get(
        "/v1/examples/{id}.mid",
        responses=answers(404, 422, s200=bytes_of("A MIDI file", MIDI)),
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
        responses=answers(408, 413, 415, 422, 429, s201=leading_to("seed", "seed forget_seed")),
        openapi_extra=midi_body(**inlined(played)),
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

    @app.get("/v1/seeds/{id}", operation_id="seed", response_model=schemas.SeedFacts, responses=answers(404, 422))
    async def seed(id: Id) -> Response:
        """A seed again."""
        return JSONResponse(service.seed_facts(service.memory.seeds.get(id)))

    @app.delete("/v1/seeds/{id}", operation_id="forget_seed", status_code=204, responses=answers(404, 422))
    async def forget_seed(id: Id) -> Response:
        """Forgets a seed."""
        service.forget_seed(id)
        return Response(status_code=204)


class _Undotted(StringConvertor):
    """A part of a path without a dot, so that what is done with a take isn't done at the addresses of its files."""

    regex = "[^/.]+"


def _take_routes(app: FastAPI, service: Service) -> None:
    register_url_convertor("undotted", _Undotted())
    asked_json = {"application/json": {"schema": schemas.Continuation.model_json_schema(by_alias=True)}}

    @app.post(
        "/v1/continuations",
        responses=answers(
            *(404, 406, 408, 409, 413, 415, 422, 429),
            s200=bytes_of("Events as they come, or a MIDI file", NDJSON, SSE, MIDI),
        ),
        response_class=Response,
        openapi_extra=midi_body(**inlined(asked_json)),
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
        responses=answers(408, 413, 415, 422, 429, s201=leading_to("take", "take forget_take file")),
        openapi_extra=midi_body(),
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
        operation_id="file",
        responses=answers(404, 409, 413, 422, 429, s200=bytes_of(f"A file: {files}", *KINDS.values())),
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
        request.state.share.check_room(len(data))
        name = f'attachment; filename="pulse88-{take.id[:8]}.{kind}"'
        return Response(data, headers={"content-type": KINDS[kind], "content-disposition": name})

    @app.get(
        "/v1/takes/{id:undotted}", operation_id="take", response_model=schemas.TakeFacts, responses=answers(404, 422)
    )
    async def take(id: Id) -> Response:
        """A take, as far as it is made."""
        return JSONResponse(service.memory.takes.get(id).to_json())

    # An id with a dot is the address of a file, which only GET knows.
    @app.delete(
        "/v1/takes/{id:undotted}", operation_id="forget_take", status_code=204, responses=answers(404, 405, 422)
    )
    async def forget_take(id: Id) -> Response:
        """Stops a take and forgets it."""
        service.forget_take(id)
        return Response(status_code=204)


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
    if error.status_code == 405:  # The first route of the path has refused, and named its own methods only.
        known = [route.methods for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        answer.headers["allow"] = ", ".join(sorted(set[str]().union(*known)))
    return answer


async def _fault(request: Request, error: Exception) -> Response:
    _log.error("request %s failed", request.state.request_id, exc_info=error)
    return _answer(request, Problem(500, "this went wrong here, not with you: report it with the request's id"))
