"""Save students as Hugging Face checkpoints with a model card."""

from pathlib import Path

from torch import nn

from tl_distill_floor.annotations import Tokenizer
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.storage.atomic import atomic_directory
from tl_distill_floor.storage.io_errors import report_io_errors

MODEL_CARD = """---
library_name: transformers
tags: [distillation, tl-distill-floor]
---
# A student of {teacher}, {width} dimensions wide

Distilled with tl-distill-floor from `{teacher}`: {n_parameters:,} parameters, {depth} layers, initial weights {start},
trained on {tokens:,} tokens of {text}.

- Held-out loss, KL(teacher ‖ student): **{loss:.4f} nats per token** ({heldout_tokens:,} tokens), {status}.
- Floor of the learning curve, L∞ of the fit L∞ + A · t^-b: {floor:.4f} ({low:.4f} to {high:.4f}).

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("{name}")
```

The weights are a running average over the training. `student.json` has the learning curve and all settings.
"""


def save_student(
    student: nn.Module, tokenizer: Tokenizer | None, result: StudentResult, directory: Path
) -> StudentResult:
    """Write a student's checkpoint, tokenizer, model card and result into a new directory, or nothing on an error.

    Args:
        student: a `transformers` model.
        tokenizer: the teacher's tokenizer, or None.
        result: the student's result.
        directory: a directory that does not exist yet.

    Returns:
        The result, with its path.

    Raises:
        InputError: the directory cannot be written.
    """
    with atomic_directory(directory) as partial, report_io_errors(directory):
        student.save_pretrained(partial)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)  # type: ignore[attr-defined]
        (partial / "README.md").write_text(_model_card(result, directory.name))
        result.save(partial)
    return StudentResult.load(directory)


def _model_card(result: StudentResult, name: str) -> str:
    low, high = result.interval
    return MODEL_CARD.format(
        teacher=result.teacher,
        width=result.width,
        n_parameters=result.n_parameters,
        depth=result.depth,
        loss=result.loss,
        heldout_tokens=result.heldout_tokens,
        status=result.status,
        floor=result.floor,
        low=low,
        high=high,
        tokens=result.tokens[-1],
        start=result.settings["start"],
        text=result.settings["text"],
        name=name,
    )
