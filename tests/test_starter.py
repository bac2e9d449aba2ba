"""`rankwright init`: whatever lies there, the file that is written loads, and its data can be checked."""

from __future__ import annotations

import csv
import json
import re

import pytest
import yaml

from rankwright.config import load_experiment
from rankwright.errors import DataError
from rankwright.pipeline import Walk
from rankwright.rooms.data import data
from rankwright.starter import starter

WORDS = "red green blue apple pear plum car train boat array matrix linear graph node value fast slow old".split()
ROWS = [{"query": f"find {word}", "positive": [f"a {word} one"], "negative": [f"the {word} two"]} for word in WORDS]


def as_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_file(place):
    return as_jsonl(place / "my rows.jsonl", ROWS), "rows"


def rows_folder(place):
    for split, part in {"train": ROWS[:10], "validation": ROWS[10:13], "test": ROWS[13:]}.items():
        as_jsonl(place / "rows" / f"{split}.jsonl", part)
    return place / "rows", "rows"


def parquet_folder(place):
    from pyarrow import Table, parquet

    (place / "tables").mkdir()
    for split, part in {"train": ROWS[:12], "test": ROWS[12:]}.items():
        parquet.write_table(Table.from_pylist(part), place / "tables" / f"{split}.parquet")
    return place / "tables", "rows"


def csv_file(place):
    with (place / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["anchor", "positive", "negative"])
        writer.writerows([row["query"], row["positive"][0], row["negative"][0]] for row in ROWS)
    return place / "pairs.csv", "rows"


def flag_file(place):
    rows = [{"query": row["query"], "pos": row["positive"], "neg": row["negative"]} for row in ROWS]
    return as_jsonl(place / "flag.jsonl", rows), "flag"


def cohere_file(place):
    names = {"relevant_passages": "positive", "hard_negatives": "negative"}
    rows = [{"query": row["query"], **{ours: row[theirs] for ours, theirs in names.items()}} for row in ROWS]
    return as_jsonl(place / "cohere.jsonl", rows), "rows"


def tevatron_file(place):
    def passages(texts):
        return [{"docid": text[-3:], "title": "", "text": text} for text in texts]

    rows = [
        {
            "query_id": str(number),
            "query": row["query"],
            "positive_passages": passages(row["positive"]),
            "negative_passages": passages(row["negative"]),
        }
        for number, row in enumerate(ROWS)
    ]
    return as_jsonl(place / "tevatron.jsonl", rows), "rows"


def judged(place, qrels, line):
    documents = {f"d{number}": row["positive"][0] for number, row in enumerate(ROWS)}
    queries = {f"q{number}": row["query"] for number, row in enumerate(ROWS)}
    qrels.parent.mkdir(parents=True, exist_ok=True)
    qrels.write_text(line(None, None) + "".join(line(f"q{number}", f"d{number}") for number in range(len(ROWS))))
    return documents, queries


def beir_folder(place):
    folder = place / "beir"
    line = lambda q, d: f"{q}\t{d}\t1\n" if q else "query-id\tcorpus-id\tscore\n"  # noqa: E731
    documents, queries = judged(place, folder / "qrels" / "test.tsv", line)
    as_jsonl(folder / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in documents.items()])
    as_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    return folder, "beir"


def trec_folder(place):
    folder = place / "trec"
    documents, queries = judged(place, folder / "qrels.train.txt", lambda q, d: f"{q} 0 {d} 1\n" if q else "")
    (folder / "collection.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in documents.items()))
    (folder / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in queries.items()))
    return folder, "trec"


LAYOUTS = [
    *(rows_file, rows_folder, parquet_folder, csv_file, flag_file),
    *(cohere_file, tevatron_file, beir_folder, trec_folder),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_known_and_its_starter_loads_and_reads_its_data(layout, tmp_path):
    place, kind = layout(tmp_path)
    path = tmp_path / "made.yaml"
    path.write_text(starter(str(place), "made"))
    experiment = load_experiment(path)
    assert experiment.data.source == f"{kind}:{place}"
    plan = Walk(experiment, tmp_path).plan
    assert plan.searches == plan.trainings == ("finetuned",)
    assert plan.rerank_from == "hybrid"
    collection, _ = data(experiment.data, experiment.seed)
    assert set(collection.qrels) == {"train", "dev", "test"}
    assert sum(len(qrels) for qrels in collection.qrels.values()) == len(ROWS)


@pytest.mark.parametrize(
    "source", ["hub:mteb/scidocs-reranking", "seealso:", "docstrings:", "rows:not/yet/there.jsonl"]
)
def test_a_source_that_is_given_outright_is_taken_as_it_is(source, tmp_path):
    values = yaml.safe_load(starter(source, "made"))
    assert values["data"]["source"] == source


@pytest.mark.parametrize("awkward", ['it\'s "mine": #1', "tab\there", "naïve — ünï", "- dash", "{brace}"])
def test_an_awkward_path_is_quoted(awkward, tmp_path):
    path = as_jsonl(tmp_path / awkward / "rows.jsonl", ROWS)
    assert yaml.safe_load(starter(str(path), "made"))["data"]["source"] == f"rows:{path}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("my data", "my-data"), ("..", "experiment"), ("-x-", "x"), ("a.b_c", "a.b_c"), ("é", "experiment")],
)
def test_the_name_can_be_a_folder(name, expected, tmp_path):
    path = tmp_path / "made.yaml"
    path.write_text(starter("seealso:", name))
    assert load_experiment(path).name == expected


def test_every_choice_that_a_comment_shows_is_one(tmp_path):
    """The lines that stand as comments load too when their marks are taken away."""
    text = starter("seealso:", "made").replace("    base: offline ", "    # base: offline ")
    for name in ("mine_own", "bases", "distilled", "hard", "arms", "general"):
        assert re.search(rf"^ *# {name}: ", text, re.MULTILINE)
        text = re.sub(rf"^( *)# {name}: ", rf"\1{name}: ", text, flags=re.MULTILINE)
    path = tmp_path / "made.yaml"
    path.write_text(text)
    experiment = load_experiment(path)
    plan = Walk(experiment, tmp_path).plan
    assert plan.trainings.index("distilled") < plan.trainings.index("hard")
    assert list(plan.arms) == ["base", "finetuned", "hard"]
    assert experiment.train["finetuned"].bases == ["BAAI/bge-reranker-base", "offline"]


def test_what_is_not_there_or_not_known_is_a_data_error_that_names_the_kinds(tmp_path):
    with pytest.raises(DataError, match="nothing is there") as caught:
        starter(str(tmp_path / "none"), "made")
    assert "beir, rows, hub" in caught.value.hint
    as_jsonl(tmp_path / "odd.jsonl", [{"a": 1}])
    for odd in (tmp_path / "odd.jsonl", tmp_path):
        with pytest.raises(DataError, match="none that is known"):
            starter(str(odd), "made")
