"""The rag stage: what each arm's first passages are worth to a language model that answers from them.

In: the site, with the runs of the table. Out: what the stage is made of, how to make it, and rows for ragas elsewhere.
It does not know how a metric is computed, nor how a server is spoken to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwright.core import Run
from rankwright.errors import ArtefactError
from rankwright.pipeline.base import VERSIONS, Site, flat
from rankwright.rooms.rag import Case, Rag, export_rows, forecast, rag
from rankwright.sections import DenseRetriever, RagSection
from rankwright.toolbox.formats import trec
from rankwright.toolbox.formats.answers import read_answers
from rankwright.toolbox.formats.content import file_content
from rankwright.toolbox.progress import say, silenced
from rankwright.toolbox.weights import OFFLINE, locate
from rankwright.workspace import MadeOf, write_json, write_text

if TYPE_CHECKING:
    from rankwright.toolbox.judge import RagasJudge


class Answering:
    """The stage of the site's `rag:` section; `runs` gives the columns of the table, retrieval first."""

    def __init__(self, site: Site, runs: Callable[[], Mapping[str, Run]]) -> None:
        self.site = site
        self.runs = runs

    def made_of(self) -> MadeOf:
        """The section, the table's runs and, where there are any, the reference answers."""
        section = self._section()
        made = flat("rag", section)
        if section.answers:
            made["content.rag.answers"] = file_content(section.answers)
        made["rag.encoder"] = self._encoder_name()
        return {**made, "seed": self.site.experiment.seed, **self.site.inputs("evaluate"), "room": VERSIONS["rag"]}

    def work(self, out: Path) -> list[str]:
        """Measure; ask the endpoint, if there is one, after saying what that takes."""
        section, case, seed = self._section(), self.case(), self.site.experiment.seed
        judge = self._judge(section)
        if judge:
            with silenced(False):  # what may cost money is told even where all else is silent
                for line in forecast(case, section, seed).lines():
                    say(line)
        found = rag(case, section, judge, self._tokens(), seed)
        self._save(out, found)
        return [f"the first {section.k} passages of {len(found.queries):,} queries, {len(found.arms)} columns"]

    def case(self) -> Case:
        """The runs, the texts, the labels, and the reference answers."""
        collection, answers = self.site.boxes.collection, self._section().answers
        return Case(
            runs=self.runs(),
            queries=collection.queries,
            documents=collection.documents,
            qrels=self.site.measured_qrels,
            answers=read_answers(answers, collection.queries) if answers else {},
        )

    def rows(self, arm: str, *, answered: bool) -> Iterator[dict[str, Any]]:
        """An arm's rows for ragas elsewhere; if it is `answered`, with the answers that the stage has had written.

        Raises:
            ConfigError: no such arm.
        """
        found = self.site.boxes.values("rag", "responses.json") if answered else None
        responses: Mapping[str, Mapping[str, str]] = found or {}
        return export_rows(self.case(), self._section(), arm, responses.get(arm))

    def _save(self, out: Path, found: Rag) -> None:
        from pyarrow import parquet

        write_json(out / "rag.json", found.values())
        write_text(out / "rag.md", found.markdown())
        write_text(out / "rag.txt", "\n".join(found.lines()) + "\n")
        parquet.write_table(found.per_query_table(), out / "per_query.parquet")
        if found.sample:
            write_json(out / "responses.json", found.responses)
            keep_judged(self.site.folder.root, found.verdicts, self.site.keys["data"])

    def _section(self) -> RagSection:
        return self.site.experiment.rag or RagSection()

    def _judge(self, section: RagSection) -> RagasJudge | None:
        if section.endpoint is None:
            return None
        from rankwright.toolbox.embed import Encoder
        from rankwright.toolbox.judge import RagasJudge

        cache = self.site.folder.cache
        encoder = Encoder(self._encoder_name(), device=self.site.experiment.device, cache=cache)
        embed = functools.partial(encoder.encode, what="rag, answers embedded")
        return RagasJudge(section.endpoint, cache / "chat" / self.site.experiment.name, embed)

    def _encoder_name(self) -> str:
        """The experiment's own encoder: the first dense retriever's."""
        dense = (one for one in self.site.experiment.retrieve.values() if isinstance(one, DenseRetriever))
        return next((one.model for one in dense), OFFLINE)

    def _tokens(self) -> Callable[[Sequence[str]], list[int]]:
        """Tokens of texts, by the encoder's tokenizer: close to a language model's, and the same for every arm."""

        def count(texts: Sequence[str]) -> list[int]:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(locate(self._encoder_name()))
            encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
            return [len(ids) for ids in encoded]

        return count


def keep_judged(folder: Path, verdicts: Iterable[tuple[str, str, bool]], data: str) -> None:
    """Add a judge's verdicts (query, document, relevant) to ``judged.qrels`` of a run folder.

    What was judged stays judged, but for verdicts on other data: the key of theirs stands in ``judged.of``. It is not
    among the stage's own files, since `evaluate` may read it, and comes before.
    """
    file, of = folder / "judged.qrels", folder / "judged.of"
    known = file.exists() and of.exists() and of.read_text(encoding="utf-8") == data  # else ids mean other texts
    judged = trec.read_qrels(file) if known else {}
    for query, document, relevant in verdicts:
        judged.setdefault(query, {})[document] = int(relevant)
    trec.write_qrels(file, judged)
    write_text(of, data)


def refuse_unmeasured(site: Site, evaluate: str | None) -> None:
    """Raise an ArtefactError unless the table can be reused as it stands: its arms are what rows are made of."""
    if evaluate != "reuse":
        what = "this experiment has not been measured yet, or something has changed since"
        raise ArtefactError(what, where=str(site.folder.root), hint="rankwright run it first")
