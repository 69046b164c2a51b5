"""What OpenAPI says of answers and bodies that FastAPI can't know by itself."""

from __future__ import annotations

from typing import Any

from pulse88.serve import schemas
from pulse88.serve.problems import MEDIA_TYPE as PROBLEM_TYPE

MIDI = "audio/midi"


def answers(*statuses: int, **more: Any) -> dict[int | str, Any]:
    """What OpenAPI says of the problems that a route may answer with."""
    found = {"description": "A problem", "model": schemas.ProblemFacts}
    body = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemFacts"}}}
    problems: dict[int | str, Any] = {
        status: found | {"content": body} for status in (400, 401, 403, 500, 503, *statuses)
    }
    return {**problems, **{int(status.lstrip("s")): said for status, said in more.items()}}


def leading_to(name: str, operations: str) -> dict[str, Any]:
    """What OpenAPI says of an answer whose field `name` is the `id` that other operations take."""
    links = {of: {"operationId": of, "parameters": {"id": f"$response.body#/{name}"}} for of in operations.split()}
    return {"description": "Successful Response", "links": links}


def bytes_of(description: str, *types: str) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": {"type": "string"}} for kind in types}}


def midi_body(**others: Any) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (MIDI,)}
    return {"requestBody": {"required": True, "content": content | others}}


def inlined(content: dict[str, Any]) -> dict[str, Any]:
    """JSON schemas without references into themselves, which OpenAPI would look for elsewhere."""

    def within(value: Any, definitions: dict[str, Any]) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return within(definitions[value["$ref"].rpartition("/")[2]], definitions)
            return {key: within(inner, definitions) for key, inner in value.items() if key != "$defs"}
        return [within(inner, definitions) for inner in value] if isinstance(value, list) else value

    return {kind: {"schema": within(body["schema"], body["schema"].get("$defs", {}))} for kind, body in content.items()}
