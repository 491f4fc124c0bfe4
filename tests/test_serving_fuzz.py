"""Whatever the OpenAPI allows or forbids, sent at random: no defect, and no response that it does not describe."""

import pytest
import schemathesis
import service
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance

pytestmark = pytest.mark.slow
PATHS = {"/v1/answer": "POST", "/healthz": "GET", "/readyz": "GET", "/metrics": "GET"}
FUZZ = settings(
    max_examples=30, derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
CHECKS = (
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
)


@pytest.fixture(scope="module")
def api():
    """A server, described by its own OpenAPI."""
    with service.serving(service.model(), service.Limits(batch=4, queue=4, max_new_tokens=2)) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        assert server.ask().status_code == 200


def test_every_path_is_tried(api):
    assert {(path, method.upper()) for path in api for method in api[path]} == set(PATHS.items())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", PATHS)
def test_nothing_that_is_sent_breaks_the_server(api, path, mode):
    operation = api[path][PATHS[path]]
    if path != "/v1/answer" and mode == GenerationMode.NEGATIVE:
        pytest.skip("what takes no input has no wrong one")
    statuses = set()

    @FUZZ
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        assert mode == GenerationMode.POSITIVE or response.status_code >= 400

    send()
    assert statuses
