"""Distillation: students of several widths, trained on one teacher pass a batch, to the floor of each.

    accelerate launch --num_processes 2 -m tl_distill_floor distill tiny-prose --widths 16,32

runs in several processes what `tl-floor distill` runs in one: every process takes its part of each batch.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.forward import teacher_body
from tl_distill_floor.distilling.matching import KeptPart
from tl_distill_floor.distilling.texts import texts_of
from tl_distill_floor.distilling.trainer import PARTIAL_FILE, Progress, Sweep
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.token_stream import device_of
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.devices import check_device
from tl_distill_floor.sources.saes import sae_digest
from tl_distill_floor.sources.teachers import Teacher, load_teacher
from tl_distill_floor.storage.checkpoints import CHECKPOINT_SECONDS
from tl_distill_floor.storage.locks import lock_directory

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What accelerate spreads weights by, which are read here from whole modules."""


def distill(
    teacher: Any,
    width: int,
    text: Any = None,
    *,
    depth: int | None = None,
    start: str = "svd",
    out: str | Path | None = None,
    heldout: Any = None,
    config: DistillConfig | None = None,
    **options: Any,
) -> StudentResult:
    """Distil one student of a given width, and say at what loss it saturates.

    Args:
        teacher: see `load_teacher`.
        width: of the student's residual stream, dimensions.
        text: see `load_text`; the embedded text when left out.
        depth, start: see `build_student`.
        out: directory whose `students/` receives the checkpoint; nothing is written when left out.
        heldout: text to judge on, never trained on; when left out, what follows in `text` on what is trained on.
        config: see `DistillConfig`.
        options: see `distill_students`.

    Raises:
        InputError: see `distill_students`.
    """
    spec = StudentSpec(width, depth, start)
    (result,) = distill_students(teacher, [spec], text, out=out, heldout=heldout, config=config, **options)
    return result


def distill_students(
    teacher: Any,
    specs: Sequence[StudentSpec],
    text: Any = None,
    *,
    out: str | Path | None = None,
    heldout: Any = None,
    config: DistillConfig | None = None,
    context_size: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress | None = None,
) -> list[StudentResult]:
    """Distil several students on the same batches, the teacher run once for all.

    Args:
        teacher, text, out, heldout, config: see `distill`.
        specs: the students.
        context_size: tokens a sequence; 256, or what the teacher reads at most, when left out.
        device: torch device of a teacher that is loaded here; students are trained where their teacher is.
        dtype: of a teacher that is loaded here.
        resume: go on from the checkpoint in `out`, if there is one.
        checkpoint_seconds: time between checkpoints.
        progress: see `Progress`.

    Returns:
        A result for every student, in their order.

    Raises:
        InputError: no student can be built, the text is too short, `out` holds students of these names already or an
            interrupted training, or every student diverged.
    """
    config = config or DistillConfig()
    accelerator = _accelerator(teacher, device)
    loaded = load_teacher(teacher, device=str(accelerator.device), dtype=dtype)
    directory = None if out is None else Path(out) / "students"
    with nullcontext() if directory is None or not accelerator.is_main_process else lock_directory(directory):
        _check_place(directory, specs, resume)
        texts = texts_of(loaded, text, heldout, config, context_size)
        sweep = Sweep(loaded, specs, texts, config, accelerator)
        if directory is not None and resume:
            sweep.load(directory / PARTIAL_FILE)
        with teacher_body(loaded.model, sweep.teacher_hook) as body:
            sweep.run(body, None if directory is None else directory / PARTIAL_FILE, checkpoint_seconds, progress)
        return sweep.results(directory)


def _accelerator(teacher: Any, device: str) -> Any:
    """Where students are trained: with their teacher. Precision is ours to say, whatever the launcher was told."""
    import torch
    from accelerate import Accelerator

    check_device(device)
    in_memory = teacher.model if isinstance(teacher, Teacher) else teacher
    wanted = device_of(in_memory) if hasattr(in_memory, "hook_dict") else torch.device(device)
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    accelerator = Accelerator(cpu=wanted.type == "cpu", mixed_precision="no")
    if accelerator.distributed_type.value in SHARDING:
        raise InputError(
            f"students are not trained under {accelerator.distributed_type.value}: they are narrower than their"
            " teacher, which every process holds whole; start accelerate with --multi_gpu"
        )
    if accelerator.device.type != wanted.type:
        raise InputError(
            f"this process distils on {accelerator.device.type} already, the teacher is on {wanted.type}; start another"
        )
    return accelerator


def _check_place(directory: Path | None, specs: Sequence[StudentSpec], resume: bool) -> None:
    """Nothing that lies there may be lost."""
    if directory is None:
        return
    going_on = resume and (directory / PARTIAL_FILE).exists()
    there = [spec.directory for spec in specs if (directory / spec.directory).exists()]
    if there and not going_on:
        raise InputError(f"{directory} holds {', '.join(there)} already; name another --out, or move them away")
    if (directory / PARTIAL_FILE).exists() and not resume:
        raise InputError(
            f"{directory / PARTIAL_FILE} holds an interrupted training; add --resume to go on, or delete it"
        )


def kept_part(floor: "FloorPrediction", sae: Any, width: int) -> KeptPart:
    """What of the teacher's activation a student of `width` is expected to hold, as a target of hook matching.

    Args:
        floor: of the teacher, measured with this SAE.
        sae: of the hook point that is matched.
        width: of the student, dimensions.

    Raises:
        InputError: the SAE is another one, or no feature is held.
    """
    stats = floor.stats
    measured = stats.settings.get("sae")
    if measured is not None and measured != sae_digest(sae):
        raise InputError(
            f"the prediction was measured with {stats.sae_name}, which this SAE is not; name that with --sae"
        )
    return KeptPart(
        sae, floor.kept(width), stats.cost, stats.sum_act_sq / max(stats.n_tokens, 1) * stats.decoder_norm**2
    )
