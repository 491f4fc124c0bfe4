"""Many clients at once: answered together, each as if alone; too many are told so, and who has left costs nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import service
import tiny

from conftest import wait_until
from unimed import answering
from unimed.answering import Question
from unimed.serving.follow import Source

pytestmark = pytest.mark.slow
TEXTS = ("Is there a nodule?", "?", "Which structure is marked? " * 4, "yes", "no")


@pytest.fixture
def brake():
    found = service.Brake(service.model())
    yield found
    found.free.set()


def test_clients_at_once_share_passes_and_each_gets_the_answer_it_would_get_alone():
    brake = service.Brake(service.model())
    limits = service.Limits(batch=4, queue=60, max_new_tokens=6)
    asked = [(TEXTS[number % len(TEXTS)], number) for number in range(24)]
    with service.serving(brake.made, limits) as server, ThreadPoolExecutor(24) as clients:
        found = [clients.submit(server.ask, text, seed) for text, seed in asked]
        wait_until(lambda: server.number("unimed_requests_in_hand") == 24)
        brake.free.set()
        found = [one.result() for one in found]
        assert server.number("unimed_batch_size_bucket", le="4.0") == server.number("unimed_batch_size_count")
    assert max(brake.passes) == 4
    assert sum(brake.passes) / len(brake.passes) > 1.5
    for (text, seed), response in zip(asked, found, strict=True):
        [expected] = answering.answer(brake.made, [Question(tiny.picture(seed), text)], 6)
        assert response.status_code == 200, response.text
        assert response.json()["answer"] == expected.answer
        assert response.json()["router"] == list(expected.router)


def test_a_question_joins_answers_that_are_being_written():
    made = service.model()
    joined = threading.Event()
    passes = []

    def note(module, args, kwargs):
        passes.append(len(kwargs["input_ids"]))
        if len(passes) == 3:
            joined.wait(60)

    made.model.register_forward_pre_hook(note, with_kwargs=True)
    with service.serving(made) as server, ThreadPoolExecutor(2) as clients:
        first = clients.submit(server.ask)
        wait_until(lambda: len(passes) == 3)
        second = clients.submit(server.ask, "?")
        wait_until(lambda: server.number("unimed_queue_length") == 1)
        joined.set()
        assert first.result().status_code == second.result().status_code == 200
    assert 2 in passes[3:]


def test_above_the_bound_clients_are_told_to_come_again(brake):
    room = service.LIMITS.room
    with service.serving(brake.made) as server, ThreadPoolExecutor(room) as clients:
        waiting = [clients.submit(server.ask) for _ in range(room)]
        wait_until(lambda: server.number("unimed_requests_in_hand") == room)
        assert server.get("/readyz").status_code == 503
        assert server.get("/readyz").json()["ready"] is False
        refused = server.ask()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["detail"] == f"queue: expected at most {room} requests at once, found more"
        assert server.get("/healthz").status_code == 200
        brake.free.set()
        assert {one.result().status_code for one in waiting} == {200}
        wait_until(lambda: server.get("/readyz").status_code == 200)
        assert server.ask().status_code == 200


def test_an_answer_that_takes_too_long_is_504_and_one_that_still_waits_is_never_begun(brake):
    limits = service.Limits(batch=1, queue=3, timeout_s=2, max_new_tokens=6)
    with service.serving(brake.made, limits) as server, ThreadPoolExecutor(3) as clients:
        first = clients.submit(server.ask)
        brake.wait_until_held()
        others = [clients.submit(server.ask) for _ in range(2)]
        for one in (first, *others):
            assert one.result().status_code == 504
            assert one.result().json()["detail"] == "server: expected an answer within 2 s, found none"
        assert server.number("unimed_requests_in_hand") == 0
        begun = len(brake.passes)
        brake.free.set()
        assert server.ask().status_code == 200
    assert begun == 1
    assert len(brake.passes) <= begun + 6 + 1  # six words and a pass for masks, and nothing for those who had left


def test_a_stream_that_takes_too_long_is_cut_off_without_its_end(brake):
    with service.serving(brake.made, service.Limits(batch=1, queue=3, timeout_s=1, max_new_tokens=6)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            server.ask(stream=True)
        brake.free.set()
        assert server.ask(stream=True).text.count("event: done") == 1


def test_a_client_that_hangs_up_is_dropped(brake):
    limits = service.Limits(batch=1, queue=3, max_new_tokens=6)
    with service.serving(brake.made, limits) as server, ThreadPoolExecutor(1) as clients:
        first = clients.submit(server.ask)
        brake.wait_until_held()
        for stream in (False, True):
            body = {"image": service.encoded(tiny.picture(1)), "question": "?", "stream": stream}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/answer", json=body, timeout=httpx.Timeout(30, read=1.5)).read()
        wait_until(lambda: server.number("unimed_requests_in_hand") == 1)
        assert server.number("unimed_requests_total", status="499") == 1
        assert server.number("unimed_queue_length") == 2
        brake.let_one_pass()
        brake.wait_until_held()
        assert server.number("unimed_queue_length") == 0
        brake.free.set()
        assert first.result().status_code == 200
        passes = len(brake.passes)
        assert passes <= 6 + 1
        assert server.ask().status_code == 200


def test_a_new_release_takes_over_between_batches_and_no_request_is_dropped():
    models = {"1": service.model(), "2": service.model(turned=True)}
    brakes = {version: service.Brake(made) for version, made in models.items()}
    brakes["2"].free.set()
    present = ["1"]
    with (
        service.serving(Source(lambda: present[0], models.__getitem__)) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        before = [clients.submit(server.ask, seed=number) for number in range(3)]
        brakes["1"].wait_until_held()
        wait_until(lambda: server.number("unimed_queue_length") + brakes["1"].passes[0] == 3)
        present[0] = "2"
        wait_until(lambda: server.get("/readyz").json()["model"] == "2")
        after = [clients.submit(server.ask, seed=number) for number in range(3)]
        wait_until(lambda: server.number("unimed_queue_length") + brakes["1"].passes[0] == 6)
        brakes["1"].free.set()
        assert [one.result().json()["model"] for one in before] == ["1"] * 3
        assert [one.result().json()["model"] for one in after] == ["2"] * 3
        assert server.number("unimed_model_info", version="2") == 1
        assert server.number("unimed_model_info", version="1") == 0
    for version, found in (("1", before), ("2", after)):
        expected = answering.answer(models[version], [Question(tiny.picture(number), "Is there a nodule?") for number in range(3)], 6)
        assert [one.result().json()["answer"] for one in found] == [reply.answer for reply in expected]
    assert before[0].result().json()["answer"] != after[0].result().json()["answer"]
