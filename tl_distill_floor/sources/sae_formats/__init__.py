"""Read SAE files of the published formats; each format is recognised by what its files contain.

- `weights`: `SaeWeights`, the weights of an SAE in one layout, and their checks.
- `file_names`: names of the files of weights and configurations.
- `files`: the tensors and settings of a file, with the configuration files next to it.
- `settings`: what settings say, and settings that change codes but are not understood.
- `hook_names`: hook points by the names of other libraries.
- `locations`: hook points in the names of folders and files.
- `formats`: `SaeFormat`, what a format module defines.
- `registry`: `read_weights`, which chooses the format of a file.
- `transcoders`: refusal of transcoders and cross-layer transcoders.
- `saelens`: directories and checkpoints of SAELens.
- `sparsify`: EleutherAI's sparsify.
- `dictionary_learning`: saprmarks/dictionary_learning.
- `gemma_scope`: Gemma Scope and Gemma Scope 2.
- `llama_scope`: Llama Scope and other SAEs of OpenMOSS.
- `qwen_scope`: Qwen Scope.
- `openai`: OpenAI's sparse_autoencoder.
- `goodfire`: Goodfire's SAEs of Llama 3.
- `paper`: the SAEs of Sarkar and Deka 2026.
- `neel_nanda`: SAEs with `act_size` and `dict_size` in their configuration.
- `bare`: state dicts of no published format, whose codes can mean one thing only.
- `key_map`: state dicts whose keys the user explains.
- `building`: SAELens SAEs from weights.
"""
