"""Load teachers, SAEs, text and labels from names, paths and objects in memory.

- `teachers`: `load_teacher`, and checks of a loaded teacher.
- `bridges`: `text_bridge`, TransformerLens's loader without what it does for images.
- `teacher_checks`: whether a teacher's logits are those of plain transformers, and its forward pass runs.
- `teacher_shells`: models of a configuration without the weights of the checkpoint.
- `context_lengths`: the longest sequence that a model reads.
- `model_names`: aliases of model names, close matches of unknown names, and the layers of a named model.
- `devices`: checks of torch devices, and copies between them.
- `saes`: `load_sae`.
- `sae_directory`: `find_saes`, the SAEs that are known for a model.
- `sae_source`: `SaeSource`, an SAE with its metadata, and the checks of every SAE.
- `sae_formats`: SAE files of the published formats, and state dicts.
- `hub`: files of the Hugging Face Hub.
- `text`: `load_text`, token sequences from files, datasets, objects in memory and SAELens stores.
- `packing`: documents packed into sequences of one length.
- `token_rows`: rows of token ids, and their padding.
- `packed_rows`: rows of token ids that hold several documents.
- `cached_activations`: activations that SAELens cached.
- `documents`: documents of files, datasets and objects in memory.
- `text_files`: plain text and JSON lines.
- `tables`: rows of table files, saved datasets and datasets of the Hub.
- `items`: what can be iterated over in memory, also only once.
- `labels`: `load_labels`, labelled text for probes.
- `learning_curves`: `load_learning_curve`, the tokens and losses of a training.
- `curve_columns`: the columns of a log that hold the loss, the tokens, the steps and the learning rate.
- `training_logs`: rows of the logs of other trainers.
- `process_memory`: freed memory stays in the process while something is computed.
- `torch_state`: one state of torch in which everything is computed.
"""
