"""`rankwright merge`: any two or more models by themselves, or those of an experiment."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rankwright import api, cli, errors
from rankwright.toolbox import probe
from rankwright.toolbox.formats import flag

WEIGHTS = "model.safetensors"
GROUPS = [
    {"query": "red apple", "pos": ["a red apple"], "neg": ["fast car", "big boat", "old train"]},
    {"query": "sorts array", "pos": ["compute the array", "sorts"], "neg": ["green pear"]},
    {"query": "no positive", "pos": [], "neg": ["plum"]},
    {"query": "linear graph", "pos": ["graph node"], "neg": ["what is"]},
]


@pytest.fixture(scope="session")
def two(tiny_reranker, tmp_path_factory):
    """Two fine-tunings of one model."""
    other = tmp_path_factory.mktemp("models") / "tuned"
    shutil.copytree(tiny_reranker, other)
    rng = np.random.default_rng(0)
    tensors = {
        name: values + 0.1 * rng.normal(size=values.shape) for name, values in load_file(other / WEIGHTS).items()
    }
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, other / WEIGHTS, {"format": "pt"})
    return tiny_reranker, other


@pytest.fixture
def groups_file(tmp_path):
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GROUPS))
    return path


@pytest.fixture
def merge(monkeypatch, capsys, tmp_path):
    """Run `rankwright merge` as it is run: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rankwright", "merge", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def assert_mixed(folder, models, weights, name="classifier.weight"):
    wanted = sum(
        weight * load_file(model / WEIGHTS)[name].astype(float) for model, weight in zip(models, weights, strict=True)
    )
    np.testing.assert_allclose(load_file(folder / WEIGHTS)[name], wanted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------------- models


def test_two_folders_are_merged_without_an_experiment(merge, two, tmp_path):
    code, out, _ = merge(*two, "--weight", 0.25, "--out", "both")
    assert code == 0
    assert_mixed(tmp_path / "both", two, (0.75, 0.25))
    assert out.startswith("linear: 0.75 ")
    assert "tensors differ" in out
    assert len([line for line in out.splitlines() if line.startswith("bert.encoder.layer.")]) > 3
    assert out.endswith("both is written\n")


def test_the_merged_folder_is_a_reranker(merge, two, tmp_path):
    assert merge(*two, "--out", tmp_path / "both")[0] == 0
    assert np.isfinite(probe.logits_of(tmp_path / "both", [("red apple", "a pear")], device="cpu")).all()


def test_several_models_have_weights_of_their_own_and_layers_others(merge, two, tmp_path):
    models = [*two, two[0]]
    code, _, _ = merge(
        *models,
        "--weights",
        "0.5,0.3,0.2",
        "--layers",
        "classifier.*=0.1,0.9,0",
        "--layers",
        "*.1.*=0,1,0",
        "--out",
        "c",
    )
    assert code == 0
    assert_mixed(tmp_path / "c", models, (0.1, 0.9, 0))
    assert_mixed(tmp_path / "c", models, (0.5, 0.3, 0.2), "bert.encoder.layer.0.output.dense.weight")
    assert_mixed(tmp_path / "c", models, (0, 1, 0), "bert.encoder.layer.1.output.dense.weight")


def test_methods_of_differences_take_a_density_and_a_seed(merge, two, tmp_path):
    for out, seed in {"one": 1, "same": 1, "other": 2}.items():
        assert merge(*two, "--method", "dare", "--density", 0.3, "--seed", seed, "--out", out)[0] == 0
    one, same, other = ((tmp_path / out / WEIGHTS).read_bytes() for out in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_json_tells_every_tensor_and_nothing_else(merge, two):
    code, out, err = merge(*two, "--method", "slerp", "--weight", 0.5, "--out", "both", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["model"], told["method"], told["weights"]) == ("both", "slerp", [0.5, 0.5])
    assert set(told["distances"]) == set(load_file(two[0] / WEIGHTS))


def test_cocktail_weighs_by_the_losses_on_the_examples(merge, two, groups_file):
    code, out, _ = merge(
        *two, "--method", "cocktail", "--temperature", 0.1, "--examples", groups_file, "--out", "c", "--json"
    )
    assert code == 0
    losses = [probe.loss_of(model, flag.read_groups(groups_file)) for model in two]
    shares = [math.exp(-loss / 0.1) for loss in losses]
    assert losses[0] != losses[1]
    assert json.loads(out)["weights"] == pytest.approx([share / sum(shares) for share in shares], rel=1e-6)


def test_cocktail_reads_no_more_examples_than_it_is_told_to(two, groups_file, tmp_path):
    report = api.merge_models(two, tmp_path / "c", {"method": "cocktail", "examples": 1}, examples=groups_file)
    losses = [probe.loss_of(model, flag.read_groups(groups_file)[:1]) for model in two]
    shares = [math.exp(-loss / 5) for loss in losses]
    assert report.weights == pytest.approx([share / sum(shares) for share in shares], rel=1e-6)


def test_rescaling_probes_with_the_examples(merge, two, groups_file):
    code, out, _ = merge(*two, "--head", "rescale", "--examples", groups_file, "--out", "c", "--json")
    assert code == 0
    pairs = probe.pairs_of(flag.read_groups(groups_file))
    for told, model in zip(json.loads(out)["logits"], two, strict=True):
        logits = probe.logits_of(model, pairs)
        assert told == pytest.approx({"mean": logits.mean(), "spread": logits.std()}, rel=1e-4)


def test_rescaling_without_examples_probes_with_docstrings(two, tmp_path, monkeypatch):
    probed = []
    there = probe.logits_of
    monkeypatch.setattr(
        probe, "logits_of", lambda model, pairs, **more: probed.append(pairs) or there(model, pairs, **more)
    )
    api.merge_models(two, tmp_path / "c", {"head": "rescale"}, device="cpu")
    assert [len(pairs) for pairs in probed] == [64, 64]
    assert len({query for query, _ in probed[0]}) == 32


def test_a_plain_merge_loads_neither_torch_nor_transformers(two, tmp_path):
    code = (
        "import sys; from rankwright import cli; cli.main.__globals__['app'](standalone_mode=False); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    words = ["merge", *map(str, two), "--method", "slerp", "--weight", "0.5", "--out", str(tmp_path / "c")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "c" / WEIGHTS).exists()


# ------------------------------------------------------------------------------------------------ experiments


def test_one_experiment_is_walked_up_to_the_merge(merge, tiny_file):
    code, out, _ = merge(tiny_file, "--dry-run", "--set", "merge.method=slerp")
    assert code == 0
    assert out.splitlines()[-1].split()[:2] == ["merge", "run"]


def test_the_runs_folder_of_an_experiment_is_named(merge, tiny_file):
    code, out, _ = merge(tiny_file, "--dry-run", "--runs", "elsewhere", "--json")
    assert code == 0
    assert json.loads(out)["stages"][-1]["stage"] == "merge"


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["A", "B"], "where should the merged model go?\n  try: --out DIR"),
        (["A"], "is one model; a merge needs two or more"),
        (["X", "--out", "c"], "--out goes with two models or more"),
        (["X", "--weight", "0.3"], "--weight goes with two models or more"),
        (["X", "--examples", "g.jsonl"], "--examples goes with two models or more"),
        (["A", "X", "--out", "c"], "is an experiment"),
        (["A", "B", "--out", "c", "--set", "merge.weight=1"], "--set goes with an experiment, not with models"),
        (["A", "B", "--out", "c", "--dry-run"], "--dry-run goes with an experiment"),
        (["A", "B", "--out", "c", "--runs", "r"], "--runs goes with an experiment"),
        (["A", "B", "--out", "c", "--method", "slurp"], "method: Input should be 'linear', 'slerp'"),
        (["A", "B", "A", "--out", "c", "--method", "slerp"], "slerp is between two models, not 3"),
        (["A", "B", "--out", "c", "--weight", "0.3", "--weights", "0.3,0.7"], "give `weight` or `weights`, not both"),
        (
            ["A", "B", "--out", "c", "--weights", "0.3;0.7"],
            "--weights takes numbers with commas between, not '0.3;0.7'",
        ),
        (["A", "B", "--out", "c", "--layers", "0.3,0.7"], "--layers takes PATTERN=WEIGHTS, not '0.3,0.7'"),
        (["A", "B", "--out", "c", "--layers", "nosuch=0.3,0.7"], "nosuch"),
        (["A", "B", "--out", "c", "--method", "cocktail"], "try: --examples groups.jsonl"),
        (["A", "B", "--out", "c", "--examples", "g.jsonl"], "examples are read by the method cocktail"),
    ],
)
def test_options_that_do_not_fit_are_2_and_say_so(merge, two, tiny_file, tmp_path, words, told):
    stands_for = {"A": two[0], "B": two[1], "X": tiny_file}
    code, out, err = merge(*(stands_for.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert not (tmp_path / "c").exists()


def test_no_argument_at_all_is_2_with_the_usage(merge):
    code, _, err = merge()
    assert code == 2
    assert "Usage" in err


def test_examples_without_anything_to_compare_are_3(merge, two, tmp_path):
    (tmp_path / "g.jsonl").write_text('{"query": "red", "pos": ["red"], "neg": []}\n')
    assert merge(*two, "--out", "c", "--method", "cocktail", "--examples", "gone.jsonl")[0] == 3
    code, _, err = merge(*two, "--out", "c", "--method", "cocktail", "--examples", "g.jsonl")
    assert code == 3
    assert "no group holds a relevant document" in err


def test_models_that_do_not_fit_are_4(merge, two, tmp_path):
    odd = shutil.copytree(two[1], tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    code, _, err = merge(two[0], odd, "--out", "c")
    assert code == 4
    assert "hidden_size 32 and 48" in err
    assert merge(two[0], "./gone", "--out", "c")[0] == 4


def test_something_else_at_out_is_5_and_stays(merge, two, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    assert merge(*two, "--out", "c")[0] == 5
    assert (tmp_path / "c" / "mine.txt").read_text() == "mine"


def test_in_python_a_sweep_needs_an_experiment(two, tmp_path):
    with pytest.raises(errors.ConfigError, match="a sweep needs an experiment"):
        api.merge_models(two, tmp_path / "c", {"weight": "sweep"})
    with pytest.raises(errors.ConfigError, match="two models or more"):
        api.merge_models(two[:1], tmp_path / "c")
