"""`StudentInTraining`: one student with its optimizers, its running average and its learning curve."""

from typing import Any

from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from tl_distill_floor.annotations import HookedModel, StudentStatus
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.optimization import create_optimizers, running_average
from tl_distill_floor.distilling.training.sharding import (
    build_in_first_process,
    gathered,
    is_sharded,
    load_optimizer,
    load_weights,
    shard,
)
from tl_distill_floor.distilling.training.student_module import Backbone, StudentModule


class StudentInTraining:
    """One student that is trained.

    Args:
        teacher: the teacher's model.
        spec: which student.
        config: settings of the training.
        accelerator: device and processes that it is trained on.
        ids: sequences of a real text, which the student's logits are verified on; random tokens if None.
        sharded: whether the student is sharded over the processes, of which only the first has the teacher's weights.

    Raises:
        InputError: the student cannot be built; see `build_student`.
    """

    def __init__(
        self,
        teacher: HookedModel,
        spec: StudentSpec,
        config: DistillConfig,
        accelerator: Accelerator,
        ids: Int[Tensor, "sequence position"] | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        self.spec, self._accelerator = spec, accelerator
        if sharded:
            model = build_in_first_process(teacher, spec, accelerator)
        else:
            model = build_student(teacher, spec.width, depth=spec.depth, start=spec.start, seed=spec.seed)
        module = StudentModule(model.to(accelerator.device), spec, int(teacher.cfg.d_model), ids)
        self.module = module.to(accelerator.device)
        self.averaged = running_average(model)
        self.averaged_backbone = Backbone(self.averaged.module, None, ids)
        if sharded:
            shard(self.module, model, accelerator)
            shard(self.averaged_backbone, self.averaged.module, accelerator)
            self.distributed_module, self.optimizers = self.module, create_optimizers(self.module, config)
        else:
            optimizers = create_optimizers(self.module, config)
            self.distributed_module, *self.optimizers = accelerator.prepare(self.module, *optimizers)
        self.tokens: list[int] = []
        """Training tokens at each point of the learning curve."""
        self.losses: list[float] = []
        """Held-out loss of the averaged weights at each point, nats per token."""
        self.status: StudentStatus | None = None
        """Why the training of this student has ended; None while it is trained."""
        self.diverged_at = ""
        """Step and loss at which it diverged; empty if it has not."""

    def mark_diverged(self, where: str) -> None:
        """End the training of this student, whose weights are not usable."""
        self.status, self.diverged_at = "diverged", where

    def update(self, lr: float, max_norm: float, accelerator: Accelerator) -> None:
        """Clip the gradient, step the optimizers, and update the running average.

        Args:
            lr: learning rate.
            max_norm: largest norm of the gradient.
            accelerator: device and processes that the student is trained on.
        """
        accelerator.clip_grad_norm_(list(self.module.parameters()), max_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.averaged.update_parameters(self.module.student)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores, gathered in the first process if the student is sharded.

        All processes of a sharded student must call this.
        """
        state = {
            "module": dict(self.module.state_dict()),
            "average": dict(self.averaged.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curve": [self.tokens, self.losses],
            "status": [self.status, self.diverged_at],
        }
        return gathered(state, self._accelerator) if is_sharded(self.module) else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        load_weights(self.module, state["module"])
        load_weights(self.averaged, state["average"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, optimizer_state)
        self.tokens, self.losses = state["curve"]
        self.status, self.diverged_at = state["status"]
