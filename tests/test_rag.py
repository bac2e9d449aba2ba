"""What the order does to the answers: values by hand, who is asked what, and what is said of rows that failed."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.errors import ConfigError, DataError
from rankwright.rooms.rag import Case, export_rows, forecast, rag
from rankwright.rooms.rag.case import prepare
from rankwright.sections import EndpointSection, RagSection
from rankwright.toolbox import ragtable
from rankwright.toolbox.endpoint import Spent
from rankwright.toolbox.judge import Estimate

KINDS = ("answers", "relevant", "recall", "faithfulness", "relevancy")
CONTEXT = ("id_precision", "id_recall", "average_precision", "hit", "repeated", "tokens")


class FakeJudge:
    """Answers by rule, remembers what it was asked, and fails what `fails` names: (kind, item) -> bool."""

    def __init__(self, fails=lambda kind, item: False, answer=None):
        self.asked = {kind: [] for kind in KINDS}
        self.fails = fails
        self.answer = answer or (lambda query, contexts: f"answer to {query} from {contexts[0]}")

    def _each(self, kind, items, value):
        assert items
        self.asked[kind] += items
        return [None if self.fails(kind, item) else value(item) for item in items]

    def answers(self, items):
        return self._each("answers", items, lambda item: self.answer(*item))

    def relevant(self, items):
        return self._each("relevant", items, lambda item: "good" in item[1])

    def recall(self, items):
        return self._each("recall", items, lambda item: 0.5 if "good" in item[1][0] else 0.25)

    def faithfulness(self, items):
        return self._each("faithfulness", items, lambda item: 1.0 if "good" in item[1][0] else 0.5)

    def relevancy(self, items):
        return self._each("relevancy", items, lambda item: 0.75)

    @property
    def spent(self):
        failed = sum(self.fails(kind, item) for kind, items in self.asked.items() for item in items)
        return Spent(calls=sum(map(len, self.asked.values())), failed=failed, prompt_tokens=10)

    @property
    def reasons(self):
        return {"HTTP 500": self.spent.failed} if self.spent.failed else {}


def words(texts):
    return [len(text.split()) for text in texts]


def section(**changes):
    endpoint = EndpointSection(base_url="http://localhost:1/v1", model="small-judge")
    return RagSection(**{"k": 2, "texts": False, "endpoint": endpoint, "resamples": 200, **changes})


def ranked(*documents):
    return tuple((document, -float(place)) for place, document in enumerate(documents))


def make_case(queries=20, answers=True):
    """Two documents a query, one of them good; the second arm turns every other pair round, the third is the second."""
    names = [f"q{number:02}" for number in range(queries)]
    documents = {f"{name}-bad": f"passage on {name}, off the point" for name in names}
    documents |= {f"{name}-good": f"good passage on {name}" for name in names}
    before = {name: ranked(f"{name}-bad", f"{name}-good") for name in names}
    after = {
        name: ranked(f"{name}-good", f"{name}-bad") if place % 2 else before[name] for place, name in enumerate(names)
    }
    return Case(
        runs={"retrieval": Run(before), "finetuned": Run(after), "merged": Run(dict(after))},
        queries={name: f"question {name}" for name in names},
        documents=documents,
        qrels={name: {f"{name}-good": 1, f"{name}-bad": 0} for name in names},
        answers={name: f"reference of {name}" for name in names} if answers else {},
    )


TINY = Case(
    runs={"retrieval": Run({"q": ranked("a", "b", "c"), "r": ranked("x")}), "base": Run({"q": ranked("c", "a", "d")})},
    queries={"q": "what?", "r": "who?", "s": "unjudged"},
    documents={"a": "one two", "b": "one  two", "c": "three", "d": "four five six", "x": "seven"},
    qrels={"q": {"a": 1, "c": 2, "e": 1, "b": 0}, "r": {"y": 1}, "s": {"a": 0}},
)


def numbers(found, metric, arm):
    return found.columns[metric][arm].numbers.tolist()


def cells(found, metric):
    column = next(column for column in found.values()["columns"] if column["metric"] == metric)
    return column, {cell["arm"]: cell for cell in column["cells"]}


# ---------------------------------------------------------------------------------------------- without a judge


def test_the_context_metrics_of_a_tiny_case_are_those_by_hand():
    found = rag(TINY, section(k=3), None, words, seed=0)
    assert found.queries == ("q", "r")
    assert found.metrics == CONTEXT
    by_hand = {  # retrieval sends a b c for q and x for r; base sends c a d, and nothing for r
        "id_precision": ([2 / 3, 0], [2 / 3, 0]),
        "id_recall": ([2 / 3, 0], [2 / 3, 0]),
        "average_precision": ([(1 + 2 / 3) / 2, 0], [1, 0]),
        "hit": ([1, 0], [1, 0]),
        "repeated": ([1 / 3, 0], [0, 0]),
        "tokens": ([5, 1], [6, 0]),
    }
    for metric, (retrieval, base) in by_hand.items():
        assert numbers(found, metric, "retrieval") == pytest.approx(retrieval, abs=1e-9), metric
        assert numbers(found, metric, "base") == pytest.approx(base, abs=1e-9), metric
    assert "1 of 3 queries have no relevant document and are left out." in found.notes
    assert "base has no passages for 1 query: 0 by the labels, no answer." in found.notes
    assert found.notes[-1] == "No reference answers: context columns only."


def test_only_the_first_k_passages_are_looked_at():
    found = rag(TINY, section(k=1), None, words, seed=0)
    assert numbers(found, "id_precision", "retrieval") == [1, 0]
    assert numbers(found, "id_recall", "base") == pytest.approx([1 / 3, 0])
    assert numbers(found, "tokens", "base") == [1, 0]


def test_the_text_metrics_apply_where_a_relevant_document_has_a_text():
    found = rag(TINY, section(k=3, texts=True), None, words, seed=0)
    column = found.columns["text_recall"]["retrieval"]
    assert column.numbers[0] == pytest.approx(1.0)  # a and c are sent; e has no text
    assert column.reasons == ("", "no relevant text")
    assert column.of == 1
    assert found.metrics == (*CONTEXT, "text_precision", "text_recall")


def test_without_a_judge_nothing_of_a_model_is_in_the_table_whatever_the_section_names():
    found = rag(make_case(), section(), None, words, seed=0)
    assert found.asked == found.sample == found.verdicts == ()
    assert found.values()["model"] is None
    assert found.notes == ("No endpoint: context columns only.",)


def test_differences_are_paired_and_their_intervals_hold_the_mean():
    found = rag(make_case(), section(), None, words, seed=0)
    _, shown = cells(found, "average_precision")
    assert shown["retrieval"]["difference"] is None
    change = shown["finetuned"]["difference"]
    assert change["value"] == pytest.approx(0.25)  # every other query goes from 1/2 to 1
    assert 0 < change["low"] < 0.25 < change["high"] < 0.5
    assert shown["merged"]["mean"] == shown["finetuned"]["mean"]
    _, same = cells(found, "id_precision")
    assert same["finetuned"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_another_arm_or_metric_moves_no_number():
    case = make_case()
    whole = rag(case, section(), FakeJudge(), words, seed=0)
    part = rag(case, section(arms=["finetuned"], metrics=["faithfulness"]), FakeJudge(), words, seed=0)
    assert part.arms == ("retrieval", "finetuned")
    for metric in (*CONTEXT, "faithfulness"):
        _, many = cells(whole, metric)
        _, few = cells(part, metric)
        assert many["finetuned"] == few["finetuned"]


# ---------------------------------------------------------------------------------------------- with a judge


def test_nothing_is_asked_twice_and_equal_arms_cost_nothing_more():
    case, judge, alone = make_case(), FakeJudge(), FakeJudge()
    rag(case, section(), judge, words, seed=0)
    for kind, items in judge.asked.items():
        assert len(items) == len(set(items)), kind
    fewer = {arm: run for arm, run in case.runs.items() if arm != "merged"}
    rag(dataclasses.replace(case, runs=fewer), section(), alone, words, seed=0)
    assert alone.asked == judge.asked
    assert {kind: len(items) for kind, items in judge.asked.items()} == {
        "answers": 30,  # 20 queries, 10 of them in two orders
        "relevant": 40,  # two passages each, whatever the order
        "recall": 30,
        "faithfulness": 30,
        "relevancy": 30,
    }


def test_one_verdict_on_a_passage_holds_for_all_arms_and_gives_the_ranked_precision():
    found = rag(make_case(), section(), FakeJudge(), words, seed=0)
    assert numbers(found, "context_precision", "retrieval") == pytest.approx([0.5] * 20)
    assert numbers(found, "context_precision", "finetuned") == pytest.approx([0.5, 1.0] * 10)
    verdicts = {(query, document): mark for query, document, mark in found.verdicts}
    assert len(verdicts) == len(found.verdicts) == 40
    assert all(mark == document.endswith("good") for (_, document), mark in verdicts.items())


def test_passages_are_judged_by_the_reference_or_else_by_retrievals_answer_for_all_arms():
    case, judge = make_case(), FakeJudge()
    rag(case, section(metrics=["context_precision"]), judge, words, seed=0)
    assert judge.asked["answers"] == []
    assert {by for _, _, by in judge.asked["relevant"]} == set(case.answers.values())
    judge = FakeJudge()
    rag(make_case(answers=False), section(metrics=["context_precision"]), judge, words, seed=0)
    assert len(judge.asked["answers"]) == 20
    assert len(judge.asked["relevant"]) == 40
    expected = {f"answer to question {name} from passage on {name}, off the point" for name in case.queries}
    assert {by for _, _, by in judge.asked["relevant"]} == expected


def test_recall_takes_part_only_where_a_reference_is_known_and_the_table_says_so():
    case = make_case()
    some = dataclasses.replace(case, answers={"q00": "yes", "q01": "no", "q02": "  "})
    judge = FakeJudge()
    found = rag(some, section(), judge, words, seed=0)
    column = found.columns["context_recall"]["finetuned"]
    assert column.of == 2
    assert column.reasons == ("", "", *["no reference answer"] * 18)
    assert column.numbers[:2].tolist() == [0.25, 0.5]
    assert cells(found, "context_recall")[0]["usable"]
    (note,) = found.notes
    assert note.startswith("No reference answer to 18 queries: passages are judged by retrieval's answer")
    none = rag(make_case(answers=False), section(), FakeJudge(), words, seed=0)
    assert "context_recall" not in none.metrics
    assert none.asked == ("context_precision", "faithfulness", "answer_relevancy")
    assert none.notes[0].startswith("No reference answers: ")


def test_two_queries_of_the_same_text_and_passages_are_asked_as_one():
    case = make_case(queries=2)
    texts = {document: document.split("-")[1] for document in case.documents}  # "good" and "bad" for both queries
    same = dataclasses.replace(case, queries=dict.fromkeys(case.queries, "the question"), documents=texts, answers={})
    twins = dataclasses.replace(same, runs={"retrieval": case.runs["retrieval"]})
    judge = FakeJudge()
    told = forecast(twins, section(), seed=0)
    found = rag(twins, section(), judge, words, seed=0)
    asked = {kind: len(items) for kind, items in judge.asked.items()}
    assert asked == told.counts == {"answers": 1, "relevant": 2, "recall": 0, "faithfulness": 1, "relevancy": 1}
    assert numbers(found, "context_precision", "retrieval") == pytest.approx([0.5, 0.5])
    assert sorted(found.verdicts) == [
        ("q00", "q00-bad", False),
        ("q00", "q00-good", True),
        ("q01", "q01-bad", False),
        ("q01", "q01-good", True),
    ]


def test_only_a_seeded_sample_is_asked_and_the_rest_is_told_apart():
    case, judge = make_case(), FakeJudge()
    found = rag(case, section(queries=7), judge, words, seed=3)
    assert len(set(found.sample)) == 7
    assert {query for query, _ in judge.asked["answers"]} == {case.queries[query] for query in found.sample}
    column = found.columns["faithfulness"]["retrieval"]
    assert column.of == 7
    assert {query for query, why in zip(found.queries, column.reasons, strict=True) if not why} == set(found.sample)
    assert set(column.reasons) == {"", "not sampled"}
    assert found.columns["hit"]["retrieval"].of == 20
    other = rag(case, section(queries=7), FakeJudge(), words, seed=4)
    assert set(other.sample) != set(found.sample)


def test_what_is_forecast_is_what_is_then_asked():
    for answers in (True, False):
        for metrics in (["context_precision"], ["context_recall"], ["answer_relevancy"], None):
            case = make_case(answers=answers)
            chosen = section(queries=9, **({"metrics": metrics} if metrics else {}))
            judge = FakeJudge()
            told = forecast(case, chosen, seed=1)
            rag(case, chosen, judge, words, seed=1)
            assert told.sample == 9
            assert told.counts == {kind: len(items) for kind, items in judge.asked.items()}
            calls = told.counts | {"faithfulness": 2 * told.counts["faithfulness"]}  # ragas asks twice for it
            assert told.took.calls == sum(calls.values())


def test_the_forecast_is_told_in_lines_and_nothing_to_ask_is_said():
    told = forecast(make_case(), section(queries=9, metrics=["context_recall"]), seed=1)
    first, second = told.lines()
    assert first.startswith("rag: over 9 queries, at most ")
    assert first.endswith(" of context recall")
    assert f"about {told.took.calls:,} calls, {told.took.prompt_tokens:,} prompt tokens" in second
    nothing = forecast(make_case(answers=False), section(metrics=["context_recall"]), seed=1)
    assert nothing.took == Estimate()
    assert nothing.lines() == ["rag: nothing to ask a model"]


def test_equal_answers_from_different_passages_are_judged_for_relevancy_once():
    judge = FakeJudge(answer=lambda query, contexts: "I do not know.")
    found = rag(make_case(), section(), judge, words, seed=0)
    assert len(judge.asked["relevancy"]) == 20
    assert len(judge.asked["faithfulness"]) == 30
    assert numbers(found, "answer_relevancy", "finetuned") == [0.75] * 20


# ---------------------------------------------------------------------------------------------- what failed


def test_failed_rows_are_counted_and_bounded_and_never_dropped():
    def fails(kind, item):
        return kind == "faithfulness" and item[0] == "question q03"

    found = rag(make_case(), section(), FakeJudge(fails), words, seed=0)
    column, shown = cells(found, "faithfulness")
    assert column["usable"]  # 19 of 20 are 95%
    cell = shown["finetuned"]  # good first in odd places: 9 of 1.0, 10 of 0.5, and one that failed
    assert (cell["judged"], cell["of"]) == (19, 20)
    assert cell["mean"] == pytest.approx(14 / 19)
    assert cell["worst"] == pytest.approx(14 / 20)
    assert cell["best"] == pytest.approx(15 / 20)
    assert cell["difference"]["value"] == pytest.approx(4.5 / 19)
    place = found.queries.index("q03")
    assert math.isnan(found.columns["faithfulness"]["finetuned"].numbers[place])
    assert found.columns["faithfulness"]["finetuned"].reasons[place] == "failed"
    whole = cells(found, "answer_relevancy")[1]["finetuned"]
    assert (whole["judged"], whole["of"], whole["worst"], whole["best"]) == (20, 20, 0.75, 0.75)


def test_an_answer_that_failed_fails_what_is_made_of_it_and_is_not_asked_for():
    def fails(kind, item):
        return kind == "answers" and item[0] == "question q03" and "good" not in item[1][0]

    judge = FakeJudge(fails)
    found = rag(make_case(), section(), judge, words, seed=0)
    place = found.queries.index("q03")
    for metric in ("faithfulness", "answer_relevancy"):
        assert found.columns[metric]["retrieval"].reasons[place] == "failed"
        assert found.columns[metric]["finetuned"].reasons[place] == ""
    assert len(judge.asked["faithfulness"]) == 29
    change = cells(found, "faithfulness")[1]["finetuned"]["difference"]  # over the 19 rows that both have
    assert change["value"] == pytest.approx(9 * 0.5 / 19)
    assert 0 < change["low"] < change["value"] < change["high"]
    assert "q03" not in found.responses["retrieval"]
    assert found.responses["finetuned"]["q03"] == "answer to question q03 from good passage on q03"
    assert found.columns["context_recall"]["retrieval"].failed == 0
    bare = rag(make_case(answers=False), section(), FakeJudge(fails), words, seed=0)  # nothing to judge q03 by
    for arm in bare.arms:
        assert bare.columns["context_precision"][arm].reasons[place] == "failed"


def test_a_verdict_that_failed_fails_its_row_in_every_arm_that_sends_the_passage():
    def fails(kind, item):
        return kind == "relevant" and item[1] == "good passage on q05"

    found = rag(make_case(), section(), FakeJudge(fails), words, seed=0)
    for arm in found.arms:
        assert found.columns["context_precision"][arm].failed == 1
    assert ("q05", "q05-bad", False) in found.verdicts
    assert not [verdict for verdict in found.verdicts if verdict[1] == "q05-good"]


def test_a_column_below_the_coverage_is_unusable_and_has_no_interval():
    def fails(kind, item):
        return kind == "recall" and item[0] in ("question q03", "question q05") and "good" in item[1][0]

    found = rag(make_case(), section(), FakeJudge(fails), words, seed=0)
    column, shown = cells(found, "context_recall")
    assert not column["usable"]  # the second arm's rows failed: 18 of 20
    assert (shown["retrieval"]["judged"], shown["finetuned"]["judged"]) == (20, 18)
    assert all(cell["difference"] is None for cell in shown.values())
    assert cells(found, "faithfulness")[0]["usable"]
    text = "\n".join(found.lines())
    assert "context recall (unusable)" in text
    assert "Unusable, fewer than 95% of an arm's rows judged: context recall." in text
    assert "18/20, 0.325 to 0.425" in text
    lenient = rag(make_case(), section(coverage=0.9), FakeJudge(fails), words, seed=0)
    assert cells(lenient, "context_recall")[0]["usable"]


def test_a_judge_of_whom_nothing_can_be_had_leaves_an_empty_column_and_the_bounds_of_ignorance():
    found = rag(make_case(), section(), FakeJudge(lambda kind, item: True), words, seed=0)
    for metric in ("context_precision", "context_recall", "faithfulness", "answer_relevancy"):
        column, shown = cells(found, metric)
        assert not column["usable"]
        assert shown["finetuned"] == {
            **{"arm": "finetuned", "mean": None, "judged": 0, "of": 20},
            **{"worst": 0.0, "best": 1.0, "difference": None},
        }
    assert found.verdicts == ()
    assert found.responses == {}


def test_a_blank_answer_has_failed():
    judge = FakeJudge(answer=lambda query, contexts: " \n" if query == "question q03" else "yes")
    found = rag(make_case(), section(), judge, words, seed=0)
    assert found.columns["faithfulness"]["retrieval"].reasons[3] == "failed"
    assert all(response == "yes" for _, _, response in judge.asked["faithfulness"])
    assert "q03" not in found.responses["retrieval"]


def test_what_is_no_number_has_failed():
    judge = FakeJudge()
    judge.faithfulness = lambda items: [math.nan] * len(items)
    found = rag(make_case(), section(metrics=["faithfulness"]), judge, words, seed=0)
    assert found.columns["faithfulness"]["retrieval"].failed == 20


def test_no_passages_are_no_failure():
    case = make_case()
    runs = {**case.runs, "finetuned": Run({**case.runs["finetuned"].rankings, "q00": ()})}
    judge = FakeJudge()
    found = rag(dataclasses.replace(case, runs=runs), section(), judge, words, seed=0)
    for metric in ("context_precision", "context_recall"):
        assert found.columns[metric]["finetuned"].numbers[0] == 0
    for metric in ("faithfulness", "answer_relevancy"):
        assert found.columns[metric]["finetuned"].reasons[0] == "no passages"
        assert cells(found, metric)[1]["finetuned"]["of"] == 19
    assert all(contexts for _, contexts in judge.asked["answers"])


def test_without_an_answer_to_judge_by_a_verdict_does_not_apply():
    case = make_case(answers=False)
    runs = {**case.runs, "retrieval": Run({**case.runs["retrieval"].rankings, "q01": ()})}
    judge = FakeJudge()
    found = rag(dataclasses.replace(case, runs=runs), section(), judge, words, seed=0)
    assert numbers(found, "context_precision", "retrieval")[1] == 0
    assert found.columns["context_precision"]["finetuned"].reasons[1] == "no passages"
    assert found.columns["faithfulness"]["finetuned"].numbers[1] == 1
    assert len(judge.asked["relevant"]) == 38


# ---------------------------------------------------------------------------------------------- what comes out


def test_the_same_seed_gives_the_same_values_and_they_are_plain_json():
    first, second = (rag(make_case(), section(queries=9), FakeJudge(), words, seed=2) for _ in range(2))
    text = json.dumps(first.values(), allow_nan=False)
    assert text == json.dumps(second.values(), allow_nan=False)
    assert json.loads(text) == first.values()
    assert first.verdicts == second.verdicts
    assert first.values()["spent"]["calls"] == first.values()["spent"]["calls"] > 0
    assert ragtable.lines(json.loads(text)) == first.lines()


def test_the_lines_hold_every_mean_and_fit_a_terminal():
    found = rag(make_case(), section(texts=True), FakeJudge(), words, seed=0)
    told = found.lines()
    assert max(map(len, told[: told.index("") + 1])) <= 110
    text = "\n".join(told)
    assert "Contexts: the first 2 passages of 20 queries, by the labels" in text
    assert "Answers: 20 of these queries, judged by small-judge" in text
    for column in found.values()["columns"]:
        assert ragtable.LABELS[column["metric"]] in text
        for cell in column["cells"]:
            shown = f"{cell['mean']:.0f}" if column["metric"] == "tokens" else f"{cell['mean']:.4f}"
            assert shown in text
    assert "fine-tuned" in text
    assert "20/20" in text


def test_the_markdown_is_a_table_whose_rows_have_as_many_cells_as_its_header():
    rows = [line for line in rag(make_case(), section(), FakeJudge(), words, seed=0).markdown().splitlines() if line]
    tables = [line for line in rows if line.startswith("|")]
    assert len(tables) == 3 * (2 + 3)  # four context columns, two more, four of the model: header, rule, three arms
    for start in range(0, len(tables), 5):
        assert len({line.count("|") for line in tables[start : start + 5]}) == 1
    assert any(line.startswith("- faithfulness: ") for line in rows)


def test_a_better_number_is_up_and_more_repeats_are_down():
    table = rag(make_case(), section(), None, words, seed=0).values()
    by_metric = {column["metric"]: column for column in table["columns"]}
    rise = {"value": 0.2, "low": 0.1, "high": 0.3}
    for metric, trend in (("hit", "up"), ("repeated", "down"), ("tokens", "")):
        by_metric[metric]["cells"][1]["difference"] = rise
        words_ = ragtable.in_words({**table, "columns": [by_metric[metric]]})
        assert words_.blocks[0].rows[1][1][0].trend == trend


def test_every_column_has_a_label_and_a_meaning():
    found = rag(make_case(), section(texts=True), FakeJudge(), words, seed=0)
    assert set(found.metrics) == set(ragtable.LABELS) == set(ragtable.MEANINGS)


def test_the_per_query_table_has_a_reason_wherever_it_has_no_value():
    def fails(kind, item):
        return kind == "faithfulness" and item[0] == "question q03"

    case = make_case()
    found = rag(dataclasses.replace(case, answers={"q00": "yes"}), section(), FakeJudge(fails), words, seed=0)
    rows = found.per_query_table().to_pylist()
    assert len(rows) == 20 * 3 * len(found.metrics)
    assert all((row["value"] is None) != (row["reason"] is None) for row in rows)
    failed = [row for row in rows if row["reason"] == "failed"]
    assert {(row["query_id"], row["metric"]) for row in failed} == {("q03", "faithfulness")}
    assert sum(row["reason"] == "no reference answer" for row in rows) == 19 * 3


def test_the_export_has_a_row_a_query_with_ids_texts_response_and_reference():
    rows = list(export_rows(TINY, section(k=2), "base", {"q": "an answer"}))
    assert rows == [
        {
            "user_input": "what?",
            "retrieved_contexts": ["three", "one two"],
            "retrieved_context_ids": ["c", "a"],
            "reference_contexts": ["one two", "three"],
            "reference_context_ids": ["a", "c"],
            "response": "an answer",
            "reference": None,
        },
        {
            "user_input": "who?",
            "retrieved_contexts": [],
            "retrieved_context_ids": [],
            "reference_contexts": [],
            "reference_context_ids": [],
            "response": None,
            "reference": None,
        },
    ]
    with_answer = dataclasses.replace(TINY, answers={"r": "nobody"})
    assert [row["reference"] for row in export_rows(with_answer, section(), "retrieval")] == [None, "nobody"]
    with pytest.raises(ConfigError, match="no other"):
        list(export_rows(TINY, section(), "other"))


def test_the_baseline_is_always_an_arm_and_an_unknown_arm_is_refused():
    assert prepare(make_case(), section(arms=["merged"]), 0).arms == ("retrieval", "merged")
    with pytest.raises(ConfigError, match="there is no basis"):
        rag(make_case(), section(arms=["basis"]), None, words, seed=0)
    with pytest.raises(ConfigError, match="nothing to compare"):
        rag(dataclasses.replace(make_case(), runs={}), section(), None, words, seed=0)


def test_texts_that_are_missing_and_labels_without_a_relevant_document_are_refused():
    case = make_case()
    with pytest.raises(DataError, match="no query has a relevant document"):
        rag(dataclasses.replace(case, qrels={"q00": {"q00-bad": 0}}), section(), None, words, seed=0)
    with pytest.raises(DataError, match="'q00-bad' of a run has no text"):
        rag(dataclasses.replace(case, documents={}), section(), None, words, seed=0)
    with pytest.raises(DataError, match="20 judged queries have no text"):
        rag(dataclasses.replace(case, queries={}), section(), None, words, seed=0)


def test_one_query_gives_means_and_no_interval():
    found = rag(make_case(queries=1), section(), FakeJudge(), words, seed=0)
    for column in found.values()["columns"]:
        assert all(cell["difference"] is None and np.isfinite(cell["mean"]) for cell in column["cells"])


def test_why_items_failed_is_told():
    found = rag(make_case(), section(), FakeJudge(fails=lambda kind, item: kind == "relevancy"), words, seed=0)
    assert any(note.startswith("Failed: ") and note.endswith(" HTTP 500.") for note in found.notes)
    assert not any(note.startswith("Failed") for note in rag(make_case(), section(), FakeJudge(), words, seed=0).notes)
