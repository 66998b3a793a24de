"""Load teachers, SAEs, text and labels from names, directories, files and objects in memory.

- `teachers`: `load_teacher`.
- `devices`: checks of torch devices.
- `saes`: `load_sae`.
- `sae_directory`: `find_saes`, the SAEs that are known for a model.
- `sae_state_dicts`: SAEs from state dicts.
- `text`: `load_text`, token sequences from files, datasets and tensors.
- `documents`: documents of text files and datasets.
- `labels`: `load_labels`, labelled text for probes.
"""
