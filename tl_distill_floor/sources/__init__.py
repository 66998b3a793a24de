"""Load teachers, SAEs, text and labels from names, paths and objects in memory.

- `teachers`: `load_teacher`, and checks of a loaded teacher.
- `model_names`: aliases of model names, close matches of unknown names, and the layers of a named model.
- `devices`: checks of torch devices.
- `saes`: `load_sae`.
- `sae_directory`: `find_saes`, the SAEs that are known for a model.
- `sae_state_dicts`: SAEs from state dicts.
- `hub`: files of the Hugging Face Hub.
- `text`: `load_text`, token sequences from files, datasets, token ids and SAELens stores.
- `cached_activations`: activations that SAELens cached.
- `documents`: documents of text files and datasets.
- `labels`: `load_labels`, labelled text for probes.
"""
