"""The way out to a chat server, against a server that answers by rules and fails on demand."""

from __future__ import annotations

import asyncio
import email.utils
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rankwright.errors import ConfigError, DiskError, MissingExtraError
from rankwright.sections import EndpointSection
from rankwright.toolbox import endpoint as module
from rankwright.toolbox.endpoint import Endpoint, GaveUpError, Spent, http_library, run_anywhere

for needed in ("fastapi", "uvicorn"):
    pytest.importorskip(needed)

SPEC = importlib.util.spec_from_file_location("chatserver", Path(__file__).with_name("chatserver.py"))
chatserver = sys.modules["chatserver"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chatserver)
Fault = chatserver.Fault
KEY = "sk-very-secret-1234567890"


@pytest.fixture(scope="module")
def server():
    with chatserver.running() as chat:
        yield chat


@pytest.fixture
def chat(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.faults, server.delay, server.most_at_once = [], 0.0, 0
    for seen in (server.bodies, server.headers, server.times):
        seen.clear()
    return server


def section(chat, **more):
    more.setdefault("timeout", 0.4 if any(fault.kind == "stall" for fault in chat.faults) else 10.0)
    given = {"base_url": chat.url, "model": "rules", "key_from": "KEY_OF_THE_TEST", "retries": 2}
    return EndpointSection(**{**given, **more})


def asked(words):
    return [[{"role": "user", "content": word}] for word in words]


def said(words):
    return [f"you said {word}" for word in words]


def run(chat, folder, words, **more):
    endpoint = Endpoint(section(chat, **more), folder, pause=0.01)
    return endpoint, endpoint.chats(asked(words), "answers")


WORDS = [f"word{number}" for number in range(12)]


def test_answers_come_in_the_order_of_the_questions_and_are_counted(chat, tmp_path):
    endpoint, answers = run(chat, tmp_path, WORDS)
    assert answers == said(WORDS)
    assert endpoint.spent == Spent(12, 0, 0, 120, 36)
    assert chat.wire == 12
    assert chat.bodies[0]["temperature"] == 0
    assert chat.bodies[0]["max_tokens"] == 1024


def test_a_second_run_makes_no_call(chat, tmp_path):
    run(chat, tmp_path, WORDS)
    endpoint, answers = run(chat, tmp_path, WORDS)
    assert answers == said(WORDS)
    assert endpoint.spent == Spent(cached=12)
    assert chat.wire == 12


def test_another_model_is_asked_afresh(chat, tmp_path):
    run(chat, tmp_path, WORDS)
    endpoint, _ = run(chat, tmp_path, WORDS, model="other")
    assert endpoint.spent.calls == 12


def test_equal_questions_are_asked_once(chat, tmp_path):
    chat.delay = 0.02
    endpoint, answers = run(chat, tmp_path, ["same"] * 8)
    assert answers == said(["same"] * 8)
    assert (endpoint.spent.calls, endpoint.spent.cached, chat.wire) == (1, 7, 1)


def test_no_more_requests_are_under_way_than_are_allowed(chat, tmp_path):
    chat.delay = 0.02
    run(chat, tmp_path, WORDS, concurrency=3)
    assert chat.most_at_once == 3


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("429", "HTTP 429"),
        ("500", "HTTP 500"),
        ("503", "HTTP 503"),
        ("stall", "timed out"),
        ("drop", "connection lost"),
        ("html", "unreadable reply"),
    ],
)
class TestEachFault:
    def test_is_outlived_by_trying_again(self, chat, tmp_path, kind, reason):
        chat.faults = [Fault(kind, times=2, word="word3")]
        endpoint, answers = run(chat, tmp_path, WORDS[:5])
        assert answers == said(WORDS[:5])
        assert endpoint.spent == Spent(7, 0, 0, 50, 15)
        assert not endpoint.reasons

    def test_fails_its_own_item_alone_when_it_stays(self, chat, tmp_path, kind, reason):
        chat.faults = [Fault(kind, word="word3")]
        endpoint, answers = run(chat, tmp_path, WORDS[:5])
        assert answers == [*said(WORDS[:3]), None, "you said word4"]
        assert endpoint.spent == Spent(7, 0, 1, 40, 12)
        assert endpoint.reasons == {reason: 1}

    def test_is_not_kept_so_that_the_next_run_asks_again(self, chat, tmp_path, kind, reason):
        chat.faults = [Fault(kind, word="word3")]
        run(chat, tmp_path, WORDS[:5])
        chat.faults = []
        endpoint, answers = run(chat, tmp_path, WORDS[:5])
        assert answers == said(WORDS[:5])
        assert (endpoint.spent.calls, endpoint.spent.cached, endpoint.spent.failed) == (1, 4, 0)


