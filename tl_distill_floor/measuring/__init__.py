"""Measure an SAE's features on a teacher's activations.

- `plausibility`: whether an SAE fits the activations that it reads.
- `measurement`: `measure`, one pass over the text.
- `config`: `MeasureConfig`, the options of a measurement; `LoadConfig`, how its teacher is loaded.
- `job`: what is measured: a teacher, SAEs and a text that belong together.
- `token_stream`: a text as batches of token sequences.
- `activation_batch`: activations of the counted tokens of one batch.
- `encoding`: SAE codes of activations.
- `passes`: forward and backward passes of the teacher over a batch.
- `costs`: the cost of removing a feature: energy, fisher, ablation.
- `sampling`: outputs sampled from the teacher.
- `batch_sums`: sums over one batch.
- `module_outputs`: the hook point that holds what a module of a `transformers` model returns.
- `causality`: whether a model predicts each token from those before it.
- `hooks`: names of hook points, and activations there.
- `replacement`: other activations at hook points, and gradients with respect to activations.
- `rerun`: a second run of a teacher with another activation at a hook point.
- `removal`: losses when features are removed or replaced.
- `logit_map`: what a model does to its logits after the unembedding.
- `teacher_backbone`: a teacher without its unembedding.
- `kl`: KL divergences between distributions over a vocabulary.
- `strongest_contexts`: what each feature fires on.
- `direct_logits`: which tokens a feature promotes.
- `processing`: whether a teacher is processed as that of the SAE's training.
- `fingerprints`: whether a teacher computes what the measured one does.
- `reloading`: the teacher and the SAE of a measurement, loaded again.
- `processes`: several processes that read one text.
"""
