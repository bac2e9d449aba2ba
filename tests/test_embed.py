"""The encoder and its cache, against sentence-transformers itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from rankwright.errors import ConfigError, ModelError
from rankwright.toolbox import embed
from rankwright.toolbox.embed import Encoder

TEXTS = [
    "red apple",
    "how to find the value of a graph",
    "",
    "green pear and blue plum",
    "red apple",
    "a fast matrix sorts the linear array",
]


@pytest.fixture
def peer(tiny_encoder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_encoder), device="cpu")


@pytest.fixture
def loads(monkeypatch):
    """The loadings of a model from here on, by reference."""
    loaded = []
    load = embed.load_encoder

    def counting(folder, reference, device):
        loaded.append(reference)
        return load(folder, reference, device)

    monkeypatch.setattr(embed, "load_encoder", counting)
    return loaded


@pytest.fixture
def computed(monkeypatch):
    """The batches of texts that were computed from here on."""
    batches = []
    compute = Encoder._compute

    def counting(self, texts, prompt, max_tokens):
        batches.append(list(texts))
        return compute(self, texts, prompt, max_tokens)

    monkeypatch.setattr(Encoder, "_compute", counting)
    return batches


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("prompt", ["", "find "])
def test_vectors_are_those_of_sentence_transformers(tiny_encoder, peer, tmp_path, cached, prompt):
    encoder = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path if cached else None, batch_size=2)
    rows = encoder.encode(TEXTS, prompt=prompt)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(rows, peer.encode([prompt + text for text in TEXTS]), atol=1e-6)


def test_vectors_are_not_normalised_on_top_of_the_model(tiny_encoder):
    rows = Encoder(str(tiny_encoder), device="cpu").encode(TEXTS)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).min() > 0.1


def test_the_offline_encoder_normalises_by_itself():
    rows = Encoder("offline", device="cpu").encode(["red apple", "sorts an array"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_second_encoder_reads_the_cache_and_loads_no_model(tiny_encoder, tmp_path, loads):
    first = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path).encode(TEXTS, prompt="find ", max_tokens=8)
    assert loads == [str(tiny_encoder)]
    again = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path).encode(TEXTS[::-1], prompt="find ", max_tokens=8)
    assert loads == [str(tiny_encoder)]
    np.testing.assert_array_equal(again, first[::-1])


def test_only_new_texts_are_computed_each_once(tiny_encoder, tmp_path, computed):
    encoder = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path)
    encoder.encode(TEXTS[:2])
    encoder.encode([*TEXTS, "new", "new"])
    assert computed[-2:] == [TEXTS[:2], [*TEXTS[2:4], TEXTS[5], "new"]]


def test_prompts_lengths_and_weights_do_not_share_vectors(tiny_encoder, tmp_path):
    other = shutil.copytree(tiny_encoder, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text().replace('"gelu"', '"relu"'))
    text = ["red apple and green pear and blue plum"]
    first, second = (Encoder(str(folder), device="cpu", cache=tmp_path / "cache") for folder in (tiny_encoder, other))
    rows = [
        first.encode(text),
        first.encode(text, prompt="find "),
        first.encode(text, max_tokens=4),
        second.encode(text),
    ]
    assert len({row.tobytes() for row in rows}) == 4
    abouts = [json.loads(file.read_text()) for file in (tmp_path / "cache/embeddings").glob("*/about.json")]
    assert sorted((about["prompt"], about["max_tokens"] or 0, about["width"]) for about in abouts) == [
        ("", 0, 32),
        ("", 0, 32),
        ("", 4, 32),
        ("find ", 0, 32),
    ]


def test_a_copy_of_the_model_shares_its_vectors(tiny_encoder, tmp_path, loads):
    copy = shutil.copytree(tiny_encoder, tmp_path / "copy")
    for folder in (tiny_encoder, copy):
        Encoder(str(folder), device="cpu", cache=tmp_path / "cache").encode(TEXTS)
    assert loads == [str(tiny_encoder)]


def test_max_tokens_cuts_texts_for_that_call_only(tiny_encoder, peer):
    encoder = Encoder(str(tiny_encoder), device="cpu")
    text = "red apple and green pear and blue plum"
    cut = encoder.encode([text], max_tokens=4)  # [CLS] red apple [SEP]
    np.testing.assert_allclose(cut, peer.encode(["red apple"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode([text]), peer.encode([text]), atol=1e-6)


def test_a_killed_encoding_goes_on_and_gives_the_same_bytes(tiny_encoder, tmp_path, monkeypatch, computed):
    monkeypatch.setattr(embed, "CHUNK", 2)
    texts = [f"{word} {other}" for word in ("red", "green", "blue", "old") for other in ("car", "train", "boat")]
    whole = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path / "whole").encode(texts)
    batches = list(computed)
    computed.clear()
    killed = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path / "killed")

    def dying(self, texts, prompt, max_tokens, _compute=Encoder._compute):
        if len(computed) == 4:
            raise KeyboardInterrupt
        return _compute(self, texts, prompt, max_tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "_compute", dying)
        with pytest.raises(KeyboardInterrupt):
            killed.encode(texts)
    resumed = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path / "killed").encode(texts)
    assert computed == batches
    assert resumed.tobytes() == whole.tobytes()


def test_weights_in_half_precision_are_computed_in_single(tiny_encoder, tmp_path):
    from transformers import BertModel

    half = shutil.copytree(tiny_encoder, tmp_path / "half")
    BertModel.from_pretrained(tiny_encoder).half().save_pretrained(half)
    rows = Encoder(str(half), device="cpu").encode(TEXTS)
    assert np.abs(rows - rows.astype(np.float16)).max() > 0


def test_a_lower_precision_has_vectors_of_its_own_near_those_of_fp32(tiny_encoder, tmp_path, computed):
    exact = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path).encode(TEXTS)
    lower = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path, precision="bf16").encode(TEXTS)
    assert lower.dtype == np.float32
    assert 0 < np.abs(lower - exact).max() < 0.05
    computed.clear()
    again = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path, precision="bf16").encode(TEXTS)
    np.testing.assert_array_equal(again, lower)
    assert not computed


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_auto_takes_what_is_faster_here_and_says_so_once(tiny_encoder, tmp_path, monkeypatch, capfd, faster):
    expected = Encoder(str(tiny_encoder), device="cpu", precision=faster).encode(TEXTS)
    monkeypatch.setattr(embed, "choose_precision", lambda wanted, device, cache: (faster, "measured"))
    for _ in range(2):  # the second time nothing is computed
        found = Encoder(str(tiny_encoder), device="cpu", cache=tmp_path, precision="auto").encode(TEXTS)
        np.testing.assert_array_equal(found, expected)
    told = "".join(capfd.readouterr())
    assert told.count(f"{faster} (measured)") == 1


def test_a_precision_that_the_device_has_not_is_told(tiny_encoder, tmp_path):
    with pytest.raises(ConfigError, match="fp16"):
        Encoder(str(tiny_encoder), device="cpu", cache=tmp_path, precision="fp16").encode(TEXTS)


def test_no_texts_make_no_rows(tiny_encoder, tmp_path):
    assert Encoder(str(tiny_encoder), device="cpu").encode([]).shape == (0, 32)
    assert Encoder(str(tiny_encoder), device="cpu", cache=tmp_path).encode([]).shape == (0, 32)


def test_more_tokens_than_positions_are_refused(tiny_encoder):
    encoder = Encoder(str(tiny_encoder), device="cpu")
    assert encoder.encode(["red " * 100], max_tokens=64).shape == (1, 32)
    with pytest.raises(ModelError, match="has 64 positions; texts of 65 tokens") as caught:
        encoder.encode(["red"], max_tokens=65)
    assert caught.value.hint == "a length of 64 or less"


def test_positions_of_the_roberta_family_start_after_the_padding(tiny_encoder):
    import torch

    class Embeddings(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position_embeddings = torch.nn.Embedding(514, 4, padding_idx=1)

    assert embed._positions(Embeddings()) == 512
    assert embed._positions(torch.nn.Linear(2, 2)) is None


def test_a_folder_that_is_no_model_is_a_model_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load the encoder") as caught:
        Encoder(str(tmp_path), device="cpu").encode(["red"])
    assert caught.value.where == str(tmp_path)
    assert "offline" in caught.value.hint


def test_cut_weights_are_a_model_error(tiny_encoder, tmp_path):
    broken = shutil.copytree(tiny_encoder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot load the encoder"):
        Encoder(str(broken), device="cpu", cache=tmp_path / "cache").encode(["red"])
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_told_before_anything_is_loaded(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        Encoder(str(tmp_path / "nowhere"))


def test_vectors_that_are_not_numbers_are_refused_and_not_kept(tiny_encoder, tmp_path):
    from transformers import BertModel

    broken = shutil.copytree(tiny_encoder, tmp_path / "nan")
    model = BertModel.from_pretrained(tiny_encoder)
    model.embeddings.LayerNorm.bias.data.fill_(float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(ModelError, match="NaN"):
        Encoder(str(broken), device="cpu", cache=tmp_path / "cache").encode(["red"])
    assert not list(tmp_path.glob("cache/**/*.f32"))


def test_a_device_that_is_not_there_is_told(tiny_encoder):
    with pytest.raises(ConfigError, match="device 'abacus' is not available"):
        Encoder(str(tiny_encoder), device="abacus").encode(["red"])


def test_mean_pooling_of_a_plain_encoder_is_said_and_nothing_else(tiny_encoder, capfd):
    Encoder(str(tiny_encoder), device="cpu").encode(["red"])
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "mean pooling" in output.err
