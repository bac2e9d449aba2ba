from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rankwright.errors import ArtefactError, ConfigError, DiskError, ModelError
from rankwright.rooms.merge import Recipe, merge
from rankwright.sections import MergeSection
from rankwright.toolbox import mixing, tensors

PAIRS = [
    ("which fruit is red", "apple"),
    ("how to find a graph node", "linear matrix solves"),
    ("fast car", "slow train"),
]
HEAD = "classifier.weight"


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def remade(source, folder, change):
    """A copy of a model folder with its tensors changed by `change(tensors)`."""
    shutil.copytree(source, folder)
    tensors = weights_of(source)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def nudge(seed, size=0.05):
    def change(tensors):
        random = torch.Generator().manual_seed(seed)
        for name in sorted(tensors):
            tensors[name] = tensors[name] + size * torch.randn(tensors[name].shape, generator=random)

    return change


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def section(count=2, **settings):
    return MergeSection(models=[f"model{number}" for number in range(count)], **settings)


@pytest.fixture
def other(tiny_reranker, tmp_path):
    return remade(tiny_reranker, tmp_path / "other", nudge(1))


@pytest.mark.parametrize(("count", "weights"), [(2, None), (2, [0.3, 0.7]), (3, None), (3, [0.5, 0.2, 0.3])])
def test_the_merged_tensors_are_numpys_weighted_average(tiny_reranker, tmp_path, count, weights):
    models = [tiny_reranker]
    models += [remade(tiny_reranker, tmp_path / f"m{seed}", nudge(seed)) for seed in range(1, count)]
    report = merge(models, section(count, weights=weights), tmp_path / "out")
    assert report.weights == tuple(weights or [1 / count] * count)
    held = [weights_of(model) for model in models]
    merged = weights_of(tmp_path / "out")
    assert merged.keys() == held[0].keys()
    for name, tensor in merged.items():
        stacked = np.stack([tensors[name].double().numpy() for tensors in held])
        expected = np.average(stacked, axis=0, weights=weights).astype(np.float32)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=3e-7, atol=1e-8)


def test_a_model_merged_with_itself_is_the_same_file_bit_for_bit(tiny_reranker, tmp_path):
    report = merge([tiny_reranker] * 3, section(3, weights=[0.2, 0.5, 0.3]), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tiny_reranker / "model.safetensors").read_bytes()
    assert set(report.distances.values()) == {(0.0, 0.0)}
    assert "0 of 41 tensors differ" in report.lines()


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.0, 1.0]])
def test_a_weight_of_one_gives_that_model_bit_for_bit(tiny_reranker, other, tmp_path, weights):
    merge([tiny_reranker, other], section(weights=weights), tmp_path / "out")
    chosen = tiny_reranker if weights[0] else other
    assert (tmp_path / "out/model.safetensors").read_bytes() == (chosen / "model.safetensors").read_bytes()


