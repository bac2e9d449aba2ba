"""Which weights of a model are trained, and how fast: adapters, and the optimiser's groups of parameters.

In come a model and a Training section; out comes the model with adapters, or what AdamW takes. It does not know what
the weights learn from.
"""

from __future__ import annotations

import re
from typing import Any

from rankwright.errors import ConfigError
from rankwright.sections import Training


def with_lora(model: Any, section: Training, seed: int) -> Any:
    """The model with low-rank adapters beside its encoder's linear layers; the head is trained in full.

    Raises:
        ConfigError: the model has none of the layers in `lora.targets`, or one of them is not linear.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    assert section.lora
    encoder = model.base_model_prefix
    head = [name for name, part in model.named_children() if name != encoder and list(part.parameters())]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=section.lora.rank,
        lora_alpha=section.lora.alpha,
        lora_dropout=section.lora.dropout,
        target_modules=section.lora.targets,
        modules_to_save=head,
        exclude_modules=rf"({'|'.join(map(re.escape, head))})(\..*)?",
    )
    linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    hint = f"its linear layers: {', '.join(sorted(linear))}"
    if section.lora.targets != "all-linear":
        every = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if other := [name for name in section.lora.targets if name in every - linear]:
            raise ConfigError(f"lora.targets: {', '.join(other)} is no linear layer", hint=hint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError:
            message = f"lora.targets: the model has no layer {' or '.join(section.lora.targets)}"
            raise ConfigError(message, hint=hint) from None


def parameter_groups(model: Any, section: Training) -> list[dict[str, Any]]:
    """No weight decay on biases and norms; the head (all outside the encoder) may have a rate of its own."""
    encoder = f"{model.base_model_prefix}."
    found: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 else section.weight_decay
        head = not name.removeprefix("base_model.model.").startswith(encoder)  # the prefix is peft's
        rate = section.head_learning_rate if head and section.head_learning_rate else section.learning_rate
        found.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in found.items()]