def test_what_trying_again_cannot_mend_is_not_tried_again(chat, tmp_path):
    chat.faults = [Fault("422", word="word3")]
    endpoint, answers = run(chat, tmp_path, WORDS[:5])
    assert answers[3] is None
    assert (endpoint.spent.calls, endpoint.reasons) == (5, {"HTTP 422": 1})


def test_the_server_says_when_to_come_back(chat, tmp_path):
    chat.faults = [Fault("429", times=1, retry_after="0.3")]
    _, answers = run(chat, tmp_path, ["one"])
    assert answers == said(["one"])
    assert chat.times[1] - chat.times[0] > 0.28


def test_when_to_come_back_may_be_a_number_or_a_date_or_nonsense():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 57 < module._retry_after({"retry-after": in_a_minute}) <= 60
    assert module._retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert module._retry_after({"retry-after": "7"}) == 7
    assert module._retry_after({"retry-after": "soon"}) is None
    assert module._retry_after({}) is None


def test_the_pauses_double_and_are_the_same_each_time(chat, tmp_path):
    endpoint = Endpoint(section(chat), tmp_path, pause=1.0, seed=3)
    session = module.Session(endpoint, None)
    trouble = module._Trouble("timed out")
    pauses = [session._pause(trouble, "key", number) for number in range(9)]
    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses[:6]))
    assert max(pauses) <= 60
    assert pauses == [session._pause(trouble, "key", number) for number in range(9)]
    assert pauses != [session._pause(trouble, "other", number) for number in range(9)]
    assert session._pause(module._Trouble("HTTP 429", wait=3600.0), "key", 0) == 60


class TestTheBudget:
    def test_is_kept_and_what_is_beyond_it_fails(self, chat, tmp_path):
        endpoint, answers = run(chat, tmp_path, WORDS, max_calls=5)
        assert chat.wire == 5
        assert sum(answer is not None for answer in answers) == 5
        assert (endpoint.spent.calls, endpoint.spent.failed, endpoint.left) == (5, 7, 0)
        assert endpoint.reasons == {"budget spent": 7}

    def test_counts_all_runs_together_and_leaves_the_cache_free(self, chat, tmp_path):
        run(chat, tmp_path, WORDS[:4], max_calls=6)
        endpoint, answers = run(chat, tmp_path, WORDS, max_calls=6)
        assert chat.wire == 6
        assert answers[:4] == said(WORDS[:4])
        assert (endpoint.spent.calls, endpoint.spent.cached, endpoint.spent.failed) == (2, 4, 6)

    def test_counts_each_try(self, chat, tmp_path):
        chat.faults = [Fault("500")]
        endpoint, answers = run(chat, tmp_path, ["one", "two"], max_calls=4, concurrency=1)
        assert answers == [None, None]
        assert chat.wire == endpoint.spent.calls == 4
        assert endpoint.reasons == {"HTTP 500": 1, "budget spent": 1}

    def test_of_nothing_asks_nothing(self, chat, tmp_path):
        _, answers = run(chat, tmp_path, WORDS, max_calls=0)
        assert answers == [None] * 12
        assert chat.wire == 0

    def test_is_not_spent_on_a_server_that_is_not_there(self, chat, tmp_path):
        endpoint = Endpoint(section(chat, base_url="http://127.0.0.1:9/v1"), tmp_path, pause=0.01)
        with pytest.raises(ConfigError, match=r"nobody answers at http://127\.0\.0\.1:9/v1"):
            endpoint.chats(asked(WORDS), "answers")
        assert (endpoint.spent.calls, Endpoint(section(chat), tmp_path).left) == (0, 2000)


