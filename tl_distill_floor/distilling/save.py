"""A student as a standard Hugging Face checkpoint, with a model card of how it was made."""

from pathlib import Path
from typing import Any

from torch import nn

from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.storage.atomic import atomic_directory
from tl_distill_floor.storage.io_errors import report_io_errors

CARD = """---
library_name: transformers
tags: [distillation, tl-distill-floor]
---
# A student of {teacher}, {width} dimensions wide

Distilled with tl-distill-floor from `{teacher}`: {n_parameters:,} parameters, {depth} layers, started from {start},
trained on {tokens:,} tokens of {text}.

- Held-out loss, KL(teacher ‖ student): **{loss:.4f} nats per token** ({heldout_tokens:,} tokens), {status}.
- Where its learning curve ends, L∞ of L∞ + A · t^-b: {floor:.4f} ({low:.4f} to {high:.4f}).

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("{name}")
```

The weights are the running average over the training. `student.json` holds the learning curve and every setting.
"""


def save_student(student: nn.Module, tokenizer: Any, result: StudentResult, directory: Path) -> StudentResult:
    """Write the checkpoint into a directory that does not exist yet: all of it, or nothing.

    Raises:
        InputError: it cannot be written.
    """
    low, high = result.interval
    known = {name: getattr(result, name) for name in ("teacher", "width", "n_parameters", "depth", "loss")}
    card = CARD.format(
        **known,
        heldout_tokens=result.heldout_tokens,
        status=result.status,
        floor=result.floor,
        low=low,
        high=high,
        tokens=result.tokens[-1],
        start=result.settings["start"],
        text=result.settings["text"],
        name=directory.name,
    )
    with atomic_directory(directory) as partial, report_io_errors(directory):
        student.save_pretrained(partial)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card)
        result.save(partial)
    return StudentResult.load(directory)
