"""SAELens's trainer, step by step, with a checkpoint now and then that it goes on from to the last bit."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_distill_floor.errors import InputError
from tl_distill_floor.sae_training.activations import TOKENS_A_STEP, Stream
from tl_distill_floor.storage.checkpoints import load_checkpoint, report_damage, save_checkpoint

KIND = "sae-partial"
NORM_BATCHES = 10
"""Batches whose mean norm decides by what activations are scaled; training begins with the one after them."""
COUNTERS = (
    "n_training_samples", "n_training_steps", "n_frac_active_samples", "act_freq_scores", "n_forward_passes_since_fired"
)  # fmt: skip
"""Where SAELens's trainer stands, and what it keeps of every feature."""
Progress = Callable[[int, int, str], None]
"""Called with tokens done, tokens in all, and what to say: the share of a batch's squared norm that the SAE leaves."""
Batches = Callable[[int], Stream]
"""From the number of the first to batches without end."""


class SaeTraining:
    """An SAE in training, and what must be the same when it goes on."""

    def __init__(
        self, sae: Any, identity: dict[str, Any], *, n_tokens: int, lr: float, device: str, autocast: bool
    ) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        steps = n_tokens // TOKENS_A_STEP
        config = SAETrainerConfig(
            total_training_samples=n_tokens,
            train_batch_size_samples=TOKENS_A_STEP,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=min(500, steps // 10),
            lr_decay_steps=steps // 5,
            dead_feature_window=max(10, min(1000, steps // 10)),
            device=device,
            autocast=autocast,
        )
        self.identity = identity
        self._trainer = SAETrainer(config, sae, iter(()))

    def load(self, file: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: the file is damaged, or of another training.
        """
        trainer = self._trainer
        states, _ = load_checkpoint(file, KIND, self.identity)
        with report_damage(file):
            for name, part in self._parts().items():
                part.load_state_dict(states[name])
            for name in COUNTERS:
                value = states["counters"][name]
                setattr(trainer, name, value.to(trainer.cfg.device) if isinstance(value, Tensor) else value)
            trainer.activation_scaler.scaling_factor = float(states["scaler"]["scaling_factor"])

    def save(self, file: Path) -> None:
        trainer = self._trainer
        states = {name: part.state_dict() for name, part in self._parts().items()}
        states["counters"] = {name: getattr(trainer, name) for name in COUNTERS}
        states["scaler"] = {"scaling_factor": trainer.activation_scaler.scaling_factor}
        save_checkpoint(file, KIND, states, self.identity, trainer.n_training_steps)

    def run(self, batches: Batches, file: Path, checkpoint_seconds: float, progress: Progress | None) -> None:
        """Train until all tokens were seen, and let the SAE read activations as they are.

        Raises:
            InputError: the loss is no number, every activation is 0, or a checkpoint cannot be written.
        """
        trainer = self._trainer
        sae, scaler = trainer.sae, trainer.activation_scaler
        done = NORM_BATCHES + trainer.n_training_steps if scaler.scaling_factor else 0
        with closing(batches(done)) as stream:
            if not done:
                # As the scaler's own method, which draws a bar.
                mean = torch.cat([batch.norm(dim=1) for batch in islice(stream, NORM_BATCHES)]).mean().item()
                if not mean:
                    raise InputError("every activation is 0 there; name another layer")
                scaler.scaling_factor = sae.cfg.d_in**0.5 / mean
            self._train(stream, file, checkpoint_seconds, progress)
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        trainer.set_final_sae_metadata()

    def _train(self, stream: Stream, file: Path, checkpoint_seconds: float, progress: Progress | None) -> None:
        trainer, total = self._trainer, self._trainer.cfg.total_training_samples
        started, saved, begun = time.perf_counter(), time.perf_counter(), trainer.n_training_samples
        while trainer.n_training_samples < total:
            trainer.maybe_reset_sparsity()
            left = _unexplained(trainer.step(next(stream)))
            trainer.n_training_steps += 1
            if not math.isfinite(left):
                first = f"delete {file.name} and " if file.exists() else ""
                raise InputError(
                    f"the SAE's loss is no number at step {trainer.n_training_steps}; {first}take a smaller --lr"
                )
            now = time.perf_counter()
            if now - saved >= checkpoint_seconds or trainer.n_training_samples >= total:
                self.save(file)
                saved = time.perf_counter()
            if progress:
                rate = (trainer.n_training_samples - begun) / (now - started)
                words = f"{left:.1%} unexplained, {rate:,.0f} tokens/s"
                progress(min(trainer.n_training_samples, total), total, words)

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        trainer = self._trainer
        return {
            "sae": trainer.sae,
            "optimizer": trainer.optimizer,
            "lr_scheduler": trainer.lr_scheduler,
            **{f"coefficient {name}": part for name, part in trainer.coefficient_schedulers.items()},
        }


def _unexplained(output: Any) -> float:
    """‖x − SAE(x)‖² as a share of ‖x‖², summed over a batch."""
    with torch.no_grad():
        missed, seen = ((x.float().square().sum()) for x in (output.sae_in - output.sae_out, output.sae_in))
        return float(missed / seen)
