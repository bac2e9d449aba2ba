"""The command line: one command a room, and run, demo, check, status, init.

Words for people go to stderr, results to stdout; `--json` makes the result JSON and silences the rest. Errors that
are meant for people are caught here, once, and become one message and their own exit code. Importing this module
loads neither torch nor pydantic, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankwright.errors import ConfigError, RankwrightError
from rankwright.version import __version__

if TYPE_CHECKING:
    from rankwright.api import Result
    from rankwright.pipeline import Outcome

ROOM_HELP = {
    "data": "Read, clean and split the collection.",
    "retrieve": "Find candidates for every query: dense, BM25, fused, or imported runs.",
    "recipe": "Find the recipe of `recipe: auto` on train and dev, and say what was tried.",
    "mine": "Make training groups from the candidates, false negatives filtered.",
    "train": "Fine-tune the cross-encoders; the best checkpoint on dev is kept.",
    "merge": "Average models into one.",
    "rerank": "Reorder the candidates with every arm's model.",
    "blend": "Choose on dev how much of the reranker's score to mix in, and how deep.",
    "general": "Rerank a collection of another kind: what did fine-tuning forget?",
    "evaluate": "Measure every arm, with intervals and paired tests.",
    "rag": "Say what the order does to answers: context metrics; with an endpoint, RAGAS.",
    "diagnose": "Say why reranking hurts: checks H1 to H16, and where the gap comes from.",
    "verdict": "Say whether to SHIP, BLEND, KEEP RETRIEVAL, or that it is INCONCLUSIVE.",
    "report": "Write the HTML page.",
    "score": "Score any number of (query, document) pairs by a model, into shards.",
}

app = typer.Typer(
    help="Fine-tune cross-encoder rerankers on your own data, and prove whether it helped.",
    epilog="Exit codes: 2 configuration, 3 data, 4 model, 5 run folder, 6 package, 7 disk, 8 verdict, 130 stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ExperimentFile = Annotated[
    str, typer.Argument(help="the experiment's YAML file, a run folder, or a shipped one's name (demo, scidocs)")
]
Override = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="override a value of the YAML; may be repeated")
]
Runs = Annotated[Path, typer.Option("--runs", help="where run folders are kept")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout, and nothing else")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would run or be reused, and why; do nothing")]

FailUnless = Annotated[
    str | None,
    typer.Option("--fail-unless", metavar="ship,blend", help="exit with 8 unless the verdict is one of these"),
]

_RUNS = Path("runs")
_UNWANTED = 8
_SLUGS = ("ship", "blend", "keep", "inconclusive")
_STOPPED = 130


def main() -> None:
    """The entry point: run the command, and turn errors for people into a message and an exit code."""
    try:
        app()
    except RankwrightError as error:
        typer.secho(f"error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != _STOPPED:  # which typer makes of Ctrl-C, in silence
            raise
        typer.echo("stopped; the same command goes on from here", err=True)
        sys.exit(_STOPPED)


@app.callback(invoke_without_command=True)
def _front(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    experiment: ExperimentFile,
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    fail_unless: FailUnless = None,
) -> None:
    """Walk the whole experiment, from data to verdict and report.

    What is done and unchanged is reused; what was stopped goes on. The run folder is RUNS/NAME.
    """
    wanted = _slugs(fail_unless)
    _gate(_walk(experiment, None, overrides, runs, as_json=as_json, dry_run=dry_run), wanted)


@app.command()
def demo(
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    fail_unless: FailUnless = None,
) -> None:
    """Run the shipped demo: real texts, a real encoder, no download, a few minutes on two cores.

    The collection is made of the docstrings of installed packages: find what a function's See Also section names.
    """
    wanted = _slugs(fail_unless)
    _gate(_walk("demo", None, overrides, runs, as_json=as_json, dry_run=dry_run), wanted)


def _room_command(room: str) -> None:
    def command(
        experiment: ExperimentFile,
        overrides: Override = None,
        runs: Runs = _RUNS,
        as_json: AsJson = False,
        dry_run: DryRun = False,
    ) -> None:
        _walk(experiment, room, overrides, runs, as_json=as_json, dry_run=dry_run)

    app.command(room, help=f"{ROOM_HELP[room]} Earlier rooms are walked first where they must be.")(command)


for _name in ROOM_HELP:
    if _name not in ("recipe", "merge", "rag", "diagnose", "verdict", "score"):
        _room_command(_name)


@app.command(help=f"{ROOM_HELP['recipe']} Earlier rooms are walked first where they must be.")
def recipe(
    experiment: ExperimentFile,
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Print each search's table and reasons, whether it was made now or is reused."""
    from rankwright import api

    if dry_run:
        _walk(experiment, "recipe", overrides, runs, as_json=as_json, dry_run=True)
        return
    result = api.run(experiment, overrides=overrides or [], runs=runs, until="recipe", quiet=as_json)
    searches = [outcome.stage for outcome in result.outcomes if outcome.stage.startswith("recipe/")]
    if as_json:
        told = {search.partition("/")[2]: result.folder / search / "recipe.json" for search in searches}
        _print_json({name: json.loads(path.read_text(encoding="utf-8")) for name, path in told.items()})
        return
    for search in searches:
        text = (result.folder / search / "recipe.txt").read_text(encoding="utf-8")
        _print(*([f"{search.partition('/')[2]}:"] if len(searches) > 1 else []), text.rstrip("\n"))


