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
from rankwright.rooms import merge as room
from rankwright.rooms.merge import merge
from rankwright.sections import MergeSection
from rankwright.toolbox import mixing

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
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-7, atol=1e-9)


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


def test_an_encoder_without_a_head_is_refused(tiny_reranker, tiny_encoder, tmp_path):
    with pytest.raises(ModelError, match=r"no classification head \(architecture: BertModel\)") as caught:
        merge([tiny_reranker, tiny_encoder], section(), tmp_path / "out")
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
    def full(self, name, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room._StreamingWriter, "write", full)
    with pytest.raises(DiskError, match="No space left on device"):
        merge([tiny_reranker, other], section(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_a_merge_killed_half_way_leaves_nothing_to_load_and_the_next_one_succeeds(tiny_reranker, other, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from rankwright.rooms import merge as room
        from rankwright.sections import MergeSection

        write, written = room._StreamingWriter.write, []

        def write_some(self, name, tensor):
            write(self, name, tensor)
            written.append(name)
            if len(written) == 20:
                os.kill(os.getpid(), signal.SIGKILL)

        room._StreamingWriter.write = write_some
        first, second, out = map(Path, sys.argv[1:])
        room.merge([first, second], MergeSection(), out)
    """
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, (tiny_reranker, other, out))]
    finished = subprocess.run(command, env=os.environ, capture_output=True, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
    assert not out.exists()
    assert not list(tmp_path.glob(".out*/config.json"))
    merge([tiny_reranker, other], section(), out)
    merge([tiny_reranker, other], section(), tmp_path / "whole")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "whole"]


def test_models_are_read_one_tensor_name_at_a_time(tiny_reranker, other, tmp_path, monkeypatch):
    read, events = room._Weights.read, []
    mix = mixing.METHODS["linear"]

    def noted(self, name):
        events.append(name)
        return read(self, name)

    monkeypatch.setattr(room._Weights, "read", noted)
    monkeypatch.setitem(
        mixing.METHODS, "linear", lambda tensors, weights: events.append("mix") or mix(tensors, weights)
    )
    report = merge([tiny_reranker, other], section(), tmp_path / "out")
    assert events == [event for name in report.distances for event in (name, name, "mix")]


def test_the_streaming_writer_writes_what_safetensors_would(tmp_path):
    tensors = {"b": torch.randn(3, 2), "é": torch.tensor(2.5), "a": torch.empty(0, 4)}
    layout = {name: ("F32", list(tensors[name].shape), tensors[name].numel() * 4) for name in sorted(tensors)}
    with room._StreamingWriter(tmp_path / "ours", layout) as writer:
        for name in layout:
            writer.write(name, tensors[name])
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_streaming_writer_refuses_a_tensor_that_was_not_announced(tmp_path):
    with (
        room._StreamingWriter(tmp_path / "file", {"a": ("F32", [2], 8)}) as writer,
        pytest.raises(ValueError, match="announced"),
    ):
        writer.write("a", torch.zeros(3))
