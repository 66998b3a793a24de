"""Build students, train them, and compare their losses with the prediction.

- `distill`: `distill` and `distill_students`.
- `config`: `StudentSpec` and `DistillConfig`.
- `build`: `build_student`, a narrower model of the teacher's family.
- `trainer`: the training of several students on one teacher pass.
- `optimization`: optimisers and the running average of the weights.
- `losses`: `Objective`, and losses computed in chunks of tokens.
- `matching`: `Match`, a loss on hidden states.
- `forward`: forward passes that end before the unembedding.
- `layers`: which layer of a student corresponds to a layer of its teacher.
- `texts`: the training text and the held-out text.
- `save`: students as Hugging Face checkpoints.
- `calibrate`: `calibrate`, predictions fitted to students.
- `plan`: `plan`, which student to train.
"""
