"""Fit linear probes to a teacher, its students, and forecasts of what a width still represents.

- `probe`: `probe`, one kind of label and one activation.
- `probe_run`: `probe_run`, all labels, widths and students of a run.
- `sparse_probe`: `sparse_probe`, the SAE features that concepts rest on, and the widths that lose them.
- `run_inputs`: the teacher, the SAE, the examples and the students that probes of a run share.
- `config`: `ProbeConfig` and `SparseProbeConfig`, the options of probes.
- `examples`: labelled examples, tokenized.
- `duplicates`: documents that share a text.
- `activations`: the activations of labelled examples.
- `fitting`: logistic regression on splits by document, and the area under the ROC curve.
- `forecasts`: what a student of some width is expected to represent.
- `decodability`: ridge regression from a model's activation to the teacher's features.
- `concepts`: one class of a label against all others, and the features that its probes read.
- `sparse_codes`: the SAE's codes of labelled examples, as sparse matrices.
- `sparse_selection`: features that are selected on training documents, or at random.
- `sparse_fitting`: the k-sparse probes of one concept on all splits, with their controls.
"""