def test_the_same_input_gives_the_same_bytes(tiny_reranker, other, tmp_path):
    for name in ("one", "two"):
        merge([tiny_reranker, other], section(), tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_transformers_and_sentence_transformers_load_the_merged_folder_and_agree(tiny_reranker, other, tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = tmp_path / "out"
    merge([tiny_reranker, other], section(), out)
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = AutoTokenizer.from_pretrained(out)(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model.eval()(**batch).logits[:, 0]
    encoder = CrossEncoder(str(out), device="cpu")
    scores = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(scores, plain.numpy(), atol=1e-5)
    assert len(set(scores.tolist())) == len(PAIRS)


def test_the_folder_holds_tokenizer_configuration_and_card_but_nothing_that_was_true_of_the_first_only(
    tiny_reranker, other, tmp_path
):
    first = tmp_path / "first"
    shutil.copytree(tiny_reranker, first)
    for name in ("rankwright.json", "README.md", "optimizer.pt"):
        (first / name).write_text("of the first")
    merge([first, other], section(), tmp_path / "out")
    held = {file.name for file in (tmp_path / "out").iterdir()}
    assert held == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md")
    }
    assert (tmp_path / "out/config.json").read_bytes() == (first / "config.json").read_bytes()


def test_the_model_card_tells_the_recipe_and_no_path_of_this_machine(tiny_reranker, other, tmp_path):
    names = ["BAAI/bge-reranker-base", str(other)]
    merge([tiny_reranker, other], MergeSection(models=names, weights=[0.25, 0.75]), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["pipeline_tag"] == "text-ranking"
    assert told["library_name"] == "sentence-transformers"
    assert told["base_model"] == ["BAAI/bge-reranker-base", "other"]
    assert "| BAAI/bge-reranker-base | 0.25 |\n| other | 0.75 |" in body
    assert str(tmp_path) not in card


def test_the_report_says_which_tensors_differ_and_how_much(tiny_reranker, tmp_path):
    def change(tensors):
        tensors[HEAD] = tensors[HEAD] * 3

    other = remade(tiny_reranker, tmp_path / "other", change)
    report = merge([tiny_reranker, other], section(weights=[0.4, 0.6]), tmp_path / "out")
    assert report.distances[HEAD] == (pytest.approx(2 / 3),)
    assert sum(apart != (0.0,) for apart in report.distances.values()) == 1
    assert report.lines() == [
        "linear: 0.4 model0 + 0.6 model1",
        f"1 of 41 tensors differ, by 0.67 of their length (median); most: {HEAD} 0.67",
    ]


def test_sharded_models_are_read_and_one_file_is_written(tiny_reranker, other, tmp_path):
    from transformers import AutoModelForSequenceClassification

    sharded = tmp_path / "sharded"
    shutil.copytree(other, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_pretrained(other).save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    merge([sharded, tiny_reranker], section(), tmp_path / "out")
    merge([other, tiny_reranker], section(), tmp_path / "expected")
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    merged, expected = (tmp_path / name / "model.safetensors" for name in ("out", "expected"))
    assert merged.read_bytes() == expected.read_bytes()


def test_each_tensor_keeps_the_first_models_dtype(tiny_reranker, other, tmp_path):
    def narrow(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items() if "bias" not in name})

    first = remade(tiny_reranker, tmp_path / "narrow", narrow)
    merge([first, other], section(), tmp_path / "out")
    before, merged = weights_of(first), weights_of(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in merged.items()} == {name: t.dtype for name, t in before.items()}
    expected = ((before[HEAD].double() + weights_of(other)[HEAD].double()) / 2).bfloat16()
    assert torch.equal(merged[HEAD], expected)


def test_position_ids_that_only_an_older_model_saved_are_left_out_and_told(tiny_reranker, other, tmp_path):
    name = "bert.embeddings.position_ids"
    older = remade(tiny_reranker, tmp_path / "older", lambda tensors: tensors.update({name: torch.arange(64)[None]}))
    report = merge([older, other], section(), tmp_path / "out")
    assert name not in weights_of(tmp_path / "out")
    assert report.left_out == (name,)
    assert name in report.lines()[-1]
    report = merge([older, older], section(), tmp_path / "both")
    assert torch.equal(weights_of(tmp_path / "both")[name], torch.arange(64)[None])
    assert report.left_out == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "roberta"}, "model_type bert and roberta"),
        ({"num_attention_heads": 4}, "num_attention_heads 2 and 4"),
        ({"id2label": {"0": "no", "1": "yes"}}, "num_labels 1 and 2"),
        (
            {"architectures": ["RobertaForSequenceClassification"]},
            "BertForSequenceClassification and RobertaForSequenceClassification",
        ),
    ],
)
def test_configurations_that_differ_are_refused_with_both_folders(tiny_reranker, other, tmp_path, changes, told):
    edit_config(other, **changes)
    with pytest.raises(ModelError, match=told) as caught:
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert str(tiny_reranker) in str(caught.value)
    assert str(other) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_settings_that_change_no_score_may_differ(tiny_reranker, other, tmp_path):
    edit_config(other, transformers_version="4.40", hidden_dropout_prob=0.0, id2label={"0": "x"}, torch_dtype="float32")
    merge([tiny_reranker, other], section(), tmp_path / "out")
    assert (tmp_path / "out/config.json").exists()


