"""Which device and precision are chosen, and that a CPU's measurement is made once."""

from __future__ import annotations

import json

import pytest

from rankwright.errors import ConfigError
from rankwright.toolbox import device
from rankwright.toolbox.device import autocast, choose_device, choose_precision


@pytest.fixture
def measured(monkeypatch):
    """Set the seconds that fp32 and bf16 take: (measurements made so far, seconds by dtype)."""
    import torch

    made, seconds = [], {torch.float32: 3.0, torch.bfloat16: 1.0}

    def measure(dtype):
        made.append(dtype)
        return seconds[dtype]

    monkeypatch.setattr(device, "_seconds", measure)
    return made, seconds


@pytest.fixture
def no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert choose_device("auto") == "cpu"


def test_auto_is_cuda_before_mps_before_cpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_device("cuda:1") == "cuda:1"
    assert choose_device("cpu") == "cpu"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "mps", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_with_what_to_say_instead(wanted):
    with pytest.raises(ConfigError, match=r"not available[\s\S]*auto"):
        choose_device(wanted)


def test_a_cpu_takes_bf16_only_where_it_is_worth_it_and_says_why(measured):
    import torch

    _, seconds = measured
    word, why = choose_precision("auto", "cpu")
    assert word == "bf16"
    assert "3.0x" in why
    seconds[torch.bfloat16] = 2.9
    word, why = choose_precision("auto", "cpu")
    assert word == "fp32"
    assert "not worth it" in why


def test_a_measurement_is_remembered_in_the_cache_and_not_made_again(measured, tmp_path):
    import torch

    made, seconds = measured
    cache = tmp_path / "new" / "cache"
    assert choose_precision("auto", "cpu", cache)[0] == "bf16"
    measurements = len(made)
    seconds[torch.bfloat16] = 30.0
    assert choose_precision("auto", "cpu", cache)[0] == "bf16"
    assert len(made) == measurements
    (known,) = json.loads((cache / "precision.json").read_text()).items()
    assert f"torch {torch.__version__}" in known[0]
    assert known[1] == 3.0


def test_another_machine_measures_for_itself_beside_the_first(measured, tmp_path, monkeypatch):
    import torch

    _, seconds = measured
    choose_precision("auto", "cpu", tmp_path)
    monkeypatch.setattr(device, "_cpu_name", lambda: "another")
    seconds[torch.bfloat16] = 30.0
    assert choose_precision("auto", "cpu", tmp_path)[0] == "fp32"
    assert len(json.loads((tmp_path / "precision.json").read_text())) == 2


def test_a_damaged_memory_is_measured_anew(measured, tmp_path):
    (tmp_path / "precision.json").write_text("{half")
    assert choose_precision("auto", "cpu", tmp_path)[0] == "bf16"
    assert len(json.loads((tmp_path / "precision.json").read_text())) == 1


def test_a_busy_moment_does_not_decide(monkeypatch):
    import torch

    made = []

    def measure(dtype):
        made.append(dtype)
        if len(made) in (2, 4, 6):  # something else runs whenever bf16 is measured
            return 30.0
        return 3.0 if dtype == torch.float32 else 1.0

    monkeypatch.setattr(device, "_seconds", measure)
    assert choose_precision("auto", "cpu") == (
        "bf16",
        "a matrix product is 3.0x as fast in bf16 as in fp32 on this CPU",
    )
    assert made[:4] == [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]


def test_the_real_measurement_gives_a_positive_time():
    import torch

    assert device._seconds(torch.float32) > 0


def test_a_named_precision_is_taken_as_it_is_without_measuring(measured):
    made, _ = measured
    assert choose_precision("fp32", "cpu")[0] == "fp32"
    assert choose_precision("bf16", "cpu")[0] == "bf16"
    assert choose_precision("fp16", "cuda")[0] == "fp16"
    assert not made


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        choose_precision("fp16", "cpu")


def test_cuda_takes_bf16_where_the_hardware_has_it(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    for has, word in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert choose_precision("auto", "cuda:0")[0] == word
    assert choose_precision("auto", "mps")[0] == "fp32"


def test_autocast_computes_in_the_precision_named():
    import torch

    layer, states = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast("cpu", precision):
            assert layer(states).dtype == dtype
