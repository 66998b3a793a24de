"""Build and train students, and compare their losses with the predicted floors.

Each subpackage may import the ones before it; `planning` and `hf_trainer` do not import each other.

- `students`: narrower models of the teacher's family, their initial weights and their files.
- `training`: training of several students together, losses, evaluation and checkpoints.
- `hf_trainer`: training of one student by the Trainer of Hugging Face.
- `planning`: which student to train, and what limits a trained one.
"""
