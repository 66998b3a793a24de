"""Decide which student to train: fits to trained students, plans, pilots, and diagnoses of learning curves.

- `calibrate`: `calibrate`, linear fits of student losses to predictions.
- `diagnose`: `diagnose`, whether the width or the training limits a student.
- `plan`: `plan`, which student to train.
- `candidates`: students within limits.
- `speeds`: how fast students run.
- `pilots`: narrow students to train before a wide one.
- `pilot_training`: `train_pilots`, which trains them and calibrates the run.
"""
