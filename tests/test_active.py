"""Active rows: a compact word embedding trains as the whole one does, and the whole one comes back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from rankwright.errors import ModelError
from rankwright.toolbox.active import ActiveRows
from rankwright.toolbox.model import Reranker

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
USED = [0, 1, 2, 3, 7, 20, 21, 39]


def classifier(family="bert", seed=0, **options):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(family, **SHAPE, vocab_size=40, num_labels=1, **{"pad_token_id": 1, **options})
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(config)


@pytest.fixture
def saved(tmp_path):
    """Saves a model and gives its folder."""

    def save(model):
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


def used(*more):
    marks = np.zeros(40, dtype=np.bool_)
    marks[[*USED, *more]] = True
    return marks


def batch(seed=0, count=4, length=6):
    """Ids among those in use, the last pair padded, never the padding's elsewhere."""
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.choice([place for place in USED if place != 1], (count, length)))
    mask = torch.ones_like(ids)
    ids[-1, 4:], mask[-1, 4:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def train(model, steps=6, *, others=None, decay=0.1):
    """Some steps of AdamW with a clipped gradient; the rows `others` of the words stay, as without decay on them."""
    words = model.get_input_embeddings()
    before = words.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    for step in range(steps):
        logits = model(**batch(step)).logits[:, 0]
        (logits - torch.arange(4.0)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        if others is not None:
            with torch.no_grad():
                words.weight[others] = before[others]
    return optimizer


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v2", "distilbert", "modernbert"])
def test_it_trains_as_the_whole_table_does_without_decay_on_the_other_rows(family, saved):
    options = {} if family in ("modernbert", "distilbert") else STILL
    if family == "distilbert":
        options = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "dim": 16, "n_layers": 2}
    whole, compact = (classifier(family, **options) for _ in range(2))
    folder = saved(compact)
    active = ActiveRows.of(compact, used(), folder)
    assert compact.get_input_embeddings().weight.shape == (8, 16)
    train(whole.train(), others=[place for place in range(40) if place not in USED])
    optimizer = train(compact.train())
    moments = [state["exp_avg"].shape for state in optimizer.state_dict()["state"].values()]
    assert (8, 16) in moments
    assert (40, 16) not in moments
    active.restore()
    before = classifier(family, **options).get_input_embeddings().weight
    after = compact.get_input_embeddings().weight
    others = [place for place in range(40) if place not in USED]
    assert torch.equal(after[others], before[others])
    assert (after[7] - before[7]).abs().max() > 1e-3
    for (name, one), (_, other) in zip(whole.named_parameters(), compact.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(compact.eval()(**batch()).logits, compact(**batch()).logits)


@pytest.mark.parametrize("pad", [1, 20])
def test_a_model_that_counts_positions_from_the_padding_id_gives_the_same_scores(pad, saved):
    model = classifier("xlm-roberta", pad_token_id=pad).eval()
    ids = batch()["input_ids"].masked_fill(batch()["attention_mask"] == 0, pad)
    given = {**batch(), "input_ids": ids}
    before = model(**given).logits
    active = ActiveRows.of(model, used(), saved(model))
    assert torch.equal(model(**given).logits, before)
    model(**given).logits.sum().backward()
    words = model.get_input_embeddings()
    assert active.rows[words.padding_idx] == pad
    assert not words.weight.grad[words.padding_idx].any()
    active.restore()
    assert words.padding_idx == pad
    assert words.num_embeddings == 40


def test_the_table_is_let_go_where_the_folder_has_it_under_whatever_name(saved):
    from safetensors.torch import load_file, save_file

    model = classifier()
    folder = saved(model)
    tensors = load_file(folder / "model.safetensors")
    tensors["other.words"] = tensors.pop("bert.embeddings.word_embeddings.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    before = model.get_input_embeddings().weight.detach().clone()
    active = ActiveRows.of(model, used(), folder)
    assert type(active._table).__name__ == "_InFile"
    shutil.rmtree(folder)  # it is open already
    active.restore()
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("how", ["no safetensors", "other weights"])
def test_the_table_is_kept_where_the_folder_has_it_not(how, saved, tmp_path):
    model = classifier()
    folder = tmp_path / "nothing" if how == "no safetensors" else saved(classifier(seed=1))
    before = model.get_input_embeddings().weight.detach().clone()
    active = ActiveRows.of(model, used(), folder)
    assert type(active._table).__name__ == "_Kept"
    active.restore()
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_table_in_half_precision_comes_back_as_it_was_loaded(saved):
    model = classifier().to(torch.bfloat16)
    folder = saved(model)
    model = model.to(torch.float32)
    before = model.get_input_embeddings().weight.detach().clone()
    active = ActiveRows.of(model, used(), folder)
    assert type(active._table).__name__ == "_InFile"
    active.restore()
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_weights_that_are_overwritten_meanwhile_are_told(saved):
    model = classifier()
    folder = saved(model)
    active = ActiveRows.of(model, used(), folder)
    other = classifier(seed=3)
    other.save_pretrained(folder.with_name("other"))
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((folder.with_name("other") / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="overwritten"):
        active.restore()


def test_an_id_outside_the_table_is_a_clear_error(saved):
    model = classifier()
    ActiveRows.of(model, used(), saved(model))
    ids = batch()["input_ids"]
    ids[0, 0] = 11
    with pytest.raises(ModelError, match=r"1 token ids \(as 11\) are not among the 8"):
        model(input_ids=ids)


def test_a_shared_or_unusual_embedding_is_left_alone(saved):
    model = classifier()
    model.shared = torch.nn.Linear(16, 40, bias=False)
    model.shared.weight = model.get_input_embeddings().weight
    assert ActiveRows.of(model, used(), saved(classifier())) is None
    model = classifier()
    model.get_input_embeddings().max_norm = 1.0
    assert ActiveRows.of(model, used(), saved(classifier())) is None

    class Scaled(torch.nn.Embedding):
        pass

    model.set_input_embeddings(Scaled(40, 16))
    assert ActiveRows.of(model, used(), saved(classifier())) is None


def test_a_frozen_embedding_stays_frozen(saved):
    model = classifier()
    folder = saved(model)
    model.get_input_embeddings().weight.requires_grad_(False)
    active = ActiveRows.of(model, used(), folder)
    assert not model.get_input_embeddings().weight.requires_grad
    active.restore()
    assert not model.get_input_embeddings().weight.requires_grad


def test_ids_beyond_the_vocabulary_leave_the_model_alone(tiny_reranker):
    reranker = Reranker.load(tiny_reranker, device="cpu")
    size = json.loads((tiny_reranker / "config.json").read_text())["vocab_size"]
    assert ActiveRows.of(reranker.model, np.ones(size + 1, dtype=np.bool_), tiny_reranker) is None
