"""A commented starter experiment for a person's own data: what `rankwright init` writes.

It looks at the data's layout only, and reads no more of it than its first rows.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rankwright.errors import DataError
from rankwright.toolbox.formats import READERS, sniff

_TEMPLATE = """\
# An experiment: data -> retrieve -> recipe -> train -> rerank -> blend -> evaluate -> diagnose -> verdict -> report.
#
#   rankwright check {name}.yaml     reads config and data, and says how much work a run would be
#   rankwright recipe {name}.yaml    finds the recipe, and says what was tried
#   rankwright run {name}.yaml       runs it; run it again after a change, and only what changed is done anew
#
# Every key has a default; `runs/{name}/resolved.yaml` shows them all, and the recipe that was found.

name: "{name}"
seed: 0

data:
  source: {source}
  # train, dev, test: the source's own names of its splits, where they are not these words. A dev split is cut from
  # train when there is none, and test too when the source has one split only.
  dedupe: true            # copies of a text become one, their labels united
  leaks: refuse           # or report, or drop: queries and pairs that stand in two splits

retrieve:
  # The candidates that you really serve. `model` is a sentence-transformers model: a hub id or a folder. `offline` is
  # all-MiniLM-L6-v2, which is installed with rankwright. Dev chooses how much of each the fusion takes, and whether a
  # prior joins it: how often a document is relevant to training queries.
  dense: {{kind: dense, model: offline, depth: 100}}
  bm25: {{kind: bm25, depth: 100}}
  hybrid: {{kind: fuse, of: [dense, bm25], method: tuned, prior: true}}
  # mine_own: {{kind: import, runs: {{train: train.run, dev: dev.run, test: test.run}}}}   # TREC runs of any engine

train:
  # The recipe is found on train and dev. It mines its own groups, so no `mine` section is needed here. Where `base` is
  # a plain encoder, it becomes a reranker first, without labels.
  finetuned:
    recipe: auto
    budget: 10m           # for search and training; or 1h, or an amount of work: 20000 pairs
    base: offline         # or a reranker: BAAI/bge-reranker-base
    # bases: [BAAI/bge-reranker-base, offline]   # instead of base: several to choose from
  # Fixed recipes beside it, to compare; see rerank.arms. `hard` needs a reranker to start from: `distilled` is one.
  # distilled: {{recipe: distill}}
  # hard: {{recipe: hard, base: distilled}}

rerank:
  candidates: hybrid
  depth: 50
  # arms: {{base: base, finetuned: finetuned, hard: hard}}

# blend, diagnose and verdict have defaults: how much of the reranker's score to mix in is chosen on dev, and the run
# ends with SHIP, BLEND, KEEP RETRIEVAL or INCONCLUSIVE. What did fine-tuning forget? This measures it:
# general: {{source: "docstrings:"}}
# A merge of both keeps most of it; how much of each is found on dev, so that next to nothing is lost in general:
# merge: {{models: [base, finetuned], weight: sweep}}

evaluate: {{}}

# What does the order do to answers? Metrics of the first passages that a language model would be sent; with an
# OpenAI-compatible server (Ollama, vLLM, llama.cpp, a service) answers are written, and ragas judges them.
rag:
  k: 5
  # endpoint: {{base_url: http://localhost:11434/v1, model: llama3.1, max_calls: 2000}}   # needs rankwright[rag]
"""


def starter(data: str, name: str) -> str:
    """The text of a starter experiment for a data path, or for ``KIND:LOCATION``.

    Raises:
        DataError: nothing is there, or its layout is none that a reader knows.
    """
    source = data if data.partition(":")[0] in READERS and ":" in data else sniff(data)
    if source is None:
        there = "its layout is none that is known" if Path(data).exists() else "nothing is there"
        raise DataError(
            f"cannot make an experiment of {data!r}: {there}",
            hint=f"a folder or file, or KIND:LOCATION with KIND one of {', '.join(READERS)}",
        )
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "experiment"
    quoted = yaml.safe_dump(source, default_style='"', width=10_000, allow_unicode=True).strip()
    return _TEMPLATE.format(name=safe, source=quoted)