@app.command()
def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="A B …", help="folders or hub ids of rerankers; or one experiment, as in run")
    ],
    out: Annotated[Path | None, typer.Option(help="the folder to write, whole or not at all")] = None,
    method: Annotated[
        str | None, typer.Option(help="linear (default), slerp, task-arithmetic, ties, dare, or cocktail")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="how far from the first towards the others: 0 to 1")] = None,
    weights: Annotated[str | None, typer.Option(metavar="0.3,0.7", help="instead: one a model, summing to 1")] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=0.3,0.7", help="other weights for tensors named so; may be repeated"),
    ] = None,
    head: Annotated[str | None, typer.Option(help="keep (default), or rescale: logits to one scale first")] = None,
    density: Annotated[float | None, typer.Option(help="ties, dare: the share of each difference that is kept")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="cocktail: weights are softmax(-loss / temperature); default 5")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="dare: of what is dropped; default 0")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="groups (FlagEmbedding JSONL): losses of cocktail, texts of --head rescale")
    ] = None,
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Average models into one: any two or more by themselves, or those of an experiment.

    rankwright merge A B --weight 0.3 --out C

    writes 0.7 A + 0.3 B, with A's tokenizer and configuration and a model card,
    and tells which tensors differ and by how much. Checked before any arithmetic:
    the same architecture, shapes, vocabulary and label. For task-arithmetic, ties
    and dare the first model is what the others started from; --weights has one
    number for each of the others, and they need not sum to 1.

    rankwright merge EXPERIMENT

    does what the merge section of an experiment says; earlier rooms are walked
    first where they must be. --set, --runs and --dry-run are for this form, all
    others but --json for models.
    """
    options: dict[str, Any] = {"out": out, "examples": examples, "method": method, "weight": weight, "weights": weights}
    options |= {"layers": layers or None, "head": head, "density": density, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    if len(models) == 1:
        _refuse_model(models[0], given)
        _walk(models[0], "merge", overrides, runs, as_json=as_json, dry_run=dry_run)
        return
    for name, used in {"--set": overrides, "--dry-run": dry_run, "--runs": runs != _RUNS}.items():
        if used:
            raise ConfigError(f"{name} goes with an experiment, not with models")
    for model in models:
        if model.endswith((".yaml", ".yml")) or (Path(model) / "resolved.yaml").is_file():
            raise ConfigError(f"{model} is an experiment", hint="name it alone, or models alone")
    if out is None:
        raise ConfigError("where should the merged model go?", hint="--out DIR")
    _merge_models(models, out, examples, given, as_json=as_json)


@app.command()
def rag(
    words: Annotated[
        list[str], typer.Argument(metavar="EXPERIMENT | export RUN", help="an experiment, as in run; or: export RUN")
    ],
    out: Annotated[Path | None, typer.Option(help="export: a folder, a file for each arm; a file with --arm")] = None,
    arm: Annotated[str | None, typer.Option(help="export: one column of the table, as finetuned-blend")] = None,
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Say what the order does to answers: metrics of the first passages, and RAGAS.

    rankwright rag EXPERIMENT

    measures the passages that each arm would send to a language model, without
    asking any. With rag.endpoint (any OpenAI-compatible server) answers are
    written and judged by ragas: pip install 'rankwright[rag]'. What that takes
    is told before; replies are kept, so that the same again asks nothing.

    rankwright rag export RUN --out DIR

    writes the same passages as JSONL that any version of ragas reads.
    """
    if words[0] != "export" or len(words) != 2:
        if len(words) > 1 or out or arm:
            raise ConfigError(
                "rag takes one experiment; --out and --arm go with export", hint="rag export RUN --out DIR"
            )
        _walk(words[0], "rag", overrides, runs, as_json=as_json, dry_run=dry_run)
        return
    if out is None:
        raise ConfigError("where should the rows go?", hint="--out DIR, or --arm ARM --out FILE.jsonl")
    from rankwright import api

    written = [str(file) for file in api.export_rag(words[1], out, arm)]
    if as_json:
        _print_json({"files": written})
    else:
        _print(*(f"{file} is written" for file in written))


