"""Train a student with the Trainer of Hugging Face.

- `distillation_trainer`: `DistillationTrainer`, the Trainer of Hugging Face with this package's losses.
- `full_evaluation`: a Trainer that evaluates every row of its data sets, on which it is built.
- `trainer_checks`: checks of what it is given.
- `collator`: its batches.
- `trainer_rows`: rows of its data sets.
- `sequence_limits`: how long its rows may be.
- `frozen_teacher`: its teacher.
- `unembedding_loss`: losses that are computed in a student's forward pass.
- `hook_matching`: hook matching in a Trainer.
"""