@pytest.mark.parametrize("status", ["401", "404", "307"])
def test_a_wrong_key_address_or_model_ends_the_run_at_once(chat, tmp_path, status, monkeypatch):
    monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
    chat.faults = [Fault(status, body=f"bad key {KEY} or model")]
    with pytest.raises(ConfigError, match=f"for the model 'rules': HTTP {status} bad key \\*\\*\\* or model") as caught:
        run(chat, tmp_path, WORDS, concurrency=2)
    assert chat.wire <= 4
    assert "$KEY_OF_THE_TEST" in str(caught.value)
    assert KEY not in str(caught.value)


def test_once_something_was_answered_a_404_is_that_items_own(chat, tmp_path):
    chat.faults = [Fault("404", word="word3")]
    _, answers = run(chat, tmp_path, WORDS[:5], concurrency=1)
    assert answers == [*said(WORDS[:3]), None, "you said word4"]


def test_a_server_that_seems_down_gets_one_try_per_request_until_it_answers(chat, tmp_path):
    endpoint, _ = run(chat, tmp_path, ["up"], concurrency=1)
    chat.faults = [Fault("503", times=10 * 3 + 4)]
    words = [f"w{number}" for number in range(16)]
    assert endpoint.chats(asked(words), "answers") == [None] * 14 + said(words[14:])
    assert endpoint.spent.calls == 1 + 30 + 4 + 2
    chat.faults = [Fault("503", times=2)]
    assert endpoint.chats(asked(["back"]), "answers") == said(["back"])


@pytest.mark.parametrize(("status", "calls"), [("403", 10), ("503", 30)])
def test_a_server_that_never_answered_ends_the_run_before_the_budget_is_spent(chat, tmp_path, status, calls):
    chat.faults = [Fault(status)]
    with pytest.raises(ConfigError, match=f"does not answer for the model 'rules': HTTP {status}"):
        run(chat, tmp_path, [f"w{number}" for number in range(100)], concurrency=1)
    assert chat.wire == calls


def test_a_server_that_only_drips_is_cut_off_in_time(chat, tmp_path):
    chat.faults = [Fault("drip", word="word1")]
    started = time.monotonic()
    endpoint, answers = run(chat, tmp_path, WORDS[:2], timeout=0.5, retries=0)
    assert answers == [*said(WORDS[:1]), None]
    assert endpoint.reasons == {"timed out": 1}
    assert time.monotonic() - started < 15  # half of what it would have dripped


