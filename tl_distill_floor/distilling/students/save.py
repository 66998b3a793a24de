"""Save students as Hugging Face checkpoints with a model card."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_model
from torch import nn
from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.family_models import short_reason
from tl_distill_floor.distilling.students.teacher_files import TeacherFiles
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.storage.atomic import atomic_directory, write_atomically
from tl_distill_floor.storage.io_errors import report_io_errors

KEPT_WEIGHTS = "-weights.safetensors"
"""End of the name of the file that has the weights of a student that cannot be saved."""
MODEL_CARD = """---
library_name: transformers
tags: [distillation, tl-distill-floor]
---
# A student of {teacher}, {width} dimensions wide

Distilled with tl-distill-floor from `{teacher}`: {n_parameters:,} parameters, {depth} layers, initial weights {start},
trained on {tokens:,} tokens of {text}.

- Held-out loss, KL(teacher ‖ student): **{loss:.4f} nats per token** ({heldout_tokens:,} tokens), {status}.
- Floor of the learning curve, L∞ of the fit L∞ + A · t^-b: {floor}.

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("{name}")
```

The weights are a running average over the training. `student.json` has the learning curve and all settings.
"""


def save_student(
    student: nn.Module,
    files: TeacherFiles,
    result: StudentResult,
    directory: Path,
    check: Callable[[Path], None] | None = None,
) -> StudentResult:
    """Write a student's checkpoint, tokenizer, model card and result into a new directory, or nothing on an error.

    Args:
        student: a `transformers` model.
        files: tokenizer and generation settings of the teacher.
        result: the student's result.
        directory: a directory that does not exist yet.
        check: called with the directory of the complete checkpoint before it gets its name; an error that it raises
            discards the checkpoint.

    Returns:
        The result, with its path.

    Raises:
        InputError: the directory cannot be written, or the student cannot be saved; then a file next to the directory
            has its weights.
    """
    kept = directory.with_name(f"{directory.name}{KEPT_WEIGHTS}")
    try:
        with atomic_directory(directory) as partial, report_io_errors(directory):
            student.save_pretrained(partial)  # type: ignore[operator]
            files.save(partial)
            (partial / "README.md").write_text(_model_card(result, directory.name), encoding="utf-8")
            result.save(partial)
            if check is not None:
                check(partial)
    except InputError:
        raise
    except Exception as error:  # the code of a family can raise anything
        _keep_weights(student, kept)
        raise InputError(
            f"transformers cannot save {directory.name} ({short_reason(error)}); its trained weights are in {kept},"
            " with its configuration as metadata, and --resume tries to save it again"
        ) from error
    kept.unlink(missing_ok=True)
    return StudentResult.load(directory)


def _keep_weights(student: nn.Module, path: Path) -> None:
    """Write the weights of a student that cannot be saved as a checkpoint, with its configuration as metadata."""
    config: PreTrainedConfig = student.config  # type: ignore[assignment]
    metadata = {"config": config.to_json_string(use_diff=False)}
    write_atomically(path, lambda partial: save_model(student, str(partial), metadata))


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
        floor=f"{result.floor:.4f} ({low:.4f} to {high:.4f})" if result.floor_is_known else "not known",
        tokens=result.tokens[-1],
        start=result.settings["start"],
        text=result.settings["text"],
        name=name,
    )
