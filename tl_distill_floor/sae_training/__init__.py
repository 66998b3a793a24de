"""Train an SAE with SAELens's trainer, where none exists.

- `train_sae`: `train_sae`, from a teacher and a text to a SAELens directory.
- `config`: `SaeTrainingConfig`, the settings of a training.
- `sae_trainer`: SAELens's trainer, step by step, with checkpoints.
- `activations`: shuffled activations to train on.
"""
