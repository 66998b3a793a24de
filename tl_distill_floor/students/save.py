"""A student as a standard Hugging Face checkpoint, with a model card of how it was made."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from tl_distill_floor.errors import InputError
from tl_distill_floor.student_result import StudentResult

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
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            student.save_pretrained(partial)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
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
            (partial / "README.md").write_text(card)
            result.save(partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {directory}: {reason}; free some space or name another --out") from error
    return StudentResult.load(directory)
