"""Hook points by the names of TransformerLens, Hugging Face modules and dictionary_learning."""

import re

MODULE_NAME = "hf_module_name"
"""Key of an SAE's metadata for the Hugging Face module whose output it reads, if a file names one."""
_TRANSFORMER_LENS = re.compile(r"(?:blocks\.\d+\.[\w.]*hook_\w+|hook_(?:embed|pos_embed)|ln_final\.hook_\w+)")
"""Hook points of TransformerLens."""
_MODULE = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.(.+))?")
"""Modules of a layer in Hugging Face models."""
_BY_MODULE = {
    "": "hook_resid_post",
    "output": "hook_resid_post",
    "input": "hook_resid_pre",
    "mlp": "hook_mlp_out",
    "mlp.output": "hook_mlp_out",
    "feed_forward": "hook_mlp_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "self_attn.output": "hook_attn_out",
    "self_attn.o_proj.input": "attn.hook_z",
}
"""Hook point of a block by the module of Hugging Face whose output it is."""
_BY_SITE = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "resid_out": "hook_resid_post",
    "residual": "hook_resid_post",
    "resid": "hook_resid_post",
    "res": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "mlp": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
    "post": "mlp.hook_post",
}
"""Hook point of a block by the short name of a site."""


def hook_name_of(name: str) -> str | None:
    """Return the TransformerLens name of a hook point; None if the name is not understood.

    Args:
        name: a TransformerLens hook point, or a Hugging Face module such as layers.12.mlp (its output), also written as
            layers[12].mlp.
    """
    name = dotted(name)
    if _TRANSFORMER_LENS.fullmatch(name):
        return name
    if name in ("embed_tokens", "model.embed_tokens", "gpt_neox.embed_in", "transformer.wte"):
        return "hook_embed"
    match = _MODULE.fullmatch(name)
    hook = None if match is None else _BY_MODULE.get(match[2] or "")
    return None if match is None or hook is None else f"blocks.{int(match[1])}.{hook}"


def dotted(module: str) -> str:
    """Return the name of a module with dots alone.

    Example:
        >>> dotted("model.layers[3].mlp")
        'model.layers.3.mlp'
    """
    return re.sub(r"\[(\d+)\]", r".\1", module)


def hook_name_at(site: str, layer: int) -> str | None:
    """Return the hook point of a site such as resid_post at a layer; None if the site is not understood."""
    hook = _BY_SITE.get(site.lower().removeprefix("hook_"))
    return None if hook is None else f"blocks.{layer}.{hook}"
