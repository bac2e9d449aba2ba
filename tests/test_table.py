"""One structure, three renderings."""

from __future__ import annotations

import copy
import io

import pytest
from rich.console import Console

from rankwright.toolbox import table as tables


def cell(arm, mean, **versus):
    """A cell; `versus` gives (difference, p) against other arms, with an interval of 0.01 either way."""
    differences = {
        against: {
            "value": value,
            "low": value - 0.01,
            "high": value + 0.01,
            "p": p,
            "p_holm": p,
            "stars": tables.stars(p),
        }
        for against, (value, p) in versus.items()
    }
    return {"arm": arm, "mean": mean, "low": mean - 0.02, "high": mean + 0.02, "versus": differences}


def row(metric):
    return {
        "metric": metric,
        "cells": [
            cell("retrieval", 0.484),
            cell("base", 0.468, retrieval=(-0.016, 0.02)),
            cell("finetuned", 0.496, retrieval=(0.012, 0.0005), base=(0.028, 0.004)),
            cell("merged", 0.4841, retrieval=(0.0001, 0.7), base=(0.0161, 0.3)),
        ],
    }


TABLE: tables.Table = {
    "arms": ["retrieval", "base", "finetuned", "merged"],
    "rows": [row(name) for name in ("mrr@10", "recall@100", "ndcg@10", "map")],
    "queries": 1557,
    "split": "test",
    "confidence": 0.95,
    "bootstrap": 2000,
    "permutations": 10000,
    "seed": 0,
    "notes": ["base returned nothing for 2 of 1,557 queries; they score 0."],
    "provenance": {"data": "seealso: 4f1c|9e02", "checkpoint": "3b9d"},
}


def printed(table, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(tables.terminal(table))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("p", "mark"), [(0.05, ""), (0.0499, "*"), (0.01, "*"), (0.0099, "**"), (0.001, "**"), (0.0009, "***"), (1, "")]
)
def test_stars_mean_strictly_below(p, mark):
    assert tables.stars(p) == mark


def test_the_header_reads_as_people_say_it():
    assert tables.in_words(TABLE).header == ["metric", "retrieval", "+ base", "+ fine-tuned", "+ merged"]


def test_a_cell_shows_mean_stars_and_the_interval_against_retrieval():
    name, cells = tables.in_words(TABLE).rows[0]
    assert name == "MRR@10"
    assert cells == [
        ("0.4840", "", "", ""),
        ("0.4680", "*", "[-0.0260, -0.0060]", "down"),
        ("0.4960", "***", "[+0.0020, +0.0220]", "up"),
        ("0.4841", "", "[-0.0099, +0.0101]", ""),
    ]


def test_what_rounds_to_zero_has_no_sign():
    assert tables.interval(-0.00001, 0.00004) == "[0.0000, 0.0000]"
    assert tables.interval(-0.0, 0.00006) == "[0.0000, +0.0001]"


def test_the_legend_says_what_the_marks_mean_and_who_differs_from_base():
    legend = "\n".join(tables.in_words(TABLE).legend)
    assert "Means over 1,557 test queries." in legend
    assert "95% interval of the difference from retrieval (paired bootstrap, 2,000 resamples" in legend
    assert "* p < .05, ** p < .01, *** p < .001" in legend
    assert "10,000 permutations, Holm over the 3 arms of a row" in legend
    assert "fine-tuned against base (same test): above in MRR@10**, Recall@100**, nDCG@10**, MAP**." in legend
    assert "merged against base (same test): no difference shown in 4 metrics." in legend
    assert TABLE["notes"][0] in legend


def test_retrieval_alone_has_a_table_without_a_word_on_tests():
    alone = copy.deepcopy(TABLE)
    alone["arms"] = ["retrieval"]
    for line in alone["rows"]:
        del line["cells"][1:]
    words = tables.in_words(alone)
    assert words.header == ["metric", "retrieval"]
    assert words.legend == ["Means over 1,557 test queries.", *TABLE["notes"]]
    assert "0.4840" in printed(alone)


def test_the_terminal_shows_every_word_within_100_columns():
    text = printed(TABLE)
    assert max(map(len, text.splitlines())) <= 100
    for name, cells in tables.in_words(TABLE).rows:
        first = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert first.split()[1:] == [cell.mean + cell.stars for cell in cells]
    assert text.count("[+0.0020, +0.0220]") == 4
    assert "data: seealso: 4f1c|9e02" in text


