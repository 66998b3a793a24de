"""`DistillationTrainer`: the Trainer of Hugging Face, with the students, losses and hook matching of this package."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import CONFIG_NAME

from tl_distill_floor.annotations import Dtype, StudentStart
from tl_distill_floor.distilling.hf_trainer.collator import Collator, DistillationCollator, following_tokens
from tl_distill_floor.distilling.hf_trainer.frozen_teacher import FrozenTeacher, TrainerTeacher
from tl_distill_floor.distilling.hf_trainer.full_evaluation import FullEvaluationTrainer
from tl_distill_floor.distilling.hf_trainer.hook_matching import (
    HOOK_MATCHING,
    HookMatching,
    add_hook_matching,
    matching_targets,
)
from tl_distill_floor.distilling.hf_trainer.sequence_limits import sequence_limits
from tl_distill_floor.distilling.hf_trainer.trainer_checks import (
    check_arguments,
    check_dataset,
    check_student,
    check_tokenizers,
    checked_logit_map,
)
from tl_distill_floor.distilling.hf_trainer.trainer_rows import LOSS_MASKS, padding_of
from tl_distill_floor.distilling.hf_trainer.unembedding_loss import UnembeddingLoss, loss_at_unembedding
from tl_distill_floor.distilling.training.losses import NO_LABEL, Objective, chunked_losses, summed_forward_kl
from tl_distill_floor.distilling.training.matching import KeptReconstruction, Match, matching_target
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.logit_map import LazyLogits, LogitMap
from tl_distill_floor.sources.packed_rows import PACKING_COLUMNS

TrainerDataset: TypeAlias = Dataset[Any] | datasets.Dataset | datasets.IterableDataset | Sequence[Mapping[str, Any]]
"""Rows with `input_ids` and, if need be, `attention_mask` and `labels`."""


class DistillationTrainer(FullEvaluationTrainer):
    """A `transformers.Trainer` whose loss is a divergence of a student from its teacher.

    All else is as in the Trainer: its arguments, FSDP, DeepSpeed, loggers, callbacks, checkpoints, resuming, the Hub.
    The student is a plain `transformers` model. The teacher is neither trained nor saved. Every process has the
    complete teacher.

    A position is counted if its next token has a label that is not -100 and is not padding. Losses are summed over
    these positions and divided by their number in all parts of a batch and in all processes. The training loss is
    logged as `loss`. `eval_loss` is KL(teacher ‖ student) at temperature 1, whatever the objective, in nats per counted
    position of the full evaluation data set. Each logged line has the tokens seen so far, without padding, as
    `num_input_tokens_seen`.

    `distill_students` is faster for several students of one teacher, as it runs the teacher once for all.

    Args:
        model: the student, a `transformers` causal language model with the teacher's vocabulary; None to build one of
            `width`.
        args: the Trainer's arguments.
        teacher: see `load_teacher`; or a `transformers` causal language model.
        width: width (d_model) of a student that is built, dimensions; see `build_student`.
        depth: number of layers of a student that is built; the teacher's if None.
        start: initial weights of a student that is built. Its random weights have the seed `args.seed`.
        objective: training loss of every position; KL(teacher ‖ student) if None.
        match: layer of the student that is matched with a hook point of the teacher; None for no hook matching. If the
            teacher is a `transformers` model, its hook point must be the residual stream between two layers.
        target: part of the teacher's activation that is matched; all of it if None.
        teacher_dtype: precision of a teacher that is loaded by name.
        train_dataset: rows of `input_ids`. Rows without an `attention_mask` lose padding with the pad token of the
            tokenizer at their ends; a data set is refused if it is not clear which tokens are padding.
        eval_dataset: rows of `input_ids`, or several data sets by their names.
        data_collator: makes batches of rows; pads them if None. `DistillationCollator` prepares its batches.
        processing_class: tokenizer that is saved with the student; the teacher's if None.
        model_init: returns the student, for a hyperparameter search; then give neither `model` nor `width`.
        compute_metrics: see the Trainer.
        callbacks: see the Trainer.
        optimizers: see the Trainer.
        optimizer_cls_and_kwargs: see the Trainer.
        preprocess_logits_for_metrics: see the Trainer.

    Raises:
        InputError: there is no teacher, student and teacher have different vocabularies or tokenizers, one of them is
            not causal, the student cannot be built, a saved one would be loaded as another model, an argument has no
            effect on or does not work with a distillation loss, or it is not clear how a data set is padded.

    Example:
        >>> trainer = DistillationTrainer(  # doctest: +SKIP
        ...     teacher="tiny-prose", width=64, args=TrainingArguments("student"), train_dataset=dataset
        ... )
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.save_model()  # doctest: +SKIP

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: TrainingArguments | None = None,
        *,
        teacher: TrainerTeacher | None = None,
        width: int | None = None,
        depth: int | None = None,
        start: StudentStart = "svd",
        objective: Objective | None = None,
        match: Match | None = None,
        target: KeptReconstruction | None = None,
        teacher_dtype: Dtype = "fp32",
        train_dataset: TrainerDataset | None = None,
        eval_dataset: TrainerDataset | dict[str, TrainerDataset] | None = None,
        data_collator: Collator | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        args = args or TrainingArguments("tmp_trainer")
        check_arguments(args, [model is not None, width is not None, model_init is not None], depth, width)
        check_dataset("train_dataset", train_dataset, args)
        check_dataset("eval_dataset", eval_dataset, args)
        self.teacher = FrozenTeacher(teacher, args, teacher_dtype, match.teacher_hook if match else None)
        """The teacher, which is not a part of `model`."""
        check_tokenizers(self.teacher, "processing_class", processing_class)
        self.objective = objective or Objective()
        """Training loss of every position."""
        self._match, self._target, self._matching_seed = match, target, args.seed
        self._logit_map = LogitMap()
        self._evaluated = torch.zeros(2, dtype=torch.float64)
        evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        padding = padding_of([train_dataset, *evaluated], processing_class or self.teacher.tokenizer)
        reads_masks = data_collator is not None and not args.remove_unused_columns
        self._collator = DistillationCollator(self.teacher.vocabulary, data_collator, padding, reads_masks)
        self._collator.limits["teacher"] = sequence_limits(self.teacher.model)
        if width is not None:
            model = self.teacher.build_student(args, width, depth, start)
        if model is not None:
            self._prepare_student(model)
        if args.include_num_input_tokens_seen in (False, "no"):
            args.include_num_input_tokens_seen = "non_padding"  # a learning curve needs tokens
        super().__init__(
            model=model,
            args=args,
            data_collator=self._collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class or self.teacher.tokenizer,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # The Trainer then counts the labels of all parts of a batch. The collator gives the first token none.
        self.model_accepts_loss_kwargs = True

    def call_model_init(self, trial: object = None) -> PreTrainedModel:
        """Return a new student of a hyperparameter search.

        Args:
            trial: trial of the search.
        """
        student: PreTrainedModel = super().call_model_init(trial)
        self._prepare_student(student)
        return student

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns about documents and prediction targets that the collator refuses."""
        super()._set_signature_columns_if_needed()
        names = (*PACKING_COLUMNS, *LOSS_MASKS)
        self._signature_columns += [name for name in names if name not in self._signature_columns]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Tensor | tuple[Tensor, CausalLMOutput]:
        """Return the training loss of some sequences, in nats, divided by the counted positions of the full batch.

        Args:
            model: the student, as the Trainer wrapped it.
            inputs: a batch of `DistillationCollator`.
            return_outputs: whether the output of the student is returned too; it has the summed loss, and no logits.
            num_items_in_batch: counted positions of the full batch; those of `inputs` if None.
        """
        following = following_tokens(inputs["labels"])
        positions = (following != NO_LABEL).nonzero(as_tuple=True)
        teacher = self.teacher(inputs["input_ids"])

        def loss_of(hidden: Tensor, unembed: nn.Module, matched: Tensor | None) -> Tensor:
            (loss,) = chunked_losses(
                self.teacher.logits(teacher.last_hidden[positions]),
                [LazyLogits(hidden[positions], unembed, self._logit_map)],
                following[positions],
                self.objective,
            )
            if matched is None or teacher.matched is None:
                return loss
            target = matching_target(teacher.matched, positions, self._target, self.teacher.width)
            return loss + self._matching_loss(model, matched[positions], target)

        output = self._run_student(model, inputs["input_ids"], loss_of, self._match.layer if self._match else None)
        n_counted = torch.as_tensor(len(positions[0]) if num_items_in_batch is None else num_items_in_batch)
        assert output.loss is not None
        loss: Tensor = output.loss / n_counted.clamp(min=1).to(output.loss)  # a batch may have no counted position
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        return (loss, output) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Add up the gradients of some sequences, and return their loss; see the Trainer.

        Args:
            model: the student, as the Trainer wrapped it.
            inputs: a batch of `DistillationCollator`.
            num_items_in_batch: counted positions of the full batch.

        Raises:
            InputError: the loss is not finite.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not loss.isfinite():  # the Trainer would log a loss of 0
            advice = self.objective.advice_on_infinity() if loss.isinf() else None
            advice = advice or f"set learning_rate to {self.args.learning_rate / 3:.2g}"
            raise InputError(
                f"training diverged at step {self.state.global_step + 1} (loss {float(loss)}, learning rate"
                f" {self._get_learning_rate():.3g}); {advice}"
            )
        return loss

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, ""], Tensor | None, Tensor | None]:
        """Return KL(teacher ‖ student) of some sequences in nats per counted position, and if need be their logits.

        Args:
            model: the student, as the Trainer wrapped it.
            inputs: a batch of `DistillationCollator`.
            prediction_loss_only: whether only the loss is needed.
            ignore_keys: not used.

        Returns:
            (loss, logits, labels).
        """
        inputs = self._prepare_inputs(inputs)
        ids, labels = inputs["input_ids"], inputs["labels"]
        counted = following_tokens(labels) != NO_LABEL
        last_hidden = self.teacher(ids).last_hidden

        def kl_of(hidden: Tensor, unembed: nn.Module, _matched: Tensor | None) -> Tensor:
            """Return the KL of each sequence, so that sequences that a process repeats can be dropped."""
            sums = [
                summed_forward_kl(
                    self.teacher.logits(last_hidden[row][mask]),
                    [LazyLogits(hidden[row][mask], unembed, self._logit_map)],
                )
                for row, mask in enumerate(counted)
            ]
            return torch.cat(sums).float().to(hidden.device)

        kl = self._run_student(model, ids, kl_of).loss
        sums = torch.stack([kl, counted.sum(1).to(kl)], dim=1)
        self._evaluated += self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()
        loss = kl.sum() / counted.sum().clamp(min=1)
        if prediction_loss_only:
            return loss, None, None
        return loss, model(input_ids=ids, use_cache=False).logits, labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate the student on a data set; see the Trainer. The loss is that of all counted positions together.

        Args:
            dataloader: batches of the data set.
            description: what the Trainer logs.
            prediction_loss_only: whether only the loss is needed.
            ignore_keys: not used.
            metric_key_prefix: prefix of the names of metrics.

        Raises:
            InputError: no position of the data set is counted.
        """
        self._evaluated.zero_()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        summed, n_counted = self._evaluated.tolist()
        if not n_counted:
            raise InputError(
                "no position of the evaluation data set is counted, because it has only padding or labels of"
                f" {NO_LABEL}; give other data"
            )
        # Rounding can make a KL slightly negative.
        output.metrics[f"{metric_key_prefix}_loss"] = max(summed / n_counted, 0.0)
        return output

    def _run_student(
        self, model: nn.Module, ids: Int[Tensor, "batch position"], loss: UnembeddingLoss, layer: int | None = None
    ) -> CausalLMOutput:
        """Run the student up to its unembedding, and compute a loss there."""
        with loss_at_unembedding(self.accelerator.unwrap_model(model), loss, layer):
            output: CausalLMOutput = model(input_ids=ids, use_cache=False)
        return output

    def _matching_loss(
        self, model: nn.Module, student: Float[Tensor, "token width"], target: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, ""]:
        """Return the loss of hook matching at the current step, summed over the tokens, in nats."""
        assert self._match is not None
        weight = self._match.weight_at(self.state.global_step / max(self.state.max_steps, 1))
        distance: Tensor = self._matching(model)(student, target, self.accelerator)
        return weight * distance

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the parts of a full batch and their counted positions, and measure the targets of hook matching.

        Args:
            epoch_iterator: the parts of an epoch.
            num_batches: how many parts a full batch has.
            device: device of the number of counted positions.
        """
        parts, n_counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._match is not None and parts and not (matching := self._matching(self.model)).variance:
            batches = map(self._prepare_inputs, parts)
            matching.measure_variance(matching_targets(self.teacher, self._target, batches), self.accelerator)
        return parts, n_counted

    def _prepare_student(self, student: PreTrainedModel) -> None:
        """Check the student, measure what it does to its logits, and add what hook matching learns."""
        check_student(student, self.teacher, self._match)
        self._collator.limits["student"] = sequence_limits(student)
        self._logit_map = checked_logit_map(student, self.teacher.vocabulary, self._match)
        if self._match is not None:
            add_hook_matching(student, self.teacher.width, self._matching_seed)

    def _matching(self, model: nn.Module) -> HookMatching:
        matching: HookMatching = getattr(self.accelerator.unwrap_model(model), HOOK_MATCHING)
        return matching

    def _save(self, output_dir: str | Path | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the student, and in a file of its own what hook matching learned; FSDP and DeepSpeed save it already."""
        super()._save(output_dir, state_dict)
        if self._match is not None and self.args.should_save and state_dict is None:
            self._matching(self.model).save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str | Path, model: nn.Module | None = None) -> None:
        """Load the student, and what hook matching learned.

        The Trainer loads weights by their names in the file, which are not those of the model for some families, such
        as GPT-NeoX. So `from_pretrained` loads a student that is not sharded.
        """
        student = self.accelerator.unwrap_model(model or self.model)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if is_sharded or not (Path(resume_from_checkpoint) / CONFIG_NAME).is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(student).from_pretrained(resume_from_checkpoint, dtype=student.dtype)
        student.load_state_dict(saved.state_dict(), strict=False)
        if self._match is not None:
            self._matching(student).load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the student of the best checkpoint; see `_load_from_checkpoint`."""
        super()._load_best_model()
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
