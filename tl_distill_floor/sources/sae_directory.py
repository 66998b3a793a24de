"""Which SAEs are known for a model: SAELens's directory, the paper's own, and the embedded one. Needs no network."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.teachers import TINY_PROSE, official_name

PAPER_MODEL = "EleutherAI/pythia-410m"
PAPER_REPOSITORIES = (  # Sarkar and Deka 2026, arXiv 2604.04037: 32,768 features at each of 24 layers
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-adaptive",
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-3e-4-fixed",
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-8e-5-fixed",
)
EMBEDDED_SAE, EMBEDDED_HOOK = f"{TINY_PROSE}-sae", "blocks.1.hook_resid_post"
REFUSED = {
    "transcoder": "it reads one hook point and writes another, so its features do not add up to one activation",
    "temporal": "its codes depend on the earlier tokens of a sequence",
    "batchtopk": "its codes depend on the other tokens of a batch: load it with sae_lens.TrainingSAE.load_from_disk, "
    "write its inference form with sae.save_inference_model(path) and give that path",
}
_UNFOLDED = "it is not folded into the weights, so first call sae.fold_activation_"
_VARYING = "the size of a feature then changes with every token, so give an SAE trained without it"
NORMALISED = {
    "expected_average_only_in": f"{_UNFOLDED}norm_scaling_factor(scaling_factor)",
    "covariance_whitening": f"{_UNFOLDED}whitening(mean, whitening, unwhitening)",
    "layer_norm": _VARYING,
    "constant_norm_rescale": _VARYING,
}
_HOOK_IN_ID = re.compile(r"^blocks\.(\d+)\.(?:attn\.)?(hook_(?:resid_(?:pre|mid|post)|mlp_out|attn_out|z))")
_LAYER_IN_ID = re.compile(r"layer_?(\d+)|^l(\d+)[arm]_|^blocks\.(\d+)\.")
_HOOK_BY_PATH = {  # as SAELens's own loaders read the repositories whose ids name no hook
    r"resid_post|-res/|SAE-Res-|SAE-l\d+|L\d+R(?:-|$)": "hook_resid_post",
    r"mlp_out|-mlp/|L\d+M-": "hook_mlp_out",
    r"attn_out|-att/": "attn.hook_z",
    r"L\d+A-": "hook_attn_out",
}


@dataclass(frozen=True)
class SaeEntry:
    """One SAE that can be had for a model."""

    spec: str
    """What `load_sae` and `--sae` take."""
    layer: int | None
    hook_name: str | None
    expected_l0: float | None
    """Active features per token."""
    neuronpedia_id: str | None


def find_saes(model_name: str, layer: int | None = None) -> list[SaeEntry]:
    """The SAEs known for a model (any of its names), by layer; what would be refused is left out. Needs no network."""
    name = _last_name(model_name)
    entries = {_last_name(PAPER_MODEL): _paper_entries, TINY_PROSE: _embedded_entry}.get(name, list)()
    for release, lookup in sae_directory().items():
        if _last_name(lookup.model) == name:
            usable = (sae_id for sae_id in lookup.saes_map if why_not(release, lookup, sae_id) is None)
            entries += [entry_of(release, lookup, sae_id) for sae_id in usable]
    entries = [entry for entry in entries if layer in (None, entry.layer)]
    # SAEs of the residual stream come first at each layer
    return sorted(entries, key=lambda e: (e.layer is None, e.layer or 0, "resid" not in (e.hook_name or "")))


def sae_directory() -> Mapping[str, Any]:
    """SAELens's releases by name; read from a file of its package."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return dict(get_pretrained_saes_directory())


def _last_name(model_name: str) -> str:
    """One name for all of a model's names: the last part of the official one, in lower case."""
    return official_name(model_name).rstrip("/").rpartition("/")[2].lower()


def _embedded_entry() -> list[SaeEntry]:
    return [SaeEntry(EMBEDDED_SAE, layer_in(EMBEDDED_HOOK), EMBEDDED_HOOK, None, None)]


def _paper_entries() -> list[SaeEntry]:
    return [
        SaeEntry(f"{repository}:sae_layer{layer:02d}_final.pt", layer, f"blocks.{layer}.hook_resid_post", None, None)
        for layer in range(24)
        for repository in PAPER_REPOSITORIES
    ]


def entry_of(release: str, lookup: Any, sae_id: str) -> SaeEntry:
    layer, hook_name = layer_in(sae_id), _hook_of(lookup, sae_id)
    expected_l0 = float(lookup.expected_l0.get(sae_id) or 0) or None  # SAELens fills in 0.0 for what it does not know
    return SaeEntry(f"{release}:{sae_id}", layer, hook_name, expected_l0, lookup.neuronpedia_id.get(sae_id))


def layer_in(sae_id: str) -> int | None:
    found = _LAYER_IN_ID.search(sae_id)
    return None if found is None else int(found[found.lastindex or 0])


def _hook_of(lookup: Any, sae_id: str) -> str | None:
    if named := _HOOK_IN_ID.match(sae_id):
        return f"blocks.{named[1]}.{named[2].replace('hook_z', 'attn.hook_z')}"
    layer, path = layer_in(sae_id), f"{lookup.repo_id}/{lookup.saes_map[sae_id]}"
    hook = next((hook for pattern, hook in _HOOK_BY_PATH.items() if re.search(pattern, path)), None)
    return None if layer is None or hook is None else f"blocks.{layer}.{hook}"


def why_not(release: str, lookup: Any, sae_id: str) -> str | None:
    """Why an SAE of the directory is refused, as far as the directory lets one know."""
    kind = re.search(r"transcoder|temporal|clt", f"{lookup.conversion_func} {release}/{lookup.saes_map[sae_id]}")
    if kind is not None:
        name = kind[0].replace("clt", "transcoder")
        return f"is a {name} SAE, and {REFUSED[name]}"
    normalised = NORMALISED.get((lookup.config_overrides or {}).get("normalize_activations", "none"))
    return None if normalised is None else f"normalises activations at run time: {normalised}"


def only_sae(model_name: str | None, layer: int | None) -> str:
    if model_name is None:
        raise InputError("nothing says which SAE to load: give one with --sae, or the name of a model and a layer")
    entries, at = find_saes(model_name, layer), "" if layer is None else f" at layer {layer}"
    if not entries:
        train = f"tl-floor train-sae {model_name} --layer {'L' if layer is None else layer}"
        raise InputError(f"no SAE is known for {model_name}{at}: train one with {train}, or give one with --sae")
    if layer is not None and entries[0].spec.startswith(PAPER_REPOSITORIES[0]):
        return entries[0].spec
    return only_one([entry.spec for entry in entries], f"{model_name}{at}", layer, model_name)


def only_one(specs: Sequence[str], holder: str, layer: int | None, model_name: str = "MODEL") -> str:
    if len(specs) == 1:
        return specs[0]
    advice = "give one of them with --sae" + (" or a layer with --layer" if layer is None else "")
    more = f" and {len(specs) - 12} more: tl-floor saes {model_name}" if len(specs) > 12 else ""
    raise InputError(f"{holder} has {len(specs)} SAEs, {advice}: {', '.join(specs[:12])}{more}")
