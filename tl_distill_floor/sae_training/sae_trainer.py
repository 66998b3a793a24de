"""Run SAELens's trainer step by step, with checkpoints from which a training resumes exactly."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_distill_floor.annotations import ProgressMessageCallback, SaeModule
from tl_distill_floor.errors import InputError
from tl_distill_floor.sae_training.activations import ActivationBatches
from tl_distill_floor.sae_training.config import TOKENS_PER_STEP, SaeTrainingConfig
from tl_distill_floor.storage.checkpoints import load_checkpoint, report_damaged_checkpoint, save_checkpoint

CHECKPOINT_KIND = "sae-partial"
"""Name of the format of a checkpoint."""
NORM_BATCHES = 10
"""Batches whose mean norm sets the scale of activations; the first training step uses the batch after them."""
COUNTERS = (
    "n_training_samples", "n_training_steps", "n_frac_active_samples", "act_freq_scores", "n_forward_passes_since_fired"
)  # fmt: skip
"""Attributes of SAELens's trainer that change during training and are in no state dict."""
BatchSource = Callable[[int], ActivationBatches]
"""A function from the number of the first batch to batches without end."""


class SaeTraining:
    """Training of an SAE with SAELens's trainer, and the settings that must be equal when it is resumed."""

    def __init__(self, sae: SaeModule, config: SaeTrainingConfig, identity: dict[str, Any], *, device: str) -> None:
        """Set up the trainer.

        Args:
            sae: a SAELens training SAE.
            config: the settings.
            identity: settings that must be equal when the training is resumed.
            device: torch device of the SAE.
        """
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        n_steps = config.n_tokens // TOKENS_PER_STEP
        trainer_config = SAETrainerConfig(
            total_training_samples=config.n_tokens,
            train_batch_size_samples=TOKENS_PER_STEP,
            lr=config.lr,
            lr_end=config.lr / 10,
            lr_warm_up_steps=min(500, n_steps // 10),
            lr_decay_steps=n_steps // 5,
            dead_feature_window=max(10, min(1000, n_steps // 10)),
            device=device,
            autocast=config.dtype == "bf16",
        )
        self.identity = identity
        self._trainer = SAETrainer(trainer_config, sae, iter(()))

    def load(self, file: Path) -> None:
        """Restore the state of a checkpoint.

        Raises:
            InputError: the file is damaged, or of another training.
        """
        trainer = self._trainer
        states, _ = load_checkpoint(file, CHECKPOINT_KIND, self.identity)
        with report_damaged_checkpoint(file):
            for name, part in self._stateful_parts().items():
                part.load_state_dict(states[name])
            for name in COUNTERS:
                value = states["counters"][name]
                setattr(trainer, name, value.to(trainer.cfg.device) if isinstance(value, Tensor) else value)
            trainer.activation_scaler.scaling_factor = float(states["scaler"]["scaling_factor"])

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        trainer = self._trainer
        states = {name: part.state_dict() for name, part in self._stateful_parts().items()}
        states["counters"] = {name: getattr(trainer, name) for name in COUNTERS}
        states["scaler"] = {"scaling_factor": trainer.activation_scaler.scaling_factor}
        save_checkpoint(file, CHECKPOINT_KIND, states, self.identity, trainer.n_training_steps)

    def run(
        self, batches: BatchSource, file: Path, checkpoint_seconds: float, progress: ProgressMessageCallback | None
    ) -> None:
        """Train to the end, and fold the scale of activations into the SAE's weights.

        Args:
            batches: source of activations.
            file: file for checkpoints.
            checkpoint_seconds: time between checkpoints.
            progress: called after every step with the tokens done, the total, and a message with the unexplained
                share of the activations' squared norm and the speed.

        Raises:
            InputError: the loss is not finite, every activation is 0, or a checkpoint cannot be written.
        """
        trainer = self._trainer
        sae, scaler = trainer.sae, trainer.activation_scaler
        n_read = NORM_BATCHES + trainer.n_training_steps if scaler.scaling_factor else 0
        with closing(batches(n_read)) as stream:
            if not n_read:
                # SAELens's own method for this prints a progress bar.
                norms = torch.cat([batch.norm(dim=1) for batch in islice(stream, NORM_BATCHES)])
                mean_norm = norms.mean().item()
                if not mean_norm:
                    raise InputError("every activation at this layer is 0; set another --layer")
                scaler.scaling_factor = sae.cfg.d_in**0.5 / mean_norm
            self._train(stream, file, checkpoint_seconds, progress)
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        trainer.set_final_sae_metadata()

    def _train(
        self,
        stream: ActivationBatches,
        file: Path,
        checkpoint_seconds: float,
        progress: ProgressMessageCallback | None,
    ) -> None:
        trainer, total = self._trainer, self._trainer.cfg.total_training_samples
        started = saved = time.perf_counter()
        n_before = trainer.n_training_samples
        while trainer.n_training_samples < total:
            unexplained = self._step(stream, file)
            now = time.perf_counter()
            if now - saved >= checkpoint_seconds or trainer.n_training_samples >= total:
                self.save(file)
                saved = time.perf_counter()
            if progress:
                rate = (trainer.n_training_samples - n_before) / (now - started)
                message = f"{unexplained:.1%} unexplained, {rate:,.0f} tokens/s"
                progress(min(trainer.n_training_samples, total), total, message)

    def _step(self, stream: ActivationBatches, file: Path) -> float:
        """Train on one batch and return its unexplained share."""
        trainer = self._trainer
        trainer.maybe_reset_sparsity()
        output = trainer.step(next(stream))
        unexplained = _unexplained_share(output.sae_in, output.sae_out)
        trainer.n_training_steps += 1
        if not math.isfinite(unexplained):
            delete = f"delete {file.name} and " if file.exists() else ""
            raise InputError(
                f"the SAE's loss is not finite at step {trainer.n_training_steps}; {delete}set a smaller --lr"
            )
        return unexplained

    def _stateful_parts(self) -> dict[str, Any]:
        """Return the parts of the trainer that have a state dict."""
        trainer = self._trainer
        return {
            "sae": trainer.sae,
            "optimizer": trainer.optimizer,
            "lr_scheduler": trainer.lr_scheduler,
            **{f"coefficient {name}": part for name, part in trainer.coefficient_schedulers.items()},
        }


def _unexplained_share(x: Float[Tensor, "token d_in"], reconstruction: Float[Tensor, "token d_in"]) -> float:
    """Return ‖x − SAE(x)‖² / ‖x‖², each summed over a batch."""
    with torch.no_grad():
        error, total = (tensor.float().square().sum() for tensor in (x - reconstruction, x))
        return float(error / total)
