"""Fit linear probes to a teacher, its students, and forecasts of what a width keeps.

- `probe`: `probe`, one label on one activation.
- `probe_run`: `probe_run`, all labels, widths and students of a run.
- `items`: which tokens of labelled text carry which label.
- `decodability`: how well a feature's activation can be decoded from a student.
"""
