"""The page: whole, escaped, without network, and tolerant of what is missing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.rooms import report as room
from rankwright.rooms.evaluate import evaluate
from rankwright.rooms.general import General
from rankwright.rooms.report import ReportView, parts, queries, report
from rankwright.rooms.report.view import shown_arm
from rankwright.sections import EvaluateSection
from rankwright.toolbox import charts
from rankwright.toolbox.front import Trial, judge

ATTACK = "<script>alert(1)</script> & \"quoted\" 'text'"
WHY = {
    "verdict": {"word": "BLEND", "lines": ["Blended is above."], "arm": "finetuned", "weight": 0.4, "depth": 50},
    "findings": [
        {"id": "H3", "name": "retriever's score discarded", "kind": "serving", "fires": True, "lacks": ""}
        | {"reading": "A blend is better.", "remedy": "blend:\n  metric: mrr@10\n"}
        | {"numbers": [{"says": "gain", "value": 0.02, "low": 0.01, "high": 0.03, "threshold": 0.0, "bad": True}]},
        {
            "id": "H5",
            "name": "copies",
            "kind": "measuring",
            "fires": False,
            "reading": "Few.",
            "remedy": "",
            "lacks": "",
        }
        | {"numbers": [{"says": "copies", "value": 0.001, "low": None, "high": None, "threshold": 0.01, "bad": False}]},
        {"id": "H11", "name": "ties", "kind": "serving", "fires": False, "reading": "", "remedy": "", "numbers": []}
        | {"lacks": "no model"},
    ],
    "ladder": {
        "metric": "mrr@10",
        "gap": -0.0308,
        "rungs": [
            {"name": "copies merged", "gap": -0.0208, "contribution": -0.01, "share": 0.3247, "said": "12 copies"},
            {"name": "condensed", "gap": -0.0258, "contribution": 0.005, "share": -0.1623, "said": "holes left out"},
            {"name": "blended", "gap": 0.0042, "contribution": -0.03, "share": None, "said": "weight 0.4"},
        ],
        "residual": 0.0042,
        "closed_pool": 0.01,
        "skipped": ["twins: no query texts"],
    },
    "blends": {
        "finetuned": {
            "weight": 0.4,
            "depth": 10,
            "metric": "mrr@10",
            "weights": [0.0, 0.4, 1.0],
            "depths": [5, 10, 50],
            "grid": [[0.3, 0.3, 0.3], [0.34, 0.36, 0.35], [0.33, 0.31, 0.25]],
            "dev": {"retrieval": 0.3, "reranked": 0.25, "blended": 0.36},
        }
    },
}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, ids and text, and checks that tags close in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.texts, self.json = [], [], [], [], ""
        self.feed(html)
        assert self.open == []

    @property
    def data(self):
        return json.loads(self.json)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"] and self.tags[-1][1].get("type") == "application/json":
            self.json += data
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag, **wanted):
        return sum(name == tag and wanted.items() <= attrs.items() for name, attrs in self.tags)


def make_view(**changes):
    rng = np.random.default_rng(0)
    ids = [f"d{number:02}" for number in range(15)]
    qrels = {f"q{number}": {ids[number % 15]: 1, ids[(number + 1) % 15]: 0} for number in range(30)}

    def run(gain):
        draw = {query: rng.normal(size=15) for query in qrels}
        return Run.from_scores(
            {q: {d: gain * qrels[q].get(d, 0) + float(x) for d, x in zip(ids, draw[q], strict=True)} for q in qrels}
        )

    runs = {"retrieval": run(0.7), "base": run(0.7), "finetuned": run(1.5), "merged": run(1.0)}
    section = EvaluateSection(bootstrap=100, permutations=100)
    log = [{"step": step, "loss": 2 / step, "lr": 1e-5} for step in range(1, 13)]
    log += [{"step": 4, "dev": {"ndcg@10": 0.3}, "kept": True}, {"step": 8, "dev": {"ndcg@10": 0.4}, "kept": True}]
    log += [{"step": 12, "dev": {"ndcg@10": 0.35}, "kept": False}]
    view = ReportView(
        title="A trial",
        table=evaluate(runs, qrels, section, seed=0).table({"data": "hash 4f1c"}),
        runs=runs,
        qrels=qrels,
        queries={query: f"question {query}" for query in qrels},
        documents={document: f"text of {document}" for document in ids},
        trainings={"finetuned": log},
        data_lines=["15 documents", "30 queries"],
        seconds={"train": 185.2, "rerank": 4.04},
        examples=3,
    )
    return dataclasses.replace(view, **changes)


@pytest.fixture(scope="module")
def html():
    return report(make_view())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_section_is_there_and_every_link_leads_to_one(page):
    for name in ("result", "training", "queries", "data", "provenance"):
        assert page.count("section", id=name) == 1
    targets = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert targets
    assert all(target[0] == "#" and target[1:] in page.ids for target in targets)
    assert page.count("section", id="verdict") == page.count("section", id="why") == 0
    for words in ("A trial", "15 documents", "hash 4f1c", "3 min 05 s", "4.0 s", "3 min 09 s"):
        assert words in page.text


def test_ids_are_unique_and_labels_point_at_them(page):
    assert len(page.ids) == len(set(page.ids))
    labels = [label for _, attrs in page.tags for label in attrs.get("aria-labelledby", "").split()]
    assert labels
    assert set(labels) <= set(page.ids)


def test_nothing_is_loaded_from_anywhere(html, page):
    assert "http:" not in html
    assert "https:" not in html
    assert not re.search(r"@import|url\(|\bsrc=|<link|<iframe|<img", html)
    assert page.count("meta", **{"http-equiv": "Content-Security-Policy"}) == 1


def test_text_of_any_kind_is_shown_as_text(page):
    view = make_view()
    attacked = dataclasses.replace(
        view,
        title=ATTACK,
        table={**view.table, "provenance": {ATTACK: ATTACK}, "notes": [ATTACK]},
        queries=dict.fromkeys(view.queries, ATTACK),
        documents=dict.fromkeys(view.documents, ATTACK),
        trainings={ATTACK: view.trainings["finetuned"]},
        data_lines=[ATTACK],
        seconds={ATTACK: 1.0},
    )
    html = report(attacked)
    assert "<script>alert" not in html
    shown = Page(html)
    assert shown.count("script") == page.count("script") == 2  # the explorer's data and its program
    assert shown.text.count(ATTACK) > 3 * 20  # three wins' lists alone
    assert {text for _, text in shown.data["docs"]} == {query["q"] for query in shown.data["queries"]} == {ATTACK}


def test_hostile_ids_and_arms_stay_inside_their_attributes():
    bad = '"><script>alert(1)</script>'
    view = make_view()
    runs = {
        arm: Run({q: tuple((d + bad, s) for d, s in hits) for q, hits in run.rankings.items()})
        for arm, run in view.runs.items()
    }
    qrels = {q: {d + bad: grade for d, grade in grades.items()} for q, grades in view.qrels.items()}
    runs[bad] = runs.pop("merged")
    table = evaluate(runs, qrels, EvaluateSection(bootstrap=100, permutations=100), seed=0).table()
    html = report(dataclasses.replace(view, table=table, runs=runs, qrels=qrels, documents={}))
    assert "<script>alert" not in html
    assert Page(html).count("script") == 2


def test_the_table_says_what_the_terminal_says(page):
    from rankwright.toolbox.table import in_words

    words = in_words(make_view().table)
    assert page.count("th", scope="col") >= len(words.header)
    for name, cells in words.rows:
        assert name in page.text
        for cell in cells:
            assert cell.mean in page.text
            assert cell.interval in page.text
    for line in words.legend:
        assert line in page.text


def test_every_chart_has_a_title_and_a_description(html):
    drawn = re.findall(r"<svg[^>]* role=[^>]*>.*?</svg>", html, flags=re.S)
    assert len(drawn) == 3 + 2 + 3 + 2  # means, training, scores, queries
    for svg in drawn:
        assert 'role="img"' in svg
        assert re.search(r"<title id=[^>]+>[^<]+</title><desc id=[^>]+>[^<]+</desc>", svg)
        assert not re.search(r"\bnan\b", svg)


def test_the_curves_mark_the_checkpoint_that_was_kept(html, page):
    assert html.count('class="kept"') == 1
    assert "The checkpoint of step 8 was kept, with 0.4000." in page.text
    assert "8 0.4000 kept" in page.text


def test_wins_are_wins_and_losses_are_losses_biggest_first():
    found = queries.query_view(make_view(examples=100))
    assert found is not None
    (_, _, wins), (_, _, losses) = found.kinds
    assert len(wins) + len(losses) <= 2 * queries._STATIC
    gained, lost = ([float(example.difference) for example in examples] for examples in (wins, losses))
    assert gained == sorted(gained, reverse=True)
    assert lost == sorted(lost)
    assert min(gained) > 0 > max(lost)
    assert sum(count for _, count in found.rows) == len(wins) + len(losses)
    assert found.plot.description.startswith(f"{len(wins)} queries won, {len(losses)} lost")


def test_two_lists_show_marks_moves_and_scores():
    before = Run({"q": (("a", 0.9), ("b", 0.8), ("c", 0.7))})
    after = Run({"q": (("c", 5.0), ("b", 4.0), ("x", 3.0))})
    view = make_view(runs={"retrieval": before, "m": after}, qrels={"q": {"c": 2, "b": 0}}, documents={"c": "C" * 900})
    example = queries._example(view, "q", ("retrieval", "m"), (0.5, 1.0))
    left, right = example.lists
    assert [(hit.document, hit.mark, hit.moved) for hit in left] == [
        ("a", "unjudged", "gone"),
        ("b", "negative", "now 2"),
        ("c", "relevant", "now 1"),
    ]
    assert [(hit.document, hit.score, hit.moved, hit.trend) for hit in right] == [
        ("c", "5.000", "▲ 2", "up"),
        ("b", "4.000", "=", ""),
        ("x", "3.000", "new", "up"),
    ]
    assert example.difference == "+0.5000"
    assert len(right[0].text) == queries._LETTERS
    assert left[0].text == "a"


@pytest.mark.parametrize(
    ("arms", "trainings", "shown"),
    [
        (["base", "finetuned", "merged"], {"finetuned": []}, "finetuned"),
        (["base", "second", "merged"], {"first": [], "second": []}, "second"),
        (["base", "merged"], {}, "merged"),
        (["base", "base-blend", "rrf", "fused"], {}, "base-blend"),
        (["base", "finetuned", "merged", "finetuned-blend", "merged-blend"], {}, "finetuned-blend"),
        (["rrf"], {}, "rrf"),
        ([], {}, None),
    ],
)
def test_the_arm_shown_is_the_fine_tuned_one(arms, trainings, shown):
    view = make_view()
    runs = dict.fromkeys(["retrieval", *arms], Run())
    changed = dataclasses.replace(view, runs=runs, trainings=trainings, table={**view.table, "arms": list(runs)})
    assert shown_arm(changed) == shown


def test_retrieval_alone_and_no_training_still_make_a_page():
    view = make_view()
    runs = {"retrieval": view.runs["retrieval"]}
    table = evaluate(runs, view.qrels, EvaluateSection(bootstrap=100, permutations=100), seed=0).table()
    bare = Page(report(ReportView("Bare", table, runs, view.qrels, {}, {})))
    assert "Nothing was trained" in bare.text
    assert "Retrieval alone was evaluated" in bare.text
    assert "No data report was given" in bare.text
    assert "No provenance was given" in bare.text


def averaged(kept):
    """A log whose second evaluation is best, and the mean of all weights better still."""
    log = [
        {"step": step, "dev": {"ndcg@10": value}, "kept": step < 9} for step, value in ((4, 0.3), (8, 0.4), (12, 0.3))
    ]
    return [*log, {"step": 12, "averaged_dev": {"ndcg@10": 0.45}, "average": 3, "kept": kept}]


def test_an_average_that_was_kept_is_marked_instead_of_the_best_checkpoint():
    html = report(make_view(trainings={"finetuned": averaged(kept=True)}))
    assert re.findall(r'<(\w+) class="kept"', html) == ["path"]
    assert "The mean of the last 3 checkpoints has 0.4500, and was kept." in Page(html).text
    assert "The checkpoint of step" not in html
    rows = parts.training("finetuned", averaged(kept=True)).dev_rows
    assert [row[0] for row in rows if row[2]] == ["mean of the last 3 checkpoints"]


def test_an_average_that_was_not_kept_is_shown_beside_the_checkpoint_that_was():
    html = report(make_view(trainings={"finetuned": averaged(kept=False)}))
    assert re.findall(r'<(\w+) class="kept"', html) == ["circle"]
    assert html.count('<path class="average"') == 1
    assert (
        "The checkpoint of step 8 was kept, with 0.4000. The mean of the last 3 checkpoints has 0.4500."
        in Page(html).text
    )
    curve = parts.training("finetuned", averaged(kept=False))
    assert [row for row in curve.dev_rows if row[2]] == [("8", "0.4000", True)]
    assert all(0 <= mark["y"] <= curve.dev.height for mark in curve.dev.marks if "y" in mark)


def tried(name, gain=None, low=None, high=None, note="", pairs=1500):
    return {"name": name, "pairs": pairs, "mean": 0.5, "gain": gain, "low": low, "high": high, "note": note}


SEARCH = {
    "trainings": {},
    "table": [
        tried("base <offline>", 0.02, -0.01, 0.05, pairs=0),
        tried("mixed, listwise + kl"),
        tried("random negatives", -0.03, -0.04, -0.02, "dropped"),
        tried("holes weighed", 0.03, 0.01, 0.06, "chosen", 3000),
    ],
    "reasons": ["recipe: holes weighed (above the first beyond <dev's> noise)"],
    "spent": 9000,
    "total": 20000,
}


def test_a_search_shows_what_it_tried_why_it_chose_and_what_that_cost():
    page = Page(report(make_view(recipes={"finetuned": SEARCH})))
    assert page.count("section", id="recipe") == page.count("a", href="#recipe") == 1
    for words in (
        *("base <offline>", "+0.0300 [+0.0100, +0.0600] chosen", "-0.0300 [-0.0400, -0.0200] dropped", "3,000"),
        *("recipe: holes weighed (above the first beyond <dev's> noise)", "The search took 45% of the budget"),
    ):
        assert words in page.text
    assert page.count("tr", **{"class": "chosen"}) == 1
    assert page.count("svg", **{"class": "bar-row"}) == 3  # the first recipe differs from itself in nothing
    assert len(page.ids) == len(set(page.ids))


def test_the_bars_of_a_search_share_a_scale_and_lie_on_their_side_of_zero():
    base, start, worse, better = parts.recipe("finetuned", SEARCH).trials
    assert start.bar is None
    assert base.bar["zero"] == worse.bar["zero"] == better.bar["zero"]
    assert base.bar["low"] < base.bar["zero"] < base.bar["at"] < base.bar["high"]
    assert worse.bar["high"] < worse.bar["zero"] < better.bar["low"]
    assert (base.trend, worse.trend, better.trend) == ("", "down", "up")
    assert 0 <= worse.bar["low"] < better.bar["high"] <= 120


def test_what_could_not_be_trained_has_a_dash():
    failed = {**tried("no kl", note="dropped: no weights"), "mean": None}
    (trial,) = parts.recipe("finetuned", {**SEARCH, "table": [failed]}).trials
    assert (trial.mean, trial.difference, trial.bar, trial.note) == ("–", "–", None, "dropped: no weights")
    assert "no kl" in Page(report(make_view(recipes={"finetuned": {**SEARCH, "table": [failed]}}))).text


def test_a_run_without_a_search_has_no_section_for_one(page):
    assert page.count("section", id="recipe") == page.count("a", href="#recipe") == 0


def test_odd_logs_are_tolerated():
    logs = {
        "empty": [],
        "collapsed": [{"step": 1, "loss": float("nan"), "lr": 1e-5}, {"event": "back to the last good checkpoint"}],
        "one": [{"step": 1, "loss": 0.5}],
        "flat": [{"step": step, "dev": {"ndcg@10": 0.0}, "kept": step == 1} for step in (1, 2)],
        "own": [{"step": 5, "dev": {"my metric": 0.5}, "kept": True}],
    }
    html = report(make_view(trainings=logs))
    Page(html)
    assert not re.search(r"\bnan\b", html)
    assert html.count("The log holds no steps.") == 2
    assert "my metric on dev" in html


def test_a_long_log_is_thinned_without_losing_its_mean():
    points = [(float(step), float(step % 7)) for step in range(1, 4801)]
    thin = charts.thinned(points)
    assert len(thin) == charts.POINTS
    assert thin[-1][0] == 4800
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in points) / 4800)
    assert charts.thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.46, 0.5384), (0, 1500), (-0.3, 0.2), (0.1, 0.1), (0, 7e-6)])
def test_ticks_are_round_numbers_inside_the_axis(low, high):
    ticks = charts.nice(low, high, 5)
    assert len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len(ticks) >= 2 or low == high


def test_bars_count_every_query_that_moved():
    differences = np.array([1.0, -1.0, 0.0, 0.05, 0.1, -0.1, -0.05])
    plot, rows = charts.histogram(differences, "x")
    assert sum(count for _, count in rows) == 6
    assert "3 queries won, 3 lost, 1 did not change" in plot.description
    assert rows[0] == ("-1.0 to -0.9", 1)
    assert rows[-1] == ("+0.9 to +1.0", 1)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (12.4, "12 s"), (59.7, "1 min 00 s"), (7625, "2 h 07 min")]
)
def test_durations_read_as_people_say_them(seconds, said):
    assert room._duration(seconds) == said


def test_the_same_view_gives_the_same_bytes_and_a_table_read_back_does_too(html):
    view = make_view()
    assert report(view) == html
    assert report(dataclasses.replace(view, table=json.loads(json.dumps(view.table)))) == html


def test_long_texts_keep_the_page_small():
    view = make_view(documents=dict.fromkeys(make_view().documents, "word " * 2000), examples=10)
    assert len(report(view).encode()) < 1_000_000


def test_a_verdict_comes_first_and_says_what_to_serve():
    html = report(make_view(**WHY))
    page = Page(html)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    wanted = "verdict result why blend training scores queries data provenance"
    assert sections == wanted.split()
    assert "BLEND fine-tuned, weight 0.4, depth 50 Blended is above." in page.text
    assert html.index('id="verdict"') < html.index('id="result"')


@pytest.mark.parametrize(
    ("word", "tone", "serve"),
    [
        ("SHIP", "up", "fine-tuned, blended, weight 0.5"),
        ("KEEP RETRIEVAL", "down", ""),
        ("INCONCLUSIVE", "open", "decided on fine-tuned, blended, weight 0.5"),
    ],
)
def test_a_verdict_that_serves_nothing_new_names_nothing_to_serve(word, tone, serve):
    told = {"word": word, "arm": "finetuned-blend", "weight": 0.5, "depth": None, "lines": ["verdict: X", "because"]}
    assert parts.verdict(told) == (word, tone, ["because"], serve)


def test_what_fires_is_open_with_number_threshold_and_remedy_and_the_rest_is_folded():
    page = Page(report(make_view(**WHY)))
    assert "H3 retriever's score discarded serving A blend is better." in page.text
    assert "gain 0.02 [0.01, 0.03] 0 yes" in page.text
    assert page.count("article") == page.count("pre") == 1
    assert "blend: metric: mrr@10" in page.text
    assert "1 looked, and found nothing H5 copies Few." in page.text
    assert "copies 0.001 0.01 no" in page.text
    assert "1 could not look H11 ties no model" in page.text


def test_the_waterfall_runs_from_the_gap_to_what_is_left():
    found = parts.ladder(WHY["ladder"])
    marks = found.plot.marks
    assert [mark["trend"] for mark in marks] == ["total", "up", "down", "up", "total"]
    assert marks[0]["end"] == pytest.approx(marks[0]["x"])  # the gap is negative: its far end lies left
    for one, two in itertools.pairwise(marks[:-1]):  # each begins where the last one ended
        assert one["end"] == pytest.approx(two["x"] if two["end"] != two["x"] else two["x"] + two["width"], abs=0.15)
    assert marks[-2]["end"] == marks[-1]["end"]  # and they add up
    assert "copies merged +0.0100 (32%)" in found.plot.description
    assert [row[0] for row in found.rows] == ["closed pool", "copies merged", "condensed", "blended"]
    assert [row[2] for row in found.rows] == ["+0.0100", "-0.0208", "-0.0258", "+0.0042"]
    bare = [{name: value for name, value in rung.items() if name != "contribution"} for rung in WHY["ladder"]["rungs"]]
    bare = [rung | {"gap": part} for rung, part in zip(bare, (-0.01, 0.005, -0.03), strict=True)]
    assert parts.ladder(WHY["ladder"] | {"rungs": bare}).plot == found.plot
    page = Page(report(make_view(**WHY)))
    assert "Left out: twins: no query texts" in page.text


def test_the_grid_is_cut_at_the_chosen_weight_and_depth_and_marks_them():
    blend = parts.blend("finetuned", WHY["blends"]["finetuned"])
    assert "weight 0.4: 0.3400 at 5, 0.3600 at 10, 0.3500 at 50; chosen: 10, with 0.3600" in blend.depth.description
    assert "weight 1: reranker alone: 0.3300 at 5, 0.3100 at 10, 0.2500 at 50" in blend.depth.description
    assert "depth 10: 0.3000 at 0, 0.3600 at 0.4, 0.3100 at 1; chosen: 0.4, with 0.3600" in blend.weight.description
    for plot in (blend.depth, blend.weight):
        (mark,) = [mark for mark in plot.marks if "chosen" in mark]
        assert (mark["x"], mark["y"]) in [place for line in plot.marks for place in line.get("dots", [])]
    flat = WHY["blends"]["finetuned"] | WHY["blends"]["finetuned"]["dev"]
    assert parts.blend("finetuned", {name: value for name, value in flat.items() if name != "dev"}) == blend
    alone = WHY["blends"]["finetuned"] | {"weight": 1.0, "dev": {}}
    assert len([mark for mark in parts.blend("finetuned", alone).depth.marks if "line" in mark]) == 1


def test_scores_are_parted_into_relevant_and_others_for_arms_that_a_reranker_made():
    view = make_view()
    runs = view.runs | {"finetuned-blend": view.runs["finetuned"], "rrf": view.runs["base"]}
    arms = ["retrieval", "base", "finetuned", "merged", "finetuned-blend", "rrf"]
    found = parts.distributions(dataclasses.replace(view, runs=runs, table={**view.table, "arms": arms}))
    assert [arm for arm, _ in found] == ["base", "fine-tuned", "merged"]
    assert all("relevant: 30," in plot.description for _, plot in found)
    assert all("other candidates: 420," in plot.description for _, plot in found)


def test_equal_or_infinite_scores_still_make_an_outline():
    run = Run({"q0": (("d00", float("inf")), ("d01", 1.0), ("d02", 1.0))})
    view = make_view()
    found = parts.distributions(dataclasses.replace(view, runs={**view.runs, "base": run}))
    assert "other candidates: 2," in found[0][1].description
    assert "nan" not in str(found[0][1].marks)


def test_the_scatter_counts_both_sides_of_the_diagonal():
    plot = charts.scatter("x", np.array([0.0, 0.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.5, 0.0]))
    assert plot.description == "2 queries above the diagonal, 1 below it, 1 on it."
    assert sorted(mark["trend"] for mark in plot.marks) == ["down", "same", "up"]
    assert max(plot.marks, key=lambda mark: mark["r"])["trend"] == "up"  # two queries in one dot


def test_the_explorer_holds_both_lists_with_scores_labels_and_former_ranks():
    before = Run({"q": (("a", 0.9), ("b", 0.8), ("c", 0.7))})
    after = Run({"q": (("c", 5.0), ("b", 4.0), ("x", float("-inf")))})
    view = make_view(runs={"retrieval": before, "m": after}, qrels={"q": {"c": 2, "b": 0}}, documents={"c": "C" * 900})
    values = {"retrieval": np.array([0.5]), "m": np.array([1.0])}
    text, shown = queries._explorer(view, ["q"], values, "m")
    data = json.loads(text)
    (query,) = data["queries"]
    assert shown == 1
    assert [document for document, _ in data["docs"]] == ["a", "b", "c", "x"]
    assert len(data["docs"][2][1]) == queries._LETTERS
    assert query["b"] == [[0, 0.9, None, 1], [1, 0.8, 0, 2], [2, 0.7, 2, 3]]
    assert query["a"] == [[[2, 5.0, 2, 3], [1, 4.0, 0, 2], [3, None, None, 0]]]
    assert query["n"] == [[0, 2, 1]]
    assert (query["v"], query["r"]) == ([0.5, 1.0], 1)


def test_the_explorer_keeps_the_largest_gains_and_losses_within_its_budget(monkeypatch):
    monkeypatch.setattr(queries, "BUDGET", 18_000)
    view = make_view(documents={f"d{number:02}": "<é" * 400 for number in range(15)})
    page = Page(report(view))
    data = page.data
    moved = [max(abs(value - query["v"][0]) for value in query["v"][1:]) for query in data["queries"]]
    assert 0 < len(moved) < 30
    assert moved == sorted(moved, reverse=True)
    assert f"{len(moved)} of 30 queries are in this page: those that gained or lost most" in page.text
    found = queries.query_view(view)
    assert "<" not in found.data
    assert len(found.data.encode()) < 18_000 + 300


def test_a_large_experiment_keeps_the_page_below_three_megabytes():
    rng = np.random.default_rng(1)
    ids = [f"document-{number:06}" for number in range(4000)]
    qrels = {f"q{number}": {ids[number]: 1} for number in range(2500)}

    def run():
        return Run({q: tuple((ids[d], float(9 - i)) for i, d in enumerate(rng.integers(0, 4000, 10))) for q in qrels})

    runs = {"retrieval": run(), "base": run(), "finetuned": run(), "finetuned-blend": run()}
    arms = list(runs)
    table = {**make_view().table, "arms": arms, "rows": []}
    cells = [{"arm": arm, "mean": 0.5, "low": 0.4, "high": 0.6, "versus": {}} for arm in arms]
    found = {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0, "stars": ""}
    for cell in cells[1:]:
        cell["versus"] = {"retrieval": found, "base": found}
    table["rows"] = [{"metric": "ndcg@10", "cells": cells}]
    documents = dict.fromkeys(ids, "wörter < " * 100)
    html = report(make_view(runs=runs, qrels=qrels, table=table, documents=documents, queries={}, examples=1000))
    assert 1_500_000 < len(html.encode()) < 3_000_000


def a_sweep(*, general=True):
    def trial(name, weight, inside, outside):
        spread = np.linspace(-0.01, 0.01, 5)
        own = tuple((outside + spread).tolist()) if general else ()
        return Trial(name, weight, (weight or 0.0,), tuple((inside + spread).tolist()), own)

    means = {0.0: (0.4, 0.6), 0.5: (0.45, 0.598), 0.75: (0.44, 0.59), 1.0: (0.5, 0.58)}
    trials = [trial(f"weight {weight:g}", weight, *own) for weight, own in means.items()]
    return judge([*trials, trial("<seed-1> alone", None, 0.47, 0.58)], "ndcg@10", 0.005).values()


def test_a_sweep_shows_its_trials_the_front_the_choice_and_the_rule(page):
    assert page.count("section", id="merging") == page.count("a", href="#merging") == 0
    found = a_sweep()
    html = report(make_view(sweep=found))
    shown = Page(html)
    assert shown.count("section", id="merging") == shown.count("a", href="#merging") == 1
    for words in (
        "measured on 5 dev queries and 5 of the general collection",
        "weight 0.5 0.4500 +0.0500 [+0.0500, +0.0500] 0.5980 -0.0020 [-0.0020, -0.0020] front, chosen",
        "weight 0 0.4000 – 0.6000 – front",
        "<seed-1> alone 0.4700",
        f"The rule: {found['rule']}. weight 0.5 is chosen. {found['kept']}.",
    ):
        assert words in shown.text
    assert shown.count("tr", **{"class": "chosen"}) == 1
    assert shown.count("rect", **{"class": "allowed"}) == 1
    assert len(shown.ids) == len(set(shown.ids))
    assert "<seed-1>" not in html


def test_the_tradeoff_joins_the_weights_and_marks_front_choice_and_what_may_be_chosen():
    plot = parts.sweep(a_sweep()).plot
    allowed, line, *spots = plot.marks
    first, half, most, whole, alone = spots
    assert [spot["name"] for spot in spots] == ["0", "0.5", "0.75", "1", "<seed-1> alone"]
    assert line["line"] == " ".join(f"{spot['x']},{spot['y']}" for spot in spots[:4])
    assert [spot["front"] for spot in spots] == [True, True, False, True, False]
    assert [spot["chosen"] for spot in spots] == [False, True, False, False, False]
    assert [spot["on_line"] for spot in spots] == [True, True, True, True, False]
    assert first["x"] > half["x"] > allowed["allowed"] > most["x"] > whole["x"] == alone["x"]
    assert whole["y"] < alone["y"] < half["y"] < most["y"] < first["y"]
    assert "0.5: 0.4500 against 0.5980 (front, chosen); 0.75: 0.4400 against 0.5900;" in plot.description
    assert "what may be chosen lies at 0.5950 or above on nDCG@10 in general" in plot.description


def test_names_in_a_tradeoff_do_not_lie_on_each_other():
    crowd = [charts.Spot(f"point {place}", 0.5 + place / 10_000, 0.5, on_line=False) for place in range(3)]
    plot = charts.tradeoff("crowd", ("x", "y"), [*crowd, charts.Spot("far", 0.9, 0.9)], 0.0)
    boxes = []
    for mark in plot.marks:
        if "name" in mark:
            wide = 6 * len(mark["name"])
            left = mark["at"] - {"start": 0, "middle": wide / 2, "end": wide}[mark["anchor"]]
            boxes.append((left, left + wide, mark["beneath"]))
    assert len(boxes) == 4
    assert all(0 <= left < right <= plot.width for left, right, _ in boxes)
    for (left, right, y), (start, end, beneath) in itertools.combinations(boxes, 2):
        assert right <= start or end <= left or abs(y - beneath) >= 12


def test_a_sweep_without_a_general_collection_has_a_table_and_no_plot():
    shown = Page(report(make_view(sweep=a_sweep(general=False))))
    assert shown.count("section", id="merging") == 1
    assert shown.count("rect", **{"class": "allowed"}) == 0
    assert "generality was not looked at" in shown.text
    assert "change from the first" not in shown.text
    assert "weight 1 0.5000 +0.1000 [+0.1000, +0.1000] front, chosen" in shown.text


def test_the_general_collection_is_told_below_the_table():
    from rankwright.toolbox.table import in_words

    view = make_view()
    rng = np.random.default_rng(1)
    values = {arm: rng.uniform(size=40) for arm in ("retrieval", "base", "finetuned")}
    general = General("ndcg@10", tuple(map(str, range(40))), values).table(
        "base", EvaluateSection(bootstrap=100), source="<docs>:", beside="ndcg@10", seed=0
    )
    table = {**view.table, "general": general}
    html = report(dataclasses.replace(view, table=table))
    shown, words = Page(html), in_words(table).general
    assert "In general (<docs>:, nDCG@10, 40 queries)" in shown.text
    assert "<docs>" not in html
    assert shown.count("table", **{"class": "result general"}) == 1
    for name, cells in words.rows:
        assert " ".join([name, *(f"{cell.mean} {cell.interval}".strip() for cell in cells)]) in shown.text
    for line in words.legend:
        assert line in shown.text


def a_rag():
    def cell(arm, mean, judged, change=None):
        worst = mean * judged / 50
        difference = None if change is None else dict(zip(("value", "low", "high"), change, strict=True))
        counts = {"judged": judged, "of": 50, "worst": worst, "best": worst + (50 - judged) / 50}
        return {"arm": arm, "mean": mean, **counts, "difference": difference}

    def column(metric, kind, usable, *cells):
        return {"metric": metric, "kind": kind, "usable": usable, "cells": list(cells)}

    columns = [
        column("id_recall", "context", True, cell("retrieval", 0.4, 50), cell("<arm>", 0.5, 50, (0.1, 0.04, 0.16))),
        column("tokens", "context", True, cell("retrieval", 1000, 50), cell("<arm>", 1234, 50, (234, 0.2, 468))),
        column("faithfulness", "model", True, cell("retrieval", 0.8, 49), cell("<arm>", 0.7, 48, (-0.1, -0.2, -0.01))),
        column("context_recall", "model", False, cell("retrieval", 0.8, 40), cell("<arm>", 0.7, 50)),
    ]
    return {
        **{"arms": ["retrieval", "<arm>"], "k": 5, "queries": 50, "sampled": 50, "model": "<judge>"},
        **{"columns": columns, "coverage": 0.95, "confidence": 0.95, "resamples": 2000},
        **{"notes": ["<note>"], "spent": {"calls": 1234}},
    }


def test_the_answers_have_a_section_with_means_coverage_bounds_and_intervals(page):
    assert page.count("section", id="rag") == page.count("a", href="#rag") == 0
    html = report(make_view(rag=a_rag()))
    shown = Page(html)
    assert shown.count("section", id="rag") == shown.count("a", href="#rag") == 1
    assert shown.count("table", **{"class": "result rag"}) == 2
    for words in (
        "Contexts: the first 5 passages of 50 queries, by the labels",
        "arm recall tokens retrieval 0.4000 1,000 <arm> 0.5000 [+0.0400, +0.1600] 1,234 [0, +468]",
        "Answers: 50 of these queries, judged by <judge>",
        "arm faithfulness context recall (unusable)",
        "retrieval 0.8000 49/50, 0.784 to 0.804 0.8000 40/50, 0.640 to 0.840",
        "<arm> 0.7000 48/50, 0.672 to 0.712 [-0.2000, -0.0100] 0.7000 50/50",
        "Unusable, fewer than 95% of an arm's rows judged: context recall.",
        "Asked: 1,234 calls. <note>",
        "faithfulness share of the answer's statements that the passages support",
    ):
        assert words in shown.text
    section = html[html.index('<section id="rag"') : html.index("</section>", html.index('<section id="rag"'))]
    assert re.findall(r'<b class="(\w+)">([^<]+)</b>', section) == [("up", "0.5000"), ("down", "0.7000")]
    assert len(shown.ids) == len(set(shown.ids))
    assert not re.search("<(arm|judge|note)>", html)
