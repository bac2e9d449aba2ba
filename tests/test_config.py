from __future__ import annotations

import pytest
import yaml

from rankwright import config
from rankwright.config import load_experiment
from rankwright.errors import ConfigError
from rankwright.sections import Experiment

YAML = """\
name: small
data:
  source: "beir:data"
retrieve:
  dense: {kind: dense, depth: 50}
mine:
  negatives: 7
  window: [1, 30]
train:
  finetuned:
    learning_rate: 2e-5
    loss: listwise
"""


@pytest.fixture
def load(tmp_path):
    def of(text, *overrides):
        path = tmp_path / "exp.yaml"
        path.write_text(text, encoding="utf-8")
        return load_experiment(path, overrides)

    return of


@pytest.fixture
def refusal(load, tmp_path):
    """The message of a refusal, the file called exp.yaml wherever it is."""

    def of(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(str(tmp_path / "exp.yaml"), "exp.yaml")

    return of


def test_a_file_becomes_an_experiment_with_all_defaults(load):
    experiment = load(YAML)
    assert experiment.train["finetuned"].learning_rate == 2e-5
    assert experiment.train["finetuned"].loss == {"listwise": 1.0}
    assert experiment.retrieve["dense"].model == "offline"
    assert experiment.mine.window == (1, 30)
    assert experiment.merge is None
    assert experiment.evaluate.bootstrap == 2000


@pytest.mark.parametrize("number", ["2e-5", "2E-5", "2.e-5", ".2e-4", "+2e-5", "0.00002", "2.0e-05"])
def test_numbers_are_numbers_however_their_exponent_is_written(load, number):
    assert load(YAML.replace("2e-5", number)).train["finetuned"].learning_rate == pytest.approx(2e-5)


def test_a_word_that_only_looks_like_a_number_stays_a_word(load):
    assert load(YAML.replace("name: small", "name: 1e5x")).name == "1e5x"


def test_the_resolved_yaml_reads_back_as_the_same_experiment(load):
    for text in (YAML, YAML + "merge: {weights: [0.3, 0.7]}\nrerank: {arms: {one: offline}}\nevaluate: null\n"):
        experiment = load(text)
        dumped = config.dump(experiment)
        assert load(dumped) == experiment
        assert config.dump(load(dumped)) == dumped
        assert "learning_rate: 2.0e-05" in dumped


def test_unknown_keys_are_told_with_their_lines_and_a_guess_and_all_at_once(refusal):
    told = refusal(YAML.replace("negatives:", "negatifs:").replace("loss:", "los:") + "repot: {}\n").splitlines()
    assert told == [
        "exp.yaml:7: unknown key mine.negatifs; did you mean negatives?",
        "exp.yaml:12: unknown key train.finetuned.los; did you mean loss?",
        "exp.yaml:13: unknown key repot; did you mean report?",
    ]


def test_the_guess_knows_which_kind_of_retriever_it_is(refusal):
    text = YAML.replace("dense: {kind: dense, depth: 50}", "a: {kind: dense, model_: x}\n  b: {kind: bm25, model_: x}")
    first, second = refusal(text).splitlines()
    assert first == "exp.yaml:5: unknown key retrieve.a.model_; did you mean model?"
    assert second == "exp.yaml:6: unknown key retrieve.b.model_; did you mean one of kind, depth, k1, b?"


def test_a_key_like_none_that_is_known_is_answered_with_all_that_are(refusal):
    assert "did you mean one of depth, max_length" not in refusal(YAML + "rerank: {zzz: 1}\n")
    assert "one of candidates, depth, arms, max_length, precision, both_orders, dev_queries, cascade?" in refusal(
        YAML + "rerank: {zzz: 1}\n"
    )


def test_wrong_values_are_told_with_their_lines_and_what_they_say(refusal):
    told = refusal(YAML.replace("negatives: 7", "negatives: many").replace("depth: 50", "depth: 0"))
    assert "exp.yaml:7: mine.negatives: input should be a valid integer" in told
    assert "(it says 'many')" in told
    assert "exp.yaml:5: retrieve.dense.depth: input should be greater than or equal to 1 (it says 0)" in told


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("kind: dense", "kind: dens", "exp.yaml:5: retrieve.dense: input tag 'dens'"),
        ("kind: dense, ", "", "exp.yaml:5: retrieve.dense: unable to extract tag"),
        ("loss: listwise", "loss: {listwse: 1}", "exp.yaml:12: train.finetuned.loss.listwse: input should be 'listw"),
        ("loss: listwise", "loss: {kl: x}", "exp.yaml:12: train.finetuned.loss.kl: input should be a valid number"),
        ("loss: listwise", "loss: {bce: 0}", "exp.yaml:10: train.finetuned: loss needs at least one term"),
        ("[1, 30]", "[30, 1]", "exp.yaml:8: mine.window: window must be [first, last]"),
        ("[1, 30]", "[1, x]", "exp.yaml:8: mine.window.1: input should be a valid integer"),
        ("name: small", "name: ../up", "exp.yaml:1: name: string should match pattern"),
        ('data:\n  source: "beir:data"\n', "", "exp.yaml: data is missing"),
        ("  finetuned:", "  fine/tuned:", "exp.yaml:9: train: 'fine/tuned' must be letters"),
    ],
)
def test_each_kind_of_fault_has_its_place(refusal, old, new, expected):
    assert expected in refusal(YAML.replace(old, new))


