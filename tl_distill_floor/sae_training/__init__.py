"""Train an SAE with SAELens's trainer.

- `train_sae`: `train_sae`, from a teacher and a text to a SAELens directory.
- `trainer`: SAELens's trainer, step by step, with checkpoints.
- `activations`: shuffled activations to train on.
"""