def test_encoders_without_any_head_among_them_are_refused(tiny_encoder, tmp_path):
    with pytest.raises(ModelError, match=r"no classification head \(architecture: BertModel\)") as caught:
        merge([tiny_encoder, tiny_encoder], section(), tmp_path / "out")
    assert caught.value.where == str(tiny_encoder)


def test_tensors_that_one_model_lacks_are_named(tiny_reranker, tmp_path):
    other = remade(tiny_reranker, tmp_path / "other", lambda tensors: tensors.pop(HEAD))
    with pytest.raises(ModelError, match=f"only {tiny_reranker} holds {HEAD}"):
        merge([tiny_reranker, other], section(), tmp_path / "out")


def test_tensors_of_another_shape_are_named(tiny_reranker, tmp_path):
    other = remade(tiny_reranker, tmp_path / "other", lambda tensors: tensors.update({HEAD: torch.zeros(1, 16)}))
    with pytest.raises(ModelError, match=r"classifier.weight \[1, 32\] and \[1, 16\]"):
        merge([tiny_reranker, other], section(), tmp_path / "out")


def test_another_vocabulary_is_refused_with_its_first_differing_token(tiny_reranker, other, tmp_path):
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"apple"', '"mango"'))
    number = (tiny_reranker / "vocab.txt").read_text().split("\n").index("apple")
    with pytest.raises(ModelError, match=f"first at {number} 'apple' and {number} 'mango'") as caught:
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert str(other) in str(caught.value)