def test_the_key_goes_into_the_header_and_nowhere_else(chat, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KEY_OF_THE_TEST", f" {KEY}\n")
    chat.faults = [Fault("400", word="word1", body=f"what is {KEY}?")]
    with caplog.at_level("DEBUG"):
        endpoint, _ = run(chat, tmp_path, WORDS[:3])
    assert {header["authorization"] for header in chat.headers} == {f"Bearer {KEY}"}
    kept = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY not in kept + caplog.text + repr(endpoint.key) + repr(vars(endpoint))


def test_without_a_key_no_header_is_sent(chat, tmp_path, monkeypatch):
    monkeypatch.delenv("KEY_OF_THE_TEST", raising=False)
    run(chat, tmp_path, ["one"])
    assert "authorization" not in chat.headers[0]


def test_a_model_that_takes_no_temperature_is_asked_without(chat, tmp_path):
    chat.delay = 0.05
    chat.faults = [Fault("400", times=2, body="Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'")]
    endpoint, answers = run(chat, tmp_path, WORDS[:5], concurrency=2)
    assert answers == said(WORDS[:5])
    assert endpoint.spent.calls == 7
    assert all("temperature" not in body and body["max_completion_tokens"] == 1024 for body in chat.bodies[2:])


def test_a_model_that_refuses_anything_else_is_asked_once(chat, tmp_path):
    chat.faults = [Fault("400", word="word1", body="temperature is not supported, whatever you do")]
    endpoint, answers = run(chat, tmp_path, WORDS[:3], concurrency=1)
    assert answers == ["you said word0", None, "you said word2"]
    assert endpoint.spent.calls == 4
    assert endpoint.reasons == {"HTTP 400": 1}


def test_thoughts_are_left_out_and_an_answer_of_nothing_else_is_none(chat, tmp_path):
    endpoint, answers = run(chat, tmp_path, ["one"])
    kept = next(tmp_path.rglob("*.json"))
    for content, wanted in [("<think>so\nso</think>\n\nyes", "yes"), ("<think>so</think>", None), (None, None)]:
        kept.write_text(json.dumps(chatserver.reply(content)))
        endpoint, answers = run(chat, tmp_path, ["one"])
        assert answers == [wanted]
        assert endpoint.spent.failed == (wanted is None)


def test_a_kept_reply_that_is_damaged_is_asked_for_again(chat, tmp_path):
    run(chat, tmp_path, WORDS[:3])
    kept = sorted(tmp_path.rglob("*.json"))
    kept[0].write_text(kept[0].read_text()[:40])
    endpoint, answers = run(chat, tmp_path, WORDS[:3])
    assert answers == said(WORDS[:3])
    assert (endpoint.spent.calls, endpoint.spent.cached) == (1, 2)


def test_a_cache_that_cannot_be_written_ends_the_run(chat, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DiskError):
        run(chat, tmp_path / "cache" / "deeper", ["one"])


def test_another_library_goes_the_same_way_by_the_sessions_client(chat, tmp_path):
    endpoint = Endpoint(section(chat), tmp_path, pause=0.01)

    def start(session):
        async def ask(word):
            body = {"model": "rules", "messages": asked([word])[0]}
            headers = {"authorization": "Bearer unused"}
            response = await session.client.post(f"{chat.url}/chat/completions", json=body, headers=headers)
            return response.json()["choices"][0]["message"]["content"]

        return ask

    chat.faults = [Fault("500", times=1, word="word0"), Fault("500", word="word2")]
    assert endpoint.gather(start, WORDS[:4], "") == ["you said word0", "you said word1", None, "you said word3"]
    assert (endpoint.spent.calls, endpoint.spent.failed) == (7, 1)
    assert endpoint.gather(start, WORDS[:2], "") == said(WORDS[:2])
    assert endpoint.spent.cached == 2
    assert not any("unused" in str(header) for header in chat.headers)


def test_the_sessions_client_refuses_what_is_no_chat(chat, tmp_path):
    endpoint = Endpoint(section(chat), tmp_path)

    async def other():
        async with endpoint.session() as session:
            await session.client.get(f"{chat.url}/models")

    with pytest.raises(GaveUpError, match="not a chat completion: GET /v1/models"):
        asyncio.run(other())


def test_it_works_where_an_event_loop_runs_already(chat, tmp_path):
    async def notebook():
        return run(chat, tmp_path, WORDS)[1]

    assert asyncio.run(notebook()) == said(WORDS)


def test_an_error_of_the_work_comes_out_of_the_thread():
    async def failing():
        raise KeyError("mine")

    async def notebook():
        return run_anywhere(failing)

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(notebook())


def test_nothing_to_ask_starts_nothing(chat, tmp_path):
    assert run(chat, tmp_path, [])[1] == []


def test_an_address_without_http_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="'localhost:8000/v1' is no http address"):
        Endpoint(EndpointSection(base_url="localhost:8000/v1", model="m"), tmp_path)