@app.command(help=f"{ROOM_HELP['verdict']} Earlier rooms are walked first where they must be.")
def verdict(
    experiment: ExperimentFile,
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    fail_unless: FailUnless = None,
) -> None:
    """Decided on the measured split by a paired test; everything else was chosen on dev."""
    wanted = _slugs(fail_unless)
    _gate(_walk(experiment, "verdict", overrides, runs, as_json=as_json, dry_run=dry_run), wanted)


@app.command()
def diagnose(
    experiment: Annotated[
        str | None, typer.Argument(help="a run folder, an experiment's file, or a shipped one's name")
    ] = None,
    candidates: Annotated[Path | None, typer.Option(help="instead: the retriever's TREC run")] = None,
    reranked: Annotated[Path | None, typer.Option(help="and the reranker's, of the same candidates")] = None,
    qrels: Annotated[Path | None, typer.Option(help="and TREC qrels")] = None,
    queries: Annotated[Path | None, typer.Option(help="texts of queries (TSV or JSONL), for some checks")] = None,
    corpus: Annotated[Path | None, typer.Option(help="texts of documents (TSV or JSONL), for some checks")] = None,
    depth: Annotated[int | None, typer.Option(help="candidates that were reranked (default: all)")] = None,
    metric: Annotated[str, typer.Option(help="whose gap is explained; of files only")] = "ndcg@10",
    overrides: Override = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
) -> None:
    """Say why reranking hurts: checks H1 to H16, and where the gap to retrieval comes from.

    On an experiment, earlier rooms are walked first where they must be. On files of your own, no model is needed:
    rankwright diagnose --candidates bm25.run --reranked mine.run --qrels qrels.txt --queries q.tsv --corpus c.tsv
    """
    from rankwright import api

    files = {"--candidates": candidates, "--reranked": reranked, "--qrels": qrels}
    if experiment is None:
        if missing := [name for name, path in files.items() if path is None]:
            raise ConfigError(f"without a run to diagnose, {', '.join(missing)} must be given")
        assert candidates
        assert reranked
        assert qrels
        found = api.diagnose_files(candidates, reranked, qrels, texts=(queries, corpus), depth=depth, metric=metric)
        if as_json:
            _print_json(found.values())
        else:
            _print(*found.lines())
        return
    if any((*files.values(), queries, corpus)):
        raise ConfigError("name a run or files, not both")
    result = api.run(experiment, overrides=overrides or [], runs=runs, until="diagnose", quiet=as_json)
    folder = result.folder / "diagnose"
    if as_json:
        typer.echo((folder / "findings.json").read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo((folder / "findings.txt").read_text(encoding="utf-8"), nl=False)


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="a reranker's folder or hub id")],
    file: Annotated[Path, typer.Argument(help="pairs: JSONL with query and document, or TSV; .gz is unpacked")],
    out: Annotated[Path, typer.Option(help="the folder of the shards; the same command goes on in it")],
    precision: Annotated[str, typer.Option(help="exact, balanced or fast")] = "balanced",
    max_length: Annotated[int, typer.Option(help="tokens of a pair")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    shard: Annotated[int, typer.Option(help="pairs of a shard")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Score any number of (query, document) pairs by a model, into shards.

    Every pair of FILE gets its logit, in constant memory: OUT/scores-00000.parquet
    and so on, with its row, its ids where FILE has some, and its score. Stopped or
    killed, the same command goes on after the last whole shard. Scores of another
    model, another file or other options are left alone, and refused.
    """
    from rankwright import api

    options = {"precision": precision, "max_length": max_length, "device": device, "shard": shard}
    scored = api.score_pairs(model, file, out, options, quiet=as_json)
    if as_json:
        _print_json(scored.values())
    else:
        _print(*scored.lines())


@app.command()
def check(experiment: ExperimentFile, overrides: Override = None, as_json: AsJson = False) -> None:
    """Check configuration and data, and say how much work a run would be. Trains and writes nothing."""
    from rankwright import api

    checked = api.check(experiment, overrides=overrides or [])
    if as_json:
        work = [dataclasses.asdict(line) for line in checked.work]
        _print_json({"data": dataclasses.asdict(checked.data), "work": work})
        return
    _print(*checked.data.lines(), "")
    _print_work(checked.work)


@app.command()
def status(run: Annotated[Path, typer.Argument(help="a run folder, as in runs/demo")], as_json: AsJson = False) -> None:
    """Show which stages of a run are done, and how far an unfinished training is."""
    from rankwright.pipeline import status as read_status

    stages = [dict(stage) for stage in read_status(run)]
    if as_json:
        _print_json({"run": str(run), "stages": stages})
        return
    for stage in stages:
        more = f"{stage['seconds']:.1f} s" if "seconds" in stage else ""
        more = f"{stage['steps']} steps" if "steps" in stage else more
        _print(f"{stage['stage']:<18} {stage['state']:<10} {more}".rstrip())


@app.command()
def init(
    data: Annotated[
        str, typer.Argument(help="a data file or folder, or KIND:LOCATION as in hub:mteb/scidocs-reranking")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option("--force", help="overwrite the file")] = False,
) -> None:
    """Write a commented starter experiment for your data."""
    from rankwright.starter import starter
    from rankwright.workspace import disk_errors, write_text

    if out.is_dir() or (out.exists() and not force):
        raise ConfigError("it is there already", where=str(out), hint="--force, or another --out")
    with disk_errors(out):
        write_text(out, starter(data, out.stem))
    _print(f"{out} is written. Next:", f"  rankwright check {out}", f"  rankwright run {out}")


def _refuse_model(argument: str, options: Iterable[str]) -> None:
    """One argument of `merge` is an experiment: with options for models, or a model itself, something is missing."""
    for name in options:
        raise ConfigError(
            f"--{name} goes with two models or more; of an experiment, the merge section says it",
            hint="rankwright merge A B --out DIR, or --set merge.KEY=VALUE",
        )
    if (Path(argument) / "config.json").is_file():
        raise ConfigError(f"{argument} is one model; a merge needs two or more", hint="rankwright merge A B --out DIR")


def _merge_models(models: list[str], out: Path, examples: Path | None, given: dict[str, Any], *, as_json: bool) -> None:
    from rankwright import api

    options = {name: value for name, value in given.items() if name not in ("out", "examples")}
    if "weights" in options:
        options["weights"] = _numbers(options["weights"], "--weights")
    if "layers" in options:
        options["layers"] = dict(_layer(words) for words in options["layers"])
    report = api.merge_models(models, out, options, examples=examples, quiet=as_json)
    if as_json:
        _print_json({"model": str(out), **report.values()})
    else:
        _print(*report.lines(), *report.table(10), f"{out} is written")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes numbers with commas between, not {text!r}", hint="0.3,0.7") from None


def _layer(text: str) -> tuple[str, list[float]]:
    pattern, equals, numbers = text.rpartition("=")
    if not equals or not pattern:
        raise ConfigError(f"--layers takes PATTERN=WEIGHTS, not {text!r}", hint="--layers '*.layer.0.*=0.3,0.7'")
    return pattern, _numbers(numbers, "--layers")


def _walk(
    experiment: str, until: str | None, overrides: list[str] | None, runs: Path, *, as_json: bool, dry_run: bool
) -> Result | None:
    from rankwright import api

    if dry_run:
        outcomes = api.dry_run(experiment, overrides=overrides or [], runs=runs, until=until)
        _show_plan(outcomes, as_json=as_json)
        return None
    result = api.run(experiment, overrides=overrides or [], runs=runs, until=until, quiet=as_json)
    if as_json:
        _print_json(_as_values(result))
    else:
        _show(result)
    return result


def _slugs(words: str | None) -> list[str] | None:
    """The verdicts that are wanted, checked before any work is done."""
    if words is None:
        return None
    wanted = [word.strip().lower() for word in words.split(",") if word.strip()]
    if not wanted or any(word not in _SLUGS for word in wanted):
        raise ConfigError(f"--fail-unless {words!r}", hint=f"some of {','.join(_SLUGS)}")
    return wanted


def _gate(result: Result | None, wanted: list[str] | None) -> None:
    """Exit with a code of its own unless the verdict is a wanted one."""
    if result is None or wanted is None:
        return
    if result.verdict is None:
        raise ConfigError("--fail-unless needs a verdict, and the experiment comes to none", hint="verdict: {}")
    if result.verdict["slug"] not in wanted:
        typer.echo(f"the verdict is {result.verdict['word']}, not one of {', '.join(wanted)}", err=True)
        sys.exit(_UNWANTED)


def _show(result: Result) -> None:
    from rich.console import Console

    from rankwright.toolbox.table import terminal

    if result.table:
        Console(width=None if sys.stdout.isatty() else 110, highlight=False).print("", terminal(result.table))
    if result.rag:
        from rankwright.toolbox import ragtable

        _print("", *ragtable.lines(result.rag))
    if result.verdict:
        _print("", *result.verdict["lines"])
    spent = [(outcome.stage, outcome.seconds) for outcome in result.outcomes if outcome.action != "reused"]
    if spent:
        total = sum(seconds for _, seconds in spent)
        each = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent)
        _print("", f"{total:.0f} s in all: {each}")
    if result.report and result.outcomes[-1].stage == "report":
        _print(f"report: {result.report}")
    else:
        _print(f"run folder: {result.folder}")


def _show_plan(outcomes: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        _print_json({"stages": [dataclasses.asdict(outcome) for outcome in outcomes]})
        return
    for outcome in outcomes:
        _print(f"{outcome.stage:<18} {outcome.action:<8} {outcome.why}")


def _print_work(work: list[Any]) -> None:
    width = max((len(line.stage) for line in work), default=0)
    for line in work:
        seconds = "?" if line.seconds is None else _duration(line.seconds)
        memory = "" if line.gigabytes is None else f"{line.gigabytes:.1f} GB"
        _print(
            f"{line.stage:<{width}} {line.amount:>12,} {line.unit:<14} {seconds:>8} {memory:>8}  {line.note}".rstrip()
        )
    known = [line.seconds for line in work if line.seconds is not None]
    missing = ", without what cannot be timed" if len(known) < len(work) else ""
    _print("", f"about {_duration(sum(known))} in all{missing}; rough: within a factor of two on an idle machine")
    for warning in dict.fromkeys(line.warning for line in work if line.warning):
        _print("", warning)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _as_values(result: Result) -> dict[str, Any]:
    return {
        "run": str(result.folder),
        "stages": [dataclasses.asdict(outcome) for outcome in result.outcomes],
        "table": result.table,
        "rag": result.rag,
        "verdict": result.verdict,
        "report": str(result.report) if result.report else None,
    }


def _print(*lines: str) -> None:
    for line in lines:
        typer.echo(line)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
