"""The judge, with ragas itself, against a server that answers by rules and fails on demand."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from rankwright.errors import MissingExtraError
from rankwright.sections import EndpointSection
from rankwright.toolbox import judge as module
from rankwright.toolbox.endpoint import Spent
from rankwright.toolbox.judge import Estimate, Judge, RagasJudge, answer_prompt, estimate

os.environ["RAGAS_DO_NOT_TRACK"] = "true"
for needed in ("ragas", "fastapi", "uvicorn"):
    pytest.importorskip(needed)

SPEC = importlib.util.spec_from_file_location("chatserver", Path(__file__).with_name("chatserver.py"))
chatserver = sys.modules["chatserver"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(chatserver)
Fault = chatserver.Fault

PASSAGES = ("Plums are blue.", "Pears are green. Pears grow on trees.")
QUERY = "which fruit is blue"


@pytest.fixture(scope="module")
def server():
    with chatserver.running() as chat:
        yield chat


@pytest.fixture
def chat(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.faults = []
    server.bodies.clear()
    return server


def embed(texts):
    """Counts of letters: anagrams are equal, and nothing is zero."""
    return np.array([[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts], dtype=np.float32)


def make(chat, folder, **more):
    more.setdefault("timeout", 0.5 if any(fault.kind == "stall" for fault in chat.faults) else 10.0)
    given = {"base_url": chat.url, "model": "rules", "retries": 1}
    return RagasJudge(EndpointSection(**{**given, **more}), folder, embed, pause=0.01)


def every(judge: Judge):
    """One or more items of each method, and what the rules make of them."""
    return {
        "answers": (judge.answers([(QUERY, PASSAGES), (QUERY, PASSAGES[::-1])]), [PASSAGES[0], PASSAGES[1]]),
        "relevant": (
            judge.relevant([(QUERY, PASSAGES[0], "It is blue"), (QUERY, PASSAGES[1], "It is blue")]),
            [True, False],
        ),
        "recall": (judge.recall([(QUERY, PASSAGES, "Plums are blue. Pears are red.")]), [0.5]),
        "faithfulness": (
            judge.faithfulness([(QUERY, PASSAGES, "Plums are blue. Pears are green. Pears cost money.")]),
            [pytest.approx(2 / 3)],
        ),
        "relevancy": (
            judge.relevancy([(QUERY, "Plums are blue."), (QUERY, "I do not know.")]),
            [pytest.approx(cosine(QUERY, "what is Plums are blue."), abs=1e-6), 0.0],
        ),
    }


def cosine(one, other):
    a, b = embed([one, other]).astype(float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_every_method_gives_ragas_values_one_per_item(chat, tmp_path):
    judge = make(chat, tmp_path)
    for got, wanted in every(judge).values():
        assert got == wanted
    assert judge.spent == Spent(9, 0, 0, 90, 27)
    assert chat.wire == 9


def test_a_second_run_makes_no_call_and_gives_the_same(chat, tmp_path):
    every(make(chat, tmp_path))
    chat.bodies.clear()
    judge = make(chat, tmp_path)
    for got, wanted in every(judge).values():
        assert got == wanted
    assert judge.spent == Spent(cached=9)
    assert chat.wire == 0


def test_what_is_sent_is_bounded_and_at_temperature_0(chat, tmp_path):
    every(make(chat, tmp_path, max_tokens=77))
    assert {(body["temperature"], body["max_tokens"]) for body in chat.bodies} == {(0, 77)}
    assert all("max_retries" not in body for body in chat.bodies)


def test_ragas_with_its_own_strictness_gives_the_same_relevancy(chat, tmp_path):
    judge = make(chat, tmp_path)
    items = [(QUERY, "Plums are blue."), (QUERY, "I do not know."), ("a pear", "Pears are green.")]

    def start(session):
        embeddings = judge._embeddings
        metric = judge._ragas.AnswerRelevancy(llm=judge._llm(session), embeddings=embeddings, strictness=3)

        async def ask(item):
            return (await metric.ascore(user_input=item[0], response=item[1])).value

        return ask

    assert judge.relevancy(items) == pytest.approx(judge.endpoint.gather(start, items, ""))


@pytest.mark.parametrize("kind", ["429", "500", "stall", "drop", "html"])
class TestEachFault:
    def test_is_outlived_by_trying_again(self, chat, tmp_path, kind):
        chat.faults = [Fault(kind, times=1)]
        judge = make(chat, tmp_path)
        for got, wanted in every(judge).values():
            assert got == wanted
        assert (judge.spent.calls, judge.spent.failed) == (10, 0)

    def test_fails_its_own_item_alone_when_it_stays(self, chat, tmp_path, kind):
        chat.faults = [Fault(kind, word="Zebra")]
        judge = make(chat, tmp_path)
        assert judge.relevant([("a", "x blue", "blue"), ("Zebra", "x blue", "blue"), ("b", "x", "blue")]) == [
            True,
            None,
            False,
        ]
        assert judge.faithfulness([("a", ("x is y",), "Zebra."), ("b", ("x is y",), "x is y.")]) == [None, 1.0]
        assert (judge.spent.calls, judge.spent.failed) == (2 + 2 + 2 + 2, 2)
        assert len(judge.endpoint.reasons) == 1
        assert not any("unusable" in reason for reason in judge.endpoint.reasons)


class TestMalformedJson:
    def test_goes_back_once_to_be_put_right(self, chat, tmp_path):
        chat.faults = [Fault("malformed", times=1)]
        judge = make(chat, tmp_path, concurrency=1)
        assert judge.relevant([(QUERY, PASSAGES[0], "blue")]) == [True]
        assert (judge.spent.calls, judge.spent.failed) == (2, 0)

    def test_that_stays_is_one_failed_item_of_two_calls_and_is_kept(self, chat, tmp_path, capfd):
        chat.faults = [Fault("malformed", word="Zebra")]
        items = [("Zebra", PASSAGES[0], "blue"), (QUERY, PASSAGES[0], "blue")]
        judge = make(chat, tmp_path)
        assert judge.relevant(items) == [None, True]
        assert (judge.spent.calls, judge.spent.failed) == (3, 1)
        assert "unusable reply" in next(iter(judge.endpoint.reasons))
        again = make(chat, tmp_path)
        assert again.relevant(items) == [None, True]
        assert (again.spent.calls, again.spent.cached, again.spent.failed) == (0, 3, 1)
        assert "Zebra" not in capfd.readouterr().err

    def test_is_put_right_within_the_budget_only(self, chat, tmp_path):
        chat.faults = [Fault("malformed")]
        judge = make(chat, tmp_path, max_calls=3, concurrency=1)
        assert judge.relevant([(QUERY, passage, "blue") for passage in "abc"]) == [None] * 3
        assert chat.wire == judge.spent.calls == 3


def test_the_budget_is_kept_over_all_methods(chat, tmp_path):
    judge = make(chat, tmp_path, max_calls=4)
    values = [value for got, _ in every(judge).values() for value in got]
    assert chat.wire == judge.spent.calls == 4
    assert values[:4] == [*PASSAGES, True, False]
    assert values[4:] == [None] * 4
    assert judge.spent.failed == 4
    assert judge.endpoint.reasons == {"budget spent": 4}


def test_values_that_are_none_or_beyond_the_metric_are_failed_items(chat, tmp_path):
    judge = make(chat, tmp_path)
    assert judge.faithfulness([(QUERY, PASSAGES, " "), (QUERY, (), "Plums are blue.")]) == [None, None]
    assert judge.recall([(QUERY, PASSAGES, "")]) == [None]
    assert judge.spent.failed == 3
    assert chat.wire == 1  # the blank response has no statements; the others are never asked

    class Result:
        value = 7.0

    with pytest.raises(ValueError, match="no value between 0 and 1"):
        module._value(Result)


def test_an_embedder_that_fails_fails_its_items_alone(chat, tmp_path):
    def broken(texts):
        raise RuntimeError("out of memory")

    judge = RagasJudge(EndpointSection(base_url=chat.url, model="rules"), tmp_path, broken)
    assert judge.relevancy([(QUERY, "Plums are blue.")]) == [None]
    assert judge.endpoint.reasons == {"unusable reply (RuntimeError)": 1}


def test_it_works_where_an_event_loop_runs_already(chat, tmp_path):
    async def notebook():
        return make(chat, tmp_path).recall([(QUERY, PASSAGES, "Plums are blue.")])

    assert asyncio.run(notebook()) == [1.0]


def test_the_key_is_sent_and_not_kept(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    chat.headers.clear()
    every(make(chat, tmp_path))
    assert {header["authorization"] for header in chat.headers} == {"Bearer sk-secret-of-the-test"}
    assert not any("sk-secret" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_ragas_that_does_not_import_names_the_extra_and_what_works(chat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ragas.metrics.collections", None)
    with pytest.raises(MissingExtraError, match=r"0\.4 or 0\.4\.1(.|\n)*rankwright\[rag\]"):
        make(chat, tmp_path)


def test_telemetry_is_off(chat, tmp_path, monkeypatch):
    monkeypatch.delenv("RAGAS_DO_NOT_TRACK")
    make(chat, tmp_path)
    from ragas._analytics import do_not_track

    do_not_track.cache_clear()
    assert do_not_track()


def test_the_answers_are_asked_for_from_the_passages_alone():
    told, asked = answer_prompt(QUERY, PASSAGES)
    assert "nothing but the passages" in told["content"]
    assert asked["content"].index(PASSAGES[0]) < asked["content"].index(PASSAGES[1]) < asked["content"].index(QUERY)


class TestTheEstimate:
    def test_counts_the_calls_that_are_made(self, chat, tmp_path):
        judge = make(chat, tmp_path)
        items = {
            "answers": [(QUERY, PASSAGES)],
            "relevant": [(QUERY, PASSAGES[0], "blue")],
            "recall": [(QUERY, PASSAGES, "Plums are blue.")],
            "faithfulness": [(QUERY, PASSAGES, "Plums are blue.")],
            "relevancy": [(QUERY, "Plums are blue.")],
        }
        for method, some in items.items():
            before = judge.spent.calls
            getattr(judge, method)(some)
            assert estimate(method, some).calls == judge.spent.calls - before, method

    @pytest.mark.parametrize("method", ["answers", "relevant", "recall", "faithfulness", "relevancy"])
    def test_of_the_prompts_is_near_what_is_sent(self, chat, tmp_path, method):
        item = {
            "answers": (QUERY, PASSAGES),
            "relevant": (QUERY, PASSAGES[0], "blue"),
            "recall": (QUERY, PASSAGES, "Plums are blue."),
            "faithfulness": (QUERY, PASSAGES, "Plums are blue."),
            "relevancy": (QUERY, "Plums are blue."),
        }[method]
        getattr(make(chat, tmp_path), method)([item])
        sent = sum(len(message["content"]) for body in chat.bodies for message in body["messages"])
        assert estimate(method, [item]).prompt_tokens == pytest.approx(sent / 4, rel=0.05)

    def test_counts_equal_items_once_and_adds_up(self):
        one = estimate("recall", [("q", ("a", "b"), "r")])
        assert estimate("recall", [("q", ("a", "b"), "r")] * 5) == one
        more = estimate("relevancy", [("q", None)])
        both = one + more
        assert both.calls == 2
        assert both.prompt_tokens == one.prompt_tokens + more.prompt_tokens
        assert both.completion_tokens == one.completion_tokens + more.completion_tokens
        assert estimate("answers", []) == Estimate()

    def test_takes_an_answer_to_come_for_600_characters(self):
        known = estimate("relevancy", [("q", "a" * 600)])
        assert estimate("relevancy", [("q", None)]) == known
