"""Whatever the OpenAPI allows or forbids, sent at random: no defect, no status that it does not name."""

import hypothesis
import pytest
import schemathesis
import service
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, negative_data_rejection, response_schema_conformance
from schemathesis.specs.openapi.checks import status_code_conformance as known_status

from unimed.serving import app
from unimed.serving.follow import Follower, Source
from unimed.serving.metrics import Metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api():
    made, metrics = service.model(), Metrics()
    limits = service.Limits(batch=4, queue=4, max_new_tokens=2)
    made_app = app.make(Follower(Source(lambda: "1", lambda version: made), metrics), limits, metrics)
    return schemathesis.openapi.from_asgi("/openapi.json", made_app)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(
    max_examples=50, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_nothing_that_is_sent_breaks_the_server(case):
    response = case.call()
    checks = [not_a_server_error, known_status, content_type_conformance, response_schema_conformance, negative_data_rejection]
    case.validate_response(response, checks=checks)
