"""Build and train students, and compare their losses with the predicted floors.

- `distill`: `distill` and `distill_students`.
- `config`: `StudentSpec` and `DistillConfig`.
- `build`: `build_student`, a narrower model of the teacher's family.
- `student_config`: Hugging Face configurations of students.
- `inherited_weights`: initial weights from the teacher.
- `text_split`: training sequences and held-out sequences.
- `sweep`: students that are trained together.
- `student_state`: one student with its optimizers, running average and learning curve.
- `student_module`: the module that is trained.
- `trainer`: the training loop.
- `training_step`: losses, gradients and updates for one batch.
- `evaluation`: held-out losses of the averaged weights.
- `sweep_checkpoint`: interrupted sweeps.
- `student_results`: results of a sweep.
- `save`: students as Hugging Face checkpoints.
- `optimization`: optimizers, and the running average of the weights.
- `losses`: `Objective`, and losses computed in chunks of tokens.
- `matching`: `Match` and hook matching.
- `forward`: models without their unembedding.
- `layers`: corresponding layers of teacher and student.
- `calibrate`: `calibrate`, linear fits of student losses to predictions.
- `plan`: `plan`, which student to train.
"""
