"""The Reranker: what it loads and refuses, and that other loaders read what it saves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rankwright.errors import ModelError
from rankwright.toolbox import model as model_module
from rankwright.toolbox.engine import guard
from rankwright.toolbox.model import Reranker, has_head, model_card

PAIRS = [
    ("red apple", "green pear and blue plum"),
    ("how to find the value of a graph", "linear graph"),
    ("fast", ""),
    ("car train boat", "a small old boat " * 30),
    ("sorts", "zqx unknown9 words"),
]


WORDS = "red green blue apple pear plum car train boat sorts linear graph value the a of and to how find small old"


def louder(folder, to):
    """The model of a folder with larger weights: a fresh tiny one gives all pairs nearly one score."""
    import torch

    reranker = Reranker.load(folder, device="cpu")
    with torch.no_grad():
        for name, parameter in reranker.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0 if name.startswith("classifier") else 6.0)
    reranker.save(to, card="# loud\n")
    return to


def tiny_xlmr(folder):
    """An XLM-R-shaped reranker with a SentencePiece-like tokenizer, as bge-reranker-base is shaped."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaTokenizer

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    letters = [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [*special, ("▁", -2.0), *[(f"▁{word}", -3.0) for word in WORDS.split()], *letters, ("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocabulary, model_max_length=62).save_pretrained(folder)
    torch.manual_seed(3)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def saved(request, tmp_path_factory, tiny_reranker):
    """A model folder as `save` writes it after the model has scored."""
    root = tmp_path_factory.mktemp("saved")
    source = tiny_reranker if request.param == "bert" else tiny_xlmr(root / "source")
    folder = louder(source, root / "loud")
    reranker = Reranker.load(folder, device="cpu", max_length=40)
    reranker.score(PAIRS)
    reranker.save(root / "model", card=model_card("A", "some/base", ["Words."]))
    return root / "model"


@pytest.fixture(scope="module")
def scores(saved):
    found = Reranker.load(saved, device="cpu").score(PAIRS)
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.1  # or a comparison of scores would compare nothing
    return found


def copied(folder, to):
    return shutil.copytree(folder, to)


def rewrite(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ------------------------------------------------------------------------------- what other loaders read


def test_sentence_transformers_loads_a_saved_model_and_gives_the_same_scores(saved, scores):
    import torch
    from sentence_transformers import CrossEncoder

    plain = CrossEncoder(str(saved), device="cpu")
    assert isinstance(plain.activation_fn, torch.nn.Sigmoid)
    np.testing.assert_allclose(plain.predict(PAIRS), 1 / (1 + np.exp(-scores)), atol=1e-5)
    logits = CrossEncoder(str(saved), device="cpu", activation_fn=torch.nn.Identity()).predict(PAIRS)
    np.testing.assert_allclose(logits, scores, atol=1e-5)


def test_sentence_transformers_ranks_as_we_do(saved):
    from sentence_transformers import CrossEncoder

    documents = [document for _, document in PAIRS]
    theirs = CrossEncoder(str(saved), device="cpu").rank("red apple", documents)
    ours = Reranker.load(saved, device="cpu").rank("red apple", documents)
    assert [hit["corpus_id"] for hit in theirs] == [position for position, _ in ours]


def test_plain_transformers_loads_a_saved_model_and_gives_the_same_scores(saved, scores):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    queries, documents = zip(*PAIRS, strict=True)
    batch = tokenizer(list(queries), list(documents), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (len(PAIRS), 1)
    np.testing.assert_allclose(logits[:, 0].numpy(), scores, atol=1e-5)


def test_a_saved_config_has_one_label_and_names_its_activation(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["label2id"] == {"LABEL_0": 0}
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.activation.Sigmoid"
    assert isinstance(config["pad_token_id"], int)


def test_a_saved_folder_is_plain_files_with_one_of_safetensors_and_no_pickle(saved):
    names = {file.name for file in saved.rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert [file.name for file in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert not [name for name in names if name.endswith((".bin", ".pt")) or "adapter" in name]


def test_a_saved_tokenizer_has_a_concrete_class_a_length_and_nothing_baked_in(saved):
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] in ("BertTokenizer", "XLMRobertaTokenizer")
    assert config["model_max_length"] in (62, 64), "what the model can read, not what it was trained with"
    backend = json.loads((saved / "tokenizer.json").read_text())
    assert backend["truncation"] is None
    assert backend["padding"] is None


def test_a_shelved_tokenizer_is_gone_until_it_is_wanted_again(tmp_path, saved):
    reranker = Reranker.load(saved, device="cpu")
    before = reranker.encoder([("what is bm25", "a ranking function")]).ids
    reranker.save(tmp_path / "before", card="")
    reranker.shelve_tokenizer()
    assert not hasattr(reranker, "tokenizer")
    reranker.unshelve_tokenizer()
    reranker.unshelve_tokenizer()  # of what is there already
    assert np.array_equal(reranker.encoder([("what is bm25", "a ranking function")]).ids, before)
    reranker.save(tmp_path / "after", card="")
    assert snapshot(tmp_path / "after") == snapshot(tmp_path / "before")


def test_a_tokenizer_that_cannot_be_pickled_stays(saved, monkeypatch):
    reranker = Reranker.load(saved, device="cpu")
    monkeypatch.setattr(type(reranker.tokenizer), "__reduce_ex__", lambda *_: 1 / 0)
    reranker.shelve_tokenizer()
    assert reranker.tokenizer
    reranker.unshelve_tokenizer()
    assert reranker.tokenizer


def test_saving_does_not_change_what_the_model_in_memory_gives(tmp_path, saved, scores):
    reranker = Reranker.load(saved, device="cpu")
    reranker.save(tmp_path / "m", card="")
    np.testing.assert_array_equal(reranker.score(PAIRS), scores)


@pytest.mark.parametrize("word", [None, "TokenizersBackend"])
def test_a_tokenizer_of_no_named_class_is_saved_under_one_that_loads(tmp_path, tiny_reranker, word):
    from transformers import AutoTokenizer

    base = copied(tiny_reranker, tmp_path / "base")
    rewrite(base / "tokenizer_config.json", tokenizer_class=word)
    Reranker.load(base, device="cpu").save(tmp_path / "m", card="")
    name = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert name not in (None, "TokenizersBackend")
    ours, theirs = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs("red apple", "zq1").input_ids == ours("red apple", "zq1").input_ids


def test_files_of_the_tokenizer_that_others_need_come_along(tmp_path, tiny_reranker):
    Reranker.load(tiny_reranker, device="cpu").save(tmp_path / "m", card="")
    assert (tmp_path / "m" / "vocab.txt").read_bytes() == (tiny_reranker / "vocab.txt").read_bytes()


def test_a_card_opens_with_the_front_matter_that_hubs_read():
    import yaml

    _, front, rest = model_card('Mine: a "title"', 'odd "base": x', ["One line."]).split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == "text-ranking"
    assert values["library_name"] == "sentence-transformers"
    assert values["base_model"] == 'odd "base": x'
    assert rest.strip().startswith("# Mine")


# -------------------------------------------------------------------------------------- what is refused


def test_a_plain_encoder_cannot_score_and_the_error_says_to_train_it(tiny_encoder):
    with pytest.raises(ModelError, match=r"without a classification head[\s\S]*train it"):
        Reranker.load(tiny_encoder)


def test_a_head_with_two_labels_is_refused_by_load_and_start_alike(tmp_path, tiny_reranker):
    folder = copied(tiny_reranker, tmp_path / "two")
    rewrite(folder / "config.json", id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    for opened in (Reranker.load, lambda reference: Reranker.start(reference, seed=0)):
        with pytest.raises(ModelError, match=r"2 labels[\s\S]*one label") as caught:
            opened(folder)
        assert caught.value.hint
        assert "config.json" in caught.value.where


def test_a_classifier_whose_config_names_no_labels_has_transformers_default_of_two(tmp_path, tiny_reranker):
    folder = copied(tiny_reranker, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "label" not in k}))
    with pytest.raises(ModelError, match="2 labels"):
        has_head(folder)


@pytest.mark.parametrize("content", [None, "", "{not json", "[1, 2]"])
def test_a_folder_without_a_readable_config_is_no_model_folder_and_says_what_one_holds(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="not a model folder") as caught:
        Reranker.load(tmp_path)
    assert "config.json" in str(caught.value)
    assert caught.value.hint


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        Reranker.load(tmp_path / "nowhere")


def test_a_folder_without_weights_is_refused(tmp_path, tiny_reranker):
    folder = copied(tiny_reranker, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        Reranker.load(folder)


def without_weights(folder, to, *, holding):
    """A copy of a model folder that lacks the weights whose name holds a word."""
    from safetensors.torch import load_file, save_file

    copied(folder, to)
    weights = load_file(to / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if holding not in name}
    assert len(kept) < len(weights)
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_weights_that_are_missing_are_refused_and_named(tmp_path, tiny_reranker):
    for word in ("classifier", "layer.1.attention"):
        folder = without_weights(tiny_reranker, tmp_path / word, holding=word)
        with pytest.raises(ModelError, match=rf"missing[\s\S]*{word}"):
            Reranker.load(folder)


def test_an_encoder_that_lacks_more_than_its_head_does_not_start_a_training(tmp_path, tiny_encoder):
    folder = without_weights(tiny_encoder, tmp_path / "m", holding="layer.1.attention")
    with pytest.raises(ModelError, match=r"missing[\s\S]*layer.1.attention"):
        Reranker.start(folder, seed=0)


def test_an_encoder_without_a_pooler_starts_a_training_with_a_new_one(tmp_path, tiny_encoder):
    folder = without_weights(tiny_encoder, tmp_path / "m", holding="pooler")
    assert Reranker.start(folder, seed=0).new_head


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_told_as_a_model_error(tmp_path, tiny_reranker, name):
    folder = copied(tiny_reranker, tmp_path / "m")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot load the model"):
        Reranker.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path, tiny_reranker):
    folder = copied(tiny_reranker, tmp_path / "m")
    rewrite(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="cannot load the model"):
        Reranker.load(folder)


def test_a_hub_id_without_a_network_says_how_to_use_a_local_folder():
    with pytest.raises(ModelError, match="local folder"):
        Reranker.load("nobody/there-is-no-such-model")


def test_half_precision_weights_are_loaded_in_full(tmp_path, tiny_reranker):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = copied(tiny_reranker, tmp_path / "m")
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    assert Reranker.load(folder, device="cpu").model.dtype == torch.float32


# -------------------------------------------------------------------------------------- a new head, ranks


def test_a_new_head_is_drawn_from_its_seed_alone_and_leaves_global_randomness_alone(tiny_encoder):
    import random

    import torch

    def head(seed):
        return Reranker.start(tiny_encoder, seed=seed, device="cpu").model.classifier.weight.detach().clone()

    torch.manual_seed(5)
    first = head(0)
    torch.manual_seed(6)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(first, head(0))
    assert not torch.equal(first, head(1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_start_keeps_a_head_that_is_there(tiny_reranker):
    import torch

    started, loaded = Reranker.start(tiny_reranker, seed=9, device="cpu"), Reranker.load(tiny_reranker, device="cpu")
    assert not started.new_head
    assert torch.equal(started.model.classifier.weight, loaded.model.classifier.weight)


def test_a_length_beyond_the_model_is_cut_to_its_own(saved):
    assert Reranker.load(saved, device="cpu", max_length=4000).max_length in (62, 64)
    assert Reranker.load(saved, device="cpu", max_length=10).max_length == 10


def test_rank_keeps_the_order_given_where_scores_tie_and_cuts_at_top(saved):
    reranker = Reranker.load(saved, device="cpu")
    documents = ["red apple", "old boat", "red apple", "old boat", "zq"]
    ranked = reranker.rank("red", documents)
    scores = reranker.score([("red", document) for document in documents])
    np.testing.assert_allclose([score for _, score in ranked], np.sort(scores)[::-1], atol=1e-6)
    positions = [position for position, _ in ranked]
    assert positions.index(0) + 1 == positions.index(2)
    assert positions.index(1) + 1 == positions.index(3)
    assert reranker.rank("red", documents, top=2) == ranked[:2]
    assert reranker.rank("red", []) == []


# --------------------------------------------------------------------------------------- whole or nothing


def snapshot(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_saving_over_an_older_model_replaces_all_of_it(tmp_path, saved):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old.txt").write_text("old")
    Reranker.load(saved, device="cpu").save(tmp_path / "m", card="new\n")
    assert (tmp_path / "m" / "README.md").read_text() == "new\n"
    assert not (tmp_path / "m" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_exception_while_saving_leaves_the_older_folder_and_nothing_else(tmp_path, saved, monkeypatch):
    reranker = Reranker.load(saved, device="cpu")
    reranker.save(tmp_path / "m", card="old\n")
    before = snapshot(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_module, "_tidy_tokenizer", full)
    with pytest.raises(OSError, match="No space"):
        reranker.save(tmp_path / "m", card="new\n")
    assert snapshot(tmp_path) == before


KILLED = """
import os, pathlib, shutil, signal, sys
from rankwright.toolbox.model import Reranker

reranker = Reranker.load(sys.argv[1], device="cpu")

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

for where, what in ((reranker.tokenizer, "save_pretrained"), (pathlib.Path, "rename"), (shutil, "rmtree")):
    if not (child := os.fork()):
        setattr(where, what, die)
        reranker.save(pathlib.Path(sys.argv[2]) / what, card="new")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_kill_while_saving_leaves_the_older_folder_whole(tmp_path, tiny_reranker):
    reranker = Reranker.load(tiny_reranker, device="cpu")
    reranker.save(tmp_path / "save_pretrained", card="old")
    for name in ("rename", "rmtree"):
        copied(tmp_path / "save_pretrained", tmp_path / name)
    before = snapshot(tmp_path / "rename")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILLED, str(tiny_reranker), str(tmp_path)], env=environment, check=True)
    for name in ("save_pretrained", "rename", "rmtree"):
        assert snapshot(tmp_path / name) == before
        reranker.save(tmp_path / name, card="new")
        assert (tmp_path / name / "README.md").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3  # what the kills left is swept away


def test_an_older_folder_is_never_half_there(tmp_path, tiny_reranker, monkeypatch):
    reranker = Reranker.load(tiny_reranker, device="cpu")
    reranker.save(tmp_path / "m", card="old")
    whole, seen = set(snapshot(tmp_path / "m")), []
    remove = shutil.rmtree

    def watching(path, **options):
        there = tmp_path / "m"
        seen.append(set(snapshot(there)) if there.exists() else None)
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watching)
    reranker.save(tmp_path / "m", card="new")
    assert seen
    assert all(files == whole for files in seen)


# ----------------------------------------------------------------------------------------------- the blend


def _with_blend(tiny_reranker, folder, **blend):
    shutil.copytree(tiny_reranker, folder)
    (folder / "rankwright.json").write_text(json.dumps({"blend": blend}))
    return Reranker.load(folder, device="cpu")


DOCUMENTS = ["red apple", "old boat", "green pear", "fast train"]


def test_a_saved_blend_is_applied_to_the_retrievers_scores(tiny_reranker, tmp_path):
    reranker = _with_blend(tiny_reranker, tmp_path / "m", weight=0.4, depth=4, normalisation="z")
    retrieved = [0.9, 0.1, 0.5, 0.3]
    logits = reranker.score([("red", document) for document in DOCUMENTS])
    both = [(np.asarray(scores) - np.mean(scores)) / np.std(scores) for scores in (retrieved, logits.astype(float))]
    wanted = 0.6 * both[0] + 0.4 * both[1]
    ranked = reranker.rank("red", DOCUMENTS, retriever=retrieved)
    assert [place for place, _ in ranked] == np.argsort(-wanted, kind="stable").tolist()
    np.testing.assert_allclose([score for _, score in ranked], np.sort(wanted)[::-1], atol=1e-6)


def test_weight_0_keeps_the_retrievers_order_and_depth_leaves_the_rest_underneath(tiny_reranker, tmp_path):
    keeps = _with_blend(tiny_reranker, tmp_path / "a", weight=0.0, depth=4, normalisation="z")
    assert [place for place, _ in keeps.rank("red", DOCUMENTS, retriever=[1, 4, 3, 2])] == [1, 2, 3, 0]
    two = _with_blend(tiny_reranker, tmp_path / "b", weight=1.0, depth=2, normalisation="z")
    ranked = two.rank("red", DOCUMENTS, retriever=[1, 4, 3, 2])
    assert {place for place, _ in ranked[:2]} == {1, 2}
    assert [place for place, _ in ranked[2:]] == [3, 0]
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_a_blend_that_was_not_saved_and_scores_that_are_too_few_are_refused(tiny_reranker, tmp_path):
    plain = Reranker.load(tiny_reranker, device="cpu")
    with pytest.raises(ModelError, match="no blend was saved"):
        plain.rank("red", DOCUMENTS, retriever=[1, 2, 3, 4])
    blended = _with_blend(tiny_reranker, tmp_path / "m", weight=0.4, depth=4, normalisation="z")
    with pytest.raises(ValueError, match="4 documents and 1 scores"):
        blended.rank("red", DOCUMENTS, retriever=[1])


def test_changed_weights_are_scored_as_they_are_now_and_decided_on_anew(tiny_reranker):
    import torch

    reranker = Reranker.load(tiny_reranker, device="cpu")
    pairs = [("red apple", "green pear"), ("blue", "car")]
    before = reranker.score(pairs)
    reranker.decisions["balanced"] = guard.Decision("balanced", "torch bf16", False, "long ago")
    with torch.no_grad():
        reranker.model.classifier.bias += 1
    np.testing.assert_allclose(reranker.score(pairs, precision="balanced"), before + 1, atol=1e-5)
    assert not reranker.decisions
    head = reranker.model.classifier
    head.weight = torch.nn.Parameter(head.weight.detach() * -1)  # another one, of the same version
    expected = Reranker(reranker.model, reranker.tokenizer, reranker.max_length, "cpu", reranker.source).score(pairs)
    np.testing.assert_array_equal(reranker.score(pairs), expected)
    assert not np.array_equal(expected, before + 1)


def test_the_blend_is_served_with_pairs_read_as_they_were_when_it_was_chosen(tiny_reranker, tmp_path):
    served = {"weight": 1.0, "depth": 4, "normalisation": "z"}
    short = Reranker.load(tiny_reranker, device="cpu", max_length=8)
    documents = ["red apple in the old boat is a fast car", "old boat", "red red red apple", "a graph value"]
    forth = [short.score([("red", document)])[0] for document in documents]
    back = [short.score([(document, "red")])[0] for document in documents]
    for turned, expected in ((False, np.array(forth)), (True, (np.array(forth) + np.array(back)) / 2)):
        reranker = _with_blend(tiny_reranker, tmp_path / str(turned), **served, max_length=8, both_orders=turned)
        assert reranker.max_length > 8
        ranked = reranker.rank("red", documents, retriever=[1, 4, 3, 2])
        assert [place for place, _ in ranked] == np.argsort(-expected, kind="stable").tolist()
        assert reranker._reading(8) is reranker._reading(8), "its tokens are kept"
