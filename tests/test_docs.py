from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer

import rankwright
from rankwright import api, errors
from rankwright.cli import ROOM_HELP, app
from rankwright.config import load_experiment
from rankwright.pipeline import Walk
from rankwright.plan import Plan
from rankwright.recipes import RECIPES
from rankwright.toolbox.formats import READERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE_PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
ENGINE_PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", README) + re.findall(r"^    (\w.*)$", README, re.MULTILINE)
"""What README sets as code: within a line, or indented."""


def commands():
    return typer.main.get_command(app).commands


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def block(language):
    return blocks(language)[0]


def test_the_page_of_keys_is_up_to_date():
    path = ROOT / "docs" / "make_experiment.py"
    spec = importlib.util.spec_from_file_location("make_experiment", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
    assert page == script.page(), "run python docs/make_experiment.py"


def test_every_key_has_a_description_on_the_page():
    page = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
    bare = set(re.findall(r"^\| `(\w+)` \|.*\|  \|$", page, re.MULTILINE))
    assert (
        bare - {"blend", "evaluate", "diagnose", "verdict", "report"} == set()
    )  # which speak for themselves, or have a part of their own


@pytest.mark.parametrize("name", list(commands()))
def test_readme_names_every_command(name):
    assert any(re.match(rf"(rankwright )?{name}( FILE| RUN| DATA| MODEL|$)", code) for code in CODE)


def test_readme_names_no_command_that_is_not_there():
    named = {code.split()[1] for code in CODE if code.startswith("rankwright ")}
    assert named - set(commands()) == set()


def test_readme_names_no_option_that_is_not_there():
    known = {option for command in commands().values() for parameter in command.params for option in parameter.opts}
    written = {word for code in CODE if code.startswith(("rankwright", "--")) for word in code.split()}
    assert {word for word in written if word.startswith("--")} - known == set()


@pytest.mark.parametrize("kind", READERS)
def test_readme_names_every_kind_of_source(kind):
    assert f"`{kind}:" in README


@pytest.mark.parametrize("name", api.shipped())
def test_each_shipped_experiment_loads_and_is_named(name):
    experiment, text = api.load(name)
    assert experiment.name == name
    assert Walk(experiment).plan.arms
    assert text.startswith("# ")  # says what it is
    assert re.search(rf"`(rankwright (run )?)?{name}`", README)


def test_the_example_in_readme_loads_and_fits_together(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"))
    assert list(Plan.of(load_experiment(path)).arms) == ["base", "finetuned", "merged"]


@pytest.mark.parametrize("text", [*blocks("yaml"), *blocks("yaml", RECIPE_PAGE), *blocks("yaml", ENGINE_PAGE)])
def test_every_example_of_a_recipe_loads_and_fits_together(text, tmp_path):
    path = tmp_path / "example.yaml"
    rest = "" if "retrieve:" in text else "data: {source: 'seealso:'}\nretrieve: {dense: {kind: dense}}\n"
    path.write_text(rest + text)
    experiment = load_experiment(path)
    assert set(Plan.of(experiment).trainings) == set(experiment.train)


def test_the_page_of_recipes_names_every_word_and_each_is_in_readme():
    table = set(re.findall(r"^\| `([\w-]+)` \|", RECIPE_PAGE, re.MULTILINE))
    assert table | {"auto"} == set(RECIPES)
    assert all(f"`{word}`" in README for word in table)


def test_the_python_in_readme_uses_names_that_exist():
    code = block("python")
    compile(code, "README", "exec")
    names = re.findall(r"\brw\.([\w.]+)", code)
    assert names
    for name in names:
        value = rankwright
        for part in name.split("."):
            value = getattr(value, part)
    for attribute in re.findall(r"\bresult\.(\w+)", code):
        assert attribute in {*api.Result.__dataclass_fields__, *dir(api.Result)}
    for method in re.findall(r"\breranker\.(\w+)", code):
        assert hasattr(rankwright.Reranker, method)


def test_links_lead_to_files():
    diagnose = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")
    for page, folder in (
        (README, ROOT),
        *((own, ROOT / "docs") for own in (ARCHITECTURE, RECIPE_PAGE, ENGINE_PAGE, diagnose)),
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (folder / target).is_file(), target


def test_exit_codes_are_the_same_everywhere():
    families = {family.exit_code for family in errors.RankwrightError.__subclasses__()}
    told = app.info.epilog.partition(": ")[2]
    assert {int(code) for code in re.findall(r"\d+", told)} == families | {8, 130}
    assert told in " ".join(README.split())


def test_readme_says_what_every_dependency_is_for():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    needed = {name.lower() for name in re.findall(r'"([\w-]+)', listed)}
    table = README.partition("## What it stands on")[2]
    named = {name for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for name in row.lower().split(", ")}
    assert named - {"package", "---"} == needed


def test_the_architecture_names_every_module():
    package = Path(rankwright.__file__).parent
    modules = {path.stem for path in package.rglob("*.py") if not path.stem.startswith("__")}
    inner = {path.stem for path in (package / "toolbox" / "formats").glob("*.py")} - set(READERS)  # readers' helpers
    words = set(re.findall(r"\w+", ARCHITECTURE))
    assert modules - inner - words == set()


def test_rooms_are_one_word_everywhere():
    rooms = {path.stem for path in (Path(rankwright.__file__).parent / "rooms").glob("*")} - {"__init__", "__pycache__"}
    rooms = {room for room in rooms if "." not in room and not room.startswith("report_")}
    assert rooms | {"recipe"} == set(ROOM_HELP)  # which is a package of its own, auto
    assert rooms <= set(commands())
    for room in rooms:
        assert callable(getattr(rankwright, room))


@pytest.mark.parametrize("name", rankwright.__all__)
def test_every_public_name_resolves(name):
    assert getattr(rankwright, name) is not None
    assert name in dir(rankwright)


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'rerankers'"):
        _ = rankwright.rerankers
