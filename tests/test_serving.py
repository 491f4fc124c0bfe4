"""A served model over real connections: whole answers, streams, health, numbers, and who may ask."""

import pytest
import service
import tiny

from unimed import NOTICE, answering
from unimed.answering import Question
from unimed.data import masks
from unimed.errors import InputError
from unimed.serving import command
from unimed.serving.schema import PIXEL

pytestmark = pytest.mark.slow
PROBLEM = {"type", "title", "status", "detail", "request_id"}


@pytest.fixture(scope="module")
def made():
    return service.model()


@pytest.fixture(scope="module")
def server(made):
    with service.serving(made) as running:
        yield running


def test_a_served_answer_is_the_one_that_predict_gives(made, server):
    mask = tiny.box(3, 3, 9, 9)
    drawn = {"size": [32, 32], "counts": masks.encode(mask)}
    found = server.ask("Do <region> and the other differ?", seed=5, regions=["box:0,0,8,8", drawn], think=True)
    assert found.status_code == 200, found.text
    question = Question(tiny.picture(5), "Do <region> and the other differ?", (tiny.box(0, 0, 8, 8), mask), think=True)
    [expected] = answering.answer(made, [question], service.LIMITS.max_new_tokens)
    told = found.json()
    assert (told["answer"], told["reasoning"], tuple(told["masks"])) == (expected.answer, expected.reasoning, expected.masks)
    assert [tuple(use.values()) for use in told["router"]] == [tuple(use.values()) for use in expected.router]
    assert told["model"] == "1"
    assert told["notice"] == NOTICE
    assert told["request_id"] == found.headers["x-request-id"]


def test_reasoning_is_told_as_it_is_written_and_then_the_rest(tmp_path):
    made = service.model()
    service.script(made, "<think> It is there.</think><answer> yes <SEG></answer>")
    limits = service.Limits(batch=2, queue=2, max_new_tokens=200)
    with service.serving(made, limits) as server:
        told = service.events(server.ask(stream=True).text)
    names = [name for name, _ in told]
    assert names[-3:] == ["answer", "masks", "done"]
    grown = [data["text"] for name, data in told if name == "reasoning"]
    assert len(grown) > 2
    assert "".join(grown) == "It is there."
    assert told[-3][1] == {"answer": "yes <SEG>", "reasoning": "It is there."}
    [mask] = told[-2][1]["masks"]
    assert masks.decode(mask["counts"], *mask["size"]).shape == (32, 32)
    assert told[-1][1].keys() == {"model", "request_id", "notice", "router"}
    assert {use["expert"] for use in told[-1][1]["router"]} == {"vqa", "grounding"}


def test_a_stream_says_what_a_whole_answer_says(server):
    whole, told = server.ask(seed=3).json(), service.events(server.ask(seed=3, stream=True).text)
    assert told[-3][1] == {"answer": whole["answer"], "reasoning": whole["reasoning"]}
    assert told[-2][1]["masks"] == whole["masks"]
    assert told[-1][1]["router"] == whole["router"]


def test_health_and_numbers(server):
    assert server.get("/healthz").json() == {"status": "alive"}
    before = server.number("unimed_requests_total", status="200"), server.number("unimed_requests_total", status="422")
    assert server.ask().status_code == 200
    assert server.post({}).status_code == 422
    after = server.number("unimed_requests_total", status="200"), server.number("unimed_requests_total", status="422")
    assert after == (before[0] + 1, before[1] + 1)
    ready = server.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "model": "1", "requests": 0, "failure": None}
    assert server.number("unimed_model_info", version="1") == 1
    assert server.number("unimed_request_seconds_count") == server.number("unimed_requests_total")
    assert server.number("unimed_batch_size_count") > 0 and server.number("unimed_tokens_total") > 0


def test_openapi_has_examples_that_work_and_names_every_refusal(server):
    api = server.get("/openapi.json").json()
    told = api["paths"]["/v1/answer"]["post"]["responses"]
    assert set(told) == {"200", "400", "401", "408", "413", "415", "422", "429", "500", "504"}
    assert all(set(told[status]["content"]) == {"application/problem+json"} for status in set(told) - {"200"})
    examples = api["components"]["schemas"]["AnswerRequest"]["examples"]
    assert [server.post(example).status_code for example in examples] == [200, 200]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_loads_code_from_elsewhere(server, path):
    assert server.get(path).status_code == 404


def test_errors_are_problems_of_one_sentence(server):
    found = server.post({"image": PIXEL, "question": "Is there a nodule?", "regions": ["box:0,0,17,1"]})
    assert found.status_code == 422
    assert found.headers["content-type"] == "application/problem+json"
    assert set(found.json()) == PROBLEM
    assert found.json()["detail"] == "region box:0,0,17,1: expected a region within 16 x 16 pixels"
    for other in (server.get("/v1/answer"), server.get("/nothing"), server.post([])):
        assert set(other.json()) == PROBLEM
        assert other.json()["status"] == other.status_code
        assert "expected" in other.json()["detail"] and "found" in other.json()["detail"]


def test_with_a_token_only_its_bearer_is_heard(made):
    with service.serving(made, token="open-sesame") as server:
        right, wrong = ({"Authorization": f"Bearer {word}"} for word in ("open-sesame", "open-sesame2"))
        for headers in ({}, wrong, {"Authorization": "open-sesame"}, {"Authorization": "Bearer öpen"}):
            encoded = {name: value.encode() for name, value in headers.items()}
            for found in (server.post({"image": PIXEL, "question": "?"}, headers=encoded), server.get("/metrics", headers=encoded)):
                assert found.status_code == 401
                assert found.headers["www-authenticate"] == "Bearer"
                assert "open-sesame" not in found.text
        assert server.post({"image": PIXEL, "question": "?"}, headers=right).status_code == 200
        assert [server.get(path, headers=right).status_code for path in ("/readyz", "/openapi.json")] == [200, 200]
        assert server.get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])  # noqa: S104
def test_a_host_that_others_reach_needs_a_token(host):
    with pytest.raises(InputError, match="expected UNIMED_TOKEN in the environment"):
        command.check(host, "")
    command.check(host, "a-token")
    with pytest.raises(InputError, match="UNIMED_TOKEN: expected printable ASCII"):
        command.check(host, "two words")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    command.check(host, "")
