"""The page in a browser: the explorer sorts, filters and opens, by mouse and by key, and runs nobody's text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from rankwright.core import Run
from rankwright.rooms.evaluate import evaluate
from rankwright.rooms.report import ReportView, report
from rankwright.sections import EvaluateSection

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACK = "</script><script>window.attacked = 1; alert(1)</script><img src=x onerror='window.attacked = 1'>"
QUERIES = {"q0": "pears and apples", "q1": "Zebras", "q2": "apples only", "q3": ATTACK}

DRIVE = """
<script>
(() => {
  const found = {}, at = id => document.getElementById(id);
  const rows = () => [...document.querySelectorAll("#explorer-list button.row")];
  const words = () => rows().map(row => row.querySelector(".words").textContent);
  const gains = () => rows().map(row => Number(row.querySelector("b").textContent));
  const set = (id, value, event) => { at(id).value = value; at(id).dispatchEvent(new Event(event)); };
  const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));

  found.visible = !at("explorer").hidden;
  found.arms = [...at("explorer-arm").options].map(option => option.textContent);
  found.arm = at("explorer-arm").selectedOptions[0].textContent;
  found.sorted = {};
  for (const by of ["gain", "loss", "text", "relevant"]) {
    set("explorer-sort", by, "change");
    found.sorted[by] = {words: words(), gains: gains()};
  }
  set("explorer-filter", "  APPLES ", "input");
  found.filtered = words();
  found.status = at("explorer-status").textContent;
  set("explorer-filter", "nothing like it", "input");
  found.none = words();
  set("explorer-filter", "", "input");

  set("explorer-sort", "gain", "change");
  found.closed = rows().map(row => row.getAttribute("aria-expanded"));
  const first = rows()[0], panel = at(first.getAttribute("aria-controls"));
  first.click();
  found.expanded = first.getAttribute("aria-expanded");
  found.headings = [...panel.querySelectorAll("h4")].map(node => node.textContent);
  found.lists = [...panel.querySelectorAll("ol")].map(list => [...list.children].map(item => ({
    kind: item.className, id: item.title, text: item.querySelector(".text").firstChild.textContent,
    label: item.querySelector(".said").textContent, score: item.lastChild.firstChild.textContent,
    moved: item.lastChild.lastChild.textContent})));
  found.seen = panel.getBoundingClientRect().height > 40;
  set("explorer-sort", "loss", "change");
  found.stays = rows().map(row => row.getAttribute("aria-expanded"));
  set("explorer-arm", "0", "change");
  set("explorer-sort", "gain", "change");
  found.other = {words: words(), gains: gains()};

  rows()[0].focus();
  press("ArrowDown");
  found.down = rows().indexOf(document.activeElement);
  press("End");
  found.end = rows().indexOf(document.activeElement);
  press("ArrowDown");
  found.stop = rows().indexOf(document.activeElement);
  const open = rows().find(row => row.getAttribute("aria-expanded") === "true");
  open.focus();
  press("Escape");
  found.escaped = [open.getAttribute("aria-expanded"), document.activeElement === open];
  found.focusable = rows().every(row => row.tabIndex === 0);

  found.attacked = typeof window.attacked;
  found.images = document.images.length;
  found.scripts = document.scripts.length;
  const out = document.createElement("pre");
  out.id = "findings";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>
"""


def make_page():
    documents = {"a": ATTACK, "b": "beta", "c": "gamma", "d": "delta"}
    qrels = {"q0": {"a": 1, "b": 0}, "q1": {"b": 1, "c": 2}, "q2": {"c": 1}, "q3": {"a": 1, "b": 1, "c": 1}}

    def run(*lists):
        scores = {
            f"q{number}": {d: 2.0 - rank / 4 for rank, d in enumerate(order)} for number, order in enumerate(lists)
        }
        return Run.from_scores(scores)

    runs = {
        "retrieval": run("dcba", "bcda", "dcba", "abcd"),
        "base": run("dcba", "dabc", "cdba", "dabc"),
        "finetuned": run("abcd", "adcb", "dcab", "abcd"),
        "finetuned-blend": run("abcd", "dabc", "cdab", "abcd"),
    }
    table = evaluate(runs, qrels, EvaluateSection(bootstrap=100, permutations=100), seed=0).table()
    return report(ReportView("In a browser", table, runs, qrels, QUERIES, documents))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the page did when it was used, as the script told it. One launch for all tests."""
    if BROWSER is None:
        pytest.skip("no browser here")
    folder = tmp_path_factory.mktemp("page")
    page = make_page().replace("</body>", DRIVE + "</body>")
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, flags=re.S)
    assert told, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(told[1]))


def test_the_explorer_appears_with_every_arm_and_the_blended_one_chosen(found):
    assert found["visible"]
    assert found["arms"] == ["base", "fine-tuned", "fine-tuned, blended"]
    assert found["arm"] == "fine-tuned, blended"


def test_sorting_changes_the_order(found):
    by = found["sorted"]
    assert by["gain"]["gains"] == sorted(by["gain"]["gains"], reverse=True)
    assert by["loss"]["gains"] == sorted(by["gain"]["gains"])
    assert by["gain"]["gains"][0] > 0 > by["loss"]["gains"][0]
    assert by["gain"]["words"][0] == QUERIES["q0"]
    assert by["loss"]["words"][0] == QUERIES["q1"]
    assert by["text"]["words"] == [QUERIES[name] for name in ("q3", "q2", "q0", "q1")]
    assert by["relevant"]["words"][:2] == [QUERIES["q3"], QUERIES["q1"]]


def test_the_filter_keeps_what_holds_the_words_in_any_case(found):
    assert sorted(found["filtered"]) == ["apples only", "pears and apples"]
    assert found["status"] == "2 shown of 2 found"
    assert found["none"] == []


def test_opening_a_query_shows_both_lists_with_moves_labels_and_scores(found):
    assert found["closed"] == ["false"] * 4
    assert found["expanded"] == "true"
    assert found["seen"]
    assert found["headings"] == ["retrieval: nDCG@10 0.4307, 1 relevant", "+ fine-tuned, blended: nDCG@10 1.0000"]
    left, right = found["lists"]
    assert [item["id"] for item in left] == list("dcba")
    assert [item["moved"] for item in left] == ["now 4", "now 3", "now 2", "now 1"]
    assert [item["moved"] for item in right] == ["▲ 3", "▲ 1", "▼ 1", "▼ 3"]
    assert [item["kind"] for item in right] == ["relevant", "negative", "unjudged", "unjudged"]
    assert [item["score"] for item in right] == ["2.000", "1.750", "1.500", "1.250"]
    assert right[0]["label"] == " (relevant)"
    assert right[1]["label"] == " (judged not relevant)"


def test_what_is_open_stays_open_in_another_order_and_another_arm_has_its_own_gains(found):
    assert found["stays"] == ["false", "false", "false", "true"]
    assert found["other"]["words"][0] == QUERIES["q2"]
    assert found["other"]["gains"] != found["sorted"]["gain"]["gains"]


def test_keys_go_from_query_to_query_and_close_an_open_one(found):
    assert (found["down"], found["end"], found["stop"]) == (1, 3, 3)
    assert found["escaped"] == ["false", True]
    assert found["focusable"]


def test_a_script_in_a_text_shows_as_text_and_does_not_run(found):
    assert ATTACK in found["sorted"]["gain"]["words"]
    assert found["lists"][1][0]["text"] == ATTACK
    assert found["attacked"] == "undefined"
    assert found["images"] == 0
    assert found["scripts"] == 3  # the data, the page's own, and this test's