def test_without_httpx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"rankwright\[rag\]"):
        http_library()


KILLED = """
import sys
from pathlib import Path
from rankwright.sections import EndpointSection
from rankwright.toolbox.endpoint import Endpoint

section = EndpointSection(base_url=sys.argv[1], model="rules", concurrency=2, key_from="KEY_OF_THE_TEST")
words = [f"w{number}" for number in range(30)]
Endpoint(section, Path(sys.argv[2])).chats([[{"role": "user", "content": word}] for word in words], "answers")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_resumes_and_asks_only_what_is_missing(chat, tmp_path):
    chat.delay = 0.05
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen([sys.executable, "-c", KILLED, chat.url, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 30
    while chat.wire < 12 and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill()
    child.wait()
    before = chat.wire
    assert 12 <= before < 30
    chat.delay = 0.0
    words = [f"w{number}" for number in range(30)]
    endpoint, answers = run(chat, tmp_path, words)
    assert answers == said(words)
    assert endpoint.spent.cached + endpoint.spent.calls == 30
    assert before - endpoint.spent.cached <= 2  # those that were under way
    assert 2000 - endpoint.left in (chat.wire, chat.wire + 1, chat.wire + 2)  # counted before they were sent


def test_another_port_is_another_server(chat, tmp_path):
    run(chat, tmp_path, WORDS[:2])
    with chatserver.running() as other:
        endpoint, answers = run(other, tmp_path, WORDS[:2])
        assert (other.wire, endpoint.spent.cached) == (2, 0)
        assert answers == ["you said word0", "you said word1"]


def test_a_second_run_in_which_only_refused_requests_are_left_ends(chat, tmp_path):
    refused = [f"no{number}" for number in range(12)]
    chat.faults = [Fault("400", word="no")]
    run(chat, tmp_path, [*WORDS[:3], *refused], concurrency=1)
    endpoint, answers = run(chat, tmp_path, [*WORDS[:3], *refused], concurrency=1)
    assert answers[:3] == ["you said word0", "you said word1", "you said word2"]
    assert (endpoint.spent.cached, endpoint.spent.failed) == (3, 12)


@pytest.mark.parametrize(
    "url", ["http://localhost:abc/v1", "http://[::1/v1", "http://me:s3cret@host/v1", "localhost/v1"]
)
def test_an_address_that_cannot_be_asked_or_holds_a_password_is_refused_at_once(url, tmp_path):
    section = EndpointSection(base_url=url, model="rules")
    with pytest.raises(ConfigError, match="address") as caught:
        Endpoint(section, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_a_long_prompt_that_is_refused_changes_nothing_for_the_others(chat, tmp_path):
    chat.faults = [Fault("400", word="word1", body="'max_tokens' is too large: the maximum context length is 4096")]
    run(chat, tmp_path, WORDS[:3], concurrency=1)
    assert all(body["temperature"] == 0 for body in chat.bodies)


def test_a_server_that_refuses_everything_ends_the_run_and_says_why(chat, tmp_path):
    """As one does with 400 that has no such model, or takes none of the options."""
    chat.faults = [Fault("400", body="model 'rules' not found")]
    with pytest.raises(ConfigError, match="not found"):
        run(chat, tmp_path, [f"word{number}" for number in range(12)], concurrency=1)
    assert chat.wire <= 12


def test_many_at_once_that_a_reasoner_refuses_are_asked_again_and_end_nothing(chat, tmp_path):
    chat.faults = [Fault("400", times=12, body="Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'")]
    words = [f"word{number}" for number in range(12)]
    _, answers = run(chat, tmp_path, words, concurrency=12)
    assert answers == said(words)
