"""Train students together, evaluate them, and resume or save the training.

- `distill`: `distill` and `distill_students`.
- `config`: `StudentSpec` and `DistillConfig`.
- `text_split`: training sequences and held-out sequences.
- `overlap`: held-out text that is part of the training text.
- `agreement`: processes that compare their inputs and end together.
- `sharding`: teacher and students sharded over processes by FSDP.
- `sweep`: students that are trained together, and their checkpoint.
- `student_state`: one student with its optimizers, running average and learning curve.
- `student_module`: students without their unembedding, and the module that is trained.
- `training_loop`: the training loop.
- `training_step`: losses, gradients and updates for one batch.
- `evaluation`: held-out losses of the averaged weights.
- `learning_rates`: a student's learning rates, and the fit of its learning curve with them.
- `student_results`: results of a sweep.
- `saved_loss`: the loss of a saved student.
- `optimization`: optimizers, and the running average of the weights.
- `losses`: `Objective`, and losses computed in chunks of tokens.
- `matching`: `Match` and hook matching.
"""
