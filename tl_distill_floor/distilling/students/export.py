"""`export_student`: the configuration of an untrained student, and its initial weights, as Hugging Face files."""

from pathlib import Path

from transformers import PreTrainedConfig

from tl_distill_floor.annotations import StudentStart, TeacherLike
from tl_distill_floor.distilling.students.build import build_student, create_student_shell
from tl_distill_floor.distilling.students.student_config import hugging_face_config
from tl_distill_floor.distilling.students.teacher_files import teacher_files
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.results.plan import Plan
from tl_distill_floor.sources.model_names import same_model
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.storage.atomic import atomic_directory
from tl_distill_floor.storage.io_errors import report_io_errors

MODEL_CARD = """---
library_name: transformers
tags: [distillation, tl-distill-floor]
---
# An untrained student of {teacher}, {width} dimensions wide

Written by tl-distill-floor. {weights} Train it on the output of `{teacher}`, whose tokenizer it has.

```python
{code}
```
"""
WITH_WEIGHTS = """from transformers import AutoModelForCausalLM
student = AutoModelForCausalLM.from_pretrained("{name}")"""
WITHOUT_WEIGHTS = """from transformers import AutoConfig, AutoModelForCausalLM
student = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("{name}"))"""


@neutral_torch_state()
def export_student(
    teacher: TeacherLike,
    student: Plan | int,
    directory: str | Path,
    *,
    depth: int | None = None,
    start: StudentStart | None = None,
    seed: int = 0,
) -> Path:
    """Write an untrained student as Hugging Face files, for other trainers such as TRL, NeMo and ModelOpt.

    The files are `config.json`, the teacher's tokenizer and generation settings if it has them, a model card,
    `plan.json` for a plan, and the initial weights (`model.safetensors`, in fp32) if `start` is given.

    Args:
        teacher: see `load_teacher`; a model that `build_student` accepts.
        student: a plan for this teacher, or the student's width, dimensions.
        directory: directory to create.
        depth: number of layers of a student given by its width; the teacher's if None.
        start: initial weights; see `build_student`. If None, no weights are written.
        seed: seed of random initial weights.

    Returns:
        The directory.

    Raises:
        InputError: the student cannot be built, the plan is of another teacher, a depth is given for a plan, or the
            directory exists or cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = export_student("tiny-prose", 64, mkdtemp() + "/student")
        >>> from transformers import AutoConfig
        >>> AutoConfig.from_pretrained(path).hidden_size
        64
    """
    directory = Path(directory)
    check_export_directory(directory)
    if start is not None:
        check_choice("start", start, StudentStart)
    loaded = load_teacher(teacher)
    if isinstance(student, Plan):
        if depth is not None:
            raise InputError("a plan has a depth of its own; leave out depth, or give a width")
        _check_teacher(student, loaded)
        width, depth = student.width, student.depth
    else:
        width = student
    if start is None:
        built = create_student_shell(hugging_face_config(loaded.model), width, depth)
    else:
        built = build_student(loaded, width, depth=depth, start=start, seed=seed)
    with atomic_directory(directory, "name another directory") as partial, report_io_errors(directory):
        if start is None:
            own: PreTrainedConfig = built.config  # type: ignore[assignment]
            own.architectures = [type(built).__name__]
            own.save_pretrained(partial)
        else:
            built.save_pretrained(partial)  # type: ignore[operator]
        teacher_files(loaded).save(partial)
        (partial / "README.md").write_text(_model_card(loaded.name, width, start, directory.name), encoding="utf-8")
        if isinstance(student, Plan):
            student.save(partial)
    return directory


def check_export_directory(directory: Path) -> None:
    """Raise an InputError if a directory to be created exists, and is not an empty directory."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"{directory} exists already; name another directory")


def _check_teacher(plan: Plan, teacher: Teacher) -> None:
    """Raise an InputError if a plan is of another teacher, as far as the names tell."""
    if not teacher.is_in_memory and plan.teacher != teacher.name and not same_model(plan.teacher, teacher.name):
        raise InputError(f"the plan is for {plan.teacher}, and the teacher is {teacher.name}; give the plan's teacher")


def _model_card(teacher: str, width: int, start: StudentStart | None, name: str) -> str:
    return MODEL_CARD.format(
        teacher=teacher,
        width=width,
        weights="It has no weights yet." if start is None else f"Its initial weights are: {start}.",
        code=(WITHOUT_WEIGHTS if start is None else WITH_WEIGHTS).format(name=name),
    )
