"""SAEs with `act_size` and `dict_size` in their configuration (Neel Nanda; Kissane et al. 2024; Bussmann et al. 2024).

`25.pt` with `25_cfg.json`, or `sae.pt` with `config.json`: codes = relu((x - b_dec) @ W_enc + b_enc), for
`sae_type` topk the k largest of them; reconstruction = codes @ W_dec + b_dec. For `sae_type` jumprelu b_dec is not
subtracted.
"""

from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile, shapes_of
from tl_distill_floor.sources.sae_formats.formats import SaeFormat
from tl_distill_floor.sources.sae_formats.hook_names import hook_name_at
from tl_distill_floor.sources.sae_formats.settings import stated_metadata
from tl_distill_floor.sources.sae_formats.weights import SaeWeights, full_precision, make_weights

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}
"""Names of the tensors."""
_LOG_THRESHOLD = "jumprelu.log_threshold"
"""Name of the logarithm of the threshold."""


def _recognises(file: SaeFile) -> bool:
    return file.config_with("act_size", "dict_size") is not None


def _read(file: SaeFile) -> SaeWeights:
    config = file.config_with("act_size", "dict_size") or {}
    kind = str(config.get("sae_type", "vanilla")).lower()
    if kind not in ("vanilla", "relu", "topk", "jumprelu"):
        raise InputError(
            f"{file.name} has sae_type={kind!r:.40}, which cannot encode a single token as trained; give another SAE"
        )
    expected = _TENSORS | ({_LOG_THRESHOLD} if kind == "jumprelu" else set())
    if file.names != expected:
        raise InputError(f"{file.name} holds ({shapes_of(file.tensors)}), expected {', '.join(sorted(expected))}")
    k = config.get("top_k") if kind == "topk" else None
    if kind == "topk" and k is None:
        raise InputError(f"{file.name} has sae_type=topk, but no top_k; add top_k to its configuration")
    tensors = file.tensors
    return make_weights(
        file.name,
        tensors["W_enc"],
        tensors["W_dec"],
        tensors["b_enc"],
        tensors["b_dec"],
        subtract_b_dec=kind != "jumprelu",
        threshold=full_precision(tensors[_LOG_THRESHOLD]).exp() if kind == "jumprelu" else None,
        k=k,
        metadata=_metadata(file, config),
    )


def _metadata(file: SaeFile, config: dict[str, Any]) -> dict[str, Any]:
    metadata = stated_metadata(file)
    site, layer = config.get("site"), config.get("layer")
    if "hook_name" not in metadata and isinstance(site, str) and isinstance(layer, int):
        named = hook_name_at(site, layer)
        metadata |= {} if named is None else {"hook_name": named}
    return metadata


FORMAT = SaeFormat("neel-nanda", _recognises, _read)
