"""The page: whole, escaped, without network, and tolerant of what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from rankwright.core import Run
from rankwright.rooms import report as room
from rankwright.rooms.evaluate import evaluate
from rankwright.rooms.report import ReportView, report
from rankwright.sections import EvaluateSection

ATTACK = "<script>alert(1)</script> & \"quoted\" 'text'"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, ids and text, and checks that tags close in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.texts = [], [], [], []
        self.feed(html)
        assert self.open == []

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
    assert shown.count("script") == page.count("script") == 1
    assert shown.text.count(ATTACK) > 3 * 20  # three wins' lists alone


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
    assert Page(html).count("script") == 1


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
    drawn = re.findall(r"<svg[^>]*>.*?</svg>", html, flags=re.S)
    assert len(drawn) == 3 + 2 + 1
    for svg in drawn:
        assert 'role="img"' in svg
        assert re.search(r"<title id=[^>]+>[^<]+</title><desc id=[^>]+>[^<]+</desc>", svg)
        assert not re.search(r"\bnan\b", svg)


def test_the_curves_mark_the_checkpoint_that_was_kept(html, page):
    assert html.count('class="kept"') == 1
    assert "The checkpoint of step 8 was kept, with 0.4000." in page.text
    assert "8 0.4000 kept" in page.text


def test_wins_are_wins_and_losses_are_losses_biggest_first():
    found = room._query_view(make_view(examples=100))
    assert found is not None
    (_, _, wins), (_, _, losses) = found.kinds
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
    example = room._example(view, "q", ("retrieval", "m"), (0.5, 1.0))
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
    assert len(right[0].text) == room._LETTERS
    assert left[0].text == "a"


@pytest.mark.parametrize(
    ("arms", "trainings", "shown"),
    [
        (["base", "finetuned", "merged"], {"finetuned": []}, "finetuned"),
        (["base", "second", "merged"], {"first": [], "second": []}, "second"),
        (["base", "merged"], {}, "merged"),
        ([], {}, None),
    ],
)
def test_the_arm_shown_is_the_fine_tuned_one(arms, trainings, shown):
    view = make_view()
    runs = dict.fromkeys(["retrieval", *arms], Run())
    changed = dataclasses.replace(view, runs=runs, trainings=trainings, table={**view.table, "arms": list(runs)})
    assert room._shown_arm(changed) == shown


def test_retrieval_alone_and_no_training_still_make_a_page():
    view = make_view()
    runs = {"retrieval": view.runs["retrieval"]}
    table = evaluate(runs, view.qrels, EvaluateSection(bootstrap=100, permutations=100), seed=0).table()
    bare = Page(report(ReportView("Bare", table, runs, view.qrels, {}, {})))
    assert "Nothing was trained" in bare.text
    assert "Retrieval alone was evaluated" in bare.text
    assert "No data report was given" in bare.text
    assert "No provenance was given" in bare.text


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
    thin = room._thinned(points)
    assert len(thin) == room._POINTS
    assert thin[-1][0] == 4800
    assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(y for _, y in points) / 4800)
    assert room._thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.46, 0.5384), (0, 1500), (-0.3, 0.2), (0.1, 0.1), (0, 7e-6)])
def test_ticks_are_round_numbers_inside_the_axis(low, high):
    ticks = room._nice(low, high, 5)
    assert len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len(ticks) >= 2 or low == high


def test_bars_count_every_query_that_moved():
    differences = np.array([1.0, -1.0, 0.0, 0.05, 0.1, -0.1, -0.05])
    plot, rows = room._histogram(differences, "x")
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


@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser here")
def test_a_browser_opens_the_page_from_disk(html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=60)
    assert "Wins and losses" in done.stdout
