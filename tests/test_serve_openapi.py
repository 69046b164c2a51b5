"""OpenAPI says what the server does: thousands of made-up requests get only answers that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages aren't installed: pip install '.[serve]'")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis isn't installed: pip install '.[check]'")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from serving import Running, running, tiny_weights  # noqa: E402


@schemathesis.serializer("audio/midi")
def midi(context: object, value: object) -> bytes:
    """Bytes are sent as they are; what is made up as text begins as a MIDI file does."""
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else b"MThd" + str(data).encode()


OPERATIONS = {
    ("GET", "/metrics"),
    ("GET", "/v1/examples"),
    ("GET", "/v1/examples/{id}.mid"),
    ("GET", "/v1/health"),
    ("GET", "/v1/info"),
    ("GET", "/v1/samples"),
    ("GET", "/v1/samples/{digest}/{layer}/{pitch}.wav"),
    ("GET", "/v1/soundfont"),
    ("POST", "/v1/seeds"),
    ("GET", "/v1/seeds/{id}"),
    ("DELETE", "/v1/seeds/{id}"),
    ("POST", "/v1/continuations"),
    ("POST", "/v1/takes"),
    ("GET", "/v1/takes/{id}"),
    ("DELETE", "/v1/takes/{id}"),
    ("GET", "/v1/takes/{id}.{kind}"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_weights(tmp_path_factory.mktemp("weights"))) as server:
        yield server


def test_every_route_is_documented_and_every_documented_one_is_in_the_page_of_the_api(server: Running) -> None:
    told = server.ask("GET", "/v1/openapi.json").json
    found = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert found == OPERATIONS
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    for method, path in OPERATIONS - {("GET", "/v1/samples/{digest}/{layer}/{pitch}.wav")}:
        assert f"{method} {path}".replace("{id}.{kind}", "{id}.mid") in page, (method, path)


def test_other_methods_are_told_all_that_there_are(server: Running) -> None:
    """A path has a route for every method, and the addresses of a take's files look like a take's own."""
    none = "0" * 32
    for path, allowed in (
        (f"/v1/seeds/{none}", "DELETE, GET"),
        (f"/v1/takes/{none}", "DELETE, GET"),
        (f"/v1/takes/{none}.mid", "GET"),
        ("/v1/seeds", "POST"),
    ):
        for method in {"OPTIONS", "PUT", "DELETE"} - {allowed.partition(",")[0]}:
            answer = server.ask(method, path)
            answer.problem(405, "is not done here")
            assert answer.headers["allow"] == allowed, (method, path)


def test_what_is_made_leads_to_where_it_is_found(server: Running) -> None:
    """Every link of OpenAPI names a field of an answer and an operation that takes it."""
    told = server.ask("GET", "/v1/openapi.json").json
    operations = {
        said["operationId"]: (method, path) for path in told["paths"] for method, said in told["paths"][path].items()
    }
    made = {"seed": server.seed()}
    assert set(told["paths"]["/v1/seeds"]["post"]["responses"]["201"]["links"]) == {"seed", "forget_seed"}
    assert set(told["paths"]["/v1/takes"]["post"]["responses"]["201"]["links"]) == {"take", "forget_take", "file"}
    for name, link in told["paths"]["/v1/seeds"]["post"]["responses"]["201"]["links"].items():
        method, path = operations[link["operationId"]]
        assert link == {"operationId": name, "parameters": {"id": "$response.body#/seed"}}
        assert server.ask(method.upper(), path.replace("{id}", made["seed"])).status in (200, 204)


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
def test_made_up_requests_get_only_answers_that_openapi_names(server: Running, method: str, path: str) -> None:
    address = f"http://127.0.0.1:{server.port}"
    schema = schemathesis.openapi.from_url(f"{address}/v1/openapi.json")
    operation = schema[path][method]

    @settings(
        max_examples=12,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=address, timeout=60)
        assert response.status_code < 500, response.text
        # What a schema can say is not all that has to hold: of two pitches the lower comes first, a file must be MIDI.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    ask()
    assert server.ask("GET", "/v1/health").status == 200
