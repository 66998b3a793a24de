"""Decide which student to train: fits to trained students, plans, pilots, and diagnoses of learning curves.

- `calibrate`: `calibrate`, linear fits of student losses to predictions.
- `diagnose`: `diagnose`, whether the width or the training limits a student.
- `plan`: `plan`, which student to train.
- `candidates`: students within limits.
- `speeds`: how fast students run.
- `pilots`: `choose_pilots` and `train_pilots`, narrow students to train before a wide one.
"""