def test_rich_markup_in_a_name_stays_text():
    odd = copy.deepcopy(TABLE)
    odd["arms"][3] = odd["rows"][0]["cells"][3]["arm"] = "[red]x"
    for line in odd["rows"]:
        line["cells"][3]["arm"] = "[red]x"
    assert "+ [red]x" in printed(odd)


def test_markdown_is_a_table_with_as_many_cells_in_every_line():
    lines = tables.markdown(TABLE).splitlines()
    assert lines[0] == "| metric | retrieval | + base | + fine-tuned | + merged |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith(r"| MRR@10 | 0.4840 | 0.4680\*<br>\[-0.0260, -0.0060\] | 0.4960\*\*\*<br>")
    assert {line.count(" | ") for line in lines[:6]} == {4}
    assert r"- data: seealso: 4f1c\|9e02" in lines


def test_markdown_shows_markup_as_text():
    odd = copy.deepcopy(TABLE)
    odd["provenance"] = {"model": "<img src=x> *a* | b\n# c"}
    assert r"- model: \<img src=x\> \*a\* \| b # c" in tables.markdown(odd).splitlines()


GENERAL: tables.GeneralTable = {
    "metric": "ndcg@10",
    "source": "docstrings:",
    "queries": 100,
    "against": "base",
    "confidence": 0.95,
    "bootstrap": 2000,
    "beside": "recall@100",
    "cells": [
        {"arm": "retrieval", "mean": 0.7, "low": 0.65, "high": 0.75}
        | {"change": {"value": 0.02, "low": 0.01, "high": 0.03}},
        {"arm": "base", "mean": 0.68, "low": 0.63, "high": 0.73, "change": None},
        {"arm": "finetuned", "mean": 0.61, "low": 0.56, "high": 0.66}
        | {"change": {"value": -0.07, "low": -0.1, "high": -0.04}},
        {"arm": "elsewhere", "mean": 0.6799, "low": 0.63, "high": 0.73}
        | {"change": {"value": -0.0001, "low": -0.01, "high": 0.01}},
    ],
}
BOTH: tables.Table = {**TABLE, "general": GENERAL}


def test_the_general_collection_is_a_second_table_with_a_row_an_arm():
    words = tables.in_words(BOTH).general
    assert words.title == "In general (docstrings:, nDCG@10, 100 queries)"
    assert words.header == ["arm", "in domain, Recall@100", "in general, nDCG@10", "change from base"]
    rows = dict(words.rows)
    assert list(rows) == ["retrieval", "base", "fine-tuned", "elsewhere"]
    assert rows["fine-tuned"] == [
        ("0.4960", "", "[0.4760, 0.5160]", ""),
        ("0.6100", "", "[0.5600, 0.6600]", ""),
        ("-0.0700", "", "[-0.1000, -0.0400]", "down"),
    ]
    assert rows["base"][2].mean == "–"
    assert rows["retrieval"][2].trend == "up"
    assert rows["elsewhere"][0].mean == "–"  # it is no arm of the first table
    assert rows["elsewhere"][2].trend == ""
    assert any("difference from base (paired bootstrap, 2,000 resamples" in line for line in words.legend)
    assert any("retrieval is BM25" in line for line in words.legend)


def test_a_metric_that_was_not_evaluated_gives_way_to_the_first():
    odd: tables.Table = {**TABLE, "general": {**GENERAL, "beside": "ndcg@7", "queries": 1}}
    words = tables.in_words(odd).general
    assert words.header[1] == "in domain, MRR@10"
    assert words.title.endswith("1 query)")


def test_without_a_general_collection_nothing_is_said_of_one():
    assert tables.in_words(TABLE).general is None
    assert "general" not in printed(TABLE)
    assert "general" not in tables.markdown(TABLE)


def test_terminal_and_markdown_say_every_word_of_the_second_table():
    words = tables.in_words(BOTH).general
    text, lines = printed(BOTH), tables.markdown(BOTH).splitlines()
    assert max(map(len, text.splitlines())) <= 100
    assert words.title in text
    assert f"**{words.title}**" in lines
    assert "| arm | in domain, Recall@100 | in general, nDCG@10 | change from base |" in lines
    assert r"| base | 0.4680<br>\[0.4480, 0.4880\] | 0.6800<br>\[0.6300, 0.7300\] | – |" in lines
    for _, cells in words.rows:
        for cell in cells:
            assert cell.mean in text
            assert cell.interval in text
    assert lines[: len(tables.markdown(TABLE).splitlines()) - 2] == tables.markdown(TABLE).splitlines()[:-2]
    assert lines[-1] == r"- checkpoint: 3b9d"
