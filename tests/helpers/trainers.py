"""Arguments of a Trainer, and small models of fixed sizes that are trained with it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.models import VOCABULARY
from tl_distill_floor.measuring.kl import forward_kl


def arguments(directory: Path, **options: Any) -> Any:
    """Return arguments of a Trainer without logging, whose optimizer is that of the sweep."""
    from transformers import TrainingArguments

    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 1e-2, "adam_beta2": 0.95,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "lr_scheduler_type": "constant", "max_steps": 4, "logging_steps": 1,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(str(directory), **(defaults | options))


def plain_model(family: str, seed: int = 0, *, head: str = "ForCausalLM", **config: Any) -> Any:
    """Return a small transformers model with random weights, large enough that its predictions differ.

    Args:
        family: name of the family as in transformers' class names, such as "Llama".
        seed: seed of the weights.
        head: rest of the class name.
        config: options of the configuration that differ; None for the family's default.
    """
    import transformers

    options = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    options = {name: value for name, value in (options | config).items() if value is not None}
    torch.manual_seed(seed)
    return getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**options)).eval()


def kl_of_rows(teacher: Any, student: Any, rows: list[Any]) -> float:
    """Return KL(teacher ‖ student) in nats per token of rows that are run one by one, without padding."""
    losses: list[Tensor] = []
    for row in rows:
        ids = torch.as_tensor(row)[None]
        with torch.no_grad():
            losses.append(forward_kl(teacher(ids).logits, student(ids).logits)[0, :-1])
    return float(torch.cat(losses).mean())
