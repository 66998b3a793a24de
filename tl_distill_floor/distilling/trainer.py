"""Students that are trained together: one teacher pass a batch for all of them, each to its own floor."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_distill_floor.distilling.build import build_student
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.forward import TeacherBody
from tl_distill_floor.distilling.losses import NO_LABEL, Ends, chunked_losses, summed_kl
from tl_distill_floor.distilling.optimization import Average, Trainee, optimizers_of
from tl_distill_floor.distilling.save import save_student
from tl_distill_floor.distilling.texts import Texts
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.teachers import Teacher, weights_digest
from tl_distill_floor.storage.atomic import atomic_directory, remove_file
from tl_distill_floor.storage.checkpoints import load_checkpoint, report_damage, save_checkpoint
from tl_distill_floor.theory.learning_curve import fit_learning_curve

HELD_OUT_AT_ONCE = 16
"""Sequences of the held-out text that are run at once."""
KIND = "students-partial"
PARTIAL_FILE = "partial.safetensors"
Progress = Callable[[int, int, str], None]
"""Called with tokens done, tokens in all, and what to say of them."""


class StudentInTraining:
    """One student in training: its module, optimisers, running average and learning curve."""

    def __init__(self, teacher: Any, spec: StudentSpec, training: DistillConfig, accelerator: Any) -> None:
        self.spec = spec
        model = build_student(teacher, spec.width, depth=spec.depth, start=spec.start, seed=spec.seed)
        self.trainee = Trainee(model.to(accelerator.device), spec, int(teacher.cfg.d_model)).to(accelerator.device)
        self.average = Average(model)
        made = optimizers_of(self.trainee, training)
        self.module, *self.optimizers = accelerator.prepare(self.trainee, *made)
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.status: str | None = None
        """Why it goes no further; None while it is trained."""
        self.diverged_at = ""

    def diverge(self, where: str) -> None:
        """It goes no further, and its weights are worth nothing."""
        self.status, self.diverged_at = "diverged", where

    def state(self) -> dict[str, Any]:
        return {
            "trainee": dict(self.trainee.state_dict()),
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curve": [self.tokens, self.losses],
            "status": [self.status, self.diverged_at],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.trainee.load_state_dict(state["trainee"])
        for name, weight in self.average.weights.items():
            weight.copy_(state["average"][name])
        for optimizer, of_optimizer in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)
        (self.tokens, self.losses), (self.status, self.diverged_at) = state["curve"], state["status"]

    def update(self, step: int, lr: float, largest: float, accelerator: Any) -> None:
        """One step of the optimisers, and of the average."""
        accelerator.clip_grad_norm_(list(self.trainee.parameters()), largest)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.average.update(self.trainee.student, step)


class Sweep:
    """Students that are trained together."""

    def __init__(
        self, teacher: Teacher, specs: Sequence[StudentSpec], texts: Texts, training: DistillConfig, accelerator: Any
    ) -> None:
        names = [spec.directory for spec in specs]
        hooks = {spec.match.teacher_hook for spec in specs if spec.match}
        if not specs or len(set(names)) < len(names):
            raise InputError(f"every student needs a name of its own, got {', '.join(names) or 'no student'}")
        if len(hooks) > 1:
            raise InputError(f"one hook point of the teacher is matched at a time, got {', '.join(sorted(hooks))}")
        if training.batch_size % (accelerator.num_processes * training.accumulate):
            raise InputError(
                f"a batch of {training.batch_size} sequences cannot be cut into {accelerator.num_processes} processes"
                f" times {training.accumulate} parts; set --batch-size to a multiple"
            )
        self.teacher, self.texts, self.training, self._accelerator = teacher, texts, training, accelerator
        self.teacher_hook = next(iter(hooks), None)
        self.students = [StudentInTraining(teacher.model, spec, training, accelerator) for spec in specs]
        self.steps, self.step = texts.steps(training), 0
        self.weights = weights_digest(teacher.model)

    @property
    def active(self) -> list[StudentInTraining]:
        return [student for student in self.students if student.status is None]

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the training goes on; the learning rate may be another."""
        settings = dataclasses.asdict(self.training)
        del settings["lr"]
        specs = [
            dataclasses.asdict(dataclasses.replace(s.spec, target=None))
            | {"target": s.spec.target and s.spec.target.digest}
            for s in self.students
        ]
        return {
            "teacher": self.teacher.name,
            "weights": self.weights,
            "text": self.texts.fingerprint,
            "students": specs,
            **settings,
        }

    def load(self, path: Path) -> None:
        if path.exists():
            states, self.step = load_checkpoint(path, KIND, self.identity)
            with report_damage(path):
                for student in self.students:
                    student.load(states[student.spec.directory])

    def save(self, path: Path) -> None:
        states = {student.spec.directory: student.state() for student in self.students}
        save_checkpoint(path, KIND, states, self.identity, self.step)

    def run(
        self, body: TeacherBody, checkpoint: Path | None, checkpoint_seconds: float, progress: Progress | None
    ) -> None:
        """Train until the steps are done or every student has reached its floor."""
        evaluated, per_step = set(self.training.evaluated_at(self.steps)), self._tokens_a_step
        self._scale_matching(body)
        started, saved, begun = time.perf_counter(), time.perf_counter(), self.step
        while self.step < self.steps and self.active:
            losses = self._one_step(body)
            self._drop_diverged(losses, checkpoint)
            self.step += 1
            if self.step in evaluated:
                self._evaluate(body)
                self._check_any_left(checkpoint)
            now = time.perf_counter()
            if checkpoint and self._accelerator.is_main_process and now - saved >= checkpoint_seconds:
                self.save(checkpoint)
                saved = time.perf_counter()
            if progress:
                rate = (self.step - begun) * per_step / (now - started)
                progress(self.step * per_step, self.steps * per_step, f"{self._in_words()}, {rate:,.0f} tokens/s")
        if checkpoint and self._accelerator.is_main_process and any(student.losses for student in self.students):
            self.save(checkpoint)

    def results(self, directory: Path | None) -> list[StudentResult]:
        """What became of every student, saved where a directory is given."""
        found = [self._result(student) for student in self.students]
        if directory is not None and self._accelerator.is_main_process:
            found = [
                self._saved(student, result, directory) for student, result in zip(self.students, found, strict=True)
            ]
            remove_file(directory / PARTIAL_FILE)
        self._accelerator.wait_for_everyone()
        return found

    @property
    def _tokens_a_step(self) -> int:
        return self.training.batch_size * int(self.texts.train.shape[1])

    def _one_step(self, body: TeacherBody) -> list[float]:
        """Forward and backward passes of every active student, and a step of each; the losses, nats per token."""
        training, accelerator, active = self.training, self._accelerator, self.active
        rows = self.texts.batch(self.step, training).to(accelerator.device)
        n_counted = int(self.texts.stream.counted(rows).sum())
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        summed = torch.zeros(len(active), device=accelerator.device)
        share = accelerator.num_processes / n_counted
        parts = mine.chunk(training.accumulate)
        for number, ids in enumerate(parts):
            with ExitStack() as unsynchronised:
                if number + 1 < len(parts):
                    for student in active:
                        unsynchronised.enter_context(accelerator.no_sync(student.module))
                for i, of_student in enumerate(self._losses(body, ids)):
                    accelerator.backward(of_student * share)
                    summed[i] += of_student.detach()
        lr = training.lr_at(self.step, self.steps)
        found: list[float] = (accelerator.reduce(summed, "sum") / n_counted).tolist()
        for student, loss in zip(active, found, strict=True):
            if math.isfinite(loss):
                student.update(self.step + 1, lr, training.clip, accelerator)
        return found

    def _losses(self, body: TeacherBody, ids: Tensor) -> list[Tensor]:
        """What every active student loses on some sequences, summed over the tokens that count."""
        counts = self.texts.stream.counted(ids)
        labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], NO_LABEL)], dim=1)[counts]
        with self._autocast():
            hidden, activation = body(ids)
            kept = None if activation is None else activation[counts].flatten(1)
            targets = {spec.target: _target(spec, kept) for spec in (s.spec for s in self.active if s.spec.match)}
            passed = [s.module(ids, counts, targets.get(s.spec.target) if s.spec.match else None) for s in self.active]
            of_students = [student.trainee.body for student in self.active]
            student_ends = [Ends(h, b.unembed) for b, (h, _) in zip(of_students, passed, strict=True)]
            losses = chunked_losses(Ends(hidden[counts], body.unembed), student_ends, labels, self.training.objective)
        share = self.step / self.steps
        for i, (student, (_, distance)) in enumerate(zip(self.active, passed, strict=True)):
            if distance is not None:
                assert student.spec.match is not None
                losses[i] = losses[i] + student.spec.match.weight_at(share) * distance
        return losses

    @torch.no_grad()
    def _scale_matching(self, body: TeacherBody) -> None:
        """Set what a matching loss of 1 is, from the first batch: the variance of the target."""
        ids = self.texts.batch(0, self.training).to(self._accelerator.device)
        for student in self.students:
            if student.trainee.matcher is not None:
                _, activation = body(ids)
                assert activation is not None
                target = _target(student.spec, activation[self.texts.stream.counted(ids)].flatten(1))
                assert target is not None
                student.trainee.matcher.scale(target)

    @torch.no_grad()
    def _evaluate(self, body: TeacherBody) -> None:
        """A point of every active student's learning curve, of its average; those at their floor go no further."""
        active, accelerator = self.active, self._accelerator
        for student in active:
            student.average.swapped(student.trainee.student)
        summed, n = torch.zeros(len(active), dtype=torch.float64), 0
        mine = self.texts.heldout[accelerator.process_index :: accelerator.num_processes]
        for ids in torch.split(mine.to(accelerator.device), HELD_OUT_AT_ONCE):
            counts = self.texts.stream.counted(ids)
            hidden, _ = body(ids)
            students = [Ends(s.trainee.body(ids)[0][counts], s.trainee.body.unembed) for s in active]
            summed += summed_kl(Ends(hidden[counts], body.unembed), students)
            n += int(counts.sum())
        for student in active:
            student.average.swapped(student.trainee.student)
        mine_and_theirs = torch.cat([summed, torch.tensor([float(n)], dtype=torch.float64)]).to(accelerator.device)
        both = accelerator.reduce(mine_and_theirs, "sum").cpu()
        for student, loss in zip(active, (both[:-1] / both[-1]).clamp(min=0.0).tolist(), strict=True):
            if not math.isfinite(loss):
                student.diverge(f"at step {self.step} (held-out loss {loss})")
                continue
            student.tokens.append(self.step * self._tokens_a_step)
            student.losses.append(loss)
            fit = fit_learning_curve(student.tokens, student.losses)
            if fit.status == "saturated" and self.training.early_stop:
                student.status = fit.status

    def _drop_diverged(self, losses: list[float], checkpoint: Path | None) -> None:
        for student, loss in zip(self.active, losses, strict=True):
            if not math.isfinite(loss):
                lr = self.training.lr_at(self.step, self.steps)
                student.diverge(f"at step {self.step + 1} (loss {loss}, learning rate {lr:.3g})")
        self._check_any_left(checkpoint)

    def _check_any_left(self, checkpoint: Path | None) -> None:
        if not any(student.status != "diverged" for student in self.students):
            kept = f"; the last checkpoint stays in {checkpoint}" if checkpoint and checkpoint.exists() else ""
            told = ", ".join(f"{student.spec.directory} {student.diverged_at}" for student in self.students)
            raise InputError(f"training diverged: {told}{kept}; try --lr {self.training.lr / 3:.2g}")

    def _in_words(self) -> str:
        return ", ".join(
            f"{student.spec.directory.removeprefix('width')}: {student.losses[-1]:.3f}"
            for student in self.students
            if student.losses
        )

    def _result(self, student: StudentInTraining) -> StudentResult:
        model, spec = student.trainee.student, student.spec
        fit = fit_learning_curve(student.tokens, student.losses) if student.losses else None
        settings = dataclasses.asdict(self.training) | dataclasses.asdict(dataclasses.replace(spec, target=None))
        settings |= {"order_seed": self.training.seed, "kept_part": spec.target is not None, **self.texts.settings}
        del settings["target"]
        if student.diverged_at:
            settings["diverged"] = student.diverged_at
        return StudentResult(
            name=spec.directory,
            teacher=self.teacher.name,
            width=spec.width,
            depth=int(model.config.num_hidden_layers),  # type: ignore[union-attr,arg-type]
            n_parameters=int(sum(weight.numel() for weight in model.parameters())),
            tokens=tuple(student.tokens),
            losses=tuple(student.losses),
            floor=fit.floor if fit else 0.0,
            interval=fit.interval if fit else (0.0, 0.0),
            status=student.status or (fit.status if fit else "diverged"),
            heldout_tokens=int(self.texts.stream.counted(self.texts.heldout).sum()),
            settings=settings,
        )

    def _saved(self, student: StudentInTraining, result: StudentResult, directory: Path) -> StudentResult:
        place, model = directory / student.spec.directory, student.trainee.student
        if place.exists():  # saved before something went wrong with another student
            return StudentResult.load(place)
        if student.diverged_at:
            with atomic_directory(place) as partial:
                result.save(partial)
            return result
        student.average.swapped(model)
        try:
            return save_student(model, getattr(self.teacher.model, "tokenizer", None), result, place)
        finally:
            student.average.swapped(model)

    def _autocast(self) -> Any:
        if self.training.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, torch.bfloat16)


def _target(spec: StudentSpec, activation: Tensor | None) -> Tensor | None:
    if spec.match is None or activation is None:
        return None
    return activation if spec.target is None else spec.target(activation)
