"""Fit linear probes to a teacher, its students, and forecasts of what a width still represents.

- `probe`: `probe`, one kind of label and one activation.
- `probe_run`: `probe_run`, all labels, widths and students of a run.
- `config`: `ProbeConfig`, the options of probes.
- `examples`: labelled examples, tokenized.
- `duplicates`: documents that share a text.
- `activations`: the activations of labelled examples.
- `fitting`: logistic regression on splits by document.
- `forecasts`: what a student of some width is expected to represent.
- `decodability`: ridge regression from a model's activation to the teacher's features.
- `auroc`: area under the ROC curve.
"""