def test_a_longer_vocabulary_is_refused(tiny_reranker, other, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["mango"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=f"first at no token and {len(tokenizer) - 1} 'mango'"):
        merge([tiny_reranker, other], section(), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "cannot read the configuration"),
        ("config.json", b"[]", "not a JSON object"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{", "cannot read the weights"),
        ("tokenizer.json", b"{}", "cannot load the tokenizer"),
    ],
)
def test_a_broken_folder_is_one_clear_error(tiny_reranker, other, tmp_path, name, content, told):
    if content is None:
        (other / name).unlink()
    else:
        (other / name).write_bytes(content)
    with pytest.raises(ModelError, match=told) as caught:
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert str(other) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_pickled_weights_are_refused_with_the_way_out(tiny_reranker, other, tmp_path):
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(ModelError, match="save_pretrained"):
        merge([tiny_reranker, other], section(), tmp_path / "out")


def test_an_index_that_names_no_shards_is_refused(tiny_reranker, other, tmp_path):
    (other / "model.safetensors").unlink()
    for broken in ("{}", "[]", "{"):
        (other / "model.safetensors.index.json").write_text(broken)
        with pytest.raises(ModelError, match="index of shards"):
            merge([tiny_reranker, other], section(), tmp_path / "out")


def test_nan_weights_are_refused_by_name_and_leave_nothing(tiny_reranker, tmp_path):
    other = remade(tiny_reranker, tmp_path / "other", lambda tensors: tensors[HEAD].fill_(torch.nan))
    with pytest.raises(ModelError, match=f"NaN in {HEAD} of {other}"):
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_whole_numbers_that_differ_are_refused_by_name(tiny_reranker, tmp_path):
    name = "bert.embeddings.position_ids"
    models = [
        remade(tiny_reranker, tmp_path / f"m{shift}", lambda t, s=shift: t.update({name: torch.arange(64)[None] + s}))
        for shift in (0, 2)
    ]
    with pytest.raises(ModelError, match=f"{name} of .*m0, .*m2: whole numbers"):
        merge(models, section(), tmp_path / "out")


def test_there_must_be_as_many_names_as_folders(tiny_reranker, tmp_path):
    with pytest.raises(ConfigError, match="2 names in `models` for 3 model folders"):
        merge([tiny_reranker] * 3, section(2), tmp_path / "out")


def test_an_earlier_merge_is_replaced_and_a_persons_folder_is_not(tiny_reranker, other, tmp_path):
    out = tmp_path / "out"
    merge([tiny_reranker, other], section(), out)
    (out / "stale").touch()
    merge([tiny_reranker, other], section(weights=[1.0, 0.0]), out)
    assert not (out / "stale").exists()
    assert (out / "model.safetensors").read_bytes() == (tiny_reranker / "model.safetensors").read_bytes()
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").touch()
    with pytest.raises(ArtefactError, match="no model"):
        merge([tiny_reranker, other], section(), home)
    assert (home / "thesis.tex").exists()
    with pytest.raises(ArtefactError, match="may not overwrite"):
        merge([tiny_reranker, other], section(), other)


def test_a_full_disk_is_one_clear_error_that_leaves_nothing(tiny_reranker, other, tmp_path, monkeypatch):
    def full(self, name, piece):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors.Writer, "write", full)
    with pytest.raises(DiskError, match="No space left on device"):
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_merge_killed_half_way_leaves_nothing_to_load_and_the_next_one_succeeds(tiny_reranker, other, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from rankwright.rooms.merge import Recipe, merge
        from rankwright.sections import MergeSection
        from rankwright.toolbox.tensors import Writer

        write, written = Writer.write, []

        def write_some(self, name, piece):
            write(self, name, piece)
            written.append(name)
            if len(written) == 20:
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        Writer.write = write_some
        first, second, out = map(Path, sys.argv[1:])
        merge([first, second], MergeSection(), out)
    """
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, (tiny_reranker, other, out))]
    finished = subprocess.run(command, env=os.environ, capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
    assert not out.exists()
    assert [path.name for path in tmp_path.glob(".out*/*")] == ["model.safetensors"]
    merge([tiny_reranker, other], section(), out)
    merge([tiny_reranker, other], section(), tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "whole"]


def test_no_read_is_larger_than_a_block(tiny_reranker, other, tmp_path, monkeypatch):
    read, asked = os.preadv, []

    def noted(file, buffers, offset):
        asked.extend(len(buffer) for buffer in buffers)
        return read(file, buffers, offset)

    monkeypatch.setattr(mixing, "BLOCK", 100)
    monkeypatch.setattr(os, "preadv", noted)
    merge([tiny_reranker, other], section(), tmp_path / "out")
    assert max(asked) == 400
    monkeypatch.undo()
    merge([tiny_reranker, other], section(), tmp_path / "expected")
    merged, expected = (tmp_path / name / "model.safetensors" for name in ("out", "expected"))
    assert merged.read_bytes() == expected.read_bytes()


def test_a_plain_merge_imports_neither_torch_nor_transformers(tiny_reranker, other, tmp_path):
    script = """
        import sys
        from pathlib import Path
        from rankwright.rooms.merge import Recipe, merge
        from rankwright.sections import MergeSection

        first, second, out = map(Path, sys.argv[1:])
        merge([first, second], MergeSection(), out)
        print(*sorted({"torch", "transformers", "tokenizers", "safetensors", "scipy"} & sys.modules.keys()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, (tiny_reranker, other, tmp_path / "out"))]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.split() == []


# ------------------------------------------------------------------------------------------------- methods and weights


METHODS = {
    "linear": [0.3, 0.7],
    "slerp": [0.3, 0.7],
    "task-arithmetic": [0.6],
    "ties": [0.6],
    "dare": [0.6],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_mixing_gives_for_whole_arrays(tiny_reranker, other, tmp_path, method):
    chosen = section(method=method, weights=METHODS[method], density=0.3, seed=5)
    merge([tiny_reranker, other], chosen, tmp_path / "out")
    recipe = Recipe(method, tuple(METHODS[method]), density=0.3, seed=5)
    one, two, merged = (weights_of(folder) for folder in (tiny_reranker, other, tmp_path / "out"))
    for name, tensor in merged.items():
        arrays = [one[name].numpy(), two[name].numpy()]
        expected = mixing.mixed(method, arrays, METHODS[method], recipe.settings(name))
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_what_dare_drops_depends_on_the_seed_and_the_tensors_name(tiny_reranker, other, tmp_path):
    files = {}
    for name, seed in {"one": 1, "same": 1, "two": 2}.items():
        merge([tiny_reranker, other], section(method="dare", seed=seed), tmp_path / name)
        files[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert files["one"] == files["same"] != files["two"]
    recipe = Recipe("dare", (1.0,), seed=1)
    assert recipe.settings("a") == recipe.settings("a") != recipe.settings("b")


@pytest.mark.parametrize(
    ("settings", "weights", "found"),
    [
        ({"weight": 0.25}, None, (0.75, 0.25)),
        ({"weight": 0.25, "method": "ties"}, None, (0.25,)),
        ({"method": "task-arithmetic"}, None, (1.0,)),
        ({"method": "slerp"}, None, (0.5, 0.5)),
        ({"weight": "sweep"}, [0.9, 0.1], (0.9, 0.1)),
        ({"weights": [0.5, 0.5]}, [0.9, 0.1], (0.9, 0.1)),
    ],
)
def test_weights_come_from_the_sweep_the_section_or_a_default(tiny_reranker, tmp_path, settings, weights, found):
    report = merge([tiny_reranker] * 2, section(**settings), tmp_path / "out", weights=weights)
    assert report.weights == found
    swept = "chosen on dev by a sweep" in (tmp_path / "out/README.md").read_text()
    assert swept == (settings.get("weight") == "sweep")


def test_cocktail_weights_are_the_softmax_of_losses_and_told(tiny_reranker, other, tmp_path):
    losses = [0.5, 2.5]
    report = merge([tiny_reranker, other], section(method="cocktail"), tmp_path / "out", losses=losses)
    shares = np.exp(-np.array(losses) / 5)
    np.testing.assert_allclose(report.weights, shares / shares.sum())
    assert "softmax(-loss / 5) of the losses 0.5, 2.5" in (tmp_path / "out/README.md").read_text()
    merge([tiny_reranker, other], section(weights=list(report.weights)), tmp_path / "linear")
    merged, expected = (tmp_path / name / "model.safetensors" for name in ("out", "linear"))
    assert merged.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("settings", "given", "told"),
    [
        ({"weight": "sweep"}, {}, "must be found"),
        ({"method": "cocktail"}, {}, "give `losses`"),
        ({"method": "cocktail"}, {"losses": [1.0]}, "one for each of 2 models, not 1"),
        ({}, {"weights": [1.0]}, "needs 2 weights, not 1"),
        ({}, {"weights": [1.0, 0.5]}, "sum to 1.5, not to 1"),
        ({"method": "ties"}, {"weights": [0.5, 0.5]}, "needs 1 weights, not 2"),
        ({"head": "rescale"}, {}, "give `probe`"),
    ],
)
def test_what_must_be_found_first_is_asked_for(tiny_reranker, tmp_path, settings, given, told):
    with pytest.raises(ConfigError, match=told):
        merge([tiny_reranker] * 2, section(**settings), tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_layers_have_the_weights_of_the_first_pattern_that_fits_them(tiny_reranker, other, tmp_path):
    layers = {"*.layer.0.*": [0.0, 1.0], "bert.*": [1.0, 0.0]}
    report = merge([tiny_reranker, other], section(weights=[0.5, 0.5], layers=layers), tmp_path / "out")
    one, two, merged = (weights_of(folder) for folder in (tiny_reranker, other, tmp_path / "out"))
    for name in merged:
        if name.startswith("bert."):
            assert torch.equal(merged[name], (two if ".layer.0." in name else one)[name])
    assert not torch.equal(merged[HEAD], one[HEAD])
    assert not torch.equal(merged[HEAD], two[HEAD])
    assert report.lines()[0] == "linear: 0.5 model0 + 0.5 model1; *.layer.0.*: 0, 1; bert.*: 1, 0"
    assert report.values()["layers"] == layers
    assert "*.layer.0.*: 0, 1" in (tmp_path / "out/README.md").read_text()


def test_a_pattern_that_fits_no_tensor_is_refused_with_names_like_it(tiny_reranker, tmp_path):
    layers = {"bert.encoder.layer.7.output.dense.weight": [1.0, 0.0]}
    with pytest.raises(ConfigError, match=r"bert\.encoder\.layer\.[01]\.output\.dense\.weight"):
        merge([tiny_reranker] * 2, section(layers=layers), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_report_has_cosines_a_table_and_plain_values(tiny_reranker, tmp_path):
    def change(tensors):
        tensors[HEAD] = -tensors[HEAD]
        tensors["bert.pooler.dense.weight"] = tensors["bert.pooler.dense.weight"] * 2

    other = remade(tiny_reranker, tmp_path / "other", change)
    report = merge([tiny_reranker, other], section(method="ties", density=0.4), tmp_path / "out")
    assert report.cosines[HEAD] == (pytest.approx(-1),)
    assert report.cosines["bert.pooler.dense.weight"] == (pytest.approx(1),)
    assert report.table(5) == [
        "tensor                    distance  cosine",
        "classifier.weight           2.0000  -1.0000",
        "bert.pooler.dense.weight    0.5000  1.0000",
    ]
    assert len(report.table(1)) == 2
    values = json.loads(json.dumps(report.values(), allow_nan=False))
    assert values["distances"][HEAD] == [pytest.approx(2)]
    assert (values["method"], values["weights"], values["density"], values["seed"]) == ("ties", [1.0], 0.4, None)
    assert report.lines()[0] == "ties: model0 + 1 (model1 - model0); density 0.4"
    assert "| model0 | where the others started |\n| model1 | 1 |" in (tmp_path / "out/README.md").read_text()


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.fixture
def bare(tiny_reranker, tmp_path):
    """A plain encoder of the reranker's body, elsewhere in each tensor."""
    from transformers import AutoModel

    folder = remade(tiny_reranker, tmp_path / "bare", nudge(7))
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert not any(name.startswith(("bert.", "classifier")) for name in weights_of(folder))
    return folder


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_a_plain_encoder_is_merged_with_rerankers_and_has_no_say_in_the_head(
    tiny_reranker, other, bare, tmp_path, order
):
    from transformers import AutoModelForSequenceClassification

    models = [[bare, tiny_reranker, other][place] for place in order]
    shares = [[0.5, 0.2, 0.3][place] for place in order]
    names = [["base", "one", "two"][place] for place in order]
    chosen = MergeSection(models=names, weights=shares)
    report = merge(models, chosen, tmp_path / "out")
    body, one, two, merged = (weights_of(folder) for folder in (bare, tiny_reranker, other, tmp_path / "out"))
    assert merged.keys() == one.keys()
    for name, tensor in merged.items():
        if name.startswith("bert."):
            expected = 0.5 * body[name.removeprefix("bert.")] + 0.2 * one[name] + 0.3 * two[name]
        else:
            expected = 0.4 * one[name] + 0.6 * two[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-8)
    assert "base has no head: the head is one and two's" in report.lines()
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert None in report.distances[HEAD]
    assert None not in report.distances["bert.pooler.dense.weight"]


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare"])
def test_differences_from_a_plain_encoder_leave_the_others_head(tiny_reranker, bare, tmp_path, method):
    merge([bare, tiny_reranker], section(method=method, density=1.0), tmp_path / "out")
    merged, one = weights_of(tmp_path / "out"), weights_of(tiny_reranker)
    assert torch.equal(merged[HEAD], one[HEAD])
    torch.testing.assert_close(merged["bert.pooler.dense.weight"], one["bert.pooler.dense.weight"])


def test_a_language_model_is_a_body_and_its_pooler_may_lack(tiny_reranker, tmp_path):
    def change(tensors):
        for name in [name for name in tensors if "pooler" in name or name.startswith("classifier")]:
            del tensors[name]
        tensors["cls.predictions.bias"] = torch.zeros(7)
        for old, new in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
            for name in [name for name in tensors if name.endswith(old)]:
                tensors[name.replace(old, new)] = tensors.pop(name)

    base = remade(tiny_reranker, tmp_path / "base", change)
    edit_config(base, architectures=["BertForMaskedLM"], id2label=None)
    report = merge([base, tiny_reranker], section(), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tiny_reranker / "model.safetensors").read_bytes()
    assert "left out, since the merged model has no place for them: cls.predictions.bias" in report.lines()


def test_a_plain_roberta_has_a_pooler_that_rerankers_lack(tiny_reranker, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=110, max_position_embeddings=34, num_labels=1, **sizes)
    models = []
    for kind in (RobertaModel, RobertaForSequenceClassification):
        models.append(shutil.copytree(tiny_reranker, tmp_path / kind.__name__))
        kind(config).save_pretrained(models[-1])
    report = merge(models, section(weights=[0.25, 0.75]), tmp_path / "out")
    body, one, merged = (weights_of(folder) for folder in (*models, tmp_path / "out"))
    assert merged.keys() == one.keys()
    name = "encoder.layer.0.output.dense.weight"
    mean = 0.25 * body[name] + 0.75 * one[f"roberta.{name}"]
    torch.testing.assert_close(merged[f"roberta.{name}"], mean, rtol=1e-6, atol=1e-8)
    assert torch.equal(merged["classifier.out_proj.weight"], one["classifier.out_proj.weight"])
    (line,) = [line for line in report.lines() if line.startswith("left out")]
    assert line.endswith("roberta.pooler.dense.bias, roberta.pooler.dense.weight")


def test_an_encoder_of_another_body_is_refused(tiny_reranker, bare, tmp_path):
    tensors = weights_of(bare)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"only .* holds bert\.encoder\.layer\.1\.output\.dense\.weight"):
        merge([bare, tiny_reranker], section(), tmp_path / "out")


def test_a_head_that_was_trained_from_nothing_is_told(tiny_reranker, tmp_path):
    def change(tensors):
        nudge(3, size=0.001)(tensors)
        tensors[HEAD] = torch.randn(tensors[HEAD].shape, generator=torch.Generator().manual_seed(1))

    anew = remade(tiny_reranker, tmp_path / "anew", change)
    report = merge([tiny_reranker, anew], section(), tmp_path / "out")
    (line,) = [line for line in report.lines() if "from nothing" in line]
    assert line.startswith(
        f"the head of model1 was trained from nothing (cosine {report.cosines[HEAD][0]:.2f} to model0's)"
    )
    assert "layers: {'classifier.*': [0.0, 1.0]}" in line
    alike = remade(tiny_reranker, tmp_path / "alike", nudge(3, size=0.001))
    assert "from nothing" not in str(merge([tiny_reranker, alike], section(), tmp_path / "out").lines())


def logits(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        *map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**batch).logits[:, 0].numpy()


@pytest.fixture
def louder(tiny_reranker, tmp_path):
    """The same order of the pairs on another scale."""

    def change(tensors):
        tensors[HEAD] = tensors[HEAD] * 7
        tensors["classifier.bias"] = tensors["classifier.bias"] + 2

    return remade(tiny_reranker, tmp_path / "louder", change)


def test_logits_on_another_scale_are_told(tiny_reranker, louder, tmp_path):
    report = merge([tiny_reranker, louder], section(), tmp_path / "out", probe=logits)
    one, two = logits(tiny_reranker), logits(louder)
    assert [(own.mean, own.spread) for own in report.logits] == [
        (pytest.approx(each.mean(), abs=1e-6), pytest.approx(each.std(), rel=1e-4)) for each in (one, two)
    ]
    assert report.lines()[-2].startswith("logits of the probe pairs: model0 mean ")
    assert report.lines()[-1] == ("the logits of model1 are on another scale than those of model0: try head: rescale")
    same = merge([tiny_reranker] * 2, section(), tmp_path / "out", probe=logits)
    assert "another scale" not in str(same.lines())
    assert same.values()["logits"][0] == same.values()["logits"][1]


@pytest.mark.parametrize("weights", [[0.0, 1.0], [0.5, 0.5]])
def test_rescaled_logits_have_the_first_models_mean_and_spread(tiny_reranker, louder, tmp_path, weights):
    """Of one body and heads that differ by a scale, any mixture then scores like the first model."""
    chosen = section(weights=weights, head="rescale")
    report = merge([tiny_reranker, louder], chosen, tmp_path / "out", probe=logits)
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(tiny_reranker), atol=1e-6)
    assert "rescaled before mixing" in report.lines()[-1]
    assert "rescaled before mixing" in (tmp_path / "out/README.md").read_text()


def test_another_models_logits_are_rescaled_exactly_and_one_without_a_head_is_left_alone(
    tiny_reranker, other, bare, tmp_path
):
    chosen = section(3, weights=[0.0, 0.0, 1.0], head="rescale")
    merge([bare, tiny_reranker, other], chosen, tmp_path / "out", probe=logits)
    aim, found, before = logits(tiny_reranker), logits(tmp_path / "out"), logits(other)
    assert found.mean() == pytest.approx(aim.mean(), abs=1e-6)
    assert found.std() == pytest.approx(aim.std(), rel=1e-3)
    np.testing.assert_allclose((found - found.mean()) / found.std(), (before - before.mean()) / before.std(), atol=1e-3)


def test_without_a_bias_only_the_spread_is_matched_and_that_is_told(tiny_reranker, louder, tmp_path):
    models = [
        remade(model, tmp_path / f"unbiased{number}", lambda tensors: tensors.pop("classifier.bias"))
        for number, model in enumerate((tiny_reranker, louder))
    ]
    made = iter([np.float32([0, 2, 4]), np.float32([1, 2, 3])])
    report = merge(
        models, section(weights=[0.0, 1.0], head="rescale"), tmp_path / "out", probe=lambda folder: next(made)
    )
    assert report.lines()[-1].startswith("classifier has no bias, so only the logits' spread was matched")
    torch.testing.assert_close(weights_of(tmp_path / "out")[HEAD], 2 * weights_of(louder)[HEAD])


@pytest.mark.parametrize(("given", "told"), [([1, 1, 1], "the same logit"), ([1, np.nan, 2], "not finite")])
def test_logits_that_have_no_scale_are_refused(tiny_reranker, other, tmp_path, given, told):
    def probe(folder):
        return np.float32([1, 2, 3] if folder == tiny_reranker else given)

    with pytest.raises(ModelError, match=told) as caught:
        merge([tiny_reranker, other], section(head="rescale"), tmp_path / "out", probe=probe)
    assert caught.value.where == str(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_several_labels_are_not_rescaled(tiny_reranker, tmp_path):
    def change(tensors):
        tensors.update({HEAD: torch.randn(2, 32), "classifier.bias": torch.randn(2)})

    model = remade(tiny_reranker, tmp_path / "two", change)
    edit_config(model, id2label={"0": "no", "1": "yes"})
    with pytest.raises(ConfigError, match="models of one logit, these have 2"):
        merge([model, model], section(head="rescale"), tmp_path / "out", probe=logits)


@pytest.mark.parametrize("change", ["padding", "nothing but vocab.txt"])
def test_tokenizer_files_that_differ_in_bytes_alone_are_no_reason_to_refuse(tiny_reranker, other, tmp_path, change):
    if change == "padding":
        path = other / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
        merge([tiny_reranker, other], section(), tmp_path / "out")
    else:
        slow = remade(tiny_reranker, tmp_path / "slow", nudge(2))
        (slow / "tokenizer.json").unlink()
        merge([tiny_reranker, slow], section(), tmp_path / "out")
        merge([slow, slow], section(), tmp_path / "out")


def test_two_ways_to_write_debertas_attention_are_no_difference():
    from rankwright.rooms.merge.checks import _disagree

    assert not _disagree("pos_att_type", {"pos_att_type": ["p2c", "c2p"]}, {"pos_att_type": "p2c|c2p"})
    assert _disagree("pos_att_type", {"pos_att_type": ["p2c"]}, {"pos_att_type": "p2c|c2p"})
