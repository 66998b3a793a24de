"""`distill` and `distill_students`: train students of given widths on their teacher's output.

Several processes train the same students if they are started by torchrun or accelerate. Each process reads a part of
each batch. With `shard`, it also holds a part of the weights of teacher and students, instead of all of them:

    torchrun --nproc-per-node 2 -m tl_distill_floor distill tiny-prose --widths 16,32 --shard
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from tl_distill_floor.annotations import (
    Dtype,
    HookedModel,
    ProgressMessageCallback,
    StudentStart,
    TeacherLike,
    TextLike,
)
from tl_distill_floor.distilling.training.agreement import check_same_inputs, fail_together
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.sharding import launched_with_fsdp, load_to_shard
from tl_distill_floor.distilling.training.student_results import save_results, student_results
from tl_distill_floor.distilling.training.sweep import SWEEP_CHECKPOINT_FILE, Sweep, check_specs
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_loop import train
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.measuring.reloading import check_teacher_of_run
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.devices import check_device, device_of
from tl_distill_floor.sources.teacher import Teacher
from tl_distill_floor.sources.teacher_checks import check_head
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state
from tl_distill_floor.storage.checkpoints import CHECKPOINT_SECONDS
from tl_distill_floor.storage.locks import lock_directory

OTHER_SHARDING = ("DEEPSPEED", "MEGATRON_LM")
"""Ways in which accelerate shards weights over processes that are not supported."""


@neutral_torch_state()
def distill(
    teacher: TeacherLike,
    width: int,
    text: TextLike | None = None,
    *,
    depth: int | None = None,
    start: StudentStart = "svd",
    out: str | Path | None = None,
    heldout: TextLike | None = None,
    config: DistillConfig | None = None,
    context_size: int | None = None,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    shard: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: ProgressMessageCallback | None = None,
) -> StudentResult:
    """Distil one student of a given width, and estimate the loss at which its training saturates.

    Args:
        teacher: see `load_teacher`.
        width: width of the student's residual stream (d_model), dimensions.
        text: training text; see `load_text`. The embedded text if None.
        depth: number of layers of the student; the teacher's if None.
        start: initial weights of the student; see `build_student`.
        out: directory of the run. The student is saved in its `students/`; if None, nothing is written.
        heldout: held-out text that the losses are measured on. If None, a part of `text` that is not trained on.
        config: settings of the training; `DistillConfig()` if None.
        context_size: tokens per sequence; if None, 256 or the teacher's context if that is shorter.
        device: torch device of a teacher that is loaded by name. Students are trained on their teacher's device.
        dtype: precision of a teacher that is loaded by name, "fp32" or "bf16".
        shard: whether each process of torchrun or accelerate holds only a part of the weights of teacher and students.
            The teacher must be given by its name or directory. Always on if accelerate was started with FSDP.
        resume: continue from the checkpoint in `out`, if there is one.
        checkpoint_seconds: time between checkpoints, in seconds.
        progress: called after every step with the tokens done, the total, and the last held-out losses.

    Returns:
        The learning curve, KL(teacher ‖ student) in nats per token over training tokens, and the floor fitted to it.

    Raises:
        InputError: see `distill_students`.

    Example:
        >>> student = distill("tiny-prose", width=64, config=DistillConfig(n_tokens=100_000))  # doctest: +SKIP
        >>> student.loss, student.floor, student.status  # doctest: +SKIP
    """
    (result,) = distill_students(
        teacher,
        [StudentSpec(width, depth, start)],
        text,
        out=out,
        heldout=heldout,
        config=config,
        context_size=context_size,
        device=device,
        dtype=dtype,
        shard=shard,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
    )
    return result


@neutral_torch_state()
def distill_students(
    teacher: TeacherLike,
    specs: Sequence[StudentSpec],
    text: TextLike | None = None,
    *,
    out: str | Path | None = None,
    heldout: TextLike | None = None,
    config: DistillConfig | None = None,
    context_size: int | None = None,
    device: str = "cpu",
    dtype: Dtype = "fp32",
    shard: bool = False,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: ProgressMessageCallback | None = None,
) -> list[StudentResult]:
    """Distil several students on the same batches, with one forward pass of the teacher for all of them.

    Args:
        teacher: see `load_teacher`.
        specs: the students, of different names.
        text: training text; see `load_text`. The embedded text if None.
        out: directory of the run. The students are saved in its `students/`; if None, nothing is written.
        heldout: held-out text that the losses are measured on. If None, a part of `text` that is not trained on.
        config: settings of the training; `DistillConfig()` if None.
        context_size: tokens per sequence; if None, 256 or the teacher's context if that is shorter.
        device: torch device of a teacher that is loaded by name. Students are trained on their teacher's device.
        dtype: precision of a teacher that is loaded by name, "fp32" or "bf16".
        shard: whether each process of torchrun or accelerate holds only a part of the weights of teacher and students.
            The teacher must be given by its name or directory. Always on if accelerate was started with FSDP.
        resume: continue from the checkpoint in `out`, if there is one.
        checkpoint_seconds: time between checkpoints, in seconds.
        progress: called after every step with the tokens done, the total, and the last held-out losses.

    Returns:
        The result of every student, in the order of `specs`.

    Raises:
        InputError: a student cannot be built, a text is too short, `out` has students of these names, an interrupted
            training or a measurement of another teacher, or every student diverged.

    Example:
        >>> specs = [StudentSpec(32), StudentSpec(64)]
        >>> students = distill_students("tiny-prose", specs, out="runs/tiny-prose")  # doctest: +SKIP
        >>> [student.floor for student in students]  # doctest: +SKIP
    """
    check_choice("dtype", dtype, Dtype)
    check_specs(specs)
    config = config or DistillConfig()
    shard = shard or launched_with_fsdp()
    accelerator = _accelerator(teacher, device)
    with fail_together(accelerator):
        if shard:
            loaded = load_to_shard(teacher, dtype, accelerator)
        else:
            loaded = load_teacher(teacher, device=str(accelerator.device), dtype=dtype)
        check_head(loaded.model)
        if out is not None and not shard:  # a part of the weights cannot be compared
            check_teacher_of_run(Path(out), loaded)
    directory = None if out is None else Path(out) / "students"
    checkpoint = None if directory is None else directory / SWEEP_CHECKPOINT_FILE
    writes = directory is not None and accelerator.is_main_process
    with lock_directory(directory) if directory is not None and writes else nullcontext():
        with fail_together(accelerator):
            if directory is not None:
                _check_directory(directory, specs, resume)
            split = read_text_split(loaded, text, heldout, config, context_size)
        check_same_inputs(accelerator, split, specs, config)
        sweep = Sweep(loaded, specs, split, config, accelerator, sharded=shard)
        with fail_together(accelerator):
            if checkpoint is not None and resume:
                sweep.load(checkpoint)
        with teacher_backbone(loaded.model, sweep.teacher_hook, split.heldout, runs_to_end=shard) as backbone:
            train(sweep, backbone, checkpoint, checkpoint_seconds, progress)
        saves = directory is not None and (shard or writes)
        results = save_results(sweep, directory) if directory is not None and saves else student_results(sweep)
        accelerator.wait_for_everyone()
        return results


def _accelerator(teacher: TeacherLike, device: str) -> Accelerator:
    """Return the accelerator of the device that the teacher is on or is to be loaded on.

    Its mixed precision is off whatever the launcher says, because `DistillConfig.dtype` sets the precision.
    """
    check_device(device)
    model = teacher.model if isinstance(teacher, Teacher) else teacher
    target = device_of(model) if isinstance(model, HookedModel) else torch.device(device)
    if target.type == "cuda" and target.index is not None:
        torch.cuda.set_device(target)
    other_device = f"this process already uses accelerate on another device than {target.type}; start another process"
    try:
        accelerator = Accelerator(cpu=target.type == "cpu", mixed_precision="no")
    except ValueError as error:  # accelerate was started on a GPU, and the teacher is on the CPU
        raise InputError(other_device) from error
    sharding = accelerator.distributed_type.value
    if sharding in OTHER_SHARDING:
        raise InputError(
            f"students are not trained under {sharding}; start accelerate with --use_fsdp --fsdp_version 2, which"
            " shards teacher and students"
        )
    if accelerator.device.type != target.type:
        raise InputError(other_device)
    return accelerator


def _check_directory(directory: Path, specs: Sequence[StudentSpec], resume: bool) -> None:
    """Raise an InputError if saving the students would overwrite others, or would discard an interrupted training."""
    checkpoint = directory / SWEEP_CHECKPOINT_FILE
    if checkpoint.exists():
        if not resume:
            raise InputError(f"{checkpoint} is of an interrupted training; add --resume to continue, or delete it")
        return
    existing = [spec.directory for spec in specs if (directory / spec.directory).exists()]
    if existing:
        raise InputError(
            f"{directory} already has {', '.join(existing)}; name another directory with --out, or move them away"
        )
