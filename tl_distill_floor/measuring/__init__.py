"""Measure an SAE's features on a teacher's activations.

- `measurement`: `measure`, one pass over the text.
- `job`: what is measured: a teacher, SAEs and a text that belong together.
- `token_stream`: a text as batches of token sequences.
- `activation_batch`: activations of one batch.
- `batch_sums`: sums over one batch.
- `encoding`: an SAE's codes of activations.
- `costs`: what a feature is worth: energy, fisher, ablation.
- `hooks`: activations and gradients at hook points.
- `rerun`: a teacher run again from a hook point on.
- `removal`: losses when features are removed or replaced.
- `kl`: the KL divergence of two distributions, from logits.
- `strongest_contexts`: what each feature fires on, and which tokens it promotes.
- `processes`: several processes that read one text.
- `sparse_rows`: torch's compressed sparse rows.
"""