def test_arms_name_files_so_that_they_cannot_be_paths(refusal):
    assert "'../up' must be letters" in refusal(YAML + "rerank: {arms: {../up: offline}}\n")


def test_a_key_that_stands_twice_is_refused_with_both_lines(refusal):
    assert refusal(YAML + "mine: {}\n") == "exp.yaml:13: mine stands twice (first in line 6)"
    assert "exp.yaml:9: mine.negatives stands twice (first in line 7)" in refusal(
        YAML.replace("  window: [1, 30]", "  window: [1, 30]\n  negatives: 3")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [1, 2\nmine: {}", "exp.yaml:2: not YAML"),
        ("data: {source: *x}", "exp.yaml:1: not YAML"),
        ("", "a mapping of sections"),
        ("- data", "a mapping of sections"),
        ("just words", "a mapping of sections"),
        ("data: {}\nname: \x07", "not YAML"),
    ],
)
def test_what_is_no_experiment_is_refused(refusal, text, expected):
    assert expected in refusal(text)


def test_a_source_without_its_quotes_says_how_to_quote_it(refusal):
    assert 'try: quote a value that has a colon: source: "seealso:"' in refusal("data:\n  source: seealso:\n")


def test_files_that_cannot_be_read_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_experiment(tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path, load):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode())
    assert load_experiment(path) == load(YAML)


def test_overrides_reach_old_and_new_keys_and_may_take_sections_away(load):
    experiment = load(
        YAML,
        "mine.negatives=3",
        "train.finetuned.learning_rate=1e-4",
        "rerank.arms.mine=offline",
        "mine.window=[2, 9]",
        "evaluate=null",
        "train.finetuned.loss={kl: 2}",
        "data.source=seealso:",
    )
    assert experiment.mine.negatives == 3
    assert experiment.train["finetuned"].learning_rate == 1e-4
    assert experiment.rerank.arms == {"mine": "offline"}
    assert experiment.mine.window == (2, 9)
    assert experiment.evaluate is None
    assert experiment.train["finetuned"].loss == {"kl": 2.0}
    assert experiment.data.source == "seealso:"


def test_the_last_of_two_overrides_holds(load):
    assert load(YAML, "mine.negatives=3", "mine.negatives=4").mine.negatives == 4


def test_a_fault_in_an_override_is_not_blamed_on_the_file(refusal):
    assert refusal(YAML, "mine.negatifs=3") == (
        "--set mine.negatifs=3: unknown key mine.negatifs; did you mean negatives?"
    )
    assert refusal(YAML, "mine.negatives=lots").startswith("--set mine.negatives=lots: mine.negatives: input should")
    assert refusal(YAML, "mine={negatives: lots}").startswith("--set mine={negatives: lots}: mine.negatives: input")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mine.negatives", "--set takes a.b=c, not 'mine.negatives'"),
        ("=3", "--set takes a.b=c"),
        ("mine.negatives.deep=3", "negatives holds a value, not a section"),
        ("mine.window=[1", "is not a YAML value"),
    ],
)
def test_an_override_that_is_none_is_refused(refusal, override, expected):
    assert expected in refusal(YAML, override)


def test_plain_values_are_checked_as_a_file_is():
    with pytest.raises(ConfigError, match=r"^experiment: unknown key mine\.negatifs; did you mean negatives\?$"):
        config.validate({**yaml.safe_load(YAML), "train": {}, "mine": {"negatifs": 1}})
    assert isinstance(config.validate({"data": {}, "retrieve": {"a": {"kind": "bm25"}}}), Experiment)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"retrieve": {}}, "retrieve: dictionary should have at least 1 item"),
        ({"retrieve": {"a": {"kind": "fuse", "of": ["b"]}}}, "at least 2 items"),
        (
            {"retrieve": {"a": {"kind": "fuse", "of": ["b", "c"], "method": "weighted", "weights": [1]}}},
            "weighted fusion of 2 runs needs 2 weights",
        ),
        ({"merge": {"weights": [0.5, 0.2]}}, "the weights sum to 0.7, not to 1"),
        ({"merge": {"weights": [1.0]}}, "2 models need 2 weights, not 1"),
        ({"train": {"a": {"groups": "unlabelled"}}}, "unlabelled groups have no labels for listwise"),
        ({"train": {"a": {"dev": None}}}, "keep: best needs a dev section"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(changes, expected):
    with pytest.raises(ConfigError) as caught:
        config.validate({"data": {}, "retrieve": {"dense": {"kind": "dense"}}, **changes})
    assert expected in str(caught.value)


def test_an_experiment_without_a_name_has_its_files(tmp_path):
    for stem, name in (("mine", "mine"), ("my data", "experiment")):
        file = tmp_path / f"{stem}.yaml"
        file.write_text("data: {source: 'seealso:'}\nretrieve: {bm25: {kind: bm25}}\n")
        assert config.load_experiment(file).name == name
    file.write_text("name: own\ndata: {source: 'seealso:'}\nretrieve: {bm25: {kind: bm25}}\n")
    assert config.load_experiment(file).name == "own"
